r"""Measures the speed of alignment, and the share of tokens that it covers.

Two corpora: the 40 real records of code-davinci-002, repeated; and GSM8K's
training solutions without their calculator marks, in p50k_base's tokens, each
with a top 5 made up (the sampled token at 0.8, four tokens of the corpus).
Single process. Every round times each of these once, in turn:

  alignment_arrays   groups of both sides from numbered tokens in memory
  alignment_strings  the same from strings: teacher tokens and text in, their
                     numbering and the student's tokenization included
  pytokenizations    its get_alignments on both token lists, nothing else
  MODE_arrays        targets with the top 5 on student ids, from strings that
                     are numbered already; the student's tokenization included
  MODE_strings       the same from flat lists of strings, as a store is read:
                     their numbering included

Samples a second is the median over rounds, after one that fills the caches
(the `first` of each mode: how fast that one was); `cpu` counts the process's
own seconds, which a busy machine does not change. Long-lived test data is
frozen out of the garbage collector. Prints JSON; from the repository's root:

  python bench/align.py --output=bench_align.json
"""

import argparse
import gc
import json
import math
import operator
import os
import pathlib
import random
import re
import resource
import statistics
import sys
import time
from functools import reduce

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

from testdata import real_files  # noqa: E402 (the tests' own real data)

from specialize_jax import align  # noqa: E402
from specialize_jax.align import (  # noqa: E402
  columns,
  coverage,
  layout,
  targets,
)
from specialize_jax.files import writing  # noqa: E402

_PROBS = (0.8, 0.1, 0.05, 0.02, 0.01)


def main(argv):
  """Measures both corpora and prints one JSON object."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--num_solutions", type=int, default=7473)
  parser.add_argument("--output")
  flags = parser.parse_args(argv)
  solutions = _solutions(flags.num_solutions)
  corpora = {
    "records": _records() * 26,
    "gsm8k": _with_top(solutions["as_written"]),
  }
  gc.collect()
  gc.freeze()
  result = {name: _measure(corpus, flags) for name, corpus in corpora.items()}
  result["coverage"] = {
    "records": _coverage(corpora["records"][:40]),
    "gsm8k": _coverage(corpora["gsm8k"]),
    **{
      f"gsm8k_{name}": _coverage(_plain(texts))
      for name, texts in solutions.items()
      if name != "as_written"
    },
  }
  result["peak_rss_gib"] = (
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  )
  result["load_average"] = os.getloadavg()[0]
  print(json.dumps(result, indent=2))
  if flags.output:
    writing.write_text(flags.output, json.dumps(result, indent=2) + "\n")


def _records():
  """The 40 real records, the prompt's tail and the stop left out."""
  path = real_files.find("codex", "gsm8k_train_0.json")
  return [
    _sample(
      [
        targets.TeacherToken(
          spelling=sampled.encode(),
          log_prob=_log(prob),
          top=tuple((token.encode(), _log(value)) for token, value in top),
        )
        for (sampled, prob), *top in entry["steps"][2:-2]
      ]
    )
    for entry in json.loads(path.read_bytes())
  ]


def _solutions(count):
  """GSM8K's solutions in p50k_base's tokens, by how they are written.

  As written, a solution ends in a line such as "#### 72", which no chain of
  thought that a student reads has: its target ends "The answer is 72".
  """
  lines = real_files.find("gsm8k", "train.jsonl").read_text().splitlines()
  marked = [json.loads(line)["answer"] for line in lines[:count]]
  plain = [re.sub(r"<<.*?>>", "", text) for text in marked]
  with_words = [t.replace("\n#### ", "\nThe answer is ") for t in plain]
  steps = [text.rpartition("\n#### ")[0] for text in plain]
  encoding = _p50k_base()
  return {
    name: [
      encoding.decode_tokens_bytes(ids)
      for ids in encoding.encode_ordinary_batch(texts, num_threads=1)
    ]
    for name, texts in {
      "as_written": plain,
      "without_the_answer_line": steps,
      "ending_the_answer_is": with_words,
      "with_calculator_marks": marked,
    }.items()
  }


def _p50k_base():
  """Loads code-davinci-002's tokenizer from the file of its ranks."""
  import tiktoken
  from tiktoken import load

  ranks = load.load_tiktoken_bpe(
    str(real_files.find("tokenizers", "p50k_base.tiktoken"))
  )
  return tiktoken.Encoding(
    "p50k_base",
    pat_str=real_files.WORDS.pattern,
    mergeable_ranks=ranks,
    special_tokens={},
  )


def _with_top(solutions):
  """Adds four candidates a token, drawn from the corpus's own tokens."""
  rng = random.Random(0)
  pool = [token for tokens in solutions[:500] for token in tokens]
  log_probs = [math.log(prob) for prob in _PROBS]

  def token(sampled):
    others = dict.fromkeys(rng.sample(pool, 12))
    others.pop(sampled, None)
    spelled = [sampled, *others][: len(_PROBS)]
    return targets.TeacherToken(
      spelling=sampled,
      log_prob=log_probs[0],
      top=tuple(zip(spelled, log_probs, strict=False)),
    )

  return [_sample([token(t) for t in tokens]) for tokens in solutions]


def _plain(solutions):
  return [
    _sample(
      [targets.TeacherToken(spelling=t, log_prob=-1.0, top=()) for t in tokens]
    )
    for tokens in solutions
  ]


def _sample(tokens):
  return tokens, b"".join(token.spelling for token in tokens).decode()


def _log(prob):
  return math.log(prob) if prob > 0 else -math.inf


def _measure(corpus, flags):
  """Times every way on one corpus, interleaved."""
  ways = {
    **_alignment_ways(corpus),
    **_transfer_ways(corpus),
  }
  seconds = {name: [] for name in ways}
  for _ in range(flags.rounds + 1):
    for name, (run, count) in ways.items():
      wall, cpu = time.perf_counter(), time.process_time()
      run()
      seconds[name].append(
        (
          count / (time.perf_counter() - wall),
          count / (time.process_time() - cpu),
        )
      )
  result = {
    "samples": len(corpus),
    "teacher_tokens_a_sample": sum(len(t) for t, _ in corpus) / len(corpus),
  }
  for name, rates in seconds.items():
    result[name] = {
      "samples_per_second": round(statistics.median(w for w, _ in rates[1:])),
      "cpu": round(statistics.median(c for _, c in rates[1:])),
      "first": round(rates[0][0]),
      "first_cpu": round(rates[0][1]),
    }
  return result


def _batches(corpus):
  size = align.BATCH_SIZE
  return [corpus[at : at + size] for at in range(0, len(corpus), size)]


def _alignment_ways(corpus):
  """Alignment alone, no distribution transferred."""
  import spacy_alignments

  student = real_files.t5()
  aligner = align.Aligner(student, mode="whitespace")
  strings = [
    (
      [text for _, text in batch],
      [[token.spelling for token in tokens] for tokens, _ in batch],
    )
    for batch in _batches(corpus)
  ]
  numbered = []
  for batch in _batches(corpus):
    teacher = columns.teacher_columns(batch, aligner.table)
    places = columns.places(teacher, aligner.table, aligner.words)
    numbered.append(
      (
        teacher,
        places.visible_L,
        columns.student_columns(teacher.texts, places.whole_B, aligner.words),
      )
    )

  def arrays():
    for teacher, visible_L, student_side in numbered:
      layout.grouped(teacher, visible_L, student_side, words=aligner.words)

  def from_strings():
    for texts, spellings in strings:
      aligner.align_texts(texts, spellings)

  both = [
    (
      [t.spelling.decode("utf-8", "replace") for t in tokens],
      [p.replace("\u2581", "") for p in student.encode(text)[1]],
    )
    for tokens, text in corpus
  ]

  def pytokenizations():
    for teacher_tokens, pieces in both:
      spacy_alignments.get_alignments(teacher_tokens, pieces)

  return {
    "alignment_arrays": (arrays, len(corpus)),
    "alignment_strings": (from_strings, len(corpus)),
    "pytokenizations": (pytokenizations, len(corpus)),
  }


def _transfer_ways(corpus):
  """Alignment with the top 5 on student ids, a mode at a time."""
  student = real_files.t5()
  flat = [_flat(batch) for batch in _batches(corpus)]
  ways = {}
  for mode in align.MODES:
    aligner = align.Aligner(student, mode=mode)
    numbered = [
      columns.teacher_columns(batch, aligner.table)
      for batch in _batches(corpus)
    ]

    def arrays(aligner=aligner, numbered=numbered):
      for teacher in numbered:
        aligner.align_numbered(teacher)

    other = align.Aligner(student, mode=mode)

    def from_strings(aligner=other):
      for batch in flat:
        aligner.align_strings(**batch)

    ways |= {
      f"{mode}_arrays": (arrays, len(corpus)),
      f"{mode}_strings": (from_strings, len(corpus)),
    }
  return ways


def _flat(batch):
  """Returns a batch in the form that `Aligner.align_strings` takes."""
  tokens = [token for some, _ in batch for token in some]
  pairs = [pair for token in tokens for pair in token.top]
  return {
    "texts": [text for _, text in batch],
    "counts": np.array([len(some) for some, _ in batch]),
    "spellings": [token.spelling for token in tokens],
    "log_probs": np.array([token.log_prob for token in tokens]),
    "top_counts": np.array([len(token.top) for token in tokens]),
    "top_spellings": [spelling for spelling, _ in pairs],
    "top_log_probs": np.array([log_prob for _, log_prob in pairs]),
  }


def _coverage(corpus):
  """Coverage of a corpus by each alignment mode."""
  student = real_files.t5()
  result = {}
  for mode in align.MODES:
    aligner = align.Aligner(student, mode=mode)
    counted = reduce(
      operator.add,
      (
        coverage.Coverage.of_batch(aligner.align(batch))
        for batch in _batches(corpus)
      ),
    )
    result[mode] = {
      "one_to_one_share": counted.one_to_one / counted.positions,
      "covered": 1 - counted.one_hot / counted.positions,
      **counted.report(),
    }
  return result


if __name__ == "__main__":
  main(sys.argv[1:])
