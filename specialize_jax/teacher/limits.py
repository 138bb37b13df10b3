"""How fast the teacher may be asked, and how much may be asked of it."""

import asyncio
import dataclasses
import datetime
import email.utils
import math
import time


class RateLimit:
  """Lets so many units pass a minute, evenly, in the order they came."""

  def __init__(self, per_minute: float | None) -> None:
    """Makes a limit; None lets everything pass."""
    self._seconds_each = 60.0 / per_minute if per_minute else 0.0
    self._next_at = -math.inf

  async def acquire(self, units: float = 1) -> None:
    """Waits until what was let pass before is worked off."""
    if not self._seconds_each:
      return
    now = time.monotonic()
    start = max(self._next_at, now)
    self._next_at = start + units * self._seconds_each
    await asyncio.sleep(start - now)

  def correct(self, units: float) -> None:
    """Takes into account that what passed was `units` more than was said."""
    self._next_at += units * self._seconds_each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
  """What was asked and answered.

  Attributes:
    samples: Samples.
    prompt_tokens: Tokens of the prompts, once a request.
    completion_tokens: Tokens of all choices.
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
  """How much a store may cost; infinity for no limit.

  Attributes:
    samples: Samples.
    tokens: Tokens, of prompts and answers.
    cost: Money, in the unit of the prices.
    prompt_price: Money a million tokens of prompts.
    completion_price: Money a million tokens of answers.
  """

  samples: float = math.inf
  tokens: float = math.inf
  cost: float = math.inf
  prompt_price: float = 0.0
  completion_price: float = 0.0

  def cost_of(self, usage: Usage) -> float:
    """Gives what something costs."""
    return (
      usage.prompt_tokens * self.prompt_price
      + usage.completion_tokens * self.completion_price
    ) / 1e6

  def allows(self, usage: Usage) -> bool:
    """Whether that much stays within every limit."""
    return (
      usage.samples <= self.samples
      and usage.tokens <= self.tokens
      and self.cost_of(usage) <= self.cost
    )


class Budget:
  """Keeps what is spent, and what is on its way, within limits.

  A request is let go only if its longest possible answer fits in what is
  left; while others are on their way it waits for what they leave over. So
  the limits are never exceeded, as far as prompts were counted right, and a
  run stops within one request of them.
  """

  def __init__(self, limits: Limits, spent: Usage) -> None:
    """Starts from what earlier runs have spent."""
    self.limits = limits
    self.spent = spent
    self._reserved = Usage()
    self._num_reserved = 0
    self._settled = asyncio.Condition()

  async def reserve(
    self, num_samples: int, *, prompt_tokens: int, max_tokens: int
  ) -> Usage | None:
    """Sets aside what up to `num_samples` samples of a prompt can cost.

    Returns:
      The most that the request can cost, with the number of samples that may
      be asked for; None where not even one fits any more.
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

  async def settle(self, reserved: Usage, used: Usage) -> None:
    """Replaces what was set aside by what was used."""
    async with self._settled:
      self._reserved -= reserved
      self._num_reserved -= 1
      self.spent += used
      self._settled.notify_all()


def retry_after_seconds(value: str | None) -> float:
  """Reads `Retry-After`: seconds, or a date; 0 for none or neither."""
  if value is None:
    return 0.0
  try:
    seconds = float(value)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(value)
    except ValueError:
      return 0.0
    if date.tzinfo is None:
      date = date.replace(tzinfo=datetime.UTC)
    seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
  return max(0.0, seconds) if math.isfinite(seconds) else 0.0
