"""An asynchronous client of an OpenAI-compatible endpoint, with retries.

A request is retried a limited number of times, with exponential backoff and
jitter, after status 408, 409, 425, 429 or 5xx (respecting `Retry-After`), a
timeout, or a connection error. An unusable response has been paid for, so it is
retried a few times only, or not at all if the server will always respond like
that. Status 400, 413 or 422 may be due to one prompt, which is given up. Any
other status stops the run with the server's message.

The command reads the key from the environment. It is sent in a single header to
the address that the user specified, and removed from the server's messages.
Redirects are not followed, and a response is read only up to the size that the
request allows.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import random
import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal, Self

import httpx
import tenacity

from specialize_jax import errors
from specialize_jax.files import reading
from specialize_jax.teacher import answer_body, credentials, limits, responses

Endpoint = Literal["completions", "chat"]

_PATHS = {"completions": "completions", "chat": "chat/completions"}
_RETRIED = frozenset((408, 409, 425, 429))
# The prompt may be too long or unwanted, and others not; or the request has a
# field that the endpoint refuses in all.
_OF_PROMPTS = frozenset((400, 413, 422))
# The key or the country, or, once there was an answer, a prompt that the
# endpoint's moderation flags (OpenRouter's is 403).
_OF_FLAGGED_PROMPTS = frozenset((403, 451))
# Attempts while the endpoint has never responded: it is then more likely
# misconfigured than temporarily unavailable.
_FIRST_ATTEMPTS = 3
# A host that is down or behind a firewall does not answer at all.
_CONNECT_SECONDS = 30.0
# Attempts after unusable responses, if there were usable ones before.
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
  """All attempts of a request failed; the message is the last reason.

  Attributes:
    may_be_prompts: Whether the reason may be this prompt alone: the endpoint
      answers others, or has answered this one unusably.
    is_refused: Whether the endpoint refused this prompt at once, at no cost.
  """

  def __init__(
    self,
    words: str,
    *,
    may_be_prompts: bool = False,
    is_refused: bool = False,
  ) -> None:
    super().__init__(words)
    self.may_be_prompts = may_be_prompts
    self.is_refused = is_refused


class _FaultError(Exception):
  """An attempt failed with a possibly transient error."""

  def __init__(
    self,
    words: str,
    kind: str,
    wait_seconds: float = 0,
    *,
    is_settled: bool = False,
    may_be_prompts: bool = False,
  ) -> None:
    super().__init__(words)
    self.kind = kind
    self.wait_seconds = wait_seconds
    self.is_settled = is_settled
    self.may_be_prompts = may_be_prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """The parameters of every request.

  Attributes:
    model: The model's name at the endpoint.
    endpoint: "completions" or "chat".
    temperature: The sampling temperature; 0.5 in the paper.
    max_tokens: The maximum length of a sample, in tokens; 256 in the paper.
    stop: Stop sequences.
    top_logprobs: The number of alternatives per token; 5 in the paper.
    extra: Additional fields of the request, such as vLLM's `top_k`.
  """

  model: str
  endpoint: Endpoint = "completions"
  temperature: float = 0.5
  max_tokens: int = 256
  stop: tuple[str, ...] = ()
  top_logprobs: int = 5
  extra: Mapping[str, object] = dataclasses.field(default_factory=dict)

  def body(self, prompt: str, num_samples: int) -> dict[str, object]:
    """Returns the JSON body of a request.

    Fields that are None in `extra` are not sent; nor is `n` if it is 1, since
    some servers do not support it.

    Args:
      prompt: The prompt.
      num_samples: The number of samples, `n`.
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

  @property
  def longest_sample(self) -> int:
    """The maximum length of a sample in tokens, which `extra` may replace."""
    body = self.body("", 1)
    sent = [body.get(name) for name in _TOKEN_LIMITS]
    return max(
      (one for one in sent if type(one) is int), default=self.max_tokens
    )

  def longest_answer_bytes(self, num_samples: int) -> int:
    """Returns the maximum size of a response, in bytes.

    A token or an alternative has about 100 bytes of JSON, including its bytes
    in decimal; the limit is a kilobyte for each.
    """
    candidates = num_samples * self.longest_sample * (1 + self.top_logprobs)
    return _LEAST_ANSWER_BYTES + 1024 * candidates

  def description(self) -> dict[str, object]:
    """Returns the fields that are stored with each record."""
    fields = dataclasses.asdict(self)
    extra = fields.pop("extra")
    fields["stop"] = list(self.stop)  # as it is after reading JSON
    return fields | ({"extra": dict(extra)} if extra else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connection:
  """The endpoint's address, and limits on requests.

  Attributes:
    base_url: The address, including `/v1`.
    key: The bearer token; "" for none. Never displayed.
    concurrency: The maximum number of concurrent requests.
    timeout_seconds: The timeout of a whole response, in seconds.
    max_attempts: The maximum number of attempts of a request.
    max_wait_seconds: The maximum pause before an attempt, in seconds; a server
      that requests a longer one stops the run.
    requests_per_minute: The rate limit of requests; None for no limit.
    tokens_per_minute: The rate limit of tokens; None for no limit.
  """

  base_url: str
  key: str = dataclasses.field(default="", repr=False)
  concurrency: int = 32
  timeout_seconds: float = 120.0
  max_attempts: int = 10
  max_wait_seconds: float = 300.0
  requests_per_minute: float | None = None
  tokens_per_minute: float | None = None

  @property
  def connect_seconds(self) -> float:
    """The timeout of a connection, in seconds."""
    return min(self.timeout_seconds, _CONNECT_SECONDS)


class Client:
  """A client of one endpoint; an asynchronous context manager.

  Attributes:
    faults: The number of failed attempts, by kind.
    left_out: The number of dropped alternatives of tokens, by reason.
    reasoning_tokens: The number of reasoning tokens removed before texts.
    few_alternatives: The number of samples of which no token has as many
      alternatives as were asked for.
    on_unusable: Called with the tokens of an unusable answer, as counted by the
      server, since they are paid for.
    has_answered_before: Whether an earlier run had answers, so that one that
      every attempt would repeat is a matter of its question.
  """

  def __init__(self, connection: Connection, sampling: Sampling) -> None:
    """Validates the address and the key, without sending anything.

    Args:
      connection: The endpoint, and limits on requests.
      sampling: The parameters of every request.

    Raises:
      UserError: the address or the key is invalid.
    """
    self.sampling = sampling
    self.faults: collections.Counter[str] = collections.Counter()
    self.left_out: collections.Counter[str] = collections.Counter()
    self.reasoning_tokens = 0
    self.few_alternatives = 0
    self.on_unusable: Callable[[limits.Usage], None] = lambda used: None
    self._connection = connection
    self._url = _checked_url(connection.base_url, _PATHS[sampling.endpoint])
    self._shown_url = credentials.address(self._url)
    headers = {
      "content-type": "application/json",
      "accept-encoding": answer_body.ENCODINGS,
    }
    if connection.key:
      headers["authorization"] = f"Bearer {_checked_key(connection.key)}"
    # One httpx client per connection: httpx searches all connections of a
    # client for every request, which for 32 takes longer than the request.
    try:
      context = httpx.create_ssl_context()
      self._free = [
        httpx.AsyncClient(
          headers=headers,
          follow_redirects=False,  # the key must not be sent elsewhere
          timeout=httpx.Timeout(
            connection.timeout_seconds,
            connect=connection.connect_seconds,
          ),
          verify=context,
          limits=httpx.Limits(max_connections=1),
        )
        for _ in range(connection.concurrency)
      ]
    except (ImportError, OSError, ValueError) as error:
      raise errors.UserError(
        "the environment's proxy or certificates cannot be used"
        f" ({type(error).__name__}: {error}): correct or unset ALL_PROXY,"
        " HTTPS_PROXY, HTTP_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
      ) from error
    self._closing = contextlib.AsyncExitStack()
    self._requests = limits.RateLimit(connection.requests_per_minute)
    self._tokens = limits.RateLimit(connection.tokens_per_minute)
    self.has_answered_before = False
    self._answered = False
    self._has_given_up = False
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
    """Stops retrying; requests that are in progress are completed."""
    self._stopping.set()

  async def ask(
    self, prompt: str, num_samples: int, *, expected_tokens: int
  ) -> responses.Response:
    """Requests samples; returns at least one and at most `num_samples`.

    Args:
      prompt: The whole prompt.
      num_samples: The number of samples to request.
      expected_tokens: The expected number of tokens of prompt and samples, for
        the limit of tokens per minute.

    Raises:
      GivenUpError: all attempts failed.
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
          f"{self._shown_url}: {fault}; {HOW_TO_GET_LOG_PROBS}"
        ) from fault
      answers = self._answered or self.has_answered_before
      if fault.is_settled and not answers and not fault.may_be_prompts:
        raise errors.UserError(f"{self._shown_url}: {fault}") from fault
      self._has_given_up = True
      raise GivenUpError(
        f"{self._shown_url}: {fault}",
        may_be_prompts=fault.may_be_prompts,
        is_refused=fault.may_be_prompts and fault.is_settled,
      ) from fault

  async def _attempt(
    self, content: bytes, num_samples: int, expected_tokens: int
  ) -> responses.Response:
    """Sends a request once, and validates the response."""
    await self._requests.acquire()
    await self._tokens.acquire(expected_tokens)
    if self._stopping.is_set():
      raise _FaultError("the run has ended", "not sent", is_settled=True)
    http = self._free.pop()  # the most recently used, with an open connection
    longest = self.sampling.longest_answer_bytes(num_samples)
    try:
      async with (
        asyncio.timeout(self._connection.timeout_seconds),
        http.stream("POST", self._url, content=content) as answer,
      ):
        said = await answer_body.read(answer, longest)
    except httpx.ConnectTimeout as error:
      raise self._fault(
        f"no connection within {self._connection.connect_seconds:g} s: is the"
        " address right, and reachable from here?",
        "broken connection",
      ) from error
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
    self._check_alternatives(parsed)
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

  def _check_alternatives(self, parsed: responses.Response) -> None:
    """Counts choices with fewer alternatives than were asked for.

    Raises:
      UserError: it is the first answer, and has the sampled tokens alone.
    """
    asked = self.sampling.top_logprobs
    most = [
      max((len(step.top) for step in choice.steps), default=asked)
      for choice in parsed.choices
    ]
    if asked > 1 and max(most) == 1 and not self._answered:
      raise errors.UserError(
        f"{self._shown_url}: of the {asked} most probable tokens"
        " (--top_logprobs) the server returns one, as for a sample at"
        " temperature 0 or of a service that limits their number: ask it for"
        " the distributions before sampling, or --top_logprobs=1 if samples are"
        " all that you want"
      )
    if few := sum(one < asked for one in most):
      self.few_alternatives += few

  def _parsed(self, said: bytes) -> responses.Response:
    """Parses a response's choices, at least one."""
    try:
      body = reading.loads(said)
    except (ValueError, RecursionError) as error:
      hint = "; ask without stream" if said.startswith(b"data:") else ""
      raise self._fault(
        f"the server's answer is not JSON: {error}{hint}", "bad answer"
      ) from error
    try:
      return responses.parse(body)
    except responses.ResponseError as error:
      prompt_tokens, completion_tokens = responses.usage_of(body)
      self.on_unusable(
        limits.Usage(
          prompt_tokens=prompt_tokens or 0,
          completion_tokens=completion_tokens or 0,
        )
      )
      raise self._unusable(error) from error

  def _unusable(self, error: responses.ResponseError) -> _FaultError:
    """Returns the fault of an answer that was read, and cannot be used."""
    if isinstance(error, responses.NoLogProbsError):
      return self._fault(str(error), "no log-probabilities")
    is_settled = isinstance(error, responses.SettledError)
    return self._fault(
      f"the server's answer is not what was asked for: {error}",
      "bad answer",
      is_settled=is_settled,
      may_be_prompts=not is_settled,
    )

  def _refused(self, answer: httpx.Response, content: bytes) -> Exception:
    """Returns the error of a status that is not 200."""
    status = answer.status_code
    words = self._redact(_words(content))[:_MAX_WORDS]
    said = f"HTTP {status}: {words}"
    if answer.is_redirect:
      place = self._redact(answer.headers.get("location", "nowhere"))
      place = credentials.address(place)[:_MAX_WORDS]
      return errors.UserError(
        f"{self._shown_url} redirects to {place} (HTTP {status}), where the key"
        " is not sent; if that is the teacher, give its --base_url"
      )
    if "logprob" in words.lower() and not self._answered:
      # Whatever the status: llama.cpp's Python server responds with 500.
      return errors.UserError(
        f"{self._shown_url} answered {said}; {HOW_TO_GET_LOG_PROBS}"
      )
    healable = status in _RETRIED or status >= 500
    if "insufficient_quota" in words or not healable:
      whole = f"{said}{_hint(status, words, self.sampling.max_tokens)}"
      has_answered = self._answered or self.has_answered_before
      may_be_prompts = status in _OF_PROMPTS or (
        status in _OF_FLAGGED_PROMPTS and has_answered
      )
      if may_be_prompts and "insufficient_quota" not in words:
        return self._fault(
          whole, f"HTTP {status}", is_settled=True, may_be_prompts=True
        )
      return errors.UserError(f"{self._shown_url} answered {whole}")
    seconds = limits.retry_after_seconds(answer.headers.get("retry-after"))
    if seconds > self._connection.max_wait_seconds:
      return errors.UserError(
        f"{self._shown_url} asks to wait {seconds:,.0f} s before the next"
        f" request (--max_wait_seconds={self._connection.max_wait_seconds:g}):"
        f" {said}"
      )
    return self._fault(said, f"HTTP {status}", seconds)

  def _fault(
    self,
    words: str,
    kind: str,
    wait_seconds: float = 0,
    *,
    is_settled: bool = False,
    may_be_prompts: bool = False,
  ) -> _FaultError:
    self.faults[kind] += 1
    return _FaultError(
      self._redact(words),
      kind,
      wait_seconds,
      is_settled=is_settled,
      may_be_prompts=may_be_prompts,
    )

  def _redact(self, text: str) -> str:
    key = self._connection.key.strip()
    return text.replace(key, "***") if key else text

  def _is_last(
    self, state: tenacity.RetryCallState, *, num_bad_answers: int
  ) -> bool:
    """Returns whether a failed attempt must not be retried."""
    fault = state.outcome.exception()
    allowed = self._connection.max_attempts
    if not self._answered and fault.kind in ("broken connection", "timeout"):
      allowed = min(allowed, _FIRST_ATTEMPTS)
    paid = _PAID_ATTEMPTS if self._answered else _FIRST_ATTEMPTS
    if self._has_given_up and not self._answered:
      paid = 1  # is another prompt answered?
    return (
      self._stopping.is_set()
      or fault.is_settled
      or state.attempt_number >= allowed
      or num_bad_answers >= paid
    )

  def _pause_seconds(self, state: tenacity.RetryCallState) -> float:
    """Returns the pause before the next attempt, half a second and doubling."""
    longest = min(self._connection.max_wait_seconds, 60.0)
    doubled = min(longest, 0.5 * 2.0 ** (state.attempt_number - 1))
    asked = state.outcome.exception().wait_seconds
    if asked:  # the server's own value, with jitter
      return asked + random.uniform(0, doubled)
    return random.uniform(doubled / 2, doubled)

  async def _sleep(self, seconds: float) -> None:
    """Sleeps, unless the run is stopping."""
    try:
      async with asyncio.timeout(seconds):
        await self._stopping.wait()
    except TimeoutError:
      return


def _tokens_of(response: responses.Response, expected: int) -> int:
  """Returns the server's token counts of a response, or the expected number."""
  if response.prompt_tokens is None or response.completion_tokens is None:
    return expected
  return response.prompt_tokens + response.completion_tokens


def _checked_url(base_url: str, path: str) -> str:
  shown = credentials.address(base_url)
  try:
    url = httpx.URL(base_url)
  except httpx.InvalidURL as error:
    raise errors.UserError(f"--base_url={shown}: {error}") from error
  if url.userinfo:
    raise errors.UserError(
      "--base_url holds a name or password; give the key by the environment"
    )
  if url.scheme not in ("http", "https") or not url.host:
    raise errors.UserError(
      f"--base_url={shown} is not an address; expected one such as"
      " http://localhost:8000/v1"
    )
  if url.port is not None and not 0 < url.port < 1 << 16:
    raise errors.UserError(
      f"--base_url={shown}: {url.port} is no port; expected 1 to 65535"
    )
  root = url.path.rstrip("/") or "/v1"
  return str(url.copy_with(path=f"{root}/{path}"))


def _checked_key(key: str) -> str:
  """Returns the key, validated as a header; it is not part of any error.

  Raises:
    UserError: it contains characters that a header cannot.
  """
  key = key.strip()
  if not key.isascii() or not key.isprintable() or " " in key:
    raise errors.UserError(
      "the key in the environment (--api_key_env) holds characters that no"
      " key has, such as a blank or a line break; set it again"
    )
  return key


def _words(content: bytes) -> str:
  """Returns the message of a server's error."""
  text = content.decode("utf-8", errors="replace")
  try:
    said = responses.server_message(json.loads(text))
  except (ValueError, RecursionError):
    said = None
  return said or " ".join(text.split()) or "no words"


def _hint(status: int, words: str, max_tokens: int) -> str:
  """Returns advice for a known error of a server, or an empty string."""
  if status in (401, 403):
    return "; set the key's environment variable (--api_key_env)"
  if status == 404:
    return "; check --base_url (it ends in /v1) and --model"
  if "max_completion_tokens" in words:
    return (
      '; give --extra_body=\'{"max_tokens": null, "max_completion_tokens":'
      f" {max_tokens}}}'"
    )
  if re.search(r"\bn\b", words):
    return "; if it takes one sample a request, give --samples_per_request=1"
  return ""
