"""Asks an OpenAI-compatible endpoint, and asks again where that can help.

A request is sent again, a bounded number of times with growing and jittered
pauses, after 408, 409, 425, 429 and 5xx (no sooner than `Retry-After` says),
after a timeout and after a broken connection. An answer that cannot be used
was paid for: it is asked for again a few times only, and not at all where its
shape is the server's way. Any other status cannot heal: it stops the run in
the server's own words.

The key is read from the environment by the command, is sent in one header to
the one address that the user gave, and is cut out of whatever the server says
back. Redirects are not followed, and an answer is read no further than the
longest one that was asked for could be.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import random
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

import httpx
import tenacity

from specialize_jax import errors
from specialize_jax.files import reading
from specialize_jax.teacher import answer_body, limits, responses

Endpoint = Literal["completions", "chat"]

_PATHS = {"completions": "completions", "chat": "chat/completions"}
_RETRIED = frozenset((408, 409, 425, 429))
# A question may meet any number of faults; an endpoint that has never
# answered at all is more likely wrong than unlucky.
_FIRST_ATTEMPTS = 3
# How often an answer that cannot be used is paid for, once others could be.
_PAID_ATTEMPTS = 5
_BAD_ANSWERS = frozenset(("bad answer", "no log-probabilities"))
_MAX_WORDS = 400
_LEAST_ANSWER_BYTES = 1 << 20
_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")

HOW_TO_GET_LOG_PROBS = (
  "distillation needs the top log-probabilities of every token: start"
  " llama.cpp's Python server with --logits_all true and vLLM with"
  " --max-logprobs of at least --top_logprobs; where only one endpoint has"
  " them try --endpoint=chat or --endpoint=completions; of a hosted service"
  " choose a model that gives log-probabilities"
)


class GivenUpError(Exception):
  """A request failed as often as it may; the last reason is the message."""


class _FaultError(Exception):
  """One attempt failed in a way that may pass."""

  def __init__(
    self,
    words: str,
    kind: str,
    wait_seconds: float = 0,
    *,
    is_settled: bool = False,
  ) -> None:
    super().__init__(words)
    self.kind = kind
    self.wait_seconds = wait_seconds
    self.is_settled = is_settled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """What is asked of the teacher, whatever the question.

  Attributes:
    model: The model's name at the endpoint.
    endpoint: Which of the two.
    temperature: 0.5 in the paper.
    max_tokens: The longest answer in tokens; 256 in the paper.
    stop: Texts at which an answer ends.
    top_logprobs: How many alternatives a token; 5 in the paper.
    extra: More fields of the request, such as vLLM's `top_k`.
  """

  model: str
  endpoint: Endpoint = "completions"
  temperature: float = 0.5
  max_tokens: int = 256
  stop: tuple[str, ...] = ()
  top_logprobs: int = 5
  extra: Mapping[str, object] = dataclasses.field(default_factory=dict)

  def body(self, prompt: str, num_samples: int) -> dict[str, object]:
    """Returns a request's JSON.

    A field that `extra` holds as None is not sent, nor is `n` where it is 1,
    as it is without: some servers know no such field.
    """
    body: dict[str, object] = {
      "model": self.model,
      "temperature": self.temperature,
      "max_tokens": self.max_tokens,
    }
    if num_samples > 1:
      body["n"] = num_samples
    if self.stop:
      body["stop"] = list(self.stop)
    if self.endpoint == "chat":
      body["messages"] = [{"role": "user", "content": prompt}]
      body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
    else:
      body |= {"prompt": prompt, "logprobs": self.top_logprobs}
    body |= self.extra
    return {name: value for name, value in body.items() if value is not None}

  def longest_answer_bytes(self, num_samples: int) -> int:
    """Bounds the size of an answer, so that none fills the memory.

    A token or an alternative takes some 100 bytes of JSON, its bytes in
    decimal included; a kilobyte of each is more than any server sends.
    """
    asked = [self.max_tokens]
    asked += [self.extra.get(name) for name in _TOKEN_LIMITS]
    num_tokens = max(one for one in asked if type(one) is int)
    candidates = num_samples * num_tokens * (1 + self.top_logprobs)
    return _LEAST_ANSWER_BYTES + 1024 * candidates

  def description(self) -> dict[str, object]:
    """Returns what a record keeps of it."""
    fields = dataclasses.asdict(self)
    extra = fields.pop("extra")
    fields["stop"] = list(self.stop)  # as JSON gives it back
    return fields | ({"extra": dict(extra)} if extra else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connection:
  """Where the teacher is, and how patiently it is asked.

  Attributes:
    base_url: Up to and with `/v1`.
    key: Sent as a bearer token; "" for none. Never shown.
    concurrency: Requests under way at once.
    timeout_seconds: The longest a whole answer may take.
    max_attempts: How often one request is tried.
    max_wait_seconds: The longest pause before another attempt; a server that
      asks for a longer one stops the run.
    requests_per_minute: None for no limit.
    tokens_per_minute: None for no limit.
  """

  base_url: str
  key: str = dataclasses.field(default="", repr=False)
  concurrency: int = 32
  timeout_seconds: float = 120.0
  max_attempts: int = 10
  max_wait_seconds: float = 300.0
  requests_per_minute: float | None = None
  tokens_per_minute: float | None = None


class Client:
  """Asks questions of one endpoint; an asynchronous context manager.

  Attributes:
    faults: How often what went wrong, by kind.
    left_out: How many alternatives of tokens could not be used, by reason.
    reasoning_tokens: How many tokens of reasoning were cut off before texts.
  """

  def __init__(self, connection: Connection, sampling: Sampling) -> None:
    """Checks the address and the key; sends nothing yet.

    Raises:
      UserError: the address is none, or the key cannot be sent.
    """
    self.sampling = sampling
    self.faults: collections.Counter[str] = collections.Counter()
    self.left_out: collections.Counter[str] = collections.Counter()
    self.reasoning_tokens = 0
    self._connection = connection
    self._url = _checked_url(connection.base_url, _PATHS[sampling.endpoint])
    headers = {
      "content-type": "application/json",
      "accept-encoding": answer_body.ENCODINGS,
    }
    if connection.key:
      headers["authorization"] = f"Bearer {_checked_key(connection.key)}"
    # A client a connection: httpx looks through all connections of a client
    # at every request, which at 32 takes longer than the request.
    context = httpx.create_ssl_context()
    self._free = [
      httpx.AsyncClient(
        headers=headers,
        follow_redirects=False,  # the key goes nowhere else
        timeout=connection.timeout_seconds,
        verify=context,
        limits=httpx.Limits(max_connections=1),
      )
      for _ in range(connection.concurrency)
    ]
    self._closing = contextlib.AsyncExitStack()
    self._requests = limits.RateLimit(connection.requests_per_minute)
    self._tokens = limits.RateLimit(connection.tokens_per_minute)
    self._answered = False
    self._stopping = asyncio.Event()

  async def __aenter__(self) -> Self:
    for http in self._free:
      await self._closing.enter_async_context(http)
    return self

  async def __aexit__(
    self,
    kind: type[BaseException] | None,
    value: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    await self._closing.__aexit__(kind, value, traceback)

  def stop(self) -> None:
    """Lets requests under way end, and asks none of them again."""
    self._stopping.set()

  async def ask(
    self, prompt: str, num_samples: int, *, expected_tokens: int
  ) -> responses.Response:
    """Asks for samples; returns at least one and at most so many.

    Args:
      prompt: The whole text.
      num_samples: How many samples to ask for.
      expected_tokens: What prompt and answer are expected to cost, for the
        limit of tokens a minute.

    Raises:
      GivenUpError: every attempt failed.
      UserError: no attempt can succeed.
    """
    content = json.dumps(self.sampling.body(prompt, num_samples)).encode()
    bad_answers = collections.Counter()  # of this request

    def is_last(state: tenacity.RetryCallState) -> bool:
      fault = state.outcome.exception()
      bad_answers[fault.kind in _BAD_ANSWERS] += 1
      return self._is_last(state, num_bad_answers=bad_answers[True])

    attempts = tenacity.AsyncRetrying(
      stop=is_last,
      wait=self._pause_seconds,
      sleep=self._sleep,
      retry=tenacity.retry_if_exception_type(_FaultError),
      reraise=True,
    )
    try:
      return await attempts(
        self._attempt, content, num_samples, expected_tokens
      )
    except _FaultError as fault:
      if fault.kind == "no log-probabilities" and not self._answered:
        raise errors.UserError(
          f"{self._url}: {fault}; {HOW_TO_GET_LOG_PROBS}"
        ) from fault
      if fault.is_settled and not self._answered:
        raise errors.UserError(f"{self._url}: {fault}") from fault
      raise GivenUpError(f"{self._url}: {fault}") from fault

  async def _attempt(
    self, content: bytes, num_samples: int, expected_tokens: int
  ) -> responses.Response:
    """Asks once and checks the answer."""
    await self._requests.acquire()
    await self._tokens.acquire(expected_tokens)
    http = self._free.pop()  # the last used first: its connection is open
    longest = self.sampling.longest_answer_bytes(num_samples)
    try:
      async with (
        asyncio.timeout(self._connection.timeout_seconds),
        http.stream("POST", self._url, content=content) as answer,
      ):
        said = await answer_body.read(answer, longest)
    except (httpx.TimeoutException, TimeoutError) as error:
      seconds = self._connection.timeout_seconds
      raise self._fault(
        f"no answer within {seconds:g} s (--timeout_seconds)", "timeout"
      ) from error
    except answer_body.UnreadableError as error:
      raise self._fault(str(error), "bad answer") from error
    except httpx.TransportError as error:
      raise self._fault(
        f"{type(error).__name__}: {error}", "broken connection"
      ) from error
    finally:
      self._free.append(http)
    if answer.status_code != httpx.codes.OK:
      raise self._refused(answer, said)
    parsed = self._parsed(said)
    self._answered = True
    self._tokens.correct(_tokens_of(parsed, expected_tokens) - expected_tokens)
    self.left_out.update(parsed.left_out)
    self.reasoning_tokens += parsed.reasoning_tokens
    if parsed.rejected:
      self.faults["unusable choices"] += len(parsed.rejected)
    choices = parsed.choices[:num_samples]
    if len(choices) + len(parsed.rejected) < num_samples:
      self.faults["fewer choices than asked"] += 1
    return dataclasses.replace(parsed, choices=choices)

  def _parsed(self, said: bytes) -> responses.Response:
    """Reads an answer's choices, at least one."""
    try:
      body = reading.loads(said)
    except (ValueError, RecursionError) as error:
      hint = "; ask without stream" if said.startswith(b"data:") else ""
      raise self._fault(
        f"the server's answer is no JSON: {error}{hint}", "bad answer"
      ) from error
    try:
      return responses.parse(body)
    except responses.NoLogProbsError as error:
      raise self._fault(str(error), "no log-probabilities") from error
    except responses.ResponseError as error:
      raise self._fault(
        f"the server's answer is not what was asked for: {error}",
        "bad answer",
        is_settled=isinstance(error, responses.SettledError),
      ) from error

  def _refused(self, answer: httpx.Response, content: bytes) -> Exception:
    """Returns the error of a status that is not 200."""
    status = answer.status_code
    words = self._redact(_words(content))[:_MAX_WORDS]
    said = f"HTTP {status}: {words}"
    if answer.is_redirect:
      place = self._redact(answer.headers.get("location", "nowhere"))
      return errors.UserError(
        f"{self._url} redirects to {place[:_MAX_WORDS]} (HTTP {status}), where"
        " the key is not sent; if that is the teacher, give its --base_url"
      )
    if "logprob" in words.lower() and not self._answered:
      # Whatever the status: llama.cpp's Python server says so with 500.
      return errors.UserError(
        f"{self._url} answered {said}; {HOW_TO_GET_LOG_PROBS}"
      )
    healable = status in _RETRIED or status >= 500
    if "insufficient_quota" in words or not healable:
      return errors.UserError(
        f"{self._url} answered {said}{_hint(status, words)}"
      )
    seconds = limits.retry_after_seconds(answer.headers.get("retry-after"))
    if seconds > self._connection.max_wait_seconds:
      return errors.UserError(
        f"{self._url} asks to wait {seconds:,.0f} s before the next request"
        f" (--max_wait_seconds={self._connection.max_wait_seconds:g}): {said}"
      )
    return self._fault(said, f"HTTP {status}", seconds)

  def _fault(
    self,
    words: str,
    kind: str,
    wait_seconds: float = 0,
    *,
    is_settled: bool = False,
  ) -> _FaultError:
    self.faults[kind] += 1
    return _FaultError(
      self._redact(words), kind, wait_seconds, is_settled=is_settled
    )

  def _redact(self, text: str) -> str:
    key = self._connection.key.strip()
    return text.replace(key, "***") if key else text

  def _is_last(
    self, state: tenacity.RetryCallState, *, num_bad_answers: int
  ) -> bool:
    """Whether no attempt may follow a failed one."""
    fault = state.outcome.exception()
    allowed = self._connection.max_attempts
    if not self._answered and fault.kind == "broken connection":
      allowed = min(allowed, _FIRST_ATTEMPTS)
    paid = _PAID_ATTEMPTS if self._answered else _FIRST_ATTEMPTS
    return (
      self._stopping.is_set()
      or fault.is_settled
      or state.attempt_number >= allowed
      or num_bad_answers >= paid
    )

  def _pause_seconds(self, state: tenacity.RetryCallState) -> float:
    """Returns the pause before the next attempt: half a second, doubling."""
    longest = min(self._connection.max_wait_seconds, 60.0)
    doubled = min(longest, 0.5 * 2.0 ** (state.attempt_number - 1))
    asked = state.outcome.exception().wait_seconds
    if asked:  # the server knows; the jitter keeps callers apart
      return asked + random.uniform(0, doubled)
    return random.uniform(doubled / 2, doubled)

  async def _sleep(self, seconds: float) -> None:
    """Sleeps, or less where the run is stopping."""
    try:
      async with asyncio.timeout(seconds):
        await self._stopping.wait()
    except TimeoutError:
      return


def _tokens_of(response: responses.Response, expected: int) -> int:
  """Counts an answer's tokens; the expected ones where the server does not."""
  if response.prompt_tokens is None or response.completion_tokens is None:
    return expected
  return response.prompt_tokens + response.completion_tokens


def _checked_url(base_url: str, path: str) -> str:
  try:
    url = httpx.URL(base_url)
  except httpx.InvalidURL as error:
    raise errors.UserError(f"--base_url={base_url}: {error}") from error
  if url.userinfo:
    raise errors.UserError(
      "--base_url holds a name or password; give the key by the environment"
    )
  if url.scheme not in ("http", "https") or not url.host:
    raise errors.UserError(
      f"--base_url={base_url} is not an address; expected one such as"
      " http://localhost:8000/v1"
    )
  root = url.path.rstrip("/") or "/v1"
  return str(url.copy_with(path=f"{root}/{path}"))


def _checked_key(key: str) -> str:
  """Gives the key as a header can carry it; no error shows it."""
  key = key.strip()
  if not key.isascii() or not key.isprintable() or " " in key:
    raise errors.UserError(
      "the key in the environment (--api_key_env) holds characters that no"
      " key has, such as a blank or a line break; set it again"
    )
  return key


def _words(content: bytes) -> str:
  """Returns what a server says of an error."""
  text = content.decode("utf-8", errors="replace")
  try:
    said = responses.server_message(json.loads(text))
  except (ValueError, RecursionError):
    said = None
  return said or " ".join(text.split()) or "no words"


def _hint(status: int, words: str) -> str:
  """Returns the way out of an error that the server names, if it is known."""
  if status in (401, 403):
    return "; set the key's environment variable (--api_key_env)"
  if status == 404:
    return "; check --base_url (it ends in /v1) and --model"
  if "max_completion_tokens" in words:
    return (
      '; give --extra_body=\'{"max_tokens": null, "max_completion_tokens":'
      " 256}'"
    )
  if re.search(r"\bn\b", words):
    return "; if it takes one sample a request, give --samples_per_request=1"
  return ""
