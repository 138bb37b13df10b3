"""Rate limits and budgets of requests to the teacher."""

import asyncio
import dataclasses
import datetime
import email.utils
import math
import time


class RateLimit:
  """A first-come, first-served limit on units per minute, evenly spread."""

  def __init__(self, per_minute: float | None) -> None:
    """Creates a limit; None for no limit."""
    self._seconds_each = 60.0 / per_minute if per_minute else 0.0
    self._next_at = -math.inf

  async def acquire(self, units: float = 1) -> None:
    """Waits until previous units have been used up."""
    if not self._seconds_each:
      return
    now = time.monotonic()
    start = max(self._next_at, now)
    self._next_at = start + units * self._seconds_each
    await asyncio.sleep(start - now)

  def correct(self, units: float) -> None:
    """Corrects for `units` more than were expected."""
    self._next_at += units * self._seconds_each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
  """Counts of samples and tokens.

  Attributes:
    samples: The number of samples.
    prompt_tokens: The number of prompt tokens, counted once per request.
    completion_tokens: The number of tokens of all samples.
  """

  samples: int = 0
  prompt_tokens: int = 0
  completion_tokens: int = 0

  def __add__(self, other: "Usage") -> "Usage":
    """Adds field by field."""
    return Usage(
      samples=self.samples + other.samples,
      prompt_tokens=self.prompt_tokens + other.prompt_tokens,
      completion_tokens=self.completion_tokens + other.completion_tokens,
    )

  def __sub__(self, other: "Usage") -> "Usage":
    """Subtracts field by field."""
    return Usage(
      samples=self.samples - other.samples,
      prompt_tokens=self.prompt_tokens - other.prompt_tokens,
      completion_tokens=self.completion_tokens - other.completion_tokens,
    )

  @property
  def tokens(self) -> int:
    """All tokens."""
    return self.prompt_tokens + self.completion_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Limits on a store's samples, tokens and cost; infinity for no limit.

  Attributes:
    samples: The maximum number of samples.
    tokens: The maximum number of tokens, of prompts and samples.
    cost: The maximum cost, in the currency of the prices.
    prompt_price: The price of a million prompt tokens.
    completion_price: The price of a million tokens of samples.
  """

  samples: float = math.inf
  tokens: float = math.inf
  cost: float = math.inf
  prompt_price: float = 0.0
  completion_price: float = 0.0

  def cost_of(self, usage: Usage) -> float:
    """Returns the cost of a usage."""
    return (
      usage.prompt_tokens * self.prompt_price
      + usage.completion_tokens * self.completion_price
    ) / 1e6

  def allows(self, usage: Usage) -> bool:
    """Returns whether a usage is within all limits."""
    return (
      usage.samples <= self.samples
      and usage.tokens <= self.tokens
      and self.cost_of(usage) <= self.cost
    )


class Budget:
  """Keeps the usage of completed and pending requests within limits.

  A request is sent only if its maximum usage is within the remaining budget,
  possibly after waiting until pending requests return unused parts of theirs.
  The limits are thus not exceeded by samples, if prompt tokens were estimated
  correctly, and a run stops within one request of them. Unusable answers are
  counted as they come, in the run that pays for them.
  """

  def __init__(self, limits: Limits, spent: Usage) -> None:
    """Creates a budget, of which earlier runs used `spent`."""
    self.limits = limits
    self.spent = spent
    self._reserved = Usage()
    self._num_reserved = 0
    self._settled = asyncio.Condition()

  async def reserve(
    self, num_samples: int, *, prompt_tokens: int, max_tokens: int
  ) -> Usage | None:
    """Reserves the maximum usage of up to `num_samples` samples of a prompt.

    Returns:
      The maximum usage, whose `samples` is the number that may be requested;
      None if the remaining budget is too small for one sample.
    """
    async with self._settled:
      while True:
        taken = self.spent + self._reserved
        for samples in range(num_samples, 0, -1):
          asked = Usage(
            samples=samples,
            prompt_tokens=prompt_tokens,
            completion_tokens=samples * max_tokens,
          )
          if self.limits.allows(taken + asked):
            self._reserved += asked
            self._num_reserved += 1
            return asked
        if not self._num_reserved:
          return None
        await self._settled.wait()

  def charge(self, used: Usage) -> None:
    """Adds usage of a pending request that gave no sample."""
    self.spent += used

  async def settle(self, reserved: Usage, used: Usage) -> None:
    """Replaces a reservation by the actual usage."""
    async with self._settled:
      self._reserved -= reserved
      self._num_reserved -= 1
      self.spent += used
      self._settled.notify_all()


def retry_after_seconds(value: str | None) -> float:
  """Parses `Retry-After`, seconds or a date; 0 if it is missing or invalid."""
  if value is None:
    return 0.0
  try:
    seconds = float(value)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
      return 0.0
    if date.tzinfo is None:
      date = date.replace(tzinfo=datetime.UTC)
    seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
  return max(0.0, seconds) if math.isfinite(seconds) else 0.0
