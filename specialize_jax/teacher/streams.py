"""Streamed answers that were saved piece by piece, put together.

A server that streams sends each token as a chunk: an event `data: {...}` of
its own, the last of which says why the answer ended. People save the events as
they came, or the chunks as JSON lines.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.files import reading

FIRST_WORDS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""What a saved event stream can begin with."""

CUT = "incomplete stream"
"""The finish reason of an answer whose last chunk is missing."""

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
  """Reads a file of events, each answer's chunks joined.

  Returns:
    Each answer with its number, from 1, as `files.reading` numbers lines.

  Raises:
    UserError: a line is none of an event stream.
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
        continue  # the last event has the whole answer
      chunk = chunk["response"]
    if not isinstance(chunk.get("id"), str):
      chunk = {**chunk, "id": f"stream {num_done}"}
    chunks.append((number, chunk))
  answers = _joined(chunks, are_chunks=True)
  return [(number, row) for number, (_, row) in enumerate(answers, start=1)]


def joined(rows: Sequence[Row]) -> list[Row]:
  """Joins the rows that are chunks of one answer of the chat endpoint.

  Args:
    rows: Numbered rows; chunks of one answer have the same `id`.

  Returns:
    The rows, in place of an answer's first chunk the whole answer.
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
  """Returns the choices of a chunk; None where a row is none."""
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
  """Joins the chunks of an answer."""
  by_index: dict[object, list[Mapping]] = {}
  for chunk in chunks:
    for choice in _choices(chunk) or ():
      index = choice.get("index")
      by_index.setdefault(index if type(index) is int else 0, []).append(choice)
  usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
  answer = {**chunks[0], "choices": list(map(_choice, by_index.values()))}
  return answer | ({"usage": usages[-1]} if usages else {})


def _choice(pieces: Sequence[Mapping]) -> dict[str, object]:
  """Joins the pieces of a choice.

  A piece of another shape than a chunk's stays in the choice as it is, so that
  whoever reads it refuses it by name.
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
  """Adds the log-probabilities of a piece; of all shapes, lists a token."""
  tokens = given.get("tokens")
  if isinstance(tokens, list) and not given.get("top_logprobs"):
    given = {**given, "top_logprobs": [None] * len(tokens)}
  for name, values in given.items():
    if isinstance(values, list):
      log_probs.setdefault(name, []).extend(values)
