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
  return tuple(map(_legacy_step, tokens, values, tops))


def _legacy_step(
  token: object, value: object, top: object
) -> schema.TeacherStep:
  if top is None:
    top = {}
  if not isinstance(token, str) or not isinstance(top, dict):
    raise ResponseError(f"token {_shown(token)} with {_shown(top)} is no token")
  pairs = tuple([(name, _log_prob(p)) for name, p in top.items()])
  token_bytes = _spelt_bytes(token)
  # Nearly every token is whole characters: bytes only where one is not.
  given = token_bytes is not None or any(
    name.startswith("bytes:") for name in top
  )
  return schema.TeacherStep(
    token=token,
    log_prob=_log_prob(value),
    top=pairs,
    token_bytes=token_bytes,
    top_bytes=tuple([_spelt_bytes(name) for name in top]) if given else None,
  )


def _spelt_bytes(token: str) -> bytes | None:
  if not token.startswith("bytes:"):
    return None
  match = _OPENAI_BYTES.fullmatch(token)
  return bytes.fromhex(match[1].replace("\\x", "")) if match else None


def _chat_steps(log_probs: Mapping) -> tuple[schema.TeacherStep, ...]:
  content = log_probs["content"]
  if content is None:
    content = []
  if not isinstance(content, list):
    raise ResponseError(f"'content' is {_shown(content)}, not a list")
  return tuple([_chat_step(entry) for entry in content])


def _chat_step(entry: object) -> schema.TeacherStep:
  tops = entry.get("top_logprobs") if isinstance(entry, dict) else None
  if tops is None:
    tops = []
  if not isinstance(tops, list):
    raise ResponseError(f"'top_logprobs' is {_shown(tops)}, not a list")
  token, log_prob, token_bytes = _candidate(entry)
  top = [_candidate(one) for one in tops]
  given = any(spelt is not None for _, _, spelt in top)
  return schema.TeacherStep(
    token=token,
    log_prob=log_prob,
    top=tuple([(name, value) for name, value, _ in top]),
    token_bytes=token_bytes,
    top_bytes=tuple([spelt for _, _, spelt in top]) if given else None,
  )


def _candidate(entry: object) -> tuple[str, float, bytes | None]:
  token = _get(entry, "token", str)
  given = entry.get("bytes")
  if given is None:
    return token, _log_prob(entry.get("logprob")), _spelt_bytes(token)
  try:
    spelt = bytes(given) if isinstance(given, list) else None
  except (TypeError, ValueError):
    spelt = None
  if spelt is None:
    raise ResponseError(f"'bytes' is {_shown(given)}, not a list of bytes")
  return token, _log_prob(entry.get("logprob")), spelt


def _log_prob(value: object) -> float:
  # The type itself: True is an int, and no log-probability.
  if type(value) not in (float, int) or not value <= schema.MAX_LOG_PROB:
    raise ResponseError(f"{_shown(value)} is no log-probability")
  return float(value)


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
