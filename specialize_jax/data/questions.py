"""Question rows, and the files that contain them.

A question row has `question_id`, `question`, `rationale` (the chain of thought
with its last sentence "The answer is X", or "" if there is none) and the bare
`answer`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.files import reading, writing

DEMONSTRATIONS = "demonstrations.jsonl"
"""A file of a teacher's dataset with correct samples, as demonstrations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A problem with its answer.

  Attributes:
    question_id: A globally unique name, such as `gsm8k/train/0`.
    question: The text of the problem.
    rationale: A chain of thought that ends with "The answer is X", or "".
    answer: The bare answer, such as "72".
  """

  question_id: str
  question: str
  rationale: str
  answer: str


def to_columns(questions: Sequence[Question]) -> Mapping[str, list[str]]:
  """Converts questions to the columns of a `sources.TableSource`."""
  names = [field.name for field in dataclasses.fields(Question)]
  return {
    name: [getattr(question, name) for question in questions] for name in names
  }


def read_json_lines(
  path: str, keys: Sequence[str]
) -> list[Mapping[str, object]]:
  """Reads a file with a JSON object on each line.

  Args:
    path: The file.
    keys: The required keys of every object.

  Raises:
    UserError: a line is not an object with these keys.
  """
  rows = []
  for number, row in reading.read_numbered_rows(path):
    missing = [key for key in keys if key not in row]
    if missing:
      raise errors.UserError(
        f"{path}, line {number}: expected a JSON object with"
        f" {', '.join(map(repr, keys))}, missing {', '.join(missing)}"
      )
    rows.append(row)
  return rows


def read_questions(path: str) -> list[Question]:
  """Reads question rows, one JSON object per line.

  Raises:
    UserError: a row lacks one of a question's four fields, or a field is not
      text.
  """
  names = [field.name for field in dataclasses.fields(Question)]
  return [
    Question(
      **{name: text_of(row, name, f"{path}, row {number}") for name in names}
    )
    for number, row in enumerate(read_json_lines(path, names), start=1)
  ]


def text_of(row: Mapping[str, object], name: str, where: str) -> str:
  """Returns a field that is a string or a number, as text.

  Raises:
    UserError: it is of another type, or not text.
  """
  value = row[name]
  is_number = isinstance(value, int) or (
    isinstance(value, float) and math.isfinite(value)
  )
  if isinstance(value, bool) or not (isinstance(value, str) or is_number):
    raise errors.UserError(
      f"{where}: {name!r} is {json.dumps(value)[:60]}; expected a string"
    )
  text = str(value)
  if writing.printable(text) != text:
    raise errors.UserError(
      f"{where}: {name!r} holds half of a surrogate pair, which is not text;"
      " correct the row"
    )
  return text


def to_demonstrations(
  questions: Sequence[Question],
) -> list[formats.Demonstration]:
  """Converts the questions that have a rationale to demonstrations."""
  return [
    formats.Demonstration(
      question=question.question,
      rationale=question.rationale,
      answer=question.answer,
    )
    for question in questions
    if question.rationale
  ]


def read_formatted(path: str) -> Mapping[str, list[str]]:
  """Reads question rows with a `format` field, the name of a zero-shot format.

  Raises:
    UserError: a row has no such name.
  """
  names = [field.name for field in dataclasses.fields(Question)] + ["format"]
  rows = read_json_lines(path, names)
  zero_shot = [f.name for f in formats.FORMATS if not f.in_context]
  for number, row in enumerate(rows, start=1):
    if row["format"] not in zero_shot:
      raise errors.UserError(
        f"{path}, row {number}: format {row['format']!r}; expected one of"
        f" {', '.join(zero_shot)}"
      )
  return {name: [str(row[name]) for row in rows] for name in names}


def read_texts(path: str) -> Mapping[str, list[str]]:
  """Reads rows of `text`, with ids that consist of file and row number."""
  rows = read_json_lines(path, ["text"])
  return {
    "text": [str(row["text"]) for row in rows],
    "question_id": [f"{_as_name(path)}/{i}" for i in range(len(rows))],
  }


def _as_name(path: str) -> str:
  """Returns mini/text/train for a/mini/text/train.jsonl."""
  return "/".join(pathlib.PurePath(path).with_suffix("").parts[-3:])
