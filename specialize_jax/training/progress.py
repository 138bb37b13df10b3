"""Measures throughput, and shows progress on standard error."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

import jax

_TERMINAL_SECONDS = 0.5
_PLAIN_SECONDS = 10.0
# Metric names, and the keys of `jax.Device.memory_stats`.
_MEMORY = {"hbm_gib": "bytes_in_use", "hbm_peak_gib": "peak_bytes_in_use"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
  """What is needed to compute MFU and memory use, as far as it is known.

  Attributes:
    step_flops: floating point operations of the model in one step, forward
      and backward, summed over all chips.
    peak_flops: peak floating point operations per second of all chips.
    devices: the devices of this process whose memory is reported.
  """

  step_flops: float | None = None
  peak_flops: float | None = None
  devices: Sequence[jax.Device] = ()

  def values(self, step_seconds: float) -> dict[str, float]:
    """Computes the MFU, and the memory of the fullest device.

    Args:
      step_seconds: duration of a step.

    Returns:
      mfu, in [0, 1], if both flops are known; hbm_gib and hbm_peak_gib, in use
      now and at most so far, if the devices report them.
    """
    values = {}
    if self.step_flops and self.peak_flops:
      values["mfu"] = self.step_flops / (step_seconds * self.peak_flops)
    reported = [stats for d in self.devices if (stats := d.memory_stats())]
    for name, key in _MEMORY.items():
      in_use = [stats[key] for stats in reported if key in stats]
      if in_use:
        values[name] = max(in_use) / 2**30
    return values


class Throughput:
  """Tokens, examples and steps per second, without pauses and compilation.

  Rates are measured between calls of `rates`. The first step, which compiles,
  is excluded.
  """

  def __init__(self, efficiency: Efficiency | None = None) -> None:
    """Starts measuring after the first step."""
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
    """Excludes the time spent within, such as in an evaluation."""
    began = time.perf_counter()
    yield
    self._paused += time.perf_counter() - began

  @contextlib.contextmanager
  def data_wait(self) -> Iterator[None]:
    """Counts the time spent within as waiting for data."""
    began = time.perf_counter()
    yield
    self._waited += time.perf_counter() - began

  def rates(self) -> dict[str, float]:
    """Computes the rates since the last call.

    Returns:
      step_seconds and data_wait_seconds, means per step; tokens_per_second
      (encoder and decoder, without padding); examples_per_second (rows); and
      the values of `Efficiency.values`. Empty before the second step.
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
  """Progress as one updating line on a terminal, else a line every 10 s."""

  def __init__(
    self, total: int, stream: TextIO | None = None, *, done: int = 0
  ) -> None:
    """Counts up to `total`.

    Args:
      total: number of steps or rows.
      stream: output stream, standard error by default.
      done: number that an earlier run has already done.
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
    """Counts up to `done`; returns whether the line should be updated."""
    now = time.monotonic()
    self._done = done
    if self._first is None:
      # Speed is measured from here on, when the first step has compiled.
      self._first = (done, now)
    else:
      self._tokens += num_tokens
    last = done >= self._total
    if now - self._last_shown < self._every and not last:
      return False
    self._last_shown = now
    return True

  def _write(self, text: str) -> None:
    if self._terminal:
      # \x1b[K clears the rest of a longer previous line.
      end = "\n" if self._done >= self._total else ""
      self._stream.write(f"\r{text}\x1b[K{end}")
    else:
      self._stream.write(text + "\n")
    self._stream.flush()

  def _speed(self, unit: str = "") -> str:
    """Formats the rates; those of what is counted only with a `unit`."""
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
  """Progress of a training run: loss, speed and time left."""

  def show(self, step: int, *, loss: float, num_tokens: float) -> None:
    """Shows a step, if the line is due for an update."""
    if self._count(step, num_tokens):
      text = f"step {step}/{self._total}  loss {loss:.4f}{self._speed()}"
      self._write(text)


class RowsLine(_Line):
  """Progress over the rows of a file: rows done, speed and time left."""

  def add(self, num_rows: int, *, num_tokens: float) -> None:
    """Counts more rows, and shows them if the line is due for an update."""
    if self._count(self._done + num_rows, num_tokens):
      self._write(f"{self._done:,}/{self._total:,} rows{self._speed('rows')}")


def _duration(seconds: float) -> str:
  """Formats a duration, as in 45 s, 12 min, 3 h 20 min."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  if minutes < 90:
    return f"{minutes} min"
  return f"{minutes // 60} h {minutes % 60} min"
