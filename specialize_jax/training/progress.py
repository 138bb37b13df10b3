"""How fast a run goes, and the line that says so on standard error."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

import jax

_TERMINAL_SECONDS = 0.5
_PLAIN_SECONDS = 10.0
# Our names of what `jax.Device.memory_stats` counts.
_MEMORY = {"hbm_gib": "bytes_in_use", "hbm_peak_gib": "peak_bytes_in_use"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
  """What a step takes and what the chips could do, where both are known.

  Attributes:
    step_flops: floating point operations of the model in one step, forward
      and backward, on all chips together.
    peak_flops: of all chips together, a second.
    devices: of this process, whose memory is looked at.
  """

  step_flops: float | None = None
  peak_flops: float | None = None
  devices: Sequence[jax.Device] = ()

  def values(self, step_seconds: float) -> dict[str, float]:
    """Gives the share of the peak, and the fullest device's memory.

    Returns:
      mfu, 0 to 1, where both figures are known; hbm_gib and hbm_peak_gib, in
      use now and at most so far, where the devices tell.
    """
    values = {}
    if self.step_flops and self.peak_flops:
      values["mfu"] = self.step_flops / (step_seconds * self.peak_flops)
    told = [stats for d in self.devices if (stats := d.memory_stats())]
    for name, key in _MEMORY.items():
      in_use = [stats[key] for stats in told if key in stats]
      if in_use:
        values[name] = max(in_use) / 2**30
    return values


class Throughput:
  """Tokens, examples and steps a second, pauses and compilation taken off.

  It measures from one `rates` to the next; the first step, which compiles, is
  left out.
  """

  def __init__(self, efficiency: Efficiency | None = None) -> None:
    """Waits for the first step."""
    self._efficiency = efficiency or Efficiency()
    self._start: float | None = None
    self._reset()

  def _reset(self) -> None:
    self._steps = self._tokens = self._examples = 0
    self._paused = self._waited = 0.0

  def step_done(self, *, num_tokens: float, num_examples: int) -> None:
    """Counts a step whose results have arrived."""
    if self._start is None:
      self._start = time.perf_counter()
      self._reset()
      return
    self._steps += 1
    self._tokens += num_tokens
    self._examples += num_examples

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Takes what happens within, such as an evaluation, off the time."""
    began = time.perf_counter()
    yield
    self._paused += time.perf_counter() - began

  @contextlib.contextmanager
  def data_wait(self) -> Iterator[None]:
    """Counts what happens within as waiting for data."""
    began = time.perf_counter()
    yield
    self._waited += time.perf_counter() - began

  def rates(self) -> dict[str, float]:
    """Gives the rates since the last call; empty before a second step.

    Returns:
      step_seconds and data_wait_seconds, means a step; tokens_per_second
      (encoder and decoder, without padding) and examples_per_second (rows);
      and what `Efficiency.values` gives.
    """
    if not self._steps:
      return {}
    now = time.perf_counter()
    seconds = max(now - self._start - self._paused, 1e-9)
    rates = {
      "step_seconds": seconds / self._steps,
      "data_wait_seconds": self._waited / self._steps,
      "tokens_per_second": self._tokens / seconds,
      "examples_per_second": self._examples / seconds,
    }
    rates |= self._efficiency.values(rates["step_seconds"])
    self._start = now
    self._reset()
    return rates


class _Line:
  """Speed and time left: one line on a terminal, else one every 10 s."""

  def __init__(
    self, total: int, stream: TextIO | None = None, *, done: int = 0
  ) -> None:
    """Counts up to `total` on `stream`, standard error by default.

    Args:
      total: steps or rows.
      stream: where to.
      done: how many were there before, by an earlier run.
    """
    self._total = total
    self._done = done
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._every = _TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS
    self._last_shown = 0.0
    self._first: tuple[int, float] | None = None
    self._tokens = 0.0

  def _count(self, done: int, num_tokens: float) -> bool:
    """Counts up to `done`; gives whether it is time to tell of it."""
    now = time.monotonic()
    self._done = done
    if self._first is None:
      # Where the speed is measured from: the first step has compiled.
      self._first = (done, now)
    else:
      self._tokens += num_tokens
    last = done >= self._total
    if now - self._last_shown < self._every and not last:
      return False
    self._last_shown = now
    return True

  def _tell(self, text: str) -> None:
    if self._terminal:
      # \x1b[K clears what a longer line before it has left.
      end = "\n" if self._done >= self._total else ""
      self._stream.write(f"\r{text}\x1b[K{end}")
    else:
      self._stream.write(text + "\n")
    self._stream.flush()

  def _speed(self, unit: str = "") -> str:
    """Gives rates since the first; `unit` is what is counted, if told."""
    first, began = self._first
    seconds = time.monotonic() - began
    if self._done == first or not seconds:
      return ""
    rate = (self._done - first) / seconds
    left = (self._total - self._done) / rate
    counted = f"  {rate:,.1f} {unit}/s" if unit else ""
    tokens = f"  {self._tokens / seconds:,.0f} tokens/s"
    return f"{counted}{tokens}  {_duration(left)} left"


class ProgressLine(_Line):
  """A training run's: loss, speed and time left."""

  def show(self, step: int, *, loss: float, num_tokens: float) -> None:
    """Tells of a step, if the last time was long enough ago."""
    if self._count(step, num_tokens):
      text = f"step {step}/{self._total}  loss {loss:.4f}{self._speed()}"
      self._tell(text)


class RowsLine(_Line):
  """A file's, row by row: how many are done, speed and time left."""

  def add(self, num_rows: int, *, num_tokens: float) -> None:
    """Tells of so many more rows, if the last time was long enough ago."""
    if self._count(self._done + num_rows, num_tokens):
      self._tell(f"{self._done:,}/{self._total:,} rows{self._speed('rows')}")


def _duration(seconds: float) -> str:
  """Example: 45 s, 12 min, 3 h 20 min."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  if minutes < 90:
    return f"{minutes} min"
  return f"{minutes // 60} h {minutes % 60} min"
