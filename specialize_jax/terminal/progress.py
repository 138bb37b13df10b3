"""The progress bar of long commands, and lines printed above it.

On a terminal it is tqdm's bar; elsewhere, as in a log file, a line every ten
seconds. tqdm was chosen over rich, which prints the tables, because it imports
in milliseconds, needs no thread, and nests: an evaluation has its bar below
that of training.
"""

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

import tqdm

_LINE_EVERY_SECONDS = 10.0
_DRAW_EVERY_SECONDS = 0.5


class Progress:
  """Shows progress, rate and remaining time of a computation.

  Attributes:
    done: number of units that are done.
    total: total number of units, None if unknown; may be set until the bar is
      shown.
  """

  def __init__(
    self,
    total: int | None,
    unit: str,
    *,
    title: str = "",
    done: int = 0,
    speaks: bool = True,
    line_every_seconds: float = _LINE_EVERY_SECONDS,
    stream: TextIO | None = None,
  ) -> None:
    """Counts from `done` up to `total`.

    Args:
      total: total number of units; None if unknown.
      unit: name of the units, in the plural: "steps".
      title: name of the computation, shown before the numbers.
      done: number of units that an earlier run has done.
      speaks: False for no output, as in all processes but the first.
      line_every_seconds: interval between lines without a terminal.
      stream: the output stream; None for standard error.
    """
    self.done = done
    self.total = total
    self._unit = unit
    self._title = title
    self._speaks = speaks
    self._stream = _Patient(stream or sys.stderr)
    self._line_every_seconds = line_every_seconds
    self._last_line = time.monotonic()
    # Rates are measured from the first update: compilation, for example, comes
    # before it and does not recur.
    self._first: tuple[int, float] | None = None
    self._bar: tqdm.tqdm | None = None

  def __enter__(self) -> Self:
    """Shows the bar."""
    if self._speaks and self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=self.total,
        initial=self.done,
        desc=self._title or None,
        unit=f" {self._unit}",
        file=self._stream,
        mininterval=_DRAW_EVERY_SECONDS,
        dynamic_ncols=True,
        leave=False,
        smoothing=0.0,  # time left from the mean rate, pauses included
      )
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Removes the bar."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def advance(self, count: int = 1, detail: str = "") -> None:
    """Counts more units; see `update`."""
    self.update(self.done + count, detail)

  def update(self, done: int, detail: str = "") -> None:
    """Sets the number of units done, and refreshes the bar at intervals.

    Args:
      done: number of units, including those of earlier runs.
      detail: further text, such as "loss 0.5".
    """
    now = time.monotonic()
    before, self.done = self.done, done
    if self._first is None:
      self._first = (done, now)
      if self._bar is not None:
        self._bar.unpause()
    if self._bar is not None:
      self._bar.set_postfix_str(detail, refresh=False)
      self._bar.update(done - before)
    elif self._speaks and now - self._last_line >= self._line_every_seconds:
      self._last_line = now
      self._stream.write(f"{self._line(detail, now)}\n")
      self._stream.flush()

  def say(self, text: str) -> None:
    """Prints lines above the bar, at once."""
    if not self._speaks:
      return
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      self._stream.write(f"{text}\n")
    self._stream.flush()

  def _line(self, detail: str, now: float) -> str:
    of = "" if self.total is None else f" of {self.total:,}"
    words = [f"{self.done:,}{of} {self._unit}"]
    if detail:
      words.append(detail)
    first, began = self._first
    if self.total is not None and self.done > first and now > began:
      left = (self.total - self.done) * (now - began) / (self.done - first)
      words.append(f"{duration(left)} left")
    title = f"{self._title}: " if self._title else ""
    return title + ", ".join(words)


def duration(seconds: float) -> str:
  """Formats a duration.

  Example:
    >>> duration(12000)
    '3 h 20 min'
  """
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  if minutes < 90:
    return f"{minutes} min"
  return f"{minutes // 60} h {minutes % 60} min"


class _Patient:
  """A stream that ignores writes after its reader has left.

  A terminal may be closed, or a pipe no longer read; the run continues, as
  under `nohup`.
  """

  def __init__(self, stream: TextIO) -> None:
    self._stream = stream
    self._is_gone = False

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes, unless the reader has left."""
    if not self._is_gone:
      try:
        return self._stream.write(text)
      except OSError:  # EPIPE, or EIO of a closed terminal
        self._is_gone = True
    return len(text)

  def flush(self) -> None:
    """Flushes, unless the reader has left."""
    if not self._is_gone:
      try:
        self._stream.flush()
      except OSError:  # EPIPE, or EIO of a closed terminal
        self._is_gone = True
