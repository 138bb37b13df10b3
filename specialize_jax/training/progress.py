"""Measures throughput: tokens, examples and steps per second, and MFU."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence

import jax

# Metric names, and the keys of `jax.Device.memory_stats`.
_MEMORY = {"hbm_gib": "bytes_in_use", "hbm_peak_gib": "peak_bytes_in_use"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
  """The flops and devices to compute MFU and memory use, if known.

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
