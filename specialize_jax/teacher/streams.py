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
    Each response with its line number, from 1 like those of `files.reading`.

  Raises:
    UserError: a line is not part of an event stream.
  """
  chunks: list[Row] = []
  num_done = 0
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
      num_done += 1
      continue
    chunk = reading.parsed_row(said, where)
    kind = chunk.get("type")
    if isinstance(kind, str) and kind.startswith("response."):
      if kind not in _WHOLE_EVENTS or not isinstance(
        chunk.get("response"), dict
      ):
        continue  # the last event has the whole response
      chunk = chunk["response"]
    if not isinstance(chunk.get("id"), str):
      chunk = {**chunk, "id": f"stream {num_done}"}
    chunks.append((number, chunk))
  answers = _joined(chunks, are_chunks=True)
  return [(number, row) for number, (_, row) in enumerate(answers, start=1)]


def joined(rows: Sequence[Row]) -> list[Row]:
  """Joins the rows that are chunks of a response of the chat endpoint.

  Args:
    rows: Numbered rows; chunks of a response have the same `id`.

  Returns:
    The rows, with each response in the place of its first chunk.
  """
  return _joined(rows, are_chunks=False)


def _joined(rows: Iterable[Row], *, are_chunks: bool) -> list[Row]:
  answers: list[Row | list[Row]] = []
  by_id: dict[str, list[Row]] = {}
  for number, row in rows:
    name = row.get("id")
    is_chunk = are_chunks and _choices(row) is not None and "output" not in row
    if not isinstance(name, str) or not (is_chunk or _has_delta(row)):
      answers.append([(number, row)])
      continue
    if name not in by_id:
      by_id[name] = []
      answers.append(by_id[name])
    by_id[name].append((number, row))
  joined_ids = {id(chunks) for chunks in by_id.values()}
  return [
    (chunks[0][0], _answer([row for _, row in chunks]))
    if id(chunks) in joined_ids
    else chunks[0]
    for chunks in answers
  ]


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
  by_index: dict[object, list[Mapping]] = {}
  for chunk in chunks:
    for choice in _choices(chunk) or ():
      index = choice.get("index")
      by_index.setdefault(index if type(index) is int else 0, []).append(choice)
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
