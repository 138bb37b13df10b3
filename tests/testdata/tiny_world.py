"""A data directory of a few dozen problems, with the mini world's layout.

Its SentencePiece model is trained here, which takes a second, so that there is
no binary file in the repository. A process builds each world once.
"""

import functools
import json
import math
import pathlib
import random
import re
import shutil
import tempfile

import sentencepiece

from specialize_jax.cot import answers
from specialize_jax.records import schema

FAMILIES = ("mini_gsm", "mini_multiarith", "mini_asdiv", "mini_svamp")
GENERAL = {
  "mini_boolean_expressions": ("not True is", "False"),
  "mini_word_sorting": ("Sort the words: pen cup", "cup pen"),
  "mini_object_counting": ("I have a pen and a cup. How many?", "2"),
  "mini_navigate": ("Take 1 step left. Do you return?", "No"),
}
SIZES = {"train": 24, "validation": 6, "test": 6}
_NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn")
_THINGS = ("apples", "cups", "pens", "books")


def build(directory, seed=0):
  """Writes the tiny world to `directory`, and returns its path."""
  shutil.copytree(_built(seed).name, directory, dirs_exist_ok=True)
  return str(directory)


@functools.cache
def _built(seed):
  """Returns a temporary directory with the world of a seed."""
  made = tempfile.TemporaryDirectory(prefix="tiny_world_")
  _write_world(pathlib.Path(made.name), seed)
  return made


def _write_world(root, seed):
  rng = random.Random(seed)
  texts = []
  for family in FAMILIES:
    for split, size in SIZES.items():
      rows = [problem(rng, f"{family}/{split}/{i}") for i in range(size)]
      texts += [row["question"] + " " + row["rationale"] for row in rows]
      write(root / "mini" / family / f"{split}.jsonl", rows)
  for task, (question, answer) in GENERAL.items():
    for split, size in SIZES.items():
      rows = [
        {
          "question_id": f"{task}/{split}/{i}",
          "question": f"{question} {i}",
          "rationale": f"Let us see, {i}. The answer is {answer}.",
          "answer": answer,
        }
        for i in range(size)
      ]
      texts += [row["question"] + " " + row["rationale"] for row in rows]
      write(root / "mini" / task / f"{split}.jsonl", rows)
  for lesson in ("facts", "weak_maths", "sums", "reading"):
    rows = [_fact(i) for i in range(20)]
    write(root / f"mini/{lesson}/train.jsonl", rows)
  texts += ["Q: A: Let's think step by step", "The answer is"] * 3
  write(
    root / "mini/text/train.jsonl",
    [{"text": " ".join(rng.sample(texts, 2))} for _ in range(20)],
  )
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_prefix=str(root / "mini/student"),
    vocab_size=160,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )


def problem(rng, question_id):
  """Returns a question row."""
  name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
  a, b = rng.randrange(2, 40), rng.randrange(2, 40)
  return {
    "question_id": question_id,
    "question": f"{name} has {a} {thing} and buys {b}. How many {thing}?",
    "rationale": f"{name} has {a} + {b} = {a + b}. The answer is {a + b}.",
    "answer": str(a + b),
  }


def write(path, rows):
  """Writes rows as JSON lines, folders included."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
  """Reads rows of JSON lines."""
  return [json.loads(line) for line in pathlib.Path(path).open()]


def _fact(i):
  formats = ("zero_shot_answer_only", "zero_shot_chain_of_thought")
  return {
    "question_id": f"mini_weak_maths/train/{i}",
    "question": f"What is {i} + 1?",
    "rationale": f"{i} + 1 = {i + 1}. The answer is {i + 1}.",
    "answer": str(i + 1),
    "format": formats[i % 2],
  }


def teacher_records(root, num_questions=10):
  """Returns two right samples of each question, and what must be dropped."""
  train = read(f"{root}/mini/mini_gsm/train.jsonl")[:num_questions]
  held_out = read(f"{root}/mini/mini_gsm/validation.jsonl")[0]
  wrong = {**train[0], "rationale": "So. The answer is 1000."}
  return [
    *(record(row, sample) for row in train for sample in range(2)),
    record(wrong, 2),
    record(held_out, 0),
  ]


def record(row, sample):
  """Returns a record whose tokens are words, each with one alternative."""
  words = re.findall(r"\s*\S+", row["rationale"])
  steps = tuple(
    schema.TeacherStep(
      token=word,
      log_prob=math.log(0.8),
      top=((word, math.log(0.8)), (" pens", math.log(0.1))),
    )
    for word in words
  )
  text = "".join(words)
  verdict = answers.grade(text, row["answer"], kind="number", grader="fixed")
  return schema.TeacherRecord(
    question_id=row["question_id"],
    sample=sample,
    question=row["question"],
    gold_answer=row["answer"],
    text=text,
    steps=steps,
    finish_reason="stop",
    request={},
    verdicts={"fixed": verdict.correct},
  )


def write_records(root, directory):
  """Writes `teacher_records` as a store and gives its path."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  lines = [schema.to_json_line(one) for one in teacher_records(root)]
  (directory / "records.jsonl").write_text("\n".join(lines) + "\n")
  return str(directory)


def prepare_teacher(root):
  """Prepares the teacher's dataset of a tiny world, as `prepare` leaves it."""
  from specialize_jax.data import preparation  # imports TensorFlow

  write_records(root, f"{root}/mini/records")
  preparation.prepare(
    preparation.Preparation(
      records=f"{root}/mini/records",
      vocabulary=f"{root}/mini/student.model",
      mode="whitespace",
      data_dir=f"{root}/tfds",
      dataset_name="mini_gsm_teacher",
      read_questions=functools.partial(
        preparation.questions_of_files,
        f"{root}/mini/mini_gsm/train.jsonl",
      ),
    )
  )
