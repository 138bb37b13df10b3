"""Telling a damaged checkpoint, and a disk without room, from other failures.

Orbax renames a checkpoint into place when it is whole, so a kill leaves none
half-written. What else happens to files afterwards (a copy that was broken
off, a disk that lost a block, a hand) shows when they are read: as a missing
or unreadable file, or as numbers that are not those that were saved.
"""

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from specialize_jax import errors

# What storage says that cannot be reached or is not ours to read; TensorStore
# has one exception type for all, and the status in front of its message.
_NOT_DAMAGE = (
  "ABORTED",
  "CANCELLED",
  "DEADLINE_EXCEEDED",
  "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED",
  "UNAUTHENTICATED",
  "UNAVAILABLE",
)
# No space; over the user's quota; over the process's file size limit.
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DamagedError(ValueError):
  """The arrays that were read are not those that were saved."""


def is_damage(error: Exception) -> bool:
  """Whether an error that reading gave speaks of the files themselves."""
  if isinstance(error, OSError):
    return isinstance(error, FileNotFoundError | NotADirectoryError)
  # Readers of formats fail in many ways over what does not have the format.
  kinds = (ValueError, TypeError, LookupError, AttributeError, EOFError)
  return isinstance(error, kinds) and not str(error).startswith(_NOT_DAMAGE)


def is_no_space(error: BaseException) -> bool:
  """Whether an error, or what caused it, is that there was no room."""
  seen: BaseException | None = error
  while seen is not None:
    if isinstance(seen, OSError) and seen.errno in _NO_SPACE:
      return True
    # TensorStore and the coordination service pass errors on as text.
    if any(os.strerror(number) in str(seen) for number in _NO_SPACE):
      return True
    seen = seen.__cause__ or seen.__context__
  return False


@contextlib.contextmanager
def explained(directory: epath.Path) -> Iterator[None]:
  """Says of a save that failed where it was, and whether there was room.

  Raises:
    UserError: there was none.
    OSError: anything else.
  """
  try:
    yield
  except errors.UserError:
    raise
  except Exception as error:
    if is_no_space(error):
      raise errors.UserError(
        f"no space is left to save a checkpoint in {directory}"
        f"{_free(directory)}: make room there, or keep fewer (KEEP), and start "
        "again to go on from the last one that is whole."
      ) from error
    raise OSError(
      f"a checkpoint could not be saved in {directory}: {error}"
    ) from error


def fingerprint(state: Any) -> dict[str, str]:
  """A sum of the bits of every array, the same however it is cut.

  Computed where the arrays lie, in one pass over them. A single wrong bit, or
  bits that are all lost, always change it.

  Args:
    state: pytree of arrays; leaves of other kinds are left out.

  Returns:
    By the name of each array its dtype and the sum, below 2**32, such as
    "float32:109051904".
  """
  arrays = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if isinstance(leaf, jax.Array | np.ndarray)
  }
  sums = jax.device_get(_sums(arrays))
  return {name: f"{arrays[name].dtype}:{sums[name]}" for name in arrays}


def checksum(content: bytes | Mapping[str, Any]) -> int:
  """CRC-32 of bytes, or of a JSON-able mapping whatever its order."""
  if not isinstance(content, bytes):
    content = json.dumps(content, sort_keys=True).encode()
  return zlib.crc32(content)


def check(state: Any, expected: Mapping[str, str]) -> None:
  """Compares a state with the fingerprint that was saved with it.

  An array that was read as another dtype than it was saved in is left out.

  Raises:
    DamagedError: they differ; names the first few arrays that do.
  """
  wrong = sorted(
    name
    for name, actual in fingerprint(state).items()
    if (saved := expected.get(name, actual)) != actual
    and saved.split(":")[0] == actual.split(":")[0]
  )
  if wrong:
    raise DamagedError(
      f"{len(wrong)} arrays are not those that were saved: "
      f"{', '.join(wrong[:3])}"
    )


@jax.jit
def _sums(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  return {name: _sum_of_bits(array) for name, array in arrays.items()}


def _sum_of_bits(array: jax.Array) -> jax.Array:
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
  bits = jax.lax.bitcast_convert_type(array, words[array.dtype.itemsize])
  return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)


def _free(directory: epath.Path) -> str:
  """How much room there is, where the file system tells."""
  try:
    free = shutil.disk_usage(os.fspath(directory)).free
  except OSError:
    return ""
  return f" ({free / 2**20:,.0f} MiB are free)"
