"""The progress of `specialize teach`, on standard error."""

from __future__ import annotations

import time
import typing
from types import TracebackType
from typing import Self

from specialize_jax.terminal import progress

if typing.TYPE_CHECKING:
  from specialize_jax.teacher import limits, standing

# An endpoint is sampled for hours, and a log of it is read by the hour.
_LINE_EVERY_SECONDS = 30.0


class Progress:
  """A progress bar on a terminal; otherwise a line every half minute."""

  def __init__(self, now: standing.Standing, price: limits.Limits) -> None:
    """Starts from the state of the store."""
    self._price = price
    self._start = time.monotonic()
    self._done_before = now.done
    self._bar = progress.Progress(
      now.total,
      "samples",
      done=now.done,
      line_every_seconds=_LINE_EVERY_SECONDS,
    )

  def __enter__(self) -> Self:
    """Shows the bar."""
    self._bar.__enter__()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    value: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Removes the bar."""
    self._bar.__exit__(kind, value, traceback)

  def update(self, now: standing.Standing) -> None:
    """Updates the bar with the state of the store."""
    self._bar.update(now.done, self.words(now))

  def words(self, now: standing.Standing) -> str:
    """Returns the rate, the share that is right and the cost, in words."""
    seconds = max(time.monotonic() - self._start, 1e-9)
    rate = (now.done - self._done_before) / seconds
    words = [
      f"{rate:,.1f} a second",
      f"{now.right / max(1, now.done):.1%} right",
    ]
    if self._price.prompt_price or self._price.completion_price:
      words.append(f"cost {self._price.cost_of(now.spent):,.2f}")
    return ", ".join(words)
