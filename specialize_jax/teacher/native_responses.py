"""Converts responses of servers' own endpoints to choices of a chat.

Not every server returns all log-probabilities at its OpenAI-compatible
endpoint, so that saved responses are often those of its own:

- llama.cpp's `/completion`: `content`, and `completion_probabilities`, whose
  entries are those of a chat, or with `prob` for `logprob`; in early releases
  `{"content", "probs": [{"tok_str", "prob"}]}`;
- Ollama's `/api/generate` and `/api/chat`: `response` or `message`, and
  `logprobs`, a list of such entries;
- text-generation-inference's `/generate`: `generated_text`, and `details` with
  `tokens` and `top_tokens`, `{"text", "logprob"}`;
- SGLang's `/generate`: `text`, and `meta_info` with `output_token_logprobs` and
  `output_top_logprobs`, lists of `[logprob, id, text]`;
- Gemini's `generateContent`: `candidates` with `logprobsResult`, or as Google's
  Python client writes them, `logprobs_result`.

Entries are converted, not validated: `responses` does that for all servers.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

Choice = dict[str, object]

_UNDERSCORE = re.compile(r"_([a-z])")
# FinishReason of Gemini's protocol buffers.
_GEMINI_REASONS = {
  1: "STOP",
  2: "MAX_TOKENS",
  3: "SAFETY",
  4: "RECITATION",
  5: "OTHER",
}

CHUNK: Choice = {"delta": {}}
"""A part of a stream, which is not a complete choice."""


def choices(body: object) -> list[Choice] | None:
  """Returns the choices of a response; None if its shape is another.

  Args:
    body: The response's parsed JSON: an object, or a list of several, as
      servers return for several samples of a prompt.

  Example:
    >>> choices({"text": "7", "meta_info": {"finish_reason": "stop"}})[0][
    ...   "text"
    ... ]
    '7'
    >>> choices({"choices": []}) is None
    True
  """
  bodies = body if isinstance(body, list) else [body]
  found: list[Choice] = []
  for one in bodies:
    if not isinstance(one, Mapping) or "choices" in one or one.get("error"):
      return None
    reader = next(
      (read for fits, read in _READERS if fits(one)),
      None,
    )
    if reader is None:
      return None
    found += reader(one)
  return found or None


def num_tokens(body: object) -> tuple[object, object]:
  """Returns the server's counts of prompt and sampled tokens, if any."""
  if not isinstance(body, Mapping):
    return None, None
  for part, prompt, sampled in (
    (body, "prompt_eval_count", "eval_count"),  # Ollama
    (body, "tokens_evaluated", "tokens_predicted"),  # llama.cpp
    (body.get("meta_info"), "prompt_tokens", "completion_tokens"),
    (body.get("usageMetadata"), "promptTokenCount", "candidatesTokenCount"),
    (
      body.get("usage_metadata"),
      "prompt_token_count",
      "candidates_token_count",
    ),
  ):
    if isinstance(part, Mapping) and sampled in part:
      return part.get(prompt), part[sampled]
  return None, None


def _choice(
  text: object,
  entries: object,
  finish_reason: object,
  message: Mapping[str, object] | None = None,
) -> Choice:
  return {
    "text": text,
    "message": dict(message) if message else None,
    "logprobs": {"content": entries} if entries else None,
    "finish_reason": finish_reason,
  }


def _llama_cpp(body: Mapping) -> list[Choice]:
  reason = body.get("stop_type")
  if reason is None:  # early releases
    stopped = [
      name
      for name, word in (
        ("stopped_limit", "limit"),
        ("stopped_eos", "eos"),
        ("stopped_word", "word"),
      )
      if body.get(name)
    ]
    reason = stopped[0].removeprefix("stopped_") if stopped else None
  named = {"eos": "stop", "word": "stop", "limit": "length"}
  if body.get("stop") is False or _is_last_chunk(
    body["content"], body.get("tokens_predicted")
  ):
    return [CHUNK]
  entries = _each(body.get("completion_probabilities"), _llama_cpp_entry)
  return [_choice(body["content"], entries, named.get(str(reason), reason))]


def _llama_cpp_entry(entry: Mapping) -> dict[str, object]:
  if "probs" in entry:
    tops = _each(
      entry["probs"],
      lambda one: {
        "token": one.get("tok_str"),
        "logprob": _log(one.get("prob")),
      },
    )
    own = entry.get("content")
    values = [
      one["logprob"]
      for one in tops or ()
      if isinstance(one, Mapping) and one.get("token") == own
    ]
    value = values[0] if values else None
    return {"token": own, "logprob": value, "top_logprobs": tops}
  if "logprob" in entry:
    return dict(entry)
  tops = _each(entry.get("top_probs"), _llama_cpp_entry)
  return {**entry, "logprob": _log(entry.get("prob")), "top_logprobs": tops}


def _ollama(body: Mapping) -> list[Choice]:
  if body.get("done") is False:
    return [CHUNK]
  message = body.get("message")
  message = message if isinstance(message, Mapping) else None
  text = message.get("content") if message else body.get("response")
  if _is_last_chunk(text, body.get("eval_count")):
    return [CHUNK]
  reason = body.get("done_reason")
  if message is not None:
    return [
      _choice(None, body.get("logprobs"), reason, message)
      if message
      else _choice("", body.get("logprobs"), reason)
    ]
  thinking = body.get("thinking")
  return [
    _choice(body["response"], body.get("logprobs"), reason)
    | ({"thinking": thinking} if thinking else {})
  ]


def _tgi(body: Mapping) -> list[Choice]:
  details = body["details"]
  others = details.get("best_of_sequences")
  parts = [(body["generated_text"], details)] + [
    (one.get("generated_text"), one)
    for one in (others if isinstance(others, list) else ())
    if isinstance(one, Mapping)
  ]
  return [
    _choice(
      text,
      _with_tops(one.get("tokens"), one.get("top_tokens"), _tgi_entry),
      one.get("finish_reason"),
    )
    for text, one in parts
  ]


def _tgi_entry(entry: Mapping) -> dict[str, object]:
  return {"token": entry.get("text"), "logprob": entry.get("logprob")}


def _sglang(body: Mapping) -> list[Choice]:
  info = body["meta_info"]
  if info.get("finish_reason", "") is None:
    return [CHUNK]
  entries = _with_tops(
    info.get("output_token_logprobs"),
    info.get("output_top_logprobs"),
    _sglang_entry,
  )
  return [_choice(body["text"], entries, info.get("finish_reason"))]


def _sglang_entry(entry: Sequence) -> dict[str, object]:
  value, token_id, text = entry
  # Without return_text_in_logprobs there is no text.
  return {
    "token": f"token_id:{token_id}" if text is None else text,
    "logprob": value,
  }


def _gemini(body: Mapping) -> list[Choice]:
  found = []
  for candidate in map(_in_camel_case, body["candidates"]):
    result = candidate.get("logprobsResult")
    result = result if isinstance(result, Mapping) else {}
    tops = result.get("topCandidates")
    entries = _with_tops(
      result.get("chosenCandidates"),
      [
        one.get("candidates") if isinstance(one, Mapping) else one
        for one in (tops if isinstance(tops, list) else ())
      ],
      _gemini_entry,
    )
    chosen = result.get("chosenCandidates")
    _, total = num_tokens(body)
    reason = candidate.get("finishReason")
    if type(reason) is int:
      reason = _GEMINI_REASONS.get(reason, str(reason))
    if reason is None or (
      len(body["candidates"]) == 1
      and isinstance(chosen, list)
      and type(total) is int
      and total > len(chosen) + 1  # more than an end token
    ):
      return [CHUNK]
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, Mapping) else None
    thoughts = [
      {**one, "type": "thinking" if one.get("thought") else "text"}
      if isinstance(one, Mapping)
      else one
      for one in (parts if isinstance(parts, list) else ())
    ]
    found.append(_choice(None, entries, reason, {"content": thoughts}))
  return found


def _in_camel_case(value: object) -> object:
  """Renames fields that Google's Python client wrote, as its API names them."""
  if isinstance(value, list):
    return [_in_camel_case(one) for one in value]
  if not isinstance(value, Mapping):
    return value
  return {
    _UNDERSCORE.sub(lambda m: m[1].upper(), str(name)): _in_camel_case(one)
    for name, one in value.items()
  }


def _gemini_entry(entry: Mapping) -> dict[str, object]:
  return {"token": entry.get("token"), "logprob": entry.get("logProbability")}


def _is_last_chunk(text: object, num_sampled: object) -> bool:
  """Returns whether tokens were sampled, and are in earlier chunks."""
  return text == "" and type(num_sampled) is int and num_sampled > 1


def _with_tops(
  tokens: object, tops: object, convert: Callable[[object], object]
) -> object:
  """Converts sampled tokens, and joins each with its alternatives."""
  entries = _each(tokens, convert)
  if not isinstance(entries, list) or not isinstance(tops, list):
    return entries
  if len(tops) != len(entries):
    tops = [None] * len(entries)
  return [
    {**entry, "top_logprobs": _each(top, convert)}
    if isinstance(entry, Mapping)
    else entry
    for entry, top in zip(entries, tops, strict=True)
  ]


def _each(values: object, convert: Callable[[object], object]) -> object:
  """Converts the entries of a list; others, which are invalid, are kept."""
  if not isinstance(values, list):
    return values
  converted = []
  for value in values:
    try:
      converted.append(convert(value))
    except (AttributeError, KeyError, TypeError, ValueError):
      converted.append(value)
  return converted


def _log(prob: object) -> object:
  """Returns the logarithm of a probability; any other value as it is."""
  if type(prob) not in (int, float) or not 0.0 <= prob <= 1.0:
    return None
  return math.log(prob) if prob else -math.inf


def _has(**kinds: type) -> Callable[[Mapping], bool]:
  """Returns a test for an object with fields of these types."""
  return lambda body: all(
    isinstance(body.get(name), kind) for name, kind in kinds.items()
  )


def _is_ollama_chat(body: Mapping) -> bool:
  if not _has(message=dict, done=bool)(body):
    return False
  message = body["message"]
  return not message or isinstance(message.get("content"), str)


_READERS: Sequence[
  tuple[Callable[[Mapping], bool], Callable[[Mapping], list[Choice]]]
] = (
  (_has(content=str, completion_probabilities=list), _llama_cpp),
  (_has(content=str, tokens_predicted=int), _llama_cpp),
  (_has(response=str, done=bool), _ollama),
  (_is_ollama_chat, _ollama),
  (_has(generated_text=str, details=dict), _tgi),
  (_has(text=str, meta_info=dict), _sglang),
  (
    lambda body: (
      isinstance(body.get("candidates"), list)
      and bool(body["candidates"])
      and all(isinstance(one, Mapping) for one in body["candidates"])
    ),
    _gemini,
  ),
)
