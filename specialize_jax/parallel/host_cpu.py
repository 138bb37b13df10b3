"""The cores of one machine as so many devices, for work without accelerator.

XLA gives a CPU one device and spreads each operation over its cores. The
operations of a small model are too short for that: most of the time the
cores wait for one another. As devices of one thread each they meet once a
step, when gradients are summed, and the mesh is a real one: on two cores the
demo's data axis is 2.
"""

import ctypes
import os

import jax

from specialize_jax import errors

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def use_cores_as_devices(num_devices: int) -> None:
  """Makes the CPU `num_devices` devices of one thread each.

  To be called before anything is computed. On an accelerator nothing changes
  but the CPU beside it. Freed memory is kept for the next step, where the C
  library is glibc: it would go back to the system, which would clear every
  page of it again before the next step writes there (in the demo 83 million
  pages, a fifth of the time).

  Raises:
    UserError: `num_devices` is not positive, or something has been computed
      already.
  """
  if num_devices < 1:
    raise errors.UserError(
      f"cpu_devices is {num_devices}, and must be at least 1."
    )
  # Read once, when the CPU client starts.
  flags = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
  try:
    jax.config.update("jax_num_cpu_devices", num_devices)
  except RuntimeError as error:
    raise errors.UserError(
      "the CPU cannot be split into devices any more, since something has "
      f"been computed on it: {error}"
    ) from error
  _keep_freed_memory()


def _keep_freed_memory() -> None:
  """Tells glibc's allocator to give nothing back; others are left alone."""
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError):
    return
  mallopt(_M_MMAP_MAX, 0)
  mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
  mallopt(_M_ARENA_MAX, 1)
