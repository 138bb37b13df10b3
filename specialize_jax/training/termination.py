"""Handles SIGTERM, which a machine receives before it is preempted."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

_KILLED_BY_SIGTERM = 128 + signal.SIGTERM  # as shells report it


class TerminationSignal:
  """Records a SIGTERM; a second one ends the process at once.

  This works even while the main thread waits for a device that never responds.
  Python runs signal handlers only between two bytecodes of the main thread, so
  another thread is notified of signals through a pipe.

  Attributes:
    received: whether this process has received SIGTERM.
  """

  def __init__(self) -> None:
    """Handles no signal before it is entered."""
    self.received = False
    self._undo = None

  def __enter__(self) -> "TerminationSignal":
    """Installs the handler, which only the main thread may do."""
    if threading.current_thread() is threading.main_thread():
      self._undo = self._listen()
    return self

  def __exit__(self, *exception: object) -> None:
    """Restores the previous handler."""
    if self._undo is not None:
      self._undo()

  def _listen(self) -> object:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(
      target=self._watch, args=(reader,), name="sigterm", daemon=True
    ).start()
    handler = signal.signal(signal.SIGTERM, self._set_received)
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def undo() -> None:
      signal.set_wakeup_fd(descriptor)
      signal.signal(signal.SIGTERM, handler)
      os.close(writer)  # which ends the thread

    return undo

  def _set_received(self, *_: object) -> None:
    self.received = True

  def _watch(self, reader: int) -> None:
    with os.fdopen(reader, "rb", buffering=0) as signals:
      while number := signals.read(1):
        if number[0] != signal.SIGTERM:
          continue
        if self._received_before:
          os._exit(_KILLED_BY_SIGTERM)
        self._received_before = self.received = True
        logging.warning(
          "SIGTERM: saving after this step; send it again to end now."
        )

  _received_before = False


class Agreement:
  """Agrees over all processes on whether to stop.

  All processes must stop at the same step; otherwise the others would wait
  forever. So each step reduces a flag over the devices, an all-reduce of a few
  bytes that is dispatched after the step, and reads the flag of the previous
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
    self._any = jax.jit(jnp.any, out_shardings=everywhere)
    self._num_devices = mesh.size

  def any(self, here: bool) -> bool:
    """Returns whether any process wants to stop; all call it once a step.

    Args:
      here: whether this process wants to stop.

    Returns:
      The flag of the previous call if there are several processes, of this
      call if there is one.
    """
    if not self._several:
      return here
    flags = jax.make_array_from_callback(
      (self._num_devices,), self._sharded, lambda index: np.full(1, here)
    )
    last, self._pending = self._pending, self._any(flags)
    return last is not None and bool(last)
