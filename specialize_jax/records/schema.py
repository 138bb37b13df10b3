"""Teacher records, and their serialization as lines of JSON.

A line is one JSON object with the schema's version in "v". Nothing that the
teacher returned is rounded or dropped.
"""

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

from specialize_jax import errors

MAX_ID = (1 << 63) - 1  # other programs parse larger integers as floats
SCHEMA_VERSION = 1

NUM_CANDIDATES = 5

MAX_LOG_PROB = 1e-3  # rounding by servers may yield values above 0

UNKNOWN_FINISH = "unknown"
"""The `finish_reason` of samples whose source has none."""

NULL_FINISH = "null"
"""The reason of samples whose server says null, as of a partial answer."""

# OpenAI's word for an answer that ended by itself or at a stop sequence, and
# those of Together, text-generation-inference, Anthropic, Cohere, TensorRT,
# Amazon's Titan and AI21.
_STOPPED = frozenset(
  ("stop", "eos", "eos_token", "stop_sequence", "stop_token", "stop_words")
  + ("end_turn", "end_id", "complete", "completed")
  + ("finish", "finished", "endoftext")
)
# Names of the maximum number of tokens of an answer, in requests.
_LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict")
_LIMITS += ("num_predict", "max_output_tokens", "maxOutputTokens")
# Objects within a request that may have them: of batch files, and of native
# endpoints. `extra` replaces our own fields.
_PARTS = ("body", "config", "generationConfig", "generation_config")
_PARTS += ("options", "parameters", "sampling_params", "extra")

_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False)

_STRINGS = ("question", "gold_answer", "text", "finish_reason")
_STEPS_START, _STEPS_END = '"steps": [', '], "finish_reason": '


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherStep:
  """A token that the teacher sampled, and its alternatives.

  Attributes:
    token: The sampled token as the API spells it.
    log_prob: Its log-probability in nats; -inf if the source rounds its
      probability to 0.
    top: The API's most probable tokens (5 in the paper, in the API's order)
      with their log-probabilities; they include the sampled token if the API
      does.
    token_bytes: The sampled token's bytes if the API returns them, else None.
      They are authoritative if a token is not whole UTF-8 characters.
    top_bytes: The bytes of each token of `top` if the API returns them, else
      None.
  """

  token: str
  log_prob: float
  top: tuple[tuple[str, float], ...]
  token_bytes: bytes | None = None
  top_bytes: tuple[bytes | None, ...] | None = None

  @property
  def spelling(self) -> bytes:
    """The bytes that this token adds to the text."""
    if self.token_bytes is not None:
      return self.token_bytes
    return self.token.encode("utf-8", errors="surrogatepass")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherRecord:
  """A sampled rationale, as the teacher returned it.

  Attributes:
    question_id: The question's id or number, with the value and type of the
      source.
    sample: Index of the sample among those of the question, from 0.
    question: The question; "" if the source does not have it.
    gold_answer: The bare answer; "" if the source does not have it.
    text: The rationale that the steps spell, without stop tokens.
    steps: One entry per teacher token of `text`.
    finish_reason: The API's reason for the end of sampling ("stop", "length").
    request: The request's parameters (model, temperature, ...),
      JSON-serializable.
    verdicts: Whether the answer was found correct on arrival, by grader: a
      note, which nothing is decided by.
  """

  question_id: str | int
  sample: int
  question: str
  gold_answer: str
  text: str
  steps: tuple[TeacherStep, ...]
  finish_reason: str
  request: Mapping[str, object]
  verdicts: Mapping[str, bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordHead:
  """A record without its rationale.

  Attributes: see `TeacherRecord`.
  """

  question_id: str | int
  sample: int
  question: str
  gold_answer: str
  finish_reason: str
  request: Mapping[str, object]
  verdicts: Mapping[str, bool]


def why_unfinished(
  record: TeacherRecord | RecordHead, num_steps: int
) -> str | None:
  """Returns why a sample is not a finished answer, or None if it may be one.

  Samples whose source has no finish reason, as in the paper's released dumps,
  count as finished unless they have the maximum number of tokens. Those whose
  server says null do where that number is known.

  Args:
    record: The sample.
    num_steps: Its number of tokens.

  Example:
    >>> head = RecordHead(
    ...   question_id=0,
    ...   sample=0,
    ...   question="",
    ...   gold_answer="",
    ...   finish_reason="length",
    ...   request={},
    ...   verdicts={},
    ... )
    >>> why_unfinished(head, 256)
    "not finished: it ended by 'length'"
  """
  reason = record.finish_reason
  if has_stopped(reason):
    return None
  if reason.lower() not in (UNKNOWN_FINISH, NULL_FINISH):
    return f"not finished: it ended by {reason[:40]!r}"
  usage = record.request.get("usage")
  usage = usage if isinstance(usage, dict) else {}
  removed = (usage.get("reasoning_tokens"), usage.get("tokens_cut_off"))
  num_tokens = num_steps + sum(one for one in removed if type(one) is int)
  limits = _given_limits(record.request)
  limits = {k: v for k, v in limits.items() if type(v) is int and v > 0}
  for name, limit in limits.items():
    if limit <= num_tokens:
      return (
        f"not finished: cut at {name}, as its length says where no"
        " finish_reason does"
      )
  if reason.lower() == NULL_FINISH and not limits:
    return "not finished: its finish_reason is null, as of one in progress"
  return None


def _given_limits(request: Mapping[str, object]) -> dict[str, object]:
  """Returns the maximum numbers of tokens that a request gives, by name."""
  limits = {name: request[name] for name in _LIMITS if name in request}
  for name in _PARTS:
    part = request.get(name)
    if isinstance(part, dict):
      limits |= _given_limits(part)
  return limits


def has_stopped(finish_reason: str) -> bool:
  """Returns whether an API's reason says that an answer ended by itself.

  Example:
    >>> has_stopped("STOP"), has_stopped("FinishReason.STOP")
    (True, True)
    >>> has_stopped("MAX_TOKENS"), has_stopped("unknown")
    (False, False)
  """
  # As Gemini's clients write the name of an enumeration's value.
  word = finish_reason.lower().rpartition(".")[2]
  return word.removeprefix("finish_reason_") in _STOPPED


def check_spelling(record: TeacherRecord) -> None:
  """Checks that a record's steps spell exactly its text.

  Raises:
    UserError: they do not; the message names question, sample and the first
      byte that differs.
  """
  spelled = b"".join(step.spelling for step in record.steps)
  text = record.text.encode("utf-8", errors="surrogatepass")
  if spelled == text:
    return
  shorter = min(len(spelled), len(text))
  at = next((i for i in range(shorter) if spelled[i] != text[i]), shorter)
  raise errors.UserError(
    f"question {record.question_id!r}, sample {record.sample}: the tokens"
    f" spell {_excerpt(spelled, at)} where the text has {_excerpt(text, at)}"
    f" (byte {at} of {len(text)}); give the token bytes or the text that the"
    " tokens spell"
  )


def _excerpt(spelling: bytes, at: int) -> str:
  shown = spelling[at : at + 20].decode("utf-8", errors="replace")
  return repr(shown) if shown else "nothing"


def to_json_line(record: TeacherRecord) -> str:
  """Serializes a record as one line of JSON, without the newline.

  Example:
    >>> step = TeacherStep(token="7", log_prob=-0.5, top=(("7", -0.5),))
    >>> record = TeacherRecord(
    ...   question_id="q/0",
    ...   sample=0,
    ...   question="3 + 4?",
    ...   gold_answer="7",
    ...   text="7",
    ...   steps=(step,),
    ...   finish_reason="stop",
    ...   request={},
    ...   verdicts={"fixed": True},
    ... )
    >>> line = to_json_line(record)
    >>> line[:36]
    '{"v": 1, "question_id": "q/0", "samp'
    >>> json.loads(line)["steps"]
    [{'t': '7', 'p': -0.5, 'top': [['7', -0.5]]}]
    >>> from_json_line(line, "here") == record
    True
  """
  row = {"v": SCHEMA_VERSION}
  for field in dataclasses.fields(record):
    row[field.name] = getattr(record, field.name)
  row["steps"] = [_step_to_json(step) for step in record.steps]
  row["request"] = dict(record.request)
  row["verdicts"] = dict(record.verdicts)
  try:
    return _ENCODER.encode(row)
  except ValueError:  # an infinite log-probability, which JSON cannot write
    row["steps"] = [_with_nulls(step) for step in row["steps"]]
    return _ENCODER.encode(row)


def from_json_line(line: str, where: str) -> TeacherRecord:
  """Parses a line that `to_json_line` wrote.

  Args:
    line: A line of a record store.
    where: The location for error messages, such as "records.jsonl, line 3".

  Raises:
    UserError: the line is not JSON, not a teacher record or of a newer schema,
      or its tokens do not spell its text.
  """
  row = _row_from_json(line, where)
  try:
    record = _record_from_json(row)
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f"{where} is not a whole teacher record ({type(error).__name__}: {error})"
    ) from error
  check_spelling(record)
  return record


def head_from_json_line(line: str, where: str) -> RecordHead:
  """Parses a line that `to_json_line` wrote, without text and steps.

  Steps are nearly all of a line, and are skipped by searching for the marks
  around them. No string can contain the marks, as JSON escapes quotes.

  Args:
    line: A line of a record store.
    where: The location for error messages.

  Raises:
    UserError: the line is not JSON, not a record or of a newer schema.
  """
  start = line.find(_STEPS_START)
  end = line.find(_STEPS_END, start)
  if 0 <= start < end:
    line = line[:start] + _STEPS_START + line[end:]
  row = _row_from_json(line, where)
  try:
    check_fields(row)
  except (KeyError, TypeError) as error:
    raise errors.UserError(
      f"{where} is not a whole teacher record ({type(error).__name__}: {error})"
    ) from error
  names = [field.name for field in dataclasses.fields(RecordHead)]
  return RecordHead(**{name: row[name] for name in names})


def _row_from_json(line: str, where: str) -> Mapping:
  """Parses a line and checks its schema version."""
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise errors.UserError(
      f"{where} is not JSON ({error.msg} at column {error.colno}); expected"
      " one teacher record a line"
    ) from error
  except RecursionError as error:
    raise errors.UserError(
      f"{where} is not a teacher record: it is nested too deeply"
    ) from error
  if not isinstance(row, dict) or "v" not in row:
    raise errors.UserError(
      f"{where} is not a teacher record: it has no schema version 'v'"
    )
  if row["v"] != SCHEMA_VERSION:
    raise errors.UserError(
      f"{where} has schema version {row['v']!r}; this version of specialize"
      f" reads {SCHEMA_VERSION}; upgrade specialize"
    )
  return row


def _record_from_json(row: Mapping) -> TeacherRecord:
  """Builds a record; raises KeyError, TypeError or ValueError if invalid."""
  check_fields(row)
  return TeacherRecord(
    **{name: row[name] for name in _STRINGS},
    question_id=row["question_id"],
    sample=row["sample"],
    steps=tuple(_step_from_json(step) for step in row["steps"]),
    request=row["request"],
    verdicts=row["verdicts"],
  )


def check_fields(row: Mapping) -> None:
  """Checks a record's fields, but not its steps.

  Raises:
    KeyError, TypeError: a field is missing or of the wrong type.
  """
  for name in _STRINGS:
    _expect(row, name, str)
  for name in ("request", "verdicts"):
    _expect(row, name, dict)
  _expect(row, "question_id", (str, int))
  _expect(row, "sample", int)
  _expect(row, "steps", list)


def _expect(row: Mapping, name: str, kind: type | tuple[type, ...]) -> None:
  if not isinstance(row[name], kind) or isinstance(row[name], bool):
    raise TypeError(f"{name!r} is {row[name]!r}")


def _step_to_json(step: TeacherStep) -> dict[str, object]:
  """Serializes a step with short keys; a large store has 35 million steps."""
  row = {"t": step.token, "p": step.log_prob, "top": step.top}
  if step.token_bytes is not None:
    row["b"] = _bytes_to_json(step.token_bytes)
  if step.top_bytes is not None:
    row["top_b"] = [_bytes_to_json(spelling) for spelling in step.top_bytes]
  return row


def _with_nulls(row: Mapping) -> dict[str, object]:
  """Replaces log-probabilities of -inf by None."""
  top = [(token, _finite_or_none(value)) for token, value in row["top"]]
  return {**row, "p": _finite_or_none(row["p"]), "top": top}


def _step_from_json(row: Mapping) -> TeacherStep:
  if not isinstance(row["t"], str):
    raise TypeError(f"token {row['t']!r} is not a string")
  top_bytes = row.get("top_b")
  if top_bytes is not None and len(top_bytes) != len(row["top"]):
    raise ValueError("'top_b' and 'top' differ in length")
  return TeacherStep(
    token=row["t"],
    log_prob=_checked_log_prob(row["p"]),
    top=tuple(_candidate(pair) for pair in row["top"]),
    token_bytes=_bytes_from_json(row.get("b")),
    top_bytes=None
    if top_bytes is None
    else tuple(_bytes_from_json(spelling) for spelling in top_bytes),
  )


def _candidate(pair: Sequence) -> tuple[str, float]:
  token, value = pair
  if not isinstance(token, str):
    raise TypeError(f"candidate {token!r} is not a string")
  return token, _checked_log_prob(value)


def _checked_log_prob(value: float | None) -> float:
  if value is None:
    return -math.inf
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise TypeError(f"log-probability {value!r} is not a number")
  if math.isnan(value) or value > MAX_LOG_PROB:
    raise ValueError(f"log-probability {value!r} is above 0")
  return float(value)


def _finite_or_none(value: float) -> float | None:
  return None if value == -math.inf else value


def _bytes_to_json(spelling: bytes | None) -> str | None:
  return None if spelling is None else base64.b64encode(spelling).decode()


def _bytes_from_json(text: str | None) -> bytes | None:
  return None if text is None else base64.b64decode(text, validate=True)
