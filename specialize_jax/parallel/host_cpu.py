"""CPU-only settings: one device per core, and glibc's allocator.

By default XLA presents a CPU as one device and parallelizes each operation over
the cores. The operations of a small model are too short for that, and the cores
mostly wait for one another. As single-threaded devices they synchronize once a
step, when gradients are summed, and form a real mesh: on two cores the demo's
data axis is 2.
"""

import ctypes
import os

import jax

from specialize_jax import errors

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def use_cores_as_devices(num_devices: int) -> None:
  """Presents the CPU as `num_devices` single-threaded devices.

  Must be called before the first computation. Accelerators are unaffected.
  If the C library is glibc, freed memory is kept for the next step: otherwise
  it returns to the system, which zeroes each page again before the next step
  can write to it (83 million pages in the demo, a fifth of its time).

  Args:
    num_devices: number of devices, usually the number of cores.

  Raises:
    UserError: `num_devices` is not positive, or JAX has already initialized
      the CPU.
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


def release_freed_memory() -> None:
  """Makes glibc return freed memory to the system; does nothing without glibc.

  By default glibc keeps what is freed, as after a compilation, as part of the
  process, beside everything that is allocated later.
  """
  library = ctypes.CDLL(None)
  if hasattr(library, "malloc_trim"):
    library.malloc_trim(0)


def _keep_freed_memory() -> None:
  """Makes glibc keep all freed memory; does nothing without glibc."""
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError):
    return
  mallopt(_M_MMAP_MAX, 0)
  mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
  mallopt(_M_ARENA_MAX, 1)
