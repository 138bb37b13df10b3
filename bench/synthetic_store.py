"""Writes a synthetic record store of any size that resembles the paper's, fast.

Questions are GSM8K's own training questions; a rationale is a run of words of
its solutions that ends in the right answer and is exactly as many T5 tokens
long as asked; teacher tokens are p50k_base's, each with five candidates drawn
from the corpus, all of a probability above 0. A step is drawn from variants
that are written once, the more of them the commoner its token, so that what
costs time is the copying of bytes.
"""

import json
import os
import pathlib
import re
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

from testdata import real_files  # noqa: E402 (the tests' own real data)

from specialize_jax.data import benchmarks, splits  # noqa: E402
from specialize_jax.records import schema, store  # noqa: E402

_NUM_VARIANTS = 400_000
_WRITTEN_TOGETHER = 500


def write(directory, *, num_samples, target_tokens, seed=0):
  """Writes a store of correct samples, unless the same one exists.

  Args:
    directory: output directory, created if missing.
    num_samples: number of records, evenly over all training questions.
    target_tokens: T5 tokens of each rationale, EOS not among them.
    seed: determines the store.

  Returns:
    The directory.
  """
  directory = pathlib.Path(directory)
  made = directory / "made.json"
  wanted = {
    "num_samples": num_samples,
    "target_tokens": target_tokens,
    "seed": seed,
  }
  if made.exists() and json.loads(made.read_text()) == wanted:
    return str(directory)
  directory.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  path = str(real_files.find("gsm8k", "train.jsonl"))
  questions = benchmarks.read_gsm8k(path, "train")
  _, asked = splits.split_validation(questions)
  words = _Words([one.rationale for one in questions])
  steps = _Steps(words.tokens, rng)
  with open(directory / store.FILE_NAME, "wb") as stream:
    for first in range(0, num_samples, _WRITTEN_TOGETHER):
      numbers = range(first, min(first + _WRITTEN_TOGETHER, num_samples))
      stream.write(
        b"".join(
          _line(
            asked[number % len(asked)],
            number // len(asked),
            words.draw(asked[number % len(asked)].answer, target_tokens, rng),
            steps,
          )
          for number in numbers
        )
      )
    stream.flush()
    os.fsync(stream.fileno())
  made.write_text(json.dumps(wanted))
  return str(directory)


class _Words:
  """The corpus as one run of words, each with its teacher's tokens."""

  def __init__(self, rationales):
    text = " ".join(one.rpartition("\n")[0] for one in rationales)
    self._student = real_files.t5()
    self.words = [
      word for word in re.findall(r"\s+\S+", " " + text) if word.isascii()
    ]
    tokens = [real_files.p50k(word) for word in self.words]
    self._sizes = {}
    sizes = [self._size(word) for word in self.words]
    self._student_ends = np.cumsum([0, *sizes])
    self._token_ends = np.cumsum([0, *map(len, tokens)])
    self.tokens = [token.decode() for some in tokens for token in some]

  def _size(self, word):
    """Returns the number of T5 tokens of a word; none crosses a space."""
    word = word.strip()
    if word not in self._sizes:
      self._sizes[word] = len(self._student.encode(word)[0])
    return self._sizes[word]

  def draw(self, answer, target_tokens, rng):
    """Draws the tokens of a rationale: a run of the corpus, and its end."""
    end = f" The answer is {answer}."
    room = target_tokens - sum(self._size(word) for word in end.split())
    last = int(
      np.searchsorted(self._student_ends, self._student_ends[-1] - room)
    )
    first = int(rng.integers(last))
    start = self._student_ends[first]
    stop = (
      int(np.searchsorted(self._student_ends, start + room, side="right")) - 1
    )
    missing = room - int(self._student_ends[stop] - start)
    tokens = self.tokens[self._token_ends[first] : self._token_ends[stop]]
    # The first token of a rationale opens it without a space.
    tokens = [tokens[0].lstrip() or "So", *tokens[1:]] if tokens else ["So"]
    tail = [*[" so"] * missing]
    return [*tokens, *tail, *(t.decode() for t in real_files.p50k(end))]


class _Steps:
  """JSON of steps: variants of each token, written once."""

  def __init__(self, corpus, rng):
    self._rng = rng
    self._corpus = sorted(set(corpus))
    self._pool = corpus
    counts = dict.fromkeys(self._corpus, 0)
    for token in corpus:
      counts[token] += 1
    self._share = {
      token: max(4, int(_NUM_VARIANTS * count / len(corpus)))
      for token, count in counts.items()
    }
    self._variants = {}

  def several(self, tokens):
    """One step of each token, as `schema` writes them."""
    steps = []
    draws = self._rng.random(len(tokens)).tolist()
    for token, draw in zip(tokens, draws, strict=True):
      variants = self._variants.get(token)
      if variants is None:
        variants = self._variants[token] = self._write(token)
      steps.append(variants[int(draw * len(variants))])
    return ", ".join(steps)

  def _write(self, token):
    """Writes a token's variants, their probabilities made up."""
    count = self._share.get(token, 4)
    # Logits of five candidates and the tail, some steps peaked and some flat.
    scale = self._rng.uniform(1.0, 9.0, (count, 1))
    logits = self._rng.gumbel(size=(count, 6)) + scale * np.array(
      [1.0, 0.0, -0.2, -0.4, -0.6, -0.5]
    )
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    log_probs[:, 1:5] = -np.sort(-log_probs[:, 1:5], axis=1)
    others = self._rng.integers(len(self._pool), size=(count, 12))
    written = []
    for row, drawn in zip(log_probs.tolist(), others.tolist(), strict=True):
      named = dict.fromkeys([token, *(self._pool[at] for at in drawn)])
      top = list(zip(named, (round(one, 8) for one in row[:5]), strict=False))
      written.append(json.dumps({"t": token, "p": top[0][1], "top": top}))
    return written


def _line(question, sample, tokens, steps):
  """One record's line, as `schema.to_json_line` spells it."""
  drawn = steps.several(tokens)
  head = {
    "v": schema.SCHEMA_VERSION,
    "question_id": question.question_id,
    "sample": sample,
    "question": question.question,
    "gold_answer": question.answer,
    "text": "".join(tokens),
  }
  tail = {
    "finish_reason": "stop",
    "request": {"model": "made up", "temperature": 0.5, "max_tokens": 256},
    "verdicts": {"fixed": True, "paper_code": True},
  }
  return (
    f'{json.dumps(head)[:-1]}, "steps": [{drawn}], {json.dumps(tail)[1:]}\n'
  ).encode()
