"""Record lines in, columns out: how a store is read in bulk.

Of a record's 600 strings and numbers each would cost an object of `schema`,
which is most of the time of preparing a store. Here a batch of lines becomes
flat lists, checked as `schema` checks them; where a check fails, `schema`
itself reads the lines one by one and says which and why.
"""

import base64
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax.files import reading
from specialize_jax.records import schema

_NUMBERS = {float, int, type(None)}
_PLAIN_STEP = 3  # a step without bytes has "t", "p" and "top" alone


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a store.

  Attributes:
    where: the words that name it in an error.
    text: the line.
  """

  where: str
  text: str


@dataclasses.dataclass(frozen=True)
class Row:
  """A line, parsed; its steps not looked at yet.

  Attributes:
    line: what it was parsed from.
    head: all but the text and the steps.
    text: the rationale.
    steps: as `schema` writes them.
  """

  line: Line
  head: schema.RecordHead
  text: str
  steps: Sequence[Mapping]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepColumns:
  """The steps of several records, one record after another.

  Attributes:
    counts: int64[N], how many steps each record has.
    spellings: the bytes of each of the L steps' tokens.
    log_probs: float64[L], in nats; -inf for a probability of 0.
    top_counts: int64[L], how many candidates each step has.
    top_spellings: the bytes of the candidates.
    top_log_probs: float64, the candidates'.
  """

  counts: np.ndarray
  spellings: Sequence[bytes]
  log_probs: np.ndarray
  top_counts: np.ndarray
  top_spellings: Sequence[bytes]
  top_log_probs: np.ndarray


def to_line(record: schema.TeacherRecord, where: str) -> Line:
  """Writes a record that came from elsewhere as a store has it."""
  return Line(where, schema.to_json_line(record))


def parse(line: Line) -> Row:
  """Parses a line and checks all but its steps.

  Raises:
    UserError: it is not a record, or one of a newer schema.
  """
  try:
    row = reading.loads(line.text)
    if row["v"] != schema.SCHEMA_VERSION:
      raise ValueError(row["v"])
    schema.check_fields(row)
  except (KeyError, TypeError, ValueError, RecursionError):
    # Says what is wrong with it, in its own words.
    schema.from_json_line(line.text, line.where)
    raise
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
  """Lays the steps of rows into columns, a row at a time.

  What it keeps are strings and numbers: the parsed row may go at once, whose
  lists and dictionaries would keep the garbage collector busy.
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
      UserError: the record is not whole, or its tokens do not spell its text.
    """
    try:
      self._add(row)
    except (KeyError, TypeError, ValueError, AttributeError):
      # Says what is wrong with it, in its own words.
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
    """Gives the columns of all rows that were added."""
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
  """Takes the bytes of tokens where the API gave them."""
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
  """Checks that each is null or a number not above 0; NaN is neither."""
  kinds = set(map(type, values))
  if not kinds <= _NUMBERS:
    raise TypeError("a log-probability is not a number")
  if type(None) in kinds:
    values = [value for value in values if value is not None]
  if not all(value <= schema.MAX_LOG_PROB for value in values):
    raise ValueError("a log-probability is above 0")


def _to_numbers(values: Sequence[float | None]) -> np.ndarray:
  """Gives float64; a null is -inf."""
  numbers = np.array(values, np.float64)  # a null becomes NaN
  numbers[np.isnan(numbers)] = -np.inf
  return numbers
