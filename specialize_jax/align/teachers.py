"""Builds teacher tokens from strings, ids or server responses.

Alignment reads `TeacherToken`s: the bytes of a sampled token, its
log-probability, and the bytes and log-probabilities of its alternatives. They
can be built from strings, from ids and a vocabulary that maps ids to bytes (a
fast tokenizer or a tiktoken file), or from the response of an OpenAI-compatible
server.
"""

import base64
import binascii
import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from specialize_jax import errors
from specialize_jax.align import special_tokens, targets
from specialize_jax.files import paths, writing

Spelling = str | bytes
Top = Mapping[Spelling, float] | Iterable[tuple[Spelling, float]] | None
"""A step's alternatives with natural log-probabilities; None if missing."""


class Vocabulary(Protocol):
  """A mapping of a teacher's ids to bytes; every `student.Student` is one."""

  def token_bytes(self, index: int) -> bytes | None:
    """Returns the bytes that a token adds; None if the token is not text."""


class Tiktoken:
  """The vocabulary of a tiktoken file: a base64 token and its id per line."""

  def __init__(self, path: str | os.PathLike[str]) -> None:
    """Reads the file, such as `cl100k_base.tiktoken`.

    Raises:
      UserError: `path` does not exist or is not a tiktoken file.
    """
    file = paths.to_epath(path)
    if not file.is_file():
      raise errors.UserError(
        f"{path} does not exist; give the teacher's .tiktoken file"
      )
    self._spellings: dict[int, bytes] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
      if not line.strip():
        continue
      try:
        token, index = line.split()
        self._spellings[int(index)] = base64.b64decode(token, validate=True)
      except (ValueError, binascii.Error) as error:
        raise errors.UserError(
          f"{path}, line {number}: expected a token in base64 and its id, as in"
          " a .tiktoken file"
        ) from error

  def token_bytes(self, index: int) -> bytes | None:
    """Returns the bytes that a token adds; None for a special token."""
    return self._spellings.get(index)


def from_strings(
  tokens: Sequence[Spelling],
  top_logprobs: Sequence[Top],
  *,
  token_logprobs: Sequence[float] | None = None,
) -> list[targets.TeacherToken]:
  """Builds teacher tokens from strings or bytes.

  Args:
    tokens: The sampled tokens, whose concatenation is the text.
    top_logprobs: The alternatives of each token, with or without the sampled
      token, and their natural log-probabilities.
    token_logprobs: The sampled tokens' own log-probabilities; None if every
      sampled token is among its alternatives.

  Raises:
    UserError: the lengths differ, a sampled token has no log-probability, or a
      log-probability is NaN or positive.

  Example:
    >>> (token,) = from_strings(["Ann"], [{"Ann": -0.5, "Bob": -1.5}])
    >>> token.spelling, token.log_prob, token.top
    (b'Ann', -0.5, ((b'Ann', -0.5), (b'Bob', -1.5)))
  """
  if isinstance(top_logprobs, Mapping):
    raise errors.UserError(
      "top_logprobs of a text is a mapping; expected a sequence of them, one"
      " per token, nested as the tokens are"
    )
  if len(tokens) != len(top_logprobs):
    raise errors.UserError(
      f"top_logprobs has {len(top_logprobs)} entries for {len(tokens)} tokens;"
      " expected one per token"
    )
  if token_logprobs is not None and len(tokens) != len(token_logprobs):
    raise errors.UserError(
      f"token_logprobs has {len(token_logprobs)} entries for {len(tokens)}"
      " tokens; expected one per token"
    )
  found = []
  for place, (token, top) in enumerate(zip(tokens, top_logprobs, strict=True)):
    spelling = _bytes(token)
    pairs = _pairs(top, place)
    listed = tuple(
      (_bytes(one), _checked(log_prob, place)) for one, log_prob in pairs
    )
    # Strings may repeat, as U+FFFD does: the first is the likeliest.
    known = dict(reversed(listed))
    if token_logprobs is not None:
      log_prob = _checked(token_logprobs[place], place)
    elif spelling in known:
      log_prob = known[spelling]
    else:
      raise errors.UserError(
        f"token {place}, {token!r}, is not among its top_logprobs; give"
        " token_logprobs"
      )
    found.append(
      targets.TeacherToken(spelling=spelling, log_prob=log_prob, top=listed)
    )
  return found


def from_ids(
  vocabulary: Vocabulary,
  ids: Sequence[int],
  top_logprobs: Sequence[Mapping[int, float]],
  *,
  text: str | None = None,
) -> list[targets.TeacherToken]:
  """Builds teacher tokens from ids of a vocabulary.

  Args:
    vocabulary: A `Tiktoken`, or a student's adapter around the teacher's own
      tokenizer.
    ids: The sampled tokens. Special ones at the end are left out.
    top_logprobs: The alternatives of each token, including the sampled one, as
      log-probabilities by id. Alternatives that are not text (such as an end of
      sequence) are ignored.
    text: The text that was tokenized, if `vocabulary` is a student's adapter:
      each token then has the bytes that it covers in the text, without a space
      that the tokenizer adds before it. None for the text that the tokens
      spell.

  Raises:
    UserError: an id has no bytes or no log-probability, or `ids` are not the
      tokens of `text`.
  """
  _check_vocabulary(vocabulary, with_text=text is not None)
  is_special = getattr(vocabulary, "is_special", lambda index: False)
  ids = list(ids)
  if len(ids) == len(top_logprobs):
    while ids and is_special(ids[-1]):  # as an end of sequence
      ids.pop()
    top_logprobs = top_logprobs[: len(ids)]
  spellings = [
    None if is_special(index) else vocabulary.token_bytes(index)
    for index in ids
  ]
  if text is not None:
    encoding = vocabulary.encode_with_spans(text)
    if tuple(encoding.ids) != tuple(ids):
      raise errors.UserError(
        f"ids={list(ids)} are not the vocabulary's tokens of text={text!r}"
      )
    encoded = text.encode("utf-8")
    spellings = [encoded[start:end] for start, end in encoding.spans]
  if len(ids) != len(top_logprobs):
    raise errors.UserError(
      f"top_logprobs has {len(top_logprobs)} entries for {len(ids)} ids;"
      " expected one per token"
    )
  tokens, tops = [], []
  for place, (index, top) in enumerate(zip(ids, top_logprobs, strict=True)):
    if spellings[place] is None:
      raise errors.UserError(
        f"ids[{place}]={index} spells no text in the teacher's vocabulary;"
        " leave special tokens out"
      )
    if index not in top:
      raise errors.UserError(
        f"ids[{place}]={index} is not among its top_logprobs"
      )
    tokens.append(spellings[place])
    pairs = [(spellings[place], top[index])]
    for other, log_prob in top.items():
      spelling = vocabulary.token_bytes(other)
      if other != index and spelling is not None:
        pairs.append((spelling, log_prob))
    tops.append(pairs)
  return from_strings(tokens, tops)


def from_response(response: Mapping[str, Any]) -> list[targets.TeacherToken]:
  """Builds teacher tokens from an OpenAI-compatible server's response.

  Special tokens at its end, such as an end of sequence, are left out.

  Args:
    response: A response of `/v1/completions` or `/v1/chat/completions` (of
      which the first choice is used), one of its choices, or a choice's
      `logprobs`.

  Raises:
    UserError: it has no log-probabilities, or not as an API gives them.
  """
  try:
    return _from_response(response)
  except errors.UserError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise errors.UserError(
      "the response's log-probabilities are not as /v1/completions or"
      f" /v1/chat/completions has them: {type(error).__name__}: {error}"
    ) from error


def _check_vocabulary(vocabulary: object, *, with_text: bool) -> None:
  """Raises UserError unless it has the methods of a vocabulary."""
  needed = ["token_bytes", *(["encode_with_spans"] if with_text else [])]
  if all(hasattr(vocabulary, name) for name in needed):
    return
  raise errors.UserError(
    f"vocabulary={type(vocabulary).__name__} has no"
    f" {' and '.join(needed)}: wrap a tokenizer in HuggingFaceStudent or"
    " SentencePieceStudent.from_file"
    + ("; a Tiktoken has no text" if with_text else "")
  )


def _from_response(response: Mapping[str, Any]) -> list[targets.TeacherToken]:
  # The objects of OpenAI's own client.
  found: Any = getattr(response, "model_dump", lambda: response)()
  if isinstance(found, Mapping) and found.get("choices"):
    found = found["choices"][0]
  tokens = _tokens_of(found)
  _check_text(tokens, found)
  return tokens


def _check_text(
  tokens: Sequence[targets.TeacherToken], choice: Mapping[str, Any]
) -> None:
  """Raises UserError unless the tokens spell the text of their choice.

  Servers have many spellings of tokens, which `specialize import` reads.
  """
  message = choice.get("message")
  text = choice.get("text")
  if isinstance(message, Mapping):
    text = message.get("content")
  if not isinstance(text, str):
    return
  spelt = b"".join(token.spelling for token in tokens).strip()
  wanted = text.encode("utf-8", errors="surrogatepass").strip()
  if not (spelt.startswith(wanted) or wanted.startswith(spelt)):
    raise errors.UserError(
      f"the response's tokens spell {writing.shown(spelt)}, and its text is"
      f" {writing.shown(wanted)}: `specialize import` reads the spellings of"
      " many servers"
    )


def _tokens_of(found: Any) -> list[targets.TeacherToken]:
  """Returns the tokens of a choice, or of its `logprobs`."""
  if isinstance(found, Mapping) and isinstance(found.get("logprobs"), Mapping):
    found = found["logprobs"]
  if isinstance(found, Mapping) and found.get("content"):
    entries = list(found["content"])
    while entries and special_tokens.is_special(entries[-1]["token"]):
      entries.pop()
    return from_strings(
      [_chat_spelling(entry) for entry in entries],
      [
        [
          (_chat_spelling(one), one["logprob"])
          for one in entry.get("top_logprobs") or ()
        ]
        for entry in entries
      ],
      token_logprobs=[entry["logprob"] for entry in entries],
    )
  if isinstance(found, Mapping) and found.get("tokens"):
    tokens = list(found["tokens"])
    tops = found.get("top_logprobs") or [None] * len(tokens)
    log_probs = found.get("token_logprobs")
    if len(tops) == len(tokens) and len(log_probs or tokens) == len(tokens):
      while tokens and special_tokens.is_special(tokens[-1]):
        tokens.pop()
    return from_strings(
      tokens,
      tops[: len(tokens)],
      token_logprobs=log_probs and log_probs[: len(tokens)],
    )
  raise errors.UserError(
    "the response holds no log-probabilities: expected logprobs with tokens"
    " (completions) or content (chat); ask the server for logprobs"
  )


def _chat_spelling(entry: Mapping[str, Any]) -> Spelling:
  # Some servers send an empty list for every token.
  return bytes(entry["bytes"]) if entry.get("bytes") else entry["token"]


def _bytes(spelling: Spelling) -> bytes:
  if isinstance(spelling, bytes):
    return spelling
  if isinstance(spelling, str):
    return spelling.encode("utf-8", errors="surrogatepass")
  raise errors.UserError(
    f"token {spelling!r} is of type {type(spelling).__name__}; expected str or"
    " bytes (for ids: align.from_ids)"
  )


def _pairs(top: Top, place: int) -> list[tuple[Spelling, float]]:
  """Returns the alternatives of the token at an index as pairs."""
  pairs = list(top.items() if isinstance(top, Mapping) else top or ())
  if any(isinstance(p, (str, bytes)) or len(p) != 2 for p in pairs):
    raise errors.UserError(
      f"top_logprobs[{place}] is {top!r:.80}; expected a mapping of"
      " alternatives to log-probabilities, or pairs of them"
    )
  return pairs


def _checked(log_prob: float, place: int) -> float:
  """Returns a log-probability, at most 0.

  Args:
    log_prob: A number; rounding may have made it slightly positive.
    place: The index of its token, for the error.

  Raises:
    UserError: it is no number, NaN or well above 0, as a probability would be.
  """
  is_number = isinstance(log_prob, numbers.Real)
  value = float(log_prob) if is_number else math.nan
  if math.isnan(value) or value > 1e-3:
    raise errors.UserError(
      f"token {place} has the log-probability {log_prob!r}; expected a natural"
      " logarithm of a probability, at most 0"
    )
  return min(value, 0.0)
