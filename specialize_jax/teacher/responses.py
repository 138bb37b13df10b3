r"""What an OpenAI-compatible server answers, read into teacher steps.

Two shapes of log-probabilities are in use, and servers mix them freely with
the two endpoints, so the shape decides and not the endpoint:

- legacy (`/v1/completions`): `{"tokens": [...], "token_logprobs": [...],
  "top_logprobs": [{token: log-probability}, ...]}`, where a token that is not
  whole characters is spelled `bytes:\xe2\x82` (OpenAI) or with U+FFFD;
- chat (`/v1/chat/completions`): `{"content": [{"token", "logprob", "bytes",
  "top_logprobs": [{"token", "logprob", "bytes"}]}]}`.

A server is not trusted: whatever is not of these shapes is an error here.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping

from specialize_jax.records import schema
from specialize_jax.teacher import spelling

_OPENAI_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")


class ResponseError(ValueError):
  """An answer that is not what was asked for; another may be."""


class NoLogProbsError(ResponseError):
  """An answer with a text and without its log-probabilities."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """One sampled text, as checked.

  Attributes:
    text: What the steps spell.
    steps: One a token.
    finish_reason: The API's word; "unknown" where it gives none.
  """

  text: str
  steps: tuple[schema.TeacherStep, ...]
  finish_reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
  """A whole answer.

  Attributes:
    choices: At least one.
    prompt_tokens: What the server counted; None where it does not say.
    completion_tokens: Likewise, of all choices together.
  """

  choices: tuple[Choice, ...]
  prompt_tokens: int | None
  completion_tokens: int | None


def parse(body: object) -> Response:
  """Reads an answer's JSON.

  Raises:
    NoLogProbsError: a choice has a text and no log-probabilities, or no
      alternatives beside its tokens.
    ResponseError: it is anything else that a server should not send.
  """
  choices = _get(body, "choices", list)
  if not choices:
    raise ResponseError("the server answered with no choice")
  usage = body.get("usage")
  usage = usage if isinstance(usage, dict) else {}
  return Response(
    choices=tuple(_choice(choice) for choice in choices),
    prompt_tokens=_count(usage.get("prompt_tokens")),
    completion_tokens=_count(usage.get("completion_tokens")),
  )


def _choice(choice: object) -> Choice:
  text = _text(choice)
  log_probs = choice.get("logprobs")
  if log_probs is None or log_probs == {}:
    if text:
      raise NoLogProbsError("the server answered without log-probabilities")
    log_probs = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
  if not isinstance(log_probs, dict):
    raise ResponseError(f"'logprobs' is {_shown(log_probs)}, not an object")
  legacy = "content" not in log_probs
  steps = _legacy_steps(log_probs) if legacy else _chat_steps(log_probs)
  if text and not any(step.top for step in steps):
    raise NoLogProbsError(
      "the server answered without the most probable tokens' log-probabilities"
    )
  try:
    text, steps = spelling.fit(text, steps)
  except spelling.MisspeltError as error:
    raise ResponseError(str(error)) from error
  reason = choice.get("finish_reason")
  if reason is not None and not isinstance(reason, str):
    raise ResponseError(f"'finish_reason' is {_shown(reason)}, not a string")
  return Choice(text=text, steps=steps, finish_reason=reason or "unknown")


def _text(choice: object) -> str:
  if isinstance(choice, dict) and "message" in choice:
    message = choice["message"]
    if isinstance(message, dict) and message.get("content") is None:
      return ""  # a refusal, or nothing before the end
    return _get(message, "content", str)
  return _get(choice, "text", str)


def _legacy_steps(log_probs: Mapping) -> tuple[schema.TeacherStep, ...]:
  tokens = _get(log_probs, "tokens", list)
  values = _get(log_probs, "token_logprobs", list)
  tops = log_probs.get("top_logprobs")
  if tops is None:
    tops = [None] * len(tokens)
  if not isinstance(tops, list) or not len(tokens) == len(values) == len(tops):
    raise ResponseError("'tokens' and their log-probabilities differ in number")
  tops = [{} if top is None else top for top in tops]
  _check_kind(tops, dict, "top_logprobs")
  _check_kind(tokens, str, "tokens")
  values = _log_probs(values)
  _log_probs([value for top in tops for value in top.values()])
  names = [name for top in tops for name in top]
  steps = tuple(
    [
      schema.TeacherStep(token=token, log_prob=value, top=tuple(top.items()))
      for token, value, top in zip(tokens, values, tops, strict=True)
    ]
  )
  if _OPENAI_BYTES.search("".join(tokens + names)):
    return tuple(map(with_spelt_bytes, steps))
  return steps


def with_spelt_bytes(step: schema.TeacherStep) -> schema.TeacherStep:
  r"""Gives a step the bytes that its tokens are spelled by, where they are.

  Example: a token `bytes:\xe2\x82` has the bytes e2 82.
  """
  token_bytes = _spelt_bytes(step.token)
  top_bytes = tuple([_spelt_bytes(name) for name, _ in step.top])
  if token_bytes is None and not any(top_bytes):
    return step
  return dataclasses.replace(step, token_bytes=token_bytes, top_bytes=top_bytes)


def _spelt_bytes(token: str) -> bytes | None:
  match = _OPENAI_BYTES.fullmatch(token)
  return bytes.fromhex(match[1].replace("\\x", "")) if match else None


def _chat_steps(log_probs: Mapping) -> tuple[schema.TeacherStep, ...]:
  content = log_probs["content"] or []
  if not isinstance(content, list):
    raise ResponseError(f"'content' is {_shown(content)}, not a list")
  _check_kind(content, dict, "content")
  tops = [entry.get("top_logprobs") or [] for entry in content]
  _check_kind(tops, list, "top_logprobs")
  # All candidates in one list: checked together, and cut apart again.
  tokens, values, spelt = _candidates(content)
  names, others, others_spelt = _candidates(
    [one for top in tops for one in top]
  )
  pairs = list(zip(names, others, strict=True))
  ends = list(itertools.accumulate(map(len, tops)))
  cuts = [
    slice(end - len(top), end) for top, end in zip(tops, ends, strict=True)
  ]
  steps = [
    schema.TeacherStep(token=token, log_prob=value, top=tuple(pairs[cut]))
    for token, value, cut in zip(tokens, values, cuts, strict=True)
  ]
  if spelt or others_spelt:
    spelt = spelt or [None] * len(steps)
    others_spelt = others_spelt or [None] * len(pairs)
    steps = [
      dataclasses.replace(
        step,
        token_bytes=own,
        top_bytes=tuple(others_spelt[cut]) if any(others_spelt[cut]) else None,
      )
      for step, own, cut in zip(steps, spelt, cuts, strict=True)
    ]
  return tuple(steps)


def _candidates(
  entries: list,
) -> tuple[list[str], list[float], list[bytes | None] | None]:
  """Gives each entry's token and log-probability, and bytes where they tell.

  Bytes that are the token's own UTF-8 say nothing new and are not kept; there
  is no list of bytes where there are no others.
  """
  _check_kind(entries, dict, "top_logprobs")
  tokens = [entry.get("token") for entry in entries]
  _check_kind(tokens, str, "token")
  values = _log_probs([entry.get("logprob") for entry in entries])
  given = [entry.get("bytes") for entry in entries]
  own = [token.encode("utf-8", "surrogatepass") for token in tokens]
  if not set(map(type, given)) <= {list, type(None)}:
    raise ResponseError("'bytes' are not lists of bytes")
  try:
    spelt = [None if one is None else bytes(one) for one in given]
  except (TypeError, ValueError) as error:
    raise ResponseError(f"'bytes' are not lists of bytes: {error}") from error
  if spelt == own:
    return tokens, values, None
  spelt = [
    _spelt_bytes(token) if b is None else (None if b == a else b)
    for token, a, b in zip(tokens, own, spelt, strict=True)
  ]
  return tokens, values, spelt if any(b is not None for b in spelt) else None


def _check_kind(values: list, kind: type, name: str) -> None:
  """Checks that all of a list are of one type."""
  if not set(map(type, values)) <= {kind}:
    wrong = next(value for value in values if type(value) is not kind)
    raise ResponseError(f"{name!r} has {_shown(wrong)}")


def _log_probs(values: list) -> list[float]:
  """Checks log-probabilities, all at once: they are most of an answer."""
  if set(map(type, values)) <= {float, int}:  # True is of neither type
    high = schema.MAX_LOG_PROB
    # A sum is not a number where any of its terms is not.
    if not values or (
      max(values) <= high and sum(values) <= high * len(values)
    ):
      return list(map(float, values))
  wrong = next(
    value
    for value in values
    if type(value) not in (float, int) or not value <= schema.MAX_LOG_PROB
  )
  raise ResponseError(f"{_shown(wrong)} is no log-probability")


def _count(value: object) -> int | None:
  return value if type(value) is int and value >= 0 else None


def _get(value: object, name: str, kind: type) -> object:
  """Gives a field of an object, or says what is there instead."""
  if not isinstance(value, dict):
    raise ResponseError(f"expected an object with {name!r}: {_shown(value)}")
  if not isinstance(value.get(name), kind):
    raise ResponseError(f"{name!r} is {_shown(value.get(name))}")
  return value[name]


def _shown(value: object) -> str:
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
