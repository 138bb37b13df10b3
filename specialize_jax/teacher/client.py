"""Asks an OpenAI-compatible endpoint, and asks again where that can help.

Asked again, a bounded number of times with growing and jittered pauses, is
after 408, 409, 429 and 5xx (no sooner than `Retry-After` says), after a
timeout, a broken connection, and an answer that is not what was asked for.
Any other status cannot heal: it stops the run in the server's own words.

The key is read from the environment by the command, is sent in one header, and
is cut out of whatever the server says back.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import random
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

import httpx
import orjson
import tenacity

from specialize_jax import errors
from specialize_jax.teacher import limits, responses

Endpoint = Literal["completions", "chat"]

_PATHS = {"completions": "completions", "chat": "chat/completions"}
_RETRIED = frozenset((408, 409, 429))
# A question may meet any number of faults; an endpoint that has never
# answered at all is more likely wrong than unlucky.
_FIRST_ATTEMPTS = 3
_MAX_WORDS = 400

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

  def __init__(self, words: str, kind: str, wait_seconds: float = 0) -> None:
    super().__init__(words)
    self.kind = kind
    self.wait_seconds = wait_seconds


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
    """Gives a request's JSON."""
    body: dict[str, object] = {
      "model": self.model,
      "n": num_samples,
      "temperature": self.temperature,
      "max_tokens": self.max_tokens,
    }
    if self.stop:
      body["stop"] = list(self.stop)
    if self.endpoint == "chat":
      body["messages"] = [{"role": "user", "content": prompt}]
      body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
    else:
      body |= {"prompt": prompt, "logprobs": self.top_logprobs}
    return body | dict(self.extra)

  def description(self) -> dict[str, object]:
    """Gives what a record keeps of it."""
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
  """

  def __init__(self, connection: Connection, sampling: Sampling) -> None:
    """Checks the address and the key; sends nothing yet.

    Raises:
      UserError: the address is none, or the key cannot be sent.
    """
    self.sampling = sampling
    self.faults: collections.Counter[str] = collections.Counter()
    self._connection = connection
    self._url = _checked_url(connection.base_url, _PATHS[sampling.endpoint])
    headers = {"content-type": "application/json"}
    if connection.key:
      headers["authorization"] = f"Bearer {_checked_key(connection.key)}"
    # A client a connection: httpx looks through all connections of a client
    # at every request, which at 32 takes longer than the request.
    context = httpx.create_ssl_context()
    self._free = [
      httpx.AsyncClient(
        headers=headers,
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
    """Asks for samples; gives at least one and at most so many.

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
    attempts = tenacity.AsyncRetrying(
      stop=self._is_last,
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
      raise GivenUpError(f"{self._url}: {fault}") from fault

  async def _attempt(
    self, content: bytes, num_samples: int, expected_tokens: int
  ) -> responses.Response:
    """Asks once and checks the answer."""
    await self._requests.acquire()
    await self._tokens.acquire(expected_tokens)
    http = self._free.pop()  # the last used first: its connection is open
    try:
      async with asyncio.timeout(self._connection.timeout_seconds):
        answer = await http.post(self._url, content=content)
    except (httpx.TimeoutException, TimeoutError) as error:
      seconds = self._connection.timeout_seconds
      raise self._fault(
        f"no answer within {seconds:g} s (--timeout_seconds)", "timeout"
      ) from error
    except (httpx.TransportError, httpx.DecodingError) as error:
      raise self._fault(
        f"{type(error).__name__}: {error}", "broken connection"
      ) from error
    finally:
      self._free.append(http)
    if answer.status_code != httpx.codes.OK:
      raise self._refused(answer)
    try:
      parsed = responses.parse(_decoded(answer.content))
    except responses.NoLogProbsError as error:
      raise self._fault(str(error), "no log-probabilities") from error
    except (ValueError, OverflowError, RecursionError) as error:
      raise self._fault(
        f"the server's answer is not what was asked for: {error}", "bad answer"
      ) from error
    self._answered = True
    self._tokens.correct(_tokens_of(parsed, expected_tokens) - expected_tokens)
    choices = parsed.choices[:num_samples]
    if len(choices) < num_samples:
      self.faults["fewer choices than asked"] += 1
    return dataclasses.replace(parsed, choices=choices)

  def _refused(self, answer: httpx.Response) -> Exception:
    """Gives the error of a status that is not 200."""
    status = answer.status_code
    words = self._redact(_words(answer.content))[:_MAX_WORDS]
    said = f"HTTP {status}: {words}"
    if "logprob" in words.lower() and not self._answered:
      # Whatever the status: llama.cpp's Python server says so with 500.
      return errors.UserError(
        f"{self._url} answered {said}; {HOW_TO_GET_LOG_PROBS}"
      )
    healable = status in _RETRIED or status >= 500
    if "insufficient_quota" in words or not healable:
      hint = {
        401: "; set the key's environment variable (--api_key_env)",
        403: "; set the key's environment variable (--api_key_env)",
        404: "; check --base_url (it ends in /v1) and --model",
      }.get(status, "")
      return errors.UserError(f"{self._url} answered {said}{hint}")
    seconds = limits.retry_after_seconds(answer.headers.get("retry-after"))
    if seconds > self._connection.max_wait_seconds:
      return errors.UserError(
        f"{self._url} asks to wait {seconds:,.0f} s before the next request"
        f" (--max_wait_seconds={self._connection.max_wait_seconds:g}): {said}"
      )
    return self._fault(said, f"HTTP {status}", seconds)

  def _fault(
    self, words: str, kind: str, wait_seconds: float = 0
  ) -> _FaultError:
    self.faults[kind] += 1
    return _FaultError(self._redact(words), kind, wait_seconds)

  def _redact(self, text: str) -> str:
    key = self._connection.key.strip()
    return text.replace(key, "***") if key else text

  def _is_last(self, state: tenacity.RetryCallState) -> bool:
    """Whether no attempt may follow a failed one."""
    fault = state.outcome.exception()
    allowed = self._connection.max_attempts
    hopeless = ("no log-probabilities", "broken connection")
    if not self._answered and fault.kind in hopeless:
      allowed = min(allowed, _FIRST_ATTEMPTS)
    return self._stopping.is_set() or state.attempt_number >= allowed

  def _pause_seconds(self, state: tenacity.RetryCallState) -> float:
    """Gives the pause before the next attempt: half a second, doubling."""
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


def _decoded(content: bytes) -> object:
  """Parses an answer's JSON.

  Raises:
    ValueError: it is none.
  """
  try:
    return orjson.loads(content)
  except orjson.JSONDecodeError:
    # Python servers write -Infinity, which only Python's own parser reads.
    return json.loads(content)


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
  """Gives what a server says of an error."""
  text = content.decode("utf-8", errors="replace")
  try:
    said = json.loads(text)
  except (ValueError, RecursionError):
    said = None
  for name in ("error", "message", "detail"):
    if isinstance(said, dict) and name in said:
      code = said.get("code")
      said = said[name]
      if isinstance(code, str) and isinstance(said, str):
        said = f"{said} ({code})"
      if isinstance(said, dict) and isinstance(said.get("code"), str):
        said = f"{said.get('message')} ({said['code']})"
  words = " ".join((said if isinstance(said, str) else text).split())
  return words or "no words"
