"""Joins the chunks of streamed responses.

A streaming server sends each token as a chunk, in an event `data: {...}`; the
last one has the finish reason. Both saved events and chunks saved as JSON lines
are supported.
"""

import collections
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.files import reading

FIRST_WORDS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""The prefixes of lines with which a saved event stream can begin."""

CUT = "incomplete stream"
"""The finish reason of a response whose last chunk is missing."""

_CUT_RESPONSE = {"error": {"message": CUT}}
_UNFINISHED = (None, "", "null")
_IGNORED = ("event:", "id:", "retry:", ":")
_JOINED_TEXTS = (
  "content",
  "reasoning_content",
  "reasoning",
  "thinking",
  "refusal",
)
_WHOLE_EVENTS = frozenset(
  ("response.completed", "response.incomplete", "response.failed")
)

# Finished responses that are kept for what may follow their last chunk, such as
# a count of tokens, while chunks of other requests stand between. All chunks of
# a file at once would not fit in memory.
_MOST_FINISHED = 1000

Row = tuple[int, dict[str, object]]


def read(path: str | os.PathLike[str]) -> Iterator[Row]:
  """Reads a file of events, and joins the chunks of each response.

  Yields:
    Each response with its number in the file, from 1, those whose chunks have
    no end last. An error that ends a stream has the number of the response that
    it ends.

  Raises:
    UserError: a line is not part of an event stream.
  """
  answers = _Answers()
  is_begun = False  # a response of the Responses API, whole in its last event
  for number, text in enumerate(reading.lines(path), start=1):
    line = text.strip().removeprefix("\ufeff")
    if not line or line.startswith(_IGNORED):
      continue
    where = f"{path}, line {number}"
    if not line.startswith("data:"):
      raise errors.UserError(
        f"{where} is {line[:40]!r}: expected events of a stream, as in"
        ' data: {"choices": ...}'
      )
    said = line.removeprefix("data:").strip()
    if said == "[DONE]":
      if is_begun:
        answers.add(_CUT_RESPONSE)
      is_begun = False
      answers.end_stream()
      continue
    chunk = reading.parsed_row(said, where)
    kind = chunk.get("type")
    if isinstance(kind, str) and kind.startswith("response."):
      if is_begun and kind == "response.created":
        answers.add(_CUT_RESPONSE)
      is_begun = kind not in _WHOLE_EVENTS or not isinstance(
        chunk.get("response"), dict
      )
      if is_begun:
        continue
      chunk = chunk["response"]
    answers.add(chunk)
    yield from answers.oldest()
  if is_begun:
    answers.add(_CUT_RESPONSE)
  yield from answers.rows()


def joined(rows: Iterable[Row]) -> Iterator[Row]:
  """Joins the rows that are chunks of a response.

  Those are the chunks of the chat endpoint, and rows of the completions
  endpoint that share an `id` with one that has no finish reason. Other rows are
  whole responses, and are passed on at once.

  Args:
    rows: Numbered rows.

  Yields:
    The responses, numbered from 1 in the order of their first rows; those whose
    chunks have no end last.
  """
  numbers = itertools.count(1)
  answers = _Answers(numbers, of_rows=True)
  for _, row in rows:
    if _is_preamble(row):
      continue
    if (
      _has_delta(row)
      or _is_annotation(row)
      or _is_unfinished(row)
      or answers.awaits(row)
    ):
      answers.add(row)
      yield from answers.oldest()
    else:
      yield from answers.rows(finished=True)
      yield next(numbers), row
  yield from answers.rows()


class _Answers:
  """The responses of an event stream, in the order of their first chunks.

  Chunks belong together by their `id`; those without one belong to the response
  before them in the same stream. Some servers give all responses one `id`, and
  some end no stream: text of a choice that has finished is a new response's, as
  is any chunk after the end of the stream, or of another question.
  """

  def __init__(
    self, numbers: Iterator[int] | None = None, *, of_rows: bool = False
  ) -> None:
    """Builds an empty list of responses.

    Args:
      numbers: The numbers of responses; None to number them from 1.
      of_rows: Whether a single chunk without a finish reason may be a whole
        response, as a row of a file may.
    """
    self._numbers = itertools.count(1) if numbers is None else numbers
    self._of_rows = of_rows
    self._answers: dict[int, list[Mapping]] = {}
    self._asked: dict[int, tuple[object, object]] = {}
    self._begun: dict[int, set[int]] = {}
    self._finished: dict[int, set[int]] = {}
    self._complete: dict[int, None] = {}  # those all of whose choices finished
    self._open: dict[str, int] = {}
    self._names: dict[int, str] = {}
    self._current: int | None = None
    self._taken_numbers: collections.deque[int] = collections.deque()

  def awaits(self, row: Mapping) -> bool:
    """Returns whether a row is the end of a response with its `id`."""
    place = self._open.get(str(row.get("id") or ""))
    if place is None:
      return False
    return _choices(row) == [] or not self._finished[place]

  def add(self, chunk: Mapping) -> None:
    """Adds a chunk, or an event that is no chunk."""
    if _is_preamble(chunk):
      return
    name = chunk.get("id")
    if isinstance(name, str) and name:
      place = self._open.get(name)
    else:
      name, place = None, self._current
    choices = _choices(chunk) or ()
    if _is_annotation(chunk) and place is None:
      return  # of a response that is not here
    asked = question_id(chunk), chunk.get("question")
    if place is not None and (
      any(
        None not in pair and pair[0] != pair[1]
        for pair in zip(asked, self._asked[place], strict=True)
      )
      or any(
        _has_text(one)
        and (place not in self._answers or _index(one) in self._finished[place])
        for one in choices
      )
    ):
      place = None
    if place is None:
      place = next(self._numbers)
      self._answers[place] = []
      self._asked[place] = asked
      self._begun[place] = set()
      self._finished[place] = set()
    if name is not None:
      self._open[name] = place
      self._names[place] = name
    self._current = place
    if place in self._answers:  # or it was taken, and this counts its tokens
      self._answers[place].append(chunk)
    self._begun[place].update(map(_index, choices))
    self._finished[place].update(_index(one) for one in choices if _ended(one))
    if place in self._answers and self._is_complete(place):
      self._complete[place] = None
    else:
      self._complete.pop(place, None)

  def end_stream(self) -> None:
    """Ends the stream of the responses that have finished."""
    self._current = None
    self._open = {
      name: place
      for name, place in self._open.items()
      if not self._finished[place]
    }

  def _is_complete(self, place: int) -> bool:
    begun = self._begun[place]
    return bool(begun) and begun == self._finished[place]

  def oldest(self) -> list[Row]:
    """Takes the oldest responses that have finished, if there are many."""
    if len(self._complete) <= _MOST_FINISHED:
      return []
    return self._taken(itertools.islice(self._complete, _MOST_FINISHED // 2))

  def rows(self, *, finished: bool = False) -> list[Row]:
    """Takes the joined responses, and the events that are no chunks.

    Args:
      finished: Whether to leave responses without a finish reason.
    """
    return self._taken(self._complete if finished else self._answers)

  def _taken(self, numbers: Iterable[int]) -> list[Row]:
    rows: list[Row] = []
    for number in [*numbers]:
      self._complete.pop(number, None)
      events = self._answers.pop(number)
      self._forget_one_before(number)
      chunks = [one for one in events if _is_chunk(one)]
      if self._of_rows and len(events) == 1 and _is_unfinished(events[0]):
        rows.append((number, dict(events[0])))
        continue
      if chunks:
        rows.append((number, _answer(chunks)))
      rows += [(number, dict(one)) for one in events if not _is_chunk(one)]
    return rows

  def _forget_one_before(self, number: int) -> None:
    """Forgets a response that was taken long ago: no chunk of it may come."""
    self._taken_numbers.append(number)
    if len(self._taken_numbers) <= _MOST_FINISHED:
      return
    oldest = self._taken_numbers.popleft()
    name = self._names.pop(oldest, None)
    if self._open.get(name) == oldest:
      del self._open[name]
    if self._current == oldest:
      self._current = None
    for known in (self._asked, self._begun, self._finished):
      del known[oldest]


def _is_preamble(row: Mapping) -> bool:
  """Returns whether a row is Azure's verdict on the prompt, not a chunk."""
  return row.get("choices") == [] and "prompt_filter_results" in row


def _is_annotation(row: Mapping) -> bool:
  """Returns whether a row is Azure's verdict on the text of other chunks.

  Its asynchronous filter sends them while the text goes on, without an id. A
  whole answer that was filtered has one.
  """
  choices = _choices(row)
  if row.get("id") or row.get("object"):
    return False
  return bool(choices) and all(
    any(name.startswith("content_filter") for name in one)
    and not {"delta", "text", "message"} & one.keys()
    for one in choices
  )


def _ended(choice: Mapping) -> bool:
  """Returns whether a chunk ends its choice.

  Until then the finish reason is null; some servers write "" or "null".
  """
  return choice.get("finish_reason") not in _UNFINISHED


def _is_chunk(event: Mapping) -> bool:
  return _choices(event) is not None and "output" not in event


def _index(choice: Mapping) -> int:
  index = choice.get("index")
  return index if type(index) is int else 0


def _has_text(choice: Mapping) -> bool:
  delta = choice.get("delta")
  content = delta.get("content") if isinstance(delta, dict) else None
  return bool(choice.get("text") or content)


def _choices(row: Mapping) -> list[Mapping] | None:
  """Returns the choices of a chunk; None if a row is not a chunk."""
  choices = row.get("choices")
  if not isinstance(choices, list):
    return None
  return choices if all(isinstance(one, dict) for one in choices) else None


def _has_delta(row: Mapping) -> bool:
  if row.get("object") == "chat.completion.chunk":
    return _choices(row) is not None
  return any(
    isinstance(one.get("delta"), dict) and "message" not in one
    for one in _choices(row) or ()
  )


def _is_unfinished(row: Mapping) -> bool:
  """Returns whether a row of the completions endpoint may be a chunk."""
  if not isinstance(row.get("id"), str) or not row["id"]:
    return False
  choices = _choices(row)
  # A chunk's reason is null; a whole response may have been saved without.
  return bool(choices) and all(
    "text" in one
    and "message" not in one
    and "finish_reason" in one
    and not _ended(one)
    for one in choices
  )


def question_id(row: Mapping) -> object:
  """Returns the question's id that was saved with a row, or None.

  In batch files it is OpenAI's `custom_id`, or Gemini's `key`.
  """
  return reading.id_of(row, "question_id", "custom_id", "key")


def _answer(chunks: Sequence[Mapping]) -> dict[str, object]:
  """Joins the chunks of a response."""
  by_index: dict[int, list[Mapping]] = {}
  for chunk in chunks:
    for choice in _choices(chunk) or ():
      by_index.setdefault(_index(choice), []).append(choice)
  usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
  answer = {**chunks[0], "choices": list(map(_choice, by_index.values()))}
  return answer | ({"usage": usages[-1]} if usages else {})


def _choice(pieces: Sequence[Mapping]) -> dict[str, object]:
  """Joins the chunks of a choice.

  A chunk of an unknown shape is kept in the choice unchanged, so that parsing
  the choice raises an error that refers to it.
  """
  texts: dict[str, str] = {}
  message: dict[str, str] = {}
  log_probs: dict[str, list] = {}
  choice: dict[str, object] = {"finish_reason": CUT}
  for piece in pieces:
    delta = piece.get("delta")
    places = [(piece, ("text",), texts)]
    if isinstance(delta, dict):
      places.append((delta, _JOINED_TEXTS, message))
    for place, names, found in places:
      for name in names:
        if isinstance(place.get(name), str):
          found[name] = found.get(name, "") + place[name]
    given = piece.get("logprobs")
    if isinstance(given, dict):
      _extend(log_probs, given)
    elif given:
      choice["logprobs"] = given
    if _ended(piece):
      choice["finish_reason"] = piece["finish_reason"]
  choice = texts | {"logprobs": log_probs} | choice
  if message or "text" not in texts:
    choice["message"] = {"content": None} | message
  return choice


def _extend(log_probs: dict[str, list], given: Mapping) -> None:
  """Appends a chunk's log-probabilities; every shape has lists by token."""
  tokens = given.get("tokens")
  if isinstance(tokens, list) and not given.get("top_logprobs"):
    given = {**given, "top_logprobs": [None] * len(tokens)}
  for name, values in given.items():
    if isinstance(values, list):
      log_probs.setdefault(name, []).extend(values)
