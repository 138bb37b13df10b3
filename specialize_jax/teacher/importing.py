"""Records from what others have sampled: released files, OpenAI responses."""

import codecs
import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.files import reading
from specialize_jax.records import released, schema, store
from specialize_jax.teacher import (
  released_pickles,
  released_text,
  responses,
  spelling,
  standing,
  streams,
)

_MAX_WORDS = 300
_MAX_DEPTH = 20
_MAX_ID = 1 << 63  # a greater number becomes a float in other readers

KINDS = ("text_dump", "pickles", "released_json", "responses", "stream")


def kind_of(path: pathlib.Path) -> str:
  """Returns what a path holds, by its first character or its name.

  Raises:
    UserError: it holds none of what can be imported, or does not exist.
  """
  if path.is_dir() or path.suffix == ".pkl":
    return "pickles"
  if not path.is_file():
    raise errors.UserError(f"--input={path} does not exist")
  with path.open("rb") as stream:
    start = stream.read(4096)
  reading.check_encoding(start, f"--input={path}")
  start = start.removeprefix(codecs.BOM_UTF8).lstrip()
  for mark, kind in (
    (b"Question ", "text_dump"),
    (b"[", "released_json"),
    (b"{", "responses"),
  ):
    if start.startswith(mark):
      return kind
  if start.startswith(streams.FIRST_WORDS):
    return "stream"
  raise errors.UserError(
    f"--input={path} is nothing that can be imported: expected the authors'"
    " text dump, their pickles, their JSON, or OpenAI responses, one JSON"
    " object a line or as saved events of a stream (data: {...})"
  )


class Importer:
  """Reads one source into graded records.

  Attributes:
    rejected: How many samples gave no record, by reason.
    left_out: How many alternatives of tokens could not be used, by reason.
    reasoning_tokens: How many tokens of reasoning were cut off before texts.
  """

  def __init__(
    self,
    path: pathlib.Path,
    kind: str,
    problems: Sequence[standing.Problem],
    rule: answer_rules.AnswerRule | None = None,
  ) -> None:
    """Reads `path`, which is of a kind of `KINDS`.

    Args:
      path: The file or folder.
      kind: What it is.
      problems: Questions for sources that do not hold them, by id.
      rule: What an answer is; None for a number, where the gold answer is one.
    """
    self._path = path
    self._kind = kind
    self._rule = rule
    self._problems = {one.question_id: one for one in problems}
    self._problems_by_name = {str(one.question_id): one for one in problems}
    self.rejected: collections.Counter[str] = collections.Counter()
    self.left_out: collections.Counter[str] = collections.Counter()
    self.reasoning_tokens = 0

  def records(self) -> Iterator[schema.TeacherRecord]:
    """Yields each record, with its question, its answer and both verdicts.

    Raises:
      UserError: the source is not what it should be.
    """
    for one in self._read():
      if isinstance(one, str):
        self.rejected[one] += 1
        continue
      record = self._with_question(one)
      yield self._graded(record)

  def _graded(self, record: schema.TeacherRecord) -> schema.TeacherRecord:
    """Notes verdicts, where it is known what an answer is."""
    if not record.gold_answer or record.verdicts:
      return record
    rule = self._rule or answer_rules.NUMBER
    gold = rule.bare(record.gold_answer)
    if self._rule is None and rule.read(gold) is None:
      return record  # a word, which another rule may read
    verdicts = standing.grade(record.text, gold, rule)
    return dataclasses.replace(record, gold_answer=gold, verdicts=verdicts)

  def _read(self) -> Iterator[schema.TeacherRecord | str]:
    if self._kind == "text_dump":
      yield from map(_released, released_text.read(self._path))
    elif self._kind == "released_json":
      yield from store.read_records(self._path)
    elif self._kind == "responses":
      rows = reading.read_numbered_rows(self._path)
      yield from self._responses(streams.joined(rows))
    elif self._kind == "stream":
      yield from self._responses(streams.read(self._path))
    elif self._path.is_dir():
      yield from map(_released, released_pickles.read_samples(self._path))
    else:
      yield from released_pickles.read_format(self._path)

  def _with_question(
    self, record: schema.TeacherRecord
  ) -> schema.TeacherRecord:
    problem = self._problems.get(record.question_id)
    if problem is None and isinstance(record.question_id, str):
      # Batch files know a question's number only as a name.
      problem = self._problems_by_name.get(record.question_id)
    if record.question or problem is None:
      return record
    return dataclasses.replace(
      record, question=problem.question, gold_answer=problem.answer
    )

  def _responses(
    self, rows: Iterable[streams.Row]
  ) -> Iterator[schema.TeacherRecord | str]:
    """Reads responses, one a row; a question's samples are numbered on."""
    numbers: collections.Counter[str | int] = collections.Counter()
    for line, row in rows:
      try:
        head = _row_head(line, row)
        body = _body(row)
        response = responses.parse(body)
      except responses.ResponseError as error:
        yield str(error)
        continue
      yield from map(str, response.rejected)
      self.left_out.update(response.left_out)
      self.reasoning_tokens += response.reasoning_tokens
      request = _request(row, body)
      for choice in response.choices:
        usage = (
          {standing.USAGE: {"reasoning_tokens": choice.reasoning_tokens}}
          if choice.reasoning_tokens
          else {}
        )
        yield schema.TeacherRecord(
          **head,
          sample=numbers[head["question_id"]],
          text=choice.text,
          steps=choice.steps,
          finish_reason=choice.finish_reason,
          request=request | usage,
          verdicts={},
        )
        numbers[head["question_id"]] += 1


def _row_head(line: int, row: Mapping) -> dict[str, str | int]:
  """Returns what a row says of its question.

  Raises:
    ResponseError: it names none.
  """
  question_id = row.get("question_id", row.get("custom_id", line - 1))
  is_number = type(question_id) is int and abs(question_id) < _MAX_ID
  if not is_number and not isinstance(question_id, str):
    raise responses.ResponseError(
      f"question_id is {responses.shown(question_id)}, and no name or whole"
      " number of 64 bits"
    )
  found = {}
  for name in ("question", "answer"):
    value = row.get(name)
    if name == "answer" and isinstance(value, dict | list):
      value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool) or not isinstance(
      value, (str, int, float, type(None))
    ):
      raise responses.ResponseError(f"{name!r} is of type {_json_type(value)}")
    found[name] = "" if value is None else str(value)
  return {
    "question_id": question_id,
    "question": found["question"],
    "gold_answer": _bare(found["answer"]),
  }


def _json_type(value: object) -> str:
  return {bool: "boolean", list: "array", dict: "object"}[type(value)]


def _body(row: Mapping) -> object:
  """Finds the response: the row itself, or in it, as batch files have it.

  Raises:
    ResponseError: the row holds no response, but what the server said of a
      request that failed.
  """
  body = _parsed(row.get("response", row))
  status = None
  if isinstance(body, dict) and "body" in body:
    status, body = body.get("status_code"), _parsed(body["body"])
  if isinstance(body, dict) and body.get("choices"):
    return body
  said = responses.server_message(row) or responses.server_message(body)
  if said is None and body is not row:
    said = body if isinstance(body, str) and body.strip() else None
  if said is not None:
    where = f"HTTP {status}" if type(status) is int else "an error"
    raise responses.ResponseError(
      f"the server answered with {where}: {' '.join(said.split())[:_MAX_WORDS]}"
    )
  return body


def _parsed(body: object) -> object:
  """Returns a response that a file keeps as a string of JSON as its value."""
  if not isinstance(body, str) or not body.lstrip().startswith("{"):
    return body
  try:
    return reading.loads(body)
  except (ValueError, RecursionError):
    return body  # the server's own words


def _request(row: Mapping, body: object) -> dict[str, object]:
  """Returns what the row says of how it was asked for.

  Values that no file of JSON can hold are left out: they came from a file that
  Python wrote, not from a request.
  """
  request = row.get("request")
  request = dict(request) if isinstance(request, dict) else {}
  # Prompts are long, and the key of whoever asked has no place here.
  for name in ("messages", "prompt", "headers", standing.USAGE):
    request.pop(name, None)
  if isinstance(body, dict) and isinstance(body.get("model"), str):
    request["model"] = body["model"]
  return {name: value for name, value in request.items() if _is_json(value)}


def _is_json(value: object, depth: int = 0) -> bool:
  """Whether a parsed value can be written again, and read by any program."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    return depth < _MAX_DEPTH and all(_is_json(one, depth + 1) for one in value)
  return not isinstance(value, float) or math.isfinite(value)


def _bare(answer: str) -> str:
  return answer.rpartition("####")[2].strip()


def _released(sample: released_text.Sample) -> schema.TeacherRecord | str:
  """Returns a released sample as a record, or why it is none.

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
