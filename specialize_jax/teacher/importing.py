"""Imports records from the paper's released files or OpenAI responses."""

import codecs
import collections
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.files import paths, reading
from specialize_jax.records import released, schema, store
from specialize_jax.teacher import (
  credentials,
  released_pickles,
  released_text,
  responses,
  spelling,
  standing,
  streams,
)

_MAX_WORDS = 300
_MAX_DEPTH = 20
_PROMPTS = ("messages", "prompt", "contents", "input", "inputs")
_NOT_STORED = frozenset((*_PROMPTS, standing.USAGE))
_FIRST_ERROR = 400  # of HTTP's statuses
_MAX_KEY = 40  # characters of a question, by which it is looked up

_LIST_OF_OBJECTS = re.compile(rb"\[\s*\{")

KINDS = ("text_dump", "pickles", "released_json", "responses", "stream")


def kind_of(path: pathlib.Path) -> str:
  """Detects the kind of a source, from its first character or its name.

  Raises:
    UserError: the path does not exist, or cannot be imported.
  """
  if path.is_dir() or path.suffix == ".pkl":
    return "pickles"
  if paths.is_stream(path):
    raise errors.UserError(
      f"--input={path} is a pipe or device, and it is read twice: write it to a"
      " file first"
    )
  if not path.is_file():
    raise errors.UserError(f"--input={path} does not exist")
  with path.open("rb") as stream:
    start = stream.read(4096)
  reading.check_encoding(start, f"--input={path}")
  start = start.removeprefix(codecs.BOM_UTF8).lstrip()
  if _LIST_OF_OBJECTS.match(start) and b'"steps"' not in start:
    return "responses"
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
  """Converts a source to graded records.

  Attributes:
    rejected: The number of rejected samples, by reason.
    left_out: The number of dropped alternatives of tokens, by reason.
    reasoning_tokens: The number of reasoning tokens removed before texts.
  """

  def __init__(
    self,
    path: pathlib.Path,
    kind: str,
    problems: Sequence[standing.Problem],
    rule: answer_rules.AnswerRule | None = None,
  ) -> None:
    """Creates an importer of a source.

    Args:
      path: The file or directory.
      kind: One of `KINDS`.
      problems: The questions, for sources that contain only their ids.
      rule: The rule by which answers are extracted and compared; None for a
        number, if the gold answer is a number.
    """
    self._path = path
    self._kind = kind
    self._rule = rule
    self._problems = {one.question_id: one for one in problems}
    self._problems_by_name = {str(one.question_id): one for one in problems}
    self._asked = _Asked(problems)
    self.rejected: collections.Counter[str] = collections.Counter()
    self.left_out: collections.Counter[str] = collections.Counter()
    self.reasoning_tokens = 0

  def records(self) -> Iterator[schema.TeacherRecord]:
    """Yields each record, with its question, answer and both verdicts.

    Raises:
      UserError: the source is malformed.
    """
    for one in self._read():
      if isinstance(one, str):
        self.rejected[one] += 1
        continue
      try:
        record = self._with_question(one)
      except responses.ResponseError as error:
        self.rejected[str(error)] += 1
        continue
      yield self._graded(record)

  def _graded(self, record: schema.TeacherRecord) -> schema.TeacherRecord:
    """Adds verdicts, if the rule for answers is known."""
    if not record.gold_answer or record.verdicts:
      return record
    rule = self._rule or answer_rules.NUMBER
    gold = rule.bare(record.gold_answer)
    if self._rule is None and rule.read(gold) is None:
      return record  # a word, for which there may be another rule
    verdicts = standing.grade(record.text, gold, rule)
    return dataclasses.replace(record, gold_answer=gold, verdicts=verdicts)

  def _read(self) -> Iterator[schema.TeacherRecord | str]:
    if self._kind == "text_dump":
      yield from map(_released, released_text.read(self._path))
    elif self._kind == "released_json":
      yield from store.read_records(self._path)
    elif self._kind == "responses":
      rows = reading.numbered_rows(self._path)
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
      # In batch files a question's number is a string.
      problem = self._problems_by_name.get(record.question_id)
    if record.question or problem is None:
      return record
    if record.gold_answer and not self._is_same(
      record.gold_answer, _bare(problem.answer)
    ):
      raise responses.ResponseError(
        "its answer is not that of the question with its id"
      )
    return dataclasses.replace(
      record, question=problem.question, gold_answer=problem.answer
    )

  def _named(self, row: Mapping) -> str | int | None:
    """Returns the question that a row without its id answers, or None."""
    name = reading.id_of(row, "id")
    if isinstance(name, str | int) and not isinstance(name, bool):
      problem = self._problems_by_name.get(str(name))
      if problem is not None:
        return problem.question_id
      if type(name) is int and row.get("question"):
        return name
    if not self._problems or row.get("question"):
      return None
    prompts = list(_prompts(row.get("request")))
    asked = [self._asked.last_in(one) for one in prompts]
    last = [one for one in asked if one is not None]
    if prompts and not last:
      raise responses.ResponseError("its request asks none of the questions")
    return last[-1].question_id if last else None

  def _is_same(self, answer: str, other: str) -> bool:
    """Returns whether two gold answers are the same, if they can be read."""
    rule = self._rule or answer_rules.NUMBER
    one, two = rule.bare(answer), rule.bare(other)
    if one == two or None in (rule.read(one), rule.read(two)):
      return True
    return rule.finds(one, two) or rule.finds(two, one)

  def _responses(
    self, rows: Iterable[streams.Row]
  ) -> Iterator[schema.TeacherRecord | str]:
    """Converts responses, one per row; samples of a question are numbered.

    Raises:
      UserError: responses without ids are not as many as the questions.
    """
    numbers: collections.Counter[str | int] = collections.Counter()
    count, unnamed = 0, 0
    for number, row in rows:
      count += 1
      try:
        named = None
        has_id = streams.question_id(row) is not None
        if not has_id:
          named = self._named(row)
        head = _row_head(number, row, named)
        body = _body(row)
        response = responses.parse(body)
      except responses.ResponseError as error:
        yield str(error)
        continue
      except RecursionError:
        yield responses.TOO_DEEP
        continue
      unnamed += not has_id and named is None and not row.get("question")
      yield from map(str, response.rejected)
      self.left_out.update(response.left_out)
      self.reasoning_tokens += response.reasoning_tokens
      request = _request(row, body)
      for choice in response.choices:
        removed = choice.removed_tokens
        usage = {standing.USAGE: removed} if removed else {}
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
    if unnamed and self._problems and count != len(self._problems):
      # One that is missing would give all after it another's question.
      raise errors.UserError(
        f"--input={self._path} has {count:,} responses, {unnamed:,} of them"
        " without the id or the text of their question, and there are"
        f" {len(self._problems):,} questions: expected one response for each,"
        ' in their order, or a "question_id" in each row'
      )


class _Asked:
  """Finds which of some questions a text asks."""

  def __init__(self, problems: Sequence[standing.Problem]) -> None:
    """Indexes the questions by their last characters."""
    # By their last characters, then by length: many questions may end alike.
    self._by_end: dict[str, dict[int, dict[str, standing.Problem]]] = {}
    for one in problems:
      text = _in_one_line(one.question)
      if text:
        by_length = self._by_end.setdefault(text[-_MAX_KEY:], {})
        by_length.setdefault(len(text), {}).setdefault(text, one)
    self._lengths = sorted({len(key) for key in self._by_end})

  def last_in(self, text: str) -> standing.Problem | None:
    """Returns the question that ends last in a text, after demonstrations."""
    text = _in_one_line(text)
    for end in range(len(text), 0, -1):
      if text[end : end + 1].isalnum() and text[end - 1].isalnum():
        continue  # within a word
      found = self._ending_at(text, end)
      if found is not None:
        return found
    return None

  def _ending_at(self, text: str, end: int) -> standing.Problem | None:
    """Returns the longest question that ends there and begins a word."""
    longest = (0, None)
    for key_length in self._lengths:
      if key_length > end:
        break
      by_length = self._by_end.get(text[end - key_length : end], {})
      for length, by_text in by_length.items():
        start = end - length
        if start < 0 or length <= longest[0]:
          continue
        if start and text[start - 1].isalnum() and text[start].isalnum():
          continue  # within a word
        problem = by_text.get(text[start:end])
        if problem is not None:
          longest = (length, problem)
    return longest[1]


def _in_one_line(text: str) -> str:
  return " ".join(text.split())


def _prompts(request: object) -> Iterator[str]:
  """Yields the texts of a request's prompt, in order."""
  parts = [request]
  if isinstance(request, Mapping):
    parts += [request.get("body")]
  for part in parts:
    if isinstance(part, Mapping):
      for name in _PROMPTS:
        yield from _texts(part.get(name))


def _texts(value: object) -> Iterator[str]:
  """Yields all texts within a prompt, in order."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, list):
    for part in value:
      yield from _texts(part)
  elif isinstance(value, Mapping):
    for name, part in value.items():
      if name not in ("role", "type"):
        yield from _texts(part)


def _row_head(
  number: int, row: Mapping, named: str | int | None
) -> dict[str, str | int]:
  """Returns a row's question id, and other fields of its question.

  Args:
    number: The number of the response, from 1. The id of a row without one is
      the number of its question, from 0.
    row: The row.
    named: The id of the question that the row asks by its own `id` or by its
      request, if it has no field for it; None if unknown.

  Raises:
    ResponseError: the row has no question id.
  """
  question_id = streams.question_id(row)
  if question_id is None:
    question_id = number - 1 if named is None else named
  is_number = type(question_id) is int and abs(question_id) <= schema.MAX_ID
  if not is_number and not isinstance(question_id, str):
    raise responses.ResponseError(
      f"question_id is {responses.shown(question_id)}; expected a name or a"
      " whole number of 64 bits"
    )
  found = {}
  for name in ("question", "answer"):
    value = row.get(name)
    if name == "answer" and isinstance(value, dict | list):
      value = json.dumps(value, ensure_ascii=False)
    if name == "answer" and isinstance(value, bool):
      value = json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
      value = None  # as tables write a value that they do not have
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
  """Returns a row's response: the row itself or, in batch files, a field.

  Raises:
    ResponseError: the row contains the error of a failed request instead.
  """
  # Ollama's own 'response' is the text of its answer.
  is_text = isinstance(row.get("response"), str) and "done" in row
  body = row if is_text else _parsed(row.get("response", row))
  status = None
  if isinstance(body, dict) and "body" in body:
    status, body = body.get("status_code"), _parsed(body["body"])
  has_failed = type(status) is int and status >= _FIRST_ERROR
  if isinstance(body, dict) and body.get("choices") and not has_failed:
    return body
  said = responses.server_message(row) or responses.server_message(body)
  if said is None and body is not row and isinstance(body, str):
    if status is None:
      raise responses.ResponseError(
        "'response' is a text: expected the whole answer of a server, with its"
        " log-probabilities"
      )
    said = body.strip() or None
  if has_failed and said is None:
    said = "it says nothing more"
  if said is not None:
    where = f"HTTP {status}" if type(status) is int else "an error"
    raise responses.ResponseError(
      f"the server answered with {where}: {' '.join(said.split())[:_MAX_WORDS]}"
    )
  return body


def _parsed(body: object) -> object:
  """Parses a response that is stored as a string of JSON."""
  if not isinstance(body, str) or not body.lstrip().startswith("{"):
    return body
  try:
    return reading.loads(body)
  except (ValueError, RecursionError):
    return body  # the server's own words


def _request(row: Mapping, body: object) -> dict[str, object]:
  """Returns the parameters of a row's request.

  Values that are not valid JSON (such as NaN) are omitted.
  """
  request = _without_prompts(row.get("request"))
  if isinstance(body, dict) and isinstance(body.get("model"), str):
    request["model"] = body["model"]
  return credentials.without(
    {name: value for name, value in request.items() if _is_json(value)}
  )


def _without_prompts(request: object) -> dict[str, object]:
  """Returns a request without its prompts, which are long."""
  if not isinstance(request, dict):
    return {}
  kept = {
    name: value for name, value in request.items() if name not in _NOT_STORED
  }
  if "body" in kept:
    kept["body"] = _without_prompts(kept["body"])
  return kept


def _is_json(value: object, depth: int = 0) -> bool:
  """Returns whether a parsed value can be written as standard JSON."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    return depth < _MAX_DEPTH and all(_is_json(one, depth + 1) for one in value)
  return not isinstance(value, float) or math.isfinite(value)


def _bare(answer: str) -> str:
  return answer.rpartition("####")[2].strip()


def _released(sample: released_text.Sample) -> schema.TeacherRecord | str:
  """Converts a released sample to a record, or returns why it is rejected.

  For a sample that ends as the authors' code expects, the result equals that of
  their JSON. Any other has no answer or continues after it, and is truncated at
  the end of its text.
  """
  try:
    record = released.to_record(
      sample.steps,
      question_id=sample.question_id,
      sample=sample.sample,
      question=sample.question,
      gold_answer=_bare(sample.answer),
    )
    if record.finish_reason == "stop":
      return record
    text, steps = spelling.fit(sample.text.strip(), record.steps)
  except (IndexError, TypeError, ValueError) as error:
    return f"its tokens do not spell its text ({type(error).__name__})"
  return dataclasses.replace(record, text=text, steps=steps)
