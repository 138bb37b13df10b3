r"""Parses the responses of OpenAI-compatible servers to teacher steps.

There are two shapes of log-probabilities. Servers may use either with either
endpoint, or mix them, so the parser decides by the fields that have values, and
not by the endpoint or by the keys that are present:

- legacy (`/v1/completions`): `{"tokens": [...], "token_logprobs": [...],
  "top_logprobs": [{token: log-probability}, ...]}`, where a token that is not
  whole characters is spelled `bytes:\xe2\x82` (OpenAI) or with U+FFFD;
- chat (`/v1/chat/completions`): `{"content": [{"token", "logprob", "bytes",
  "top_logprobs": [{"token", "logprob", "bytes"}]}]}`.

The responses of servers' own endpoints are converted to the latter
(`native_responses`).

Servers are not trusted. A choice with invalid sampled tokens is rejected,
without the other choices; an invalid alternative is dropped; both are counted.
Alternatives must be written like the sampled tokens: if they are in another
alphabet (`alphabets`), they are decoded or dropped.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from specialize_jax.align import special_tokens
from specialize_jax.records import escaped_bytes, schema
from specialize_jax.teacher import alphabets, native_responses, spelling

_TOKEN_ID = re.compile(r"token_id:\d+")
_SPECIAL = re.compile(r"(<[^<>\s]+>|\[[A-Z_/]+\]|\s*)")
# The ends of reasoning if its tokens are returned (DeepSeek and Qwen, gpt-oss,
# Mistral, Kimi, Seed, Cohere).
_REASONING_ENDS = (
  b"</think>",
  b"</thinking>",
  b"</reasoning>",
  b"<|channel|>final<|message|>",
  b"[/THINK]",
  "\u25c1/think\u25b7".encode(),
  b"</seed:think>",
  b"<|END_THINKING|>",
)
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
# A stop sequence is removed from the text but not from the tokens. If more
# follows, the text was not truncated at a stop: it only happens to begin like
# the tokens.
_MAX_TOKENS_AFTER_TEXT = 32
_MAX_WORDS = 300
_MAX_ERROR_DEPTH = 8

NO_REASONING = (
  "ask for answers without reasoning, for instance with --extra_body="
  '\'{"chat_template_kwargs": {"enable_thinking": false}}\' (vLLM, SGLang)'
)

_TOKENS_ARE_IDS = (
  "its tokens are spelled by their ids, which mean nothing without the"
  " teacher's tokenizer: ask without return_tokens_as_token_ids (vLLM), or with"
  " return_text_in_logprobs (SGLang)"
)

# The reasons for dropping an alternative, by which they are counted.
NO_NUMBER = "without a log-probability"
NO_SPELLING = "that spell nothing"
OTHER_ALPHABET = "in another alphabet than the sampled tokens"
TOO_DEEP = "its values are nested too deeply"
NO_ALTERNATIVE = "of a shape that is none"
NO_BYTES = "that are a part of a character, without their bytes"
NO_DISTRIBUTION = "whose probabilities add up to more than 1"

# The Responses API's names of finish reasons.
_FINISH_REASONS = {"completed": "stop", "max_output_tokens": "length"}

_EQUAL_LOG_PROBS = 1e-6
# Rounding by servers may yield a sum slightly above 1.
_MAX_MASS = 1.2
# Minus infinity as protocol buffers, Python and others write it in a string.
_MINUS_INFINITY = ("-Infinity", "-inf", "-Inf")


class ResponseError(ValueError):
  """A response is invalid; another attempt may succeed."""


class NoLogProbsError(ResponseError):
  """A response has a text but no log-probabilities."""


class SettledError(ResponseError):
  """A response is invalid in a way that every attempt would repeat."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternatives:
  """The alternatives of several tokens, concatenated.

  Attributes:
    names: The server's strings.
    log_probs: Their log-probabilities, in nats.
    spelt: Their bytes, or None for an alternative without; None if the server
      returns no bytes at all.
    counts: The number of alternatives of each token.
  """

  names: list[str]
  log_probs: list[float]
  spelt: list[bytes | None] | None
  counts: list[int]

  def cut(self) -> list[tuple[tuple[str, float], ...]]:
    """Returns each token's alternatives, in the form of a step."""
    pairs = iter(zip(self.names, self.log_probs, strict=True))
    return [tuple(itertools.islice(pairs, count)) for count in self.counts]

  def cut_bytes(self) -> list[tuple[bytes | None, ...] | None]:
    """Returns the bytes of each token's alternatives, in the form of a step."""
    if self.spelt is None:
      return [None] * len(self.counts)
    spelt = iter(self.spelt)
    return [
      _any_of(tuple(itertools.islice(spelt, count))) for count in self.counts
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """A validated sample.

  Attributes:
    text: The text that the steps spell.
    steps: One step per token.
    finish_reason: The API's value; `schema.UNKNOWN_FINISH` if it is missing.
    reasoning_tokens: The number of removed tokens before the text, those of
      reasoning that is not part of it.
    tokens_cut_off: The number of removed tokens after it that do not end an
      answer, such as one that is a part of a character.
  """

  text: str
  steps: tuple[schema.TeacherStep, ...]
  finish_reason: str
  reasoning_tokens: int = 0
  tokens_cut_off: int = 0

  @property
  def removed_tokens(self) -> dict[str, int]:
    """The numbers of removed tokens by name, as records store them."""
    numbers = {
      "reasoning_tokens": self.reasoning_tokens,
      "tokens_cut_off": self.tokens_cut_off,
    }
    return {name: number for name, number in numbers.items() if number}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
  """A validated response.

  Attributes:
    choices: The valid choices, at least one.
    rejected: The reason for rejecting each of the others.
    left_out: The number of dropped alternatives, by reason.
    prompt_tokens: The server's count; None if it is missing.
    completion_tokens: The server's count for all choices, likewise.
  """

  choices: tuple[Choice, ...]
  rejected: tuple[ResponseError, ...] = ()
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
  prompt_tokens: int | None
  completion_tokens: int | None

  @property
  def reasoning_tokens(self) -> int:
    """The number of reasoning tokens removed before the texts."""
    return sum(choice.reasoning_tokens for choice in self.choices)


def parse(body: object) -> Response:
  """Validates a response.

  Args:
    body: The response's parsed JSON.

  Returns:
    The valid choices, and counts.

  Raises:
    NoLogProbsError: no choice is valid, and the first has a text but no
      log-probabilities, or tokens without alternatives.
    SettledError: no choice is valid, and a retry would not help.
    ResponseError: no choice is valid for another reason.
  """
  try:
    return _parsed(body)
  except RecursionError as error:
    raise SettledError(TOO_DEEP) from error


def _parsed(body: object) -> Response:
  prompt_tokens, completion_tokens = usage_of(body)
  choices: list[Choice] = []
  rejected: list[ResponseError] = []
  left_out: collections.Counter[str] = collections.Counter()
  for choice in _choices(body):
    found: collections.Counter[str] = collections.Counter()
    try:
      choices.append(_choice(choice, found))
    except ResponseError as error:
      rejected.append(error)
    else:
      left_out += found
  if not choices:
    raise rejected[0]
  return Response(
    choices=tuple(choices),
    rejected=tuple(rejected),
    left_out=left_out,
    prompt_tokens=prompt_tokens,
    completion_tokens=completion_tokens,
  )


def usage_of(body: object) -> tuple[int | None, int | None]:
  """Returns the numbers of prompt and sampled tokens; None if not given."""
  usage = body.get("usage") if isinstance(body, dict) else None
  usage = usage if isinstance(usage, dict) else {}
  prompt, sampled = native_responses.num_tokens(body)
  return (
    _count(usage.get("prompt_tokens", usage.get("input_tokens", prompt))),
    _count(usage.get("completion_tokens", usage.get("output_tokens", sampled))),
  )


def server_message(said: object) -> str | None:
  """Returns the error message in a server's JSON; None if there is none.

  Example:
    >>> server_message({"error": {"message": "too long", "code": "length"}})
    'too long (length)'
    >>> server_message({"choices": [], "error": None})
  """
  return _message_in(said, depth=0)


def _message_in(said: object, *, depth: int) -> str | None:
  for name in ("error", "message", "detail", "msg"):
    found = said.get(name) if isinstance(said, dict) else None
    if not found or (name in ("message", "msg") and not isinstance(found, str)):
      continue
    code = said.get("code")
    if isinstance(found, dict | list) and depth >= _MAX_ERROR_DEPTH:
      return "an error within an error"
    if isinstance(found, dict):
      return _message_in(found, depth=depth + 1) or _in_one_line(repr(found))
    if isinstance(found, list):
      parts = [
        _message_in(one, depth=depth + 1) or _in_one_line(repr(one))
        for one in found
      ]
      return "; ".join(parts)
    words = _in_one_line(str(found))
    return f"{words} ({code})" if isinstance(code, str) else words
  return None


def _in_one_line(text: str) -> str:
  return " ".join(text.split())


def _is_of_responses_api(body: object) -> bool:
  """Returns whether it is the Responses API, and not just any `output`."""
  if not isinstance(body, dict) or "choices" in body or body.get("error"):
    return False
  output = body.get("output")
  return isinstance(output, list) and (
    body.get("object") == "response"
    or any(isinstance(one, dict) and "type" in one for one in output)
  )


def _of_responses_api(body: Mapping) -> dict[str, object]:
  """Converts a response of OpenAI's Responses API to a choice of a chat.

  Raises:
    ResponseError: an item of its output is malformed.
  """
  parts, log_probs, refusals = [], [], []
  for item in body["output"]:
    content = item.get("content") if isinstance(item, dict) else None
    if not isinstance(item, dict) or item.get("type") != "message":
      continue  # reasoning, or a tool call
    content = content if isinstance(content, list) else [content]
    _check_kind(content, dict, "content")
    for part in content:
      if part.get("type") == "refusal":
        refusals.append(part)
        continue
      parts.append(_get(part, "text", str))
      log_probs += _get(
        {"logprobs": part.get("logprobs") or []}, "logprobs", list
      )
  details = body.get("incomplete_details")
  reason = details.get("reason") if isinstance(details, dict) else None
  finish_reason = body.get("status") if reason is None else reason
  return {
    "message": {
      "content": "".join(parts) if parts else None,
      "refusal": bool(refusals) or None,
    },
    "logprobs": {"content": log_probs},
    "finish_reason": _FINISH_REASONS.get(str(finish_reason), finish_reason),
  }


def _choices(body: object) -> list:
  """Returns a response's choices; raises an error if it has none."""
  native = native_responses.choices(body)
  if native is not None:
    return native
  if _is_of_responses_api(body):
    return [_of_responses_api(body)]
  if isinstance(body, dict) and isinstance(body.get("choices"), list):
    if body["choices"]:
      return body["choices"]
    said = server_message(body)
    raise ResponseError(
      f"the server answered with no choice{f': {said}' if said else ''}"
    )
  said = server_message(body)
  if said is not None:
    raise ResponseError(f"the server answered with an error: {_cut(said)}")
  if isinstance(body, dict) and isinstance(body.get("content"), list):
    raise NoLogProbsError(
      "the server answered without log-probabilities, in the shape of"
      " Anthropic's API"
    )
  if isinstance(body, dict) and "choices" not in body:
    names = ", ".join(map(repr, list(body)[:8])) or "none"
    raise ResponseError(
      "expected 'choices', as OpenAI-compatible endpoints answer, or a response"
      " of llama.cpp, Ollama, SGLang, text-generation-inference or Gemini; its"
      f" fields are {names[:_MAX_WORDS]}"
    )
  if isinstance(body, dict):
    raise ResponseError(f"'choices' is {shown(body['choices'])}")
  raise ResponseError(f"expected an object with 'choices': {shown(body)}")


def _choice(choice: object, left_out: collections.Counter[str]) -> Choice:
  if not isinstance(choice, dict):
    raise ResponseError(f"a choice is {shown(choice)}, not an object")
  if isinstance(choice.get("delta"), dict) and "message" not in choice:
    or_whole = ", or save the whole stream, which specialize import reads"
    raise SettledError(
      "the answer is a piece of a stream: ask without 'stream'"
      f"{'' if choice is native_responses.CHUNK else or_whole}"
    )
  said = server_message({"error": choice.get("error")})
  if said is not None:
    raise ResponseError(f"the server answered with an error: {_cut(said)}")
  text, reasoning = _text(choice)
  reason = _finish_reason(choice)
  steps = sampled = _steps(choice, left_out)
  if text and not steps:
    raise NoLogProbsError("the server answered without log-probabilities")
  if reasoning and not text:
    raise SettledError(
      "the answer holds reasoning and no text: give it more tokens"
      f" (--max_tokens), or {NO_REASONING}"
    )
  if text is None:
    text = _no_text(choice, steps)
  if not text and not steps and schema.has_stopped(reason):
    raise ResponseError("the answer is empty")
  text, steps, reasoning_tokens = _fit(text, steps, reasoning)
  try:
    text, steps = spelling.without_special_tokens(text, steps)
  except spelling.MisspeltError as error:
    raise ResponseError(str(error)) from error
  steps = _with_read_alternatives(text, steps, left_out)
  if text and not any(step.top for step in steps):
    if left_out[NO_DISTRIBUTION]:
      raise SettledError(f"it has alternatives {NO_DISTRIBUTION}")
    if left_out[OTHER_ALPHABET]:
      raise SettledError(
        "its alternatives are spelled in another alphabet than its tokens, or"
        " by their ids"
      )
    raise NoLogProbsError(
      "the server answered without the most probable tokens' log-probabilities"
    )
  return Choice(
    text=text,
    steps=steps,
    finish_reason=reason,
    reasoning_tokens=reasoning_tokens,
    tokens_cut_off=_num_unended(sampled[reasoning_tokens + len(steps) :]),
  )


def _num_unended(steps: Sequence[schema.TeacherStep]) -> int:
  """Counts the tokens before the first that ends a turn, or spells nothing."""
  ends = (
    number
    for number, step in enumerate(steps)
    if not step.spelling or special_tokens.END.match(step.token.strip())
  )
  return next(ends, len(steps))


def _finish_reason(choice: Mapping) -> str:
  """Returns why an answer ended, in the server's word.

  SGLang's own endpoint has an object, {"type": "stop", "matched": 151645}.
  """
  reason = choice.get("finish_reason")
  if isinstance(reason, dict):
    reason = reason.get("type")
  if reason is not None and not isinstance(reason, str):
    raise ResponseError(f"'finish_reason' is {shown(reason)}, not a string")
  if reason is None and "finish_reason" in choice:
    return schema.NULL_FINISH
  return (reason or "").strip() or schema.UNKNOWN_FINISH


def _text(choice: Mapping) -> tuple[str | None, str]:
  """Returns a choice's text (None if missing) and its reasoning."""
  message = choice.get("message")
  if message is not None and not isinstance(message, dict):
    raise ResponseError(f"'message' is {shown(message)}")
  found: list[str] = []
  reasoning: list[str] = []
  for place, name in ((message or {}, "content"), (choice, "text")):
    value = place.get(name)
    if isinstance(value, list):
      value = _joined_parts(value, reasoning)
    if isinstance(value, str):
      found.append(value)
    elif value is not None:
      raise ResponseError(f"{name!r} is {shown(value)}")
    for field in _REASONING_FIELDS:
      if isinstance(place.get(field), str):
        reasoning.append(place[field])
  if not found and message is None:
    raise ResponseError(f"'text' is {shown(choice.get('text'))}")
  text = next((one for one in found if one), "" if found else None)
  return text, next((one for one in reasoning if one.strip()), "")


def _joined_parts(parts: list, reasoning: list[str]) -> str:
  """Joins a text that a server divides into parts, collecting reasoning."""
  texts = []
  for part in parts:
    if not isinstance(part, dict):
      raise ResponseError(f"'content' has {shown(part)}")
    if part.get("type") in ("thinking", "reasoning"):
      reasoning.append(str(part.get("thinking") or part.get("text") or ""))
    elif isinstance(part.get("text"), str):
      texts.append(part["text"])
    else:
      raise ResponseError(f"'content' has {shown(part)}")
  return "".join(texts)


def _no_text(choice: Mapping, steps: Sequence[schema.TeacherStep]) -> str:
  """Returns the empty text of a message without content, if it is valid."""
  message = choice.get("message") or {}
  may_be_empty = message.get("refusal") or message.get("tool_calls")
  if not may_be_empty and not all(map(_is_silent, steps)):
    spelt = "".join(step.token for step in steps)
    raise ResponseError(
      f"the message has no content, and its tokens spell {shown(spelt)}"
    )
  return ""


def _is_silent(step: schema.TeacherStep) -> bool:
  """Returns whether a token is special or white space, and may be removed."""
  spelt = step.spelling.decode("utf-8", "replace")
  return any(map(_SPECIAL.fullmatch, (step.token, spelt)))


# Sampled tokens, in either of the two shapes.


def _steps(
  choice: Mapping, left_out: collections.Counter[str]
) -> tuple[schema.TeacherStep, ...]:
  """Parses the sampled tokens and their alternatives, without decoding them."""
  message = choice.get("message")
  places = [choice.get("logprobs")]
  if isinstance(message, dict):
    places.append(message.get("logprobs"))
  log_probs = next((place for place in places if place), None)
  if log_probs is None:
    return ()
  if not isinstance(log_probs, dict):
    raise ResponseError(f"'logprobs' is {shown(log_probs)}, not an object")
  shapes = [
    (log_probs.get(name), read)
    for name, read in (("content", _chat_steps), ("tokens", _legacy_steps))
  ]
  filled = [read for value, read in shapes if value]
  best: tuple[schema.TeacherStep, ...] = ()
  for read in filled:
    found: collections.Counter[str] = collections.Counter()
    try:
      steps = read(log_probs, found)
    except ResponseError:
      if read is filled[-1] and not best:
        raise
      continue
    if not best or any(step.top for step in steps):
      best = steps
      left_out.update(found)
    if any(step.top for step in best):
      break
  return best


def _legacy_steps(
  log_probs: Mapping, left_out: collections.Counter[str]
) -> tuple[schema.TeacherStep, ...]:
  tokens = _get(log_probs, "tokens", list)
  values = _get(log_probs, "token_logprobs", list)
  tops = log_probs.get("top_logprobs") or [None] * len(tokens)
  if not isinstance(tops, list) or not len(tokens) == len(values) == len(tops):
    raise ResponseError("'tokens' and their log-probabilities differ in number")
  if tokens and set(map(type, tokens)) == {int}:
    raise SettledError(_TOKENS_ARE_IDS)
  _check_kind(tokens, str, "tokens")
  _check_no_echo(tokens, values, tops)
  try:
    values = _log_probs(values)
  except ResponseError:
    pairs = zip(tokens, values, strict=True)
    entries = [{"token": token, "logprob": value} for token, value in pairs]
    known = _with_known_ends(entries)
    values = _log_probs([entry["logprob"] for entry in known])
  return _to_steps(tokens, values, None, _alternatives(tops, left_out))


def _chat_steps(
  log_probs: Mapping, left_out: collections.Counter[str]
) -> tuple[schema.TeacherStep, ...]:
  content = _get(log_probs, "content", list)
  _check_kind(content, dict, "content")
  tops = [entry.get("top_logprobs") for entry in content]
  _check_no_echo(
    [entry.get("token") for entry in content],
    [entry.get("logprob") for entry in content],
    tops,
  )
  try:
    tokens, values, spelt = _candidates(content)
  except ResponseError:
    tokens, values, spelt = _candidates(_with_known_ends(content))
  return _to_steps(tokens, values, spelt, _alternatives(tops, left_out))


def _with_known_ends(entries: list[Mapping]) -> list[Mapping]:
  """Replaces missing log-probabilities of end tokens by 0.

  Special tokens, and empty ones at the end, are not part of the text, so their
  log-probabilities are not needed. Other entries are not changed.
  """
  last = len(entries)
  while last and entries[last - 1].get("token") == "":
    last -= 1
  known = []
  for number, entry in enumerate(entries):
    token = entry.get("token")
    is_end = number >= last or (
      isinstance(token, str) and special_tokens.ANY.fullmatch(token.strip())
    )
    lacks = is_end and _why_unusable(entry) == NO_NUMBER
    known.append({**entry, "logprob": 0.0} if lacks else entry)
  return known


def _check_no_echo(tokens: list, values: list, tops: list) -> None:
  """Rejects a response that includes the prompt.

  It is recognized by its first token, which no server can predict: it has no
  log-probability, or it has 0 and, unlike later tokens, no alternatives.
  """
  if not values:
    return
  lacks = values[0] is None and any(value is not None for value in values)
  invented = values[0] == 0 and not tops[0] and any(tops[1:])
  if invented and isinstance(tokens[0], str):  # a template's token may be first
    invented = not _SPECIAL.fullmatch(tokens[0])
  if lacks or invented:
    raise SettledError(
      "its first token has no log-probability, as where the prompt is echoed:"
      " ask without 'echo'"
    )


def _to_steps(
  tokens: list[str],
  values: list[float],
  spelt: list[bytes | None] | None,
  others: Alternatives,
) -> tuple[schema.TeacherStep, ...]:
  """Builds steps from columns."""
  if tokens and all(map(_TOKEN_ID.fullmatch, tokens)):
    raise SettledError(_TOKENS_ARE_IDS)
  steps = [
    schema.TeacherStep(token=token, log_prob=value, top=top)
    for token, value, top in zip(tokens, values, others.cut(), strict=True)
  ]
  if spelt is not None or others.spelt is not None:
    steps = [
      dataclasses.replace(step, token_bytes=own, top_bytes=top_bytes)
      for step, own, top_bytes in zip(
        steps, spelt or [None] * len(steps), others.cut_bytes(), strict=True
      )
    ]
  if escaped_bytes.ANY.search("".join(tokens + others.names)):
    steps = list(map(escaped_bytes.decoded, steps))
  return tuple(steps)


def _candidates(
  entries: list,
) -> tuple[list[str], list[float], list[bytes | None] | None]:
  """Returns each entry's token and log-probability, and necessary bytes.

  Bytes that equal the token's UTF-8, or are empty, are replaced by None; if
  this is true of all entries, there is no list of bytes.
  """
  _check_kind(entries, dict, "top_logprobs")
  tokens = [entry.get("token") for entry in entries]
  _check_kind(tokens, str, "token")
  values = _log_probs([entry.get("logprob") for entry in entries])
  given = [entry.get("bytes") or None for entry in entries]
  own = [token.encode("utf-8", "surrogatepass") for token in tokens]
  if not set(map(type, given)) <= {list, type(None)}:
    raise ResponseError("'bytes' are not lists of bytes")
  try:
    spelt = [None if one is None else bytes(one) for one in given]
  except (TypeError, ValueError) as error:
    raise ResponseError(f"'bytes' are not lists of bytes: {error}") from error
  if spelt == own:
    return tokens, values, None
  spelt = [None if b == a else b for a, b in zip(own, spelt, strict=True)]
  return tokens, values, spelt if any(b is not None for b in spelt) else None


# Alternatives: invalid ones are dropped and counted.


def _alternatives(
  tops: list, left_out: collections.Counter[str]
) -> Alternatives:
  """Parses the alternatives of each token."""
  try:
    return _plain_alternatives(tops)
  except (ResponseError, TypeError, AttributeError):
    tops = [list(_usable(top, left_out)) for top in tops]
    return _plain_alternatives(tops)


def _plain_alternatives(tops: list) -> Alternatives:
  """Parses all alternatives together, if all are valid.

  Raises:
    ResponseError, TypeError, AttributeError: an alternative is invalid.
  """
  tops = [{} if top is None else top for top in tops]
  if set(map(type, tops)) <= {dict}:
    names = [name for top in tops for name in top]
    values = _log_probs([value for top in tops for value in top.values()])
    spelt = None
  else:
    names, values, spelt = _candidates([one for top in tops for one in top])
  for number, name in enumerate(names):
    is_silent = not name and (spelt is None or not spelt[number])
    if is_silent or name.startswith("token_id:"):
      raise ResponseError("one is empty, or a token's id")
  return Alternatives(
    names=names, log_probs=values, spelt=spelt, counts=list(map(len, tops))
  )


def _usable(
  top: object, left_out: collections.Counter[str]
) -> Iterator[dict[str, object]]:
  """Yields the valid alternatives of a token, and counts the others."""
  if not top:
    return
  if isinstance(top, dict):
    entries = [_of_pair(name, value) for name, value in top.items()]
  elif isinstance(top, list):
    entries = top
  else:
    left_out[NO_ALTERNATIVE] += 1
    return
  for entry in entries:
    reason = _why_unusable(entry)
    if reason is None:
      yield entry
    else:
      left_out[reason] += 1


def _why_unusable(entry: object) -> str | None:
  """Returns why an alternative is invalid; None if it is valid."""
  if isinstance(entry, dict):
    try:
      _log_probs([entry.get("logprob")])
    except ResponseError:
      return NO_NUMBER
  try:
    (name,), _, spelt = _candidates([entry])
  except ResponseError:
    return NO_ALTERNATIVE
  if not name and not spelt:
    return NO_SPELLING
  return OTHER_ALPHABET if name.startswith("token_id:") else None


def _of_pair(name: str, value: object) -> object:
  """Converts an entry of the legacy shape to the chat shape."""
  if isinstance(value, dict):
    return {"token": value.get("decoded_token", name), **value}
  return {"token": name, "logprob": value}


# Making tokens and text agree.


def _fit(
  text: str, steps: tuple[schema.TeacherStep, ...], reasoning: str
) -> tuple[str, tuple[schema.TeacherStep, ...], int]:
  """Makes a text and its tokens agree, decoding the tokens if necessary.

  Tokens are decoded from the first alphabet in which they spell the text.

  Returns:
    The text that the remaining tokens spell, these tokens, and the number of
    removed tokens of reasoning.
  """
  failure: spelling.MisspeltError | None = None
  for read in (steps, *_decodings(steps)):
    try:
      return _fit_decoded(text, read, reasoning)
    except spelling.MisspeltError as error:
      failure = failure or error
  spelt = b"".join(step.spelling for step in steps)
  if reasoning or any(end in spelt for end in _REASONING_ENDS):
    raise SettledError(
      "its tokens are those of the reasoning too, and do not tell where the"
      f" text begins: {failure}; {NO_REASONING}"
    )
  raise ResponseError(str(failure))


def _decodings(
  steps: tuple[schema.TeacherStep, ...],
) -> Iterator[tuple[schema.TeacherStep, ...]]:
  """Yields the tokens decoded from each alphabet, and without bytes."""
  if any(step.token_bytes is not None for step in steps):
    yield tuple(dataclasses.replace(s, token_bytes=None) for s in steps)
  if not alphabets.may_be_spelt("".join(step.token for step in steps)):
    return
  for decode in alphabets.ALPHABETS.values():
    yield tuple(
      step
      if step.token_bytes is not None
      else dataclasses.replace(step, token_bytes=_differing(step.token, decode))
      for step in steps
    )


def _differing(token: str, decode: alphabets.Decode) -> bytes | None:
  """Decodes a token; returns None if that does not change it."""
  decoded = decode(token)
  own = token.encode("utf-8", "surrogatepass")
  return None if decoded == own else decoded


def _fit_decoded(
  text: str, steps: tuple[schema.TeacherStep, ...], reasoning: str
) -> tuple[str, tuple[schema.TeacherStep, ...], int]:
  """Makes a text agree with the tokens, or with those after the reasoning.

  Raises:
    MisspeltError: the text is in neither, or its beginning is ambiguous.
  """
  failure: spelling.MisspeltError | None = None
  spelt = b"".join(step.spelling for step in steps)
  for start in (0, *_after_reasoning(steps, spelt, reasoning)):
    rest = steps[start:]
    try:
      found, kept = spelling.fit(text, rest)
    except spelling.MisspeltError as error:
      failure = failure or error
      continue
    after = [step for step in rest[len(kept) :] if not _is_silent(step)]
    if not after:
      return found, kept, start
    # Reasoning may begin with a short text by chance.
    if not reasoning and len(after) <= _MAX_TOKENS_AFTER_TEXT:
      return found, kept, start
    failure = failure or spelling.MisspeltError(
      f"{len(after)} more tokens follow the text {shown(text)}"
    )
  raise failure


def _after_reasoning(
  steps: tuple[schema.TeacherStep, ...], spelt: bytes, reasoning: str
) -> list[int]:
  """Returns the tokens at which the text may begin, after the reasoning."""
  ends = [
    at + len(mark) for mark in _REASONING_ENDS if (at := spelt.rfind(mark)) >= 0
  ]
  bare = reasoning.strip().encode("utf-8", "surrogatepass")
  lead = len(spelt) - len(spelt.lstrip())
  if bare and spelt.startswith(bare, lead):
    ends.append(lead + len(bare))
  starts = []
  for end in ends:
    number, position = 0, 0
    while position < end:
      position += len(steps[number].spelling)
      number += 1
    # A token such as ">\n\n" may continue with white space.
    if not spelt[end:position].strip():
      starts.append(number + _num_silent(steps[number:]))
  return starts


def _num_silent(steps: tuple[schema.TeacherStep, ...]) -> int:
  """Counts the tokens at the start that are special or white space."""
  return next(
    (n for n, step in enumerate(steps) if not _is_silent(step)), len(steps)
  )


def _with_read_alternatives(
  text: str,
  steps: tuple[schema.TeacherStep, ...],
  left_out: collections.Counter[str],
) -> tuple[schema.TeacherStep, ...]:
  """Decodes the alternatives from the alphabet that matches the sampled tokens.

  The chosen decoding is the one in which the most sampled tokens are among
  their own alternatives; if tied, the one with the fewest characters that only
  occur in vocabularies, and then with the fewest incomplete characters.
  """
  names = "".join([name for step in steps for name, _ in step.top])
  with_bytes = any(step.token_bytes is not None for step in steps)
  if with_bytes or alphabets.may_be_spelt(names):
    speaks = alphabets.marks(names) - alphabets.marks(text)
    readings = [tuple(_with_top_bytes(step, None) for step in steps)]
    readings += [
      tuple(_with_top_bytes(step, decode) for step in steps)
      for decode in alphabets.ALPHABETS.values()
    ]
    scores = [_score(reading, speaks) for reading in readings]
    steps = readings[scores.index(max(scores))]
  if "\ufffd" in names and "\ufffd" not in text:
    steps = tuple([_without_unknown(step, left_out) for step in steps])
  if _lose_their_space(steps):
    left_out[OTHER_ALPHABET] += sum(len(step.top) for step in steps)
    return tuple(
      [dataclasses.replace(step, top=(), top_bytes=None) for step in steps]
    )
  steps = [
    _without_misspelt(step, left_out, is_first=number == 0)
    for number, step in enumerate(steps)
  ]
  return tuple([_without_excess(step, left_out) for step in steps])


def _lose_their_space(steps: Sequence[schema.TeacherStep]) -> bool:
  """Returns whether the server strips the spaces with which tokens begin.

  llama.cpp's did so in the alternatives of SentencePiece vocabularies: " is"
  has the own entry "is". Then those of every token are unknown, also where the
  sampled one begins with no space.
  """
  num_stripped = 0
  for step in steps[1:]:  # servers strip the first one's anyway
    spelt = _top_spellings(step)
    if not step.spelling.startswith(b" ") or not step.spelling.strip():
      continue
    if step.spelling in spelt:
      return False
    num_stripped += any(
      name == step.spelling[1:]
      and abs(value - step.log_prob) < _EQUAL_LOG_PROBS
      for name, (_, value) in zip(spelt, step.top, strict=True)
    )
  return num_stripped > 1


def _without_excess(
  step: schema.TeacherStep, left_out: collections.Counter[str]
) -> schema.TeacherStep:
  """Drops alternatives that cannot be of one distribution with the sample.

  SGLang, for one, has listed the first token's alternatives for all tokens.
  """
  values = [value for _, value in step.top]
  log_probs = {step.spelling: step.log_prob}
  log_probs |= zip(_top_spellings(step), values, strict=True)
  if sum(map(math.exp, log_probs.values())) <= _MAX_MASS:
    return step
  left_out[NO_DISTRIBUTION] += len(step.top)
  return dataclasses.replace(step, top=(), top_bytes=None)


def _with_top_bytes(
  step: schema.TeacherStep, decode: alphabets.Decode | None
) -> schema.TeacherStep:
  """Decodes the alternatives for which the server returns no bytes.

  The sampled token's own entry is decoded like the sampled token.
  """
  given = step.top_bytes or (None,) * len(step.top)

  def read(name: str, known: bytes | None) -> bytes | None:
    if known is not None:
      return known
    if name == step.token:
      return step.token_bytes
    return _differing(name, decode) if decode is not None else None

  top_bytes = tuple(
    [
      read(name, known)
      for (name, _), known in zip(step.top, given, strict=True)
    ]
  )
  return dataclasses.replace(step, top_bytes=_any_of(top_bytes))


def _any_of(
  spellings: tuple[bytes | None, ...],
) -> tuple[bytes | None, ...] | None:
  """Returns a step's bytes of alternatives; None if none has any."""
  return spellings if any(one is not None for one in spellings) else None


def _score(
  steps: tuple[schema.TeacherStep, ...], speaks: frozenset[str]
) -> tuple[int, int, int]:
  """Scores a decoding of the alternatives; see `_with_read_alternatives`."""
  own = marked = broken = 0
  for step in steps:
    spelt = _top_spellings(step)
    own += step.spelling in spelt
    for one in spelt:
      text = one.decode("utf-8", "replace")
      marked += any(mark in text for mark in speaks)
      broken += "\ufffd" in text
  return own, -marked, -broken


def _top_spellings(step: schema.TeacherStep) -> list[bytes]:
  given = step.top_bytes or itertools.repeat(None)
  return [
    name.encode("utf-8", "surrogatepass") if known is None else known
    for (name, _), known in zip(step.top, given, strict=False)
  ]


def _without_unknown(
  step: schema.TeacherStep, left_out: collections.Counter[str]
) -> schema.TeacherStep:
  """Drops alternatives with a decoder's replacement character."""
  given = step.top_bytes or (None,) * len(step.top)
  kept = [
    (pair, known)
    for pair, known in zip(step.top, given, strict=True)
    if known is not None or "\ufffd" not in pair[0]
  ]
  if len(kept) == len(step.top):
    return step
  left_out[NO_BYTES] += len(step.top) - len(kept)
  return dataclasses.replace(
    step,
    top=tuple(pair for pair, _ in kept),
    top_bytes=_any_of(tuple(known for _, known in kept)),
  )


def _without_misspelt(
  step: schema.TeacherStep,
  left_out: collections.Counter[str],
  *,
  is_first: bool,
) -> schema.TeacherStep:
  """Drops all alternatives of a step if the sampled token's entry is different.

  The sampled token's entry is recognized by its log-probability and letters. If
  it is "is" or "is</w>" for the sampled " is", the text of the others is
  unknown as well. An exception is the beginning of a text, where servers strip
  the space: it is then removed from the alternatives, too.
  """
  if (step.token, step.log_prob) in step.top and step.token_bytes is None:
    return step  # the usual case
  equals = [
    abs(value - step.log_prob) < _EQUAL_LOG_PROBS for _, value in step.top
  ]
  if not any(equals):
    return step
  spelt = _top_spellings(step)
  core = step.spelling.strip()
  if not core or step.spelling in spelt:
    return step
  for equal, one in zip(equals, spelt, strict=True):
    other = one.strip()
    if equal and is_first and one == b" " + step.spelling:
      stripped = tuple([any_one.removeprefix(b" ") for any_one in spelt])
      return dataclasses.replace(step, top_bytes=stripped)
    if equal and other and (core in other or other in core):
      left_out[OTHER_ALPHABET] += len(step.top)
      return dataclasses.replace(step, top=(), top_bytes=None)
  return step


def _check_kind(values: list, kind: type, name: str) -> None:
  """Checks that all values of a list have a type."""
  if not set(map(type, values)) <= {kind}:
    wrong = next(value for value in values if type(value) is not kind)
    raise ResponseError(f"{name!r} has {shown(wrong)}")


def _log_probs(values: list) -> list[float]:
  """Validates log-probabilities together: they are most of a response.

  Minus infinity may be written in any of JSON's dialects.
  """
  high = schema.MAX_LOG_PROB
  if not set(map(type, values)) <= {float, int}:  # True is of neither type
    values = [
      -math.inf if value in _MINUS_INFINITY else value for value in values
    ]
  kinds = set(map(type, values))
  try:
    # The sum is NaN if any term is.
    if not values or (
      kinds <= {float, int}
      and max(values) <= high
      and sum(values) <= high * len(values)
    ):
      return list(map(float, values))
  except OverflowError as error:
    raise ResponseError("a log-probability is too large a number") from error
  wrong = next(
    value
    for value in values
    if type(value) not in (float, int) or not value <= high
  )
  raise ResponseError(f"{shown(wrong)} is not a log-probability")


def _count(value: object) -> int | None:
  """Returns a number of tokens; None for any other value."""
  return value if type(value) is int and 0 <= value < 1 << 53 else None


def _get(value: Mapping, name: str, kind: type) -> object:
  """Returns a field of an object; raises an error if its type is different."""
  if not isinstance(value.get(name), kind):
    raise ResponseError(f"{name!r} is {shown(value.get(name))}")
  return value[name]


def shown(value: object) -> str:
  """Formats a value for an error message, in at most 60 characters."""
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  try:
    text = repr(value)
  except (RecursionError, ValueError):  # too deep, or too long a number
    return f"a {type(value).__name__}"
  return text if len(text) <= 60 else f"{text[:57]}..."


def _cut(words: str) -> str:
  return words if len(words) <= _MAX_WORDS else f"{words[:_MAX_WORDS]}..."
