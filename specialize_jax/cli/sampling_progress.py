"""What `specialize teach` shows while it samples, on standard error."""

from __future__ import annotations

import sys
import time
import typing
from types import TracebackType
from typing import Self

if typing.TYPE_CHECKING:
  from specialize_jax.teacher import limits, standing

_LINE_EVERY_SECONDS = 30.0


class Progress:
  """A bar on a terminal; elsewhere a line every half minute."""

  def __init__(self, now: standing.Standing, price: limits.Limits) -> None:
    """Starts from what the store holds."""
    from rich import console, progress

    self._price = price
    self._start = time.monotonic()
    self._done_before = now.done
    self._line_at = self._start
    screen = console.Console(stderr=True)
    self._bar = None
    if screen.is_terminal:
      self._bar = progress.Progress(
        progress.BarColumn(),
        progress.TextColumn("{task.description}"),
        console=screen,
        transient=True,
      )
      self._task = self._bar.add_task("", total=now.total, completed=now.done)

  def __enter__(self) -> Self:
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    value: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if self._bar is not None:
      self._bar.stop()

  def update(self, now: standing.Standing) -> None:
    """Shows how far the store is."""
    if self._bar is not None:
      self._bar.update(
        self._task, completed=now.done, description=self.words(now)
      )
    elif time.monotonic() - self._line_at >= _LINE_EVERY_SECONDS:
      self._line_at = time.monotonic()
      print(self.words(now), file=sys.stderr, flush=True)

  def words(self, now: standing.Standing) -> str:
    """Gives the state in words: samples, rate, accuracy, cost, time left."""
    seconds = max(time.monotonic() - self._start, 1e-9)
    rate = (now.done - self._done_before) / seconds
    left = (now.total - now.done) / rate if rate else None
    words = [
      f"{now.done:,} of {now.total:,} samples",
      f"{rate:,.1f} a second",
      f"{now.right / max(1, now.done):.1%} right",
    ]
    if self._price.prompt_price or self._price.completion_price:
      words.append(f"cost {self._price.cost_of(now.spent):,.2f}")
    if left is not None:
      hours, rest = divmod(round(left), 3600)
      words.append(f"{hours}:{rest // 60:02}:{rest % 60:02} left")
    return ", ".join(words)
