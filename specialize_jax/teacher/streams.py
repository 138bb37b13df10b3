"""Joins the chunks of streamed responses.

A streaming server sends each token as a chunk, in an event `data: {...}`; the
last one has the finish reason. Both saved events and chunks saved as JSON lines
are supported.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.files import reading

FIRST_WORDS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""The prefixes of lines with which a saved event stream can begin."""

CUT = "incomplete stream"
"""The finish reason of a response whose last chunk is missing."""

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

Row = tuple[int, dict[str, object]]


def read(path: str | os.PathLike[str]) -> list[Row]:
  """Reads a file of events, and joins the chunks of each response.

  Returns:
    Each response with its number in the file, from 1. An error that ends a
    stream has the number of the response that it ends.

  Raises:
    UserError: a line is not part of an event stream.
  """
  answers = _Answers()
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
      answers.end_stream()
      continue
    chunk = reading.parsed_row(said, where)
    kind = chunk.get("type")
    if isinstance(kind, str) and kind.startswith("response."):
      if kind not in _WHOLE_EVENTS or not isinstance(
        chunk.get("response"), dict
      ):
        continue  # the last event has the whole response
      chunk = chunk["response"]
    answers.add(chunk)
  return answers.rows()


def joined(rows: Iterable[Row]) -> list[Row]:
  """Joins the rows that are chunks of a response of the chat endpoint.

  Args:
    rows: Numbered rows; chunks of a response have the same `id`.

  Returns:
    The responses, each in the place of its first chunk, numbered from 1.
  """
  answers: list[list[Mapping]] = []
  by_id: dict[str, list[Mapping]] = {}
  joins = set()
  for _, row in rows:
    if _is_preamble(row):
      continue
    name = row.get("id")
    if not isinstance(name, str) or not _has_delta(row):
      answers.append([row])
      continue
    if name not in by_id:
      by_id[name] = []
      joins.add(len(answers))
      answers.append(by_id[name])
    by_id[name].append(row)
  return [
    (index + 1, _answer(chunks) if index in joins else chunks[0])
    for index, chunks in enumerate(answers)
  ]


class _Answers:
  """The responses of an event stream, in the order of their first chunks.

  Chunks belong together by their `id`; those without one belong to the response
  before them in the same stream. Some servers give all responses one `id`, and
  some end no stream: text of a choice that has finished is a new response's,
  as is any chunk after the end of the stream.
  """

  def __init__(self) -> None:
    self._answers: list[list[Mapping]] = []
    self._finished: list[set[int]] = []
    self._open: dict[str, int] = {}
    self._current: int | None = None

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
    if place is not None and any(
      _index(one) in self._finished[place] and _has_text(one) for one in choices
    ):
      place = None
    if place is None:
      place = len(self._answers)
      self._answers.append([])
      self._finished.append(set())
    if name is not None:
      self._open[name] = place
    self._current = place
    self._answers[place].append(chunk)
    self._finished[place].update(
      _index(one) for one in choices if one.get("finish_reason") is not None
    )

  def end_stream(self) -> None:
    """Ends the stream of the responses that have finished."""
    self._current = None
    self._open = {
      name: place
      for name, place in self._open.items()
      if not self._finished[place]
    }

  def rows(self) -> list[Row]:
    """Returns the joined responses, and the events that are no chunks."""
    rows: list[Row] = []
    for number, events in enumerate(self._answers, start=1):
      chunks = [one for one in events if _is_chunk(one)]
      if chunks:
        rows.append((number, _answer(chunks)))
      rows += [(number, dict(one)) for one in events if not _is_chunk(one)]
    return rows


def _is_preamble(row: Mapping) -> bool:
  """Returns whether a row is Azure's verdict on the prompt, not a chunk."""
  return row.get("choices") == [] and "prompt_filter_results" in row


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
    if piece.get("finish_reason") is not None:
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
