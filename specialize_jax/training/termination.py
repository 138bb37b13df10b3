"""Handles the signals that end a run: SIGTERM and Ctrl-C (SIGINT).

A machine receives SIGTERM before it is preempted; Ctrl-C is the user's.
"""

import enum
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging


class Reason(enum.IntEnum):
  """The reason why a run stops before its last step; the greatest one wins."""

  NONE = 0
  PREEMPTED = 1
  INTERRUPTED = 2


_REASONS = {
  signal.SIGTERM: Reason.PREEMPTED,
  signal.SIGINT: Reason.INTERRUPTED,
}
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class TerminationSignal:
  """Records a SIGTERM or Ctrl-C; a second one ends the process at once.

  Its status is then 128 and the signal's number, as shells report it.

  This works even while the main thread waits for a device that never responds.
  Python runs signal handlers only between two bytecodes of the main thread, so
  another thread is notified of signals through a pipe.

  Attributes:
    received: the reason to stop that this process has received, or
      `Reason.NONE`.
  """

  def __init__(self) -> None:
    """Handles no signal before it is entered."""
    self.received = Reason.NONE
    self._received_before: set[int] = set()
    self._undo = None

  def __enter__(self) -> "TerminationSignal":
    """Installs the handlers, which only the main thread may do."""
    if threading.current_thread() is threading.main_thread():
      self._undo = self._listen()
    return self

  def __exit__(self, *exception: object) -> None:
    """Restores the previous handlers."""
    if self._undo is not None:
      self._undo()

  def _listen(self) -> object:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(
      target=self._watch, args=(reader,), name="sigterm", daemon=True
    ).start()
    handlers = {
      number: signal.signal(number, self._set_received)
      for number in _REASONS
      # A shell's background job ignores Ctrl-C, which is not meant for it.
      if signal.getsignal(number) is not signal.SIG_IGN
    }
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def undo() -> None:
      signal.set_wakeup_fd(descriptor)
      for number, handler in handlers.items():
        signal.signal(number, handler)
      os.close(writer)  # which ends the thread

    return undo

  def _set_received(self, number: int, _: object) -> None:
    self.received = max(self.received, _REASONS[number])

  def _watch(self, reader: int) -> None:
    with os.fdopen(reader, "rb", buffering=0) as signals:
      while number := signals.read(1):
        if number[0] not in _REASONS:
          continue
        if number[0] in self._received_before:
          os._exit(128 + number[0])
        self._received_before.add(number[0])
        self._set_received(number[0], None)
        name = _NAMES[number[0]]
        logging.warning(
          "%s: saving after this step; send it again to end now.", name
        )


class Agreement:
  """Agrees over all processes on whether to stop.

  All processes must stop at the same step; otherwise the others would wait
  forever. So each step reduces the reason over the devices, an all-reduce of a
  few bytes that is dispatched after the step, and reads that of the previous
  step, which has arrived by then. No process waits, and all read the same
  value. A single process needs no collective.
  """

  def __init__(self, mesh: jax.sharding.Mesh) -> None:
    """Compiles the reduction for the mesh of the run."""
    self._several = jax.process_count() > 1
    self._pending: jax.Array | None = None
    axes = jax.sharding.PartitionSpec(mesh.axis_names)
    self._sharded = jax.sharding.NamedSharding(mesh, axes)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    self._greatest = jax.jit(jnp.max, out_shardings=everywhere)
    self._num_devices = mesh.size

  def reason(self, here: Reason) -> Reason:
    """Returns why the processes stop, if any wants to; all call it each step.

    Args:
      here: why this process wants to stop, or `Reason.NONE`.

    Returns:
      The greatest reason of the previous call if there are several processes,
      that of this call if there is one.
    """
    if not self._several:
      return here
    reasons = jax.make_array_from_callback(
      (self._num_devices,),
      self._sharded,
      lambda index: np.full(1, int(here), np.int32),
    )
    last, self._pending = self._pending, self._greatest(reasons)
    return Reason.NONE if last is None else Reason(int(last))
