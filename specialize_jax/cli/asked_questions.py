"""Reads a teacher's questions from a file, a benchmark or a dataset."""

from __future__ import annotations

import typing
from collections.abc import Sequence

from specialize_jax import errors
from specialize_jax.cot import answers
from specialize_jax.data import questions
from specialize_jax.files import reading
from specialize_jax.records import schema
from specialize_jax.teacher import standing

if typing.TYPE_CHECKING:
  from specialize_jax.datasets import files


def read_file(path: str) -> list[standing.Problem]:
  """Reads a JSONL file of `{"question", "answer"}`, an id where it has one.

  An answer can be bare or, as in GSM8K, a solution that ends in "#### 72". The
  id of a row without `question_id` or `id` is its number, from 0.

  Raises:
    UserError: a row is not a question, its answer has no number, or two rows
      have the same id.
  """
  problems = []
  rows = questions.read_json_lines(path, ["question", "answer"])
  for number, row in enumerate(rows):
    where = f"{path}, row {number + 1}"
    question_id = reading.id_of(row, "question_id", "id")
    if question_id is None:
      question_id = number
    is_id = isinstance(question_id, str | int)
    if not is_id or isinstance(question_id, bool):
      raise errors.UserError(
        f"{where}: question_id is {question_id!r}; expected a name or a whole"
        " number"
      )
    if isinstance(question_id, int) and abs(question_id) > schema.MAX_ID:
      raise errors.UserError(
        f"{where}: question_id is {question_id}; expected a whole number of 64"
        " bits, or a name"
      )
    question = questions.text_of(row, "question", where).strip()
    if not question:
      raise errors.UserError(f"{where}: 'question' is empty")
    answer = questions.text_of(row, "answer", where)
    problems.append(
      standing.Problem(
        question_id=question_id,
        question=question,
        answer=answer.rpartition("####")[2].strip(),
      )
    )
  _check(problems, path)
  return problems


def of_dataset(own: files.DatasetFile) -> list[standing.Problem]:
  """Returns the training questions of a dataset file.

  Each is known by the id of its row, or by the row's number, from 0.
  """
  return [
    standing.Problem(
      question_id=row.given_id,
      question=row.question.question,
      answer=row.question.answer,
    )
    for row in own.train
  ]


def read_benchmark(name: str, split: str) -> list[standing.Problem]:
  """Reads a benchmark's questions from the data directory.

  Raises:
    UserError: there is no such benchmark, split or file.
  """
  from specialize_jax.data import benchmarks

  if split not in benchmarks.SPLITS.get(name, ()):
    known = [f"{n} ({', '.join(s)})" for n, s in benchmarks.SPLITS.items()]
    raise errors.UserError(
      f"--benchmark={name} --split={split} is unknown; expected one of"
      f" {'; '.join(known)}"
    )
  return [
    standing.Problem(
      question_id=row.question_id, question=row.question, answer=row.answer
    )
    for row in benchmarks.read(name, split)
  ]


def _check(problems: Sequence[standing.Problem], path: str) -> None:
  if not problems:
    raise errors.UserError(f"{path} holds no question")
  seen = set()
  for problem in problems:
    if str(problem.question_id) in seen:  # in batch files numbers are strings
      raise errors.UserError(
        f"{path}: two questions have the id {problem.question_id!r}"
      )
    seen.add(str(problem.question_id))
    if answers.extract_number(problem.answer) is None:
      raise errors.UserError(
        f"{path}: the answer {problem.answer[:40]!r} of question"
        f" {problem.question_id!r} has no number: give --dataset=FILE.yaml,"
        " which has a rule for answers (docs/own_domain.md)"
      )
