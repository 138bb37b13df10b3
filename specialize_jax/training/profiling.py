"""Traces a few steps, for TensorBoard's profile tab or Perfetto."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import jax
from absl import logging

from specialize_jax import errors


def check(steps: tuple[int, int] | None) -> None:
  """Raises UserError where JAX's profiler would end the process.

  It starts the tracer of libtpu too, which has nothing to trace on a machine
  without a TPU, and reads memory that it does not have.

  Args:
    steps: the first and the last step to trace; None to trace nothing.
  """
  if steps is None or jax.default_backend() != "cpu":
    return
  if not jax.config.jax_platforms and importlib.util.find_spec("libtpu"):
    raise errors.UserError(
      "profile_steps: JAX's profiler crashes on a machine without a TPU on"
      " which libtpu is installed: set JAX_PLATFORMS=cpu"
    )


class Profiler:
  """Traces the steps from `first` to `last` into a directory.

  Every process writes its own files there.
  """

  def __init__(
    self, steps: tuple[int, int] | None, directory: str | os.PathLike
  ) -> None:
    """Sets the first and the last step to trace; None to trace nothing."""
    self._steps = steps
    self._directory = os.fspath(directory)
    self._tracing = False

  @contextlib.contextmanager
  def step(self, step_number: int) -> Iterator[None]:
    """Wraps the dispatch of a step; starts the trace at the first step."""
    if self._steps is None:
      yield
      return
    first, last = self._steps
    if first <= step_number <= last and not self._tracing:
      jax.profiler.start_trace(self._directory)
      self._tracing = True
    with jax.profiler.StepTraceAnnotation("train", step_num=step_number):
      yield

  def step_read(self, step_number: int) -> None:
    """Ends the trace if the metrics of the last step have been read."""
    if self._tracing and step_number >= self._steps[1]:
      self.close()

  def close(self) -> None:
    """Ends the trace if one is running."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
      logging.info("Wrote a trace to %s", self._directory)
