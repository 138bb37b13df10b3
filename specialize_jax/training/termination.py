"""SIGTERM, as a machine that is about to be taken away sends it."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

_KILLED_BY_SIGTERM = 128 + signal.SIGTERM  # as a shell has it


class TerminationSignal:
  """Remembers a SIGTERM; a second one ends the process at once.

  At once means even while the main thread waits for a device that will never
  answer: Python runs its signal handlers between two operations of the main
  thread only, so a thread of its own hears of signals through a pipe.

  Attributes:
    received: whether there was one, as far as this process knows.
  """

  def __init__(self) -> None:
    """Hears nothing before it is entered."""
    self.received = False
    self._undo = None

  def __enter__(self) -> "TerminationSignal":
    """Listens, where this is the main thread: no other may ask."""
    if threading.current_thread() is threading.main_thread():
      self._undo = self._listen()
    return self

  def __exit__(self, *exception: object) -> None:
    """Gives the signal back to whom it belonged to."""
    if self._undo is not None:
      self._undo()

  def _listen(self) -> object:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(
      target=self._hear, args=(reader,), name="sigterm", daemon=True
    ).start()
    handler = signal.signal(signal.SIGTERM, self._remember)
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def undo() -> None:
      signal.set_wakeup_fd(descriptor)
      signal.signal(signal.SIGTERM, handler)
      os.close(writer)  # which ends the thread

    return undo

  def _remember(self, *_: object) -> None:
    self.received = True

  def _hear(self, reader: int) -> None:
    with os.fdopen(reader, "rb", buffering=0) as signals:
      while number := signals.read(1):
        if number[0] != signal.SIGTERM:
          continue
        if self._heard_before:
          os._exit(_KILLED_BY_SIGTERM)
        self._heard_before = self.received = True
        logging.warning("SIGTERM: saving after this step; again to end now.")

  _heard_before = False


class Agreement:
  """Whether any process was told to stop, the same answer on all of them.

  Every process must leave at the same step, or the others wait for it for
  ever. So each step sums a flag over the devices, a few bytes that travel
  behind the step's own, and reads the flag of the step before, which is there
  by then: nobody waits, and all read the same. One process needs no sum and
  answers at once.
  """

  def __init__(self, mesh: jax.sharding.Mesh) -> None:
    """Takes the mesh that the run computes on."""
    self._several = jax.process_count() > 1
    self._pending: jax.Array | None = None
    axes = jax.sharding.PartitionSpec(mesh.axis_names)
    self._spread = jax.sharding.NamedSharding(mesh, axes)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    self._any = jax.jit(jnp.any, out_shardings=everywhere)
    self._num_devices = mesh.size

  def any(self, here: bool) -> bool:
    """Called by all processes once a step: was one of them told to stop?

    Args:
      here: whether this one was.

    Returns:
      Among several processes, the answer to the flags of the call before.
    """
    if not self._several:
      return here
    flags = jax.make_array_from_callback(
      (self._num_devices,), self._spread, lambda index: np.full(1, here)
    )
    last, self._pending = self._pending, self._any(flags)
    return last is not None and bool(last)
