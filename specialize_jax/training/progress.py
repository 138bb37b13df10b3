"""How fast a run goes, and the line that says so on standard error."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO

_TERMINAL_SECONDS = 0.5
_PLAIN_SECONDS = 10.0


class Throughput:
  """Tokens, examples and steps a second, pauses and compilation taken off.

  It measures from one `rates` to the next; the first step, which compiles, is
  left out.
  """

  def __init__(self) -> None:
    """Waits for the first step."""
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
      (encoder and decoder, without padding) and examples_per_second (rows).
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
    self._start = now
    self._reset()
    return rates


class ProgressLine:
  """Loss, speed and time left: one line on a terminal, else one every 10 s."""

  def __init__(self, num_steps: int, stream: TextIO | None = None) -> None:
    """Counts up to `num_steps` on `stream`, standard error by default."""
    self._num_steps = num_steps
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._every = _TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS
    self._last_shown = 0.0
    self._first: tuple[int, float] | None = None
    self._tokens = 0.0

  def show(self, step: int, *, loss: float, num_tokens: float) -> None:
    """Tells of a step, if the last time was long enough ago."""
    now = time.monotonic()
    if self._first is None:
      # Where the speed is measured from: the first step has compiled.
      self._first = (step, now)
    else:
      self._tokens += num_tokens
    last = step >= self._num_steps
    if now - self._last_shown < self._every and not last:
      return
    self._last_shown = now
    text = f"step {step}/{self._num_steps}  loss {loss:.4f}{self._speed(step)}"
    if self._terminal:
      # \x1b[K clears what a longer line before it has left.
      end = "\n" if last else ""
      self._stream.write(f"\r{text}\x1b[K{end}")
    else:
      self._stream.write(text + "\n")
    self._stream.flush()

  def _speed(self, step: int) -> str:
    first_step, began = self._first
    seconds = time.monotonic() - began
    if step == first_step or not seconds:
      return ""
    left = (self._num_steps - step) * seconds / (step - first_step)
    return f"  {self._tokens / seconds:,.0f} tokens/s  {_duration(left)} left"


def _duration(seconds: float) -> str:
  """Example: 45 s, 12 min, 3 h 20 min."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  if minutes < 90:
    return f"{minutes} min"
  return f"{minutes // 60} h {minutes % 60} min"
