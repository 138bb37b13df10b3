"""Parses lines of records into columns, to read a store in bulk.

A record has 600 strings and numbers. Creating `schema` objects for them would
dominate the time of preparing a store. Here a batch of lines is parsed into
flat lists, with the same checks; if one fails, `schema` parses the line to
raise its error.
"""

import base64
import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax.files import reading
from specialize_jax.records import schema

_NUMBERS = {float, int, type(None)}
_PLAIN_STEP = 3  # a step without bytes has "t", "p" and "top" only


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a store.

  Attributes:
    where: the location for error messages.
    text: the line.
  """

  where: str
  text: str


@dataclasses.dataclass(frozen=True)
class Row:
  """A parsed line whose steps have not been checked yet.

  Attributes:
    line: the line it was parsed from.
    head: everything but text and steps.
    text: the rationale.
    steps: the steps, as in the JSON.
  """

  line: Line
  head: schema.RecordHead
  text: str
  steps: Sequence[Mapping]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepColumns:
  """The steps of several records, one record after another.

  Attributes:
    counts: int64[N], number of steps of each record.
    spellings: the bytes of the tokens of all L steps.
    log_probs: float64[L], in nats; -inf for probability 0.
    top_counts: int64[L], number of candidates of each step.
    top_spellings: the bytes of all candidates.
    top_log_probs: float64, the log-probabilities of all candidates.
  """

  counts: np.ndarray
  spellings: Sequence[bytes]
  log_probs: np.ndarray
  top_counts: np.ndarray
  top_spellings: Sequence[bytes]
  top_log_probs: np.ndarray


def to_line(record: schema.TeacherRecord, where: str) -> Line:
  """Serializes a record from another source as a line."""
  return Line(where, schema.to_json_line(record))


def parse(line: Line) -> Row:
  """Parses a line and checks everything but its steps.

  Raises:
    UserError: the line is not a record, or of a newer schema.
  """
  try:
    row = reading.loads(line.text)
    if row["v"] != schema.SCHEMA_VERSION:
      raise ValueError(row["v"])
    schema.check_fields(row)
  except (KeyError, TypeError, ValueError, RecursionError):
    # Raises the error that describes what is invalid; nothing is if only orjson
    # cannot represent a number.
    schema.from_json_line(line.text, line.where)
    row = json.loads(line.text)
  head = schema.RecordHead(
    question_id=row["question_id"],
    sample=row["sample"],
    question=row["question"],
    gold_answer=row["gold_answer"],
    finish_reason=row["finish_reason"],
    request=row["request"],
    verdicts=row["verdicts"],
  )
  return Row(line=line, head=head, text=row["text"], steps=row["steps"])


class StepCollector:
  """Collects the steps of rows into columns, one row at a time.

  It only keeps strings and numbers, so that a parsed row can be freed at once;
  its lists and dictionaries would burden the garbage collector.
  """

  def __init__(self) -> None:
    self._counts: list[int] = []
    self._spellings: list[bytes] = []
    self._log_probs: list[float | None] = []
    self._top_counts: list[int] = []
    self._top_spellings: list[bytes] = []
    self._top_log_probs: list[float | None] = []

  def add(self, row: Row) -> None:
    """Adds a row's steps.

    Raises:
      UserError: the record is invalid, or its tokens do not spell its text.
    """
    try:
      self._add(row)
    except (KeyError, TypeError, ValueError, AttributeError):
      # Raises the error that describes what is invalid.
      schema.from_json_line(row.line.text, row.line.where)
      raise

  def _add(self, row: Row) -> None:
    steps = row.steps
    tops = [step["top"] for step in steps]
    pairs = list(itertools.chain.from_iterable(tops))
    log_probs = [step["p"] for step in steps]
    top_log_probs = [value for _, value in pairs]
    _check_log_probs(log_probs)
    _check_log_probs(top_log_probs)
    spellings = _encoded([step["t"] for step in steps])
    top_spellings = _encoded([name for name, _ in pairs])
    if any(len(step) != _PLAIN_STEP for step in steps):
      _use_bytes(steps, spellings, top_spellings)
    if b"".join(spellings) != row.text.encode("utf-8", "surrogatepass"):
      raise ValueError("the tokens do not spell the text")
    self._counts.append(len(steps))
    self._spellings += spellings
    self._log_probs += log_probs
    self._top_counts += map(len, tops)
    self._top_spellings += top_spellings
    self._top_log_probs += top_log_probs

  def columns(self) -> StepColumns:
    """Returns the columns of all rows added so far."""
    return StepColumns(
      counts=np.array(self._counts, np.int64),
      spellings=self._spellings,
      log_probs=_to_numbers(self._log_probs),
      top_counts=np.array(self._top_counts, np.int64),
      top_spellings=self._top_spellings,
      top_log_probs=_to_numbers(self._top_log_probs),
    )


def _encoded(tokens: Sequence[str]) -> list[bytes]:
  return [token.encode("utf-8", "surrogatepass") for token in tokens]


def _use_bytes(
  steps: Sequence[Mapping],
  spellings: list[bytes],
  top_spellings: list[bytes],
) -> None:
  """Replaces spellings by bytes where the API returned them."""
  at = 0
  for number, step in enumerate(steps):
    if step.get("b") is not None:
      spellings[number] = base64.b64decode(step["b"], validate=True)
    top_bytes = step.get("top_b")
    if top_bytes is not None:
      if len(top_bytes) != len(step["top"]):
        raise ValueError("'top_b' and 'top' differ in length")
      for rank, given in enumerate(top_bytes):
        if given is not None:
          top_spellings[at + rank] = base64.b64decode(given, validate=True)
    at += len(step["top"])


def _check_log_probs(values: Sequence[float | None]) -> None:
  """Checks that each value is None or a number not above 0, and not NaN."""
  kinds = set(map(type, values))
  if not kinds <= _NUMBERS:
    raise TypeError("a log-probability is not a number")
  if type(None) in kinds:
    values = [value for value in values if value is not None]
  if not all(value <= schema.MAX_LOG_PROB for value in values):
    raise ValueError("a log-probability is above 0")


def _to_numbers(values: Sequence[float | None]) -> np.ndarray:
  """Converts to float64, None to -inf."""
  numbers = np.array(values, np.float64)  # None becomes NaN
  numbers[np.isnan(numbers)] = -np.inf
  return numbers
