"""Records from what others have sampled: released files, OpenAI responses."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.files import reading
from specialize_jax.records import released, schema, store
from specialize_jax.teacher import (
  released_pickles,
  released_text,
  responses,
  spelling,
  standing,
)

KINDS = ("text_dump", "pickles", "released_json", "responses")


def kind_of(path: pathlib.Path) -> str:
  """Tells what a path holds, by its first character or its name.

  Raises:
    UserError: it holds none of what can be imported, or does not exist.
  """
  if path.is_dir() or path.suffix == ".pkl":
    return "pickles"
  if not path.is_file():
    raise errors.UserError(f"--input={path} does not exist")
  with path.open("rb") as stream:
    start = stream.read(4096).lstrip()
  for mark, kind in (
    (b"Question ", "text_dump"),
    (b"[", "released_json"),
    (b"{", "responses"),
  ):
    if start.startswith(mark):
      return kind
  raise errors.UserError(
    f"--input={path} is nothing that can be imported: expected the authors'"
    " text dump, their pickles, their JSON, or OpenAI responses, one JSON"
    " object a line"
  )


class Importer:
  """Reads one source into graded records.

  Attributes:
    rejected: How many samples gave no record, by reason.
  """

  def __init__(
    self, path: pathlib.Path, kind: str, problems: Sequence[standing.Problem]
  ) -> None:
    """Reads `path`, which is of a kind of `KINDS`.

    Args:
      path: The file or folder.
      kind: What it is.
      problems: Questions for sources that do not hold them, by id.
    """
    self._path = path
    self._kind = kind
    self._problems = {one.question_id: one for one in problems}
    self.rejected: collections.Counter[str] = collections.Counter()

  def records(self) -> Iterator[schema.TeacherRecord]:
    """Gives each record, with its question, its answer and both verdicts.

    Raises:
      UserError: the source is not what it should be.
    """
    for one in self._read():
      if isinstance(one, str):
        self.rejected[one] += 1
        continue
      record = self._with_question(one)
      if record.gold_answer and not record.verdicts:
        verdicts = standing.grade(record.text, record.gold_answer)
        record = dataclasses.replace(record, verdicts=verdicts)
      yield record

  def _read(self) -> Iterator[schema.TeacherRecord | str]:
    if self._kind == "text_dump":
      yield from map(_released, released_text.read(self._path))
    elif self._kind == "released_json":
      yield from store.read_records(self._path)
    elif self._kind == "responses":
      yield from self._responses()
    elif self._path.is_dir():
      yield from map(_released, released_pickles.read_samples(self._path))
    else:
      yield from released_pickles.read_format(self._path)

  def _with_question(
    self, record: schema.TeacherRecord
  ) -> schema.TeacherRecord:
    problem = self._problems.get(record.question_id)
    if record.question or problem is None:
      return record
    return dataclasses.replace(
      record, question=problem.question, gold_answer=problem.answer
    )

  def _responses(self) -> Iterator[schema.TeacherRecord | str]:
    """Reads responses, one a line; a question's samples are numbered on."""
    numbers: collections.Counter[str | int] = collections.Counter()
    for line, row in reading.read_numbered_rows(self._path):
      question_id = row.get("question_id", row.get("custom_id", line - 1))
      if type(question_id) not in (str, int):
        raise errors.UserError(
          f"{self._path}, line {line}: question_id is {question_id!r}"
        )
      body = _body(row)
      try:
        response = responses.parse(body)
      except responses.ResponseError as error:
        yield str(error)
        continue
      for choice in response.choices:
        yield schema.TeacherRecord(
          question_id=question_id,
          sample=numbers[question_id],
          question=str(row.get("question", "")),
          gold_answer=_bare(str(row.get("answer", ""))),
          text=choice.text,
          steps=choice.steps,
          finish_reason=choice.finish_reason,
          request=_request(row, body),
          verdicts={},
        )
        numbers[question_id] += 1


def _body(row: Mapping) -> object:
  """Finds the response: the row itself, or in it, as batch files have it."""
  body = row.get("response", row)
  if isinstance(body, dict) and "body" in body:
    body = body["body"]
  return body


def _request(row: Mapping, body: object) -> dict[str, object]:
  """Gives what the row tells of how it was asked for."""
  request = row.get("request")
  request = dict(request) if isinstance(request, dict) else {}
  # Prompts are long, and the key of whoever asked has no place here.
  for name in ("messages", "prompt", "headers"):
    request.pop(name, None)
  if isinstance(body, dict) and isinstance(body.get("model"), str):
    request["model"] = body["model"]
  json.dumps(request, allow_nan=False)
  return request


def _bare(answer: str) -> str:
  return answer.rpartition("####")[2].strip()


def _released(sample: released_text.Sample) -> schema.TeacherRecord | str:
  """Turns a released sample into a record, or tells why it cannot.

  A sample that ends as the authors' code wants it gives the record that their
  JSON gives. Any other goes on past its answer, or never came to one: it is
  cut where its text ends.
  """
  try:
    record = released.to_record(
      sample.steps,
      question_id=sample.question_id,
      sample=sample.sample,
      question=sample.question,
      gold_answer=_bare(sample.answer),
    )
    record = _with_bytes(record)
    if record.finish_reason == "stop":
      return record
    text, steps = spelling.fit(sample.text.strip(), record.steps)
  except (IndexError, TypeError, ValueError) as error:
    return f"its tokens do not spell its text ({type(error).__name__})"
  return dataclasses.replace(record, text=text, steps=steps)


def _with_bytes(record: schema.TeacherRecord) -> schema.TeacherRecord:
  """Reads tokens that the API spelled by their bytes."""
  steps = tuple(map(responses.with_spelt_bytes, record.steps))
  if steps == record.steps:
    return record
  text = b"".join(step.spelling for step in steps).decode("utf-8")
  return dataclasses.replace(record, text=text, steps=steps)
