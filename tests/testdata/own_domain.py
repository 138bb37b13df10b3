"""A small domain of a user's own, as files: two queues, one word each."""

import contextlib
import json
import sys

from testdata import tiny_vocabulary

YAML = """\
name: queues
vocabulary: {file: spiece.model, extra_ids: 0}
sets: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}
answer: {regex: 'queue: (?P<answer>[a-z]+)'}
out_of_distribution:
  phone: {validation: phone.jsonl, test: phone_test.jsonl}
general:
  sums: {test: sums.jsonl, answer: number}
teacher: {prompt: "Ticket: {question}\\n"}
student:
  chain_of_thought: "ticket: {question}\\nthink."
  answer_only: "ticket: {question}\\nqueue?"
  answer: "queue: {answer}"
  demonstrations: 2
"""
QUEUES = ("late", "lost")
SIZES = {"train": 24, "validation": 4, "test": 4, "phone": 4, "phone_test": 4}


@contextlib.contextmanager
def unregistered_after():
  """Unregisters the domain at the end: its folder goes, and a registered one
  never changes."""
  try:
    yield
  finally:
    seqio = sys.modules.get("seqio")
    for registry in (
      (seqio.MixtureRegistry, seqio.TaskRegistry) if seqio else ()
    ):
      for name in [one for one in registry.names() if one.startswith("queues")]:
        registry.remove(name)


def rows(name, size, **more):
  """Questions of a set, which no other set has."""
  return [
    {
      "question": f"{name} parcel {i} is {QUEUES[i % 2]}.",
      "answer": QUEUES[i % 2],
      **more,
    }
    for i in range(size)
  ]


def write_rows(path, rows_):
  """Writes rows as JSONL, and returns the file."""
  lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows_)
  path.write_text("".join(lines), encoding="utf-8")
  return path


def write(folder, yaml=YAML, **sets):
  """Writes the domain; `sets` replaces the rows of some. Returns the file."""
  for name, size in SIZES.items():
    path = folder / f"{name}.jsonl"
    write_rows(path, sets.get(name) or rows(name, size))
  sums = [{"question": "What is 1 + 1?", "answer": "2"}]
  write_rows(folder / "sums.jsonl", sums)
  if not (folder / "spiece.model").exists():
    texts = [row["question"] for name in SIZES for row in rows(name, 24)]
    texts += ["ticket: think. queue? queue: late lost 0123456789"] * 20
    (folder / "spiece.model").write_bytes(tiny_vocabulary.train(texts))
  path = folder / "queues.yaml"
  path.write_text(yaml, encoding="utf-8")
  return path
