"""Distinguishes damaged checkpoints and full disks from other failures.

Orbax renames a checkpoint into place when it is complete, so a kill leaves no
incomplete one. Later damage to its files (an interrupted copy, a lost block of
the disk, a person) is noticed when they are read: a file is missing or cannot
be read, or its numbers are not those that were saved.
"""

import contextlib
import functools
import json
import logging as std_logging
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from specialize_jax import errors
from specialize_jax.files import paths

# Statuses of storage that cannot be reached or may not be read. TensorStore has
# one type of exception for all, whose message starts with the status.
_NOT_DAMAGE = (
  "ABORTED",
  "CANCELLED",
  "DEADLINE_EXCEEDED",
  "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED",
  "UNAUTHENTICATED",
  "UNAVAILABLE",
)


class DamagedError(ValueError):
  """The arrays that were read are not those that were saved."""


def is_damage(error: Exception) -> bool:
  """Returns whether an error of reading means that files are damaged."""
  if isinstance(error, OSError):
    return isinstance(error, FileNotFoundError | NotADirectoryError)
  # Readers of formats fail in many ways over what does not have the format.
  kinds = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    RecursionError,  # JSON that is nested too deeply
  )
  return isinstance(error, kinds) and not str(error).startswith(_NOT_DAMAGE)


def is_no_space(error: BaseException) -> bool:
  """Returns whether an error or its cause is a full disk."""
  seen: BaseException | None = error
  while seen is not None:
    if isinstance(seen, OSError) and seen.errno in paths.NO_SPACE:
      return True
    # TensorStore and the coordination service pass errors on as text.
    if any(os.strerror(number) in str(seen) for number in paths.NO_SPACE):
      return True
    seen = seen.__cause__ or seen.__context__
  return False


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
  """Converts errors caused by damage to a UserError with the damaged path.

  Args:
    where: the file or step that is read.

  Raises:
    UserError: it is damaged.
  """
  try:
    yield
  except errors.UserError:
    raise
  except Exception as error:
    if not is_damage(error):
      raise
    what = " ".join(str(error).split())[:200]
    raise errors.UserError(
      f"{where} is damaged ({what}): copy it again from an intact copy, or "
      "give another checkpoint."
    ) from error


@contextlib.contextmanager
def explained(directory: epath.Path) -> Iterator[None]:
  """Adds the directory to the error of a failed save.

  Raises:
    UserError: the disk is full.
    OSError: the save failed for another reason.
  """
  for logger in (logging.get_absl_logger(), std_logging.getLogger("asyncio")):
    logger.addFilter(_is_not_raised_too)
  _drop_closed_loops()
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


def _is_not_raised_too(record: std_logging.LogRecord) -> bool:
  """Returns whether a message is more than the traceback of a full disk.

  Orbax logs it from each of its threads, before the save raises it, and asyncio
  as the process ends, for each array that was still being written.
  """
  error = record.exc_info[1] if record.exc_info else None
  of_a_save = "orbax" in record.pathname or record.name == "asyncio"
  return not (of_a_save and error is not None and is_no_space(error))


@functools.cache
def _drop_closed_loops() -> None:
  """Drops what comes of writes that end after the save which failed.

  Orbax writes arrays in an event loop that ends with the first error, which the
  save raises. TensorStore prints a traceback for each write that ends later.
  """
  earlier = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    error = unraisable.exc_value
    if not (
      isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    ):
      earlier(unraisable)

  sys.unraisablehook = hook


def fingerprint(state: Any) -> dict[str, str]:
  """Returns a digest of every array, the same however it is sharded.

  The digest is two sums over the array's words, modulo 2**32: one of the words
  themselves, and one of the words times a weight that depends on their
  position, so that exchanged blocks are noticed too. It is computed where the
  arrays are, in one pass; in host memory by NumPy, which is five times as fast
  there as XLA, and compiles nothing. Any single wrong bit changes it, and so do
  zeros in place of all bits.

  Args:
    state: pytree of arrays; other leaves are ignored.

  Returns:
    The dtype and the sums by the name of each array, such as
    "float32:109051904:3735928559".
  """
  arrays = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if isinstance(leaf, jax.Array | np.ndarray)
  }
  on_host = {name for name, array in arrays.items() if _is_on_host(array)}
  digests = _on_devices(
    {name: array for name, array in arrays.items() if name not in on_host}
  )
  for name in on_host:
    digest = Digest(arrays[name].dtype)
    digest.add(0, _whole(arrays[name]))
    digests[name] = str(digest)
  return {name: digests[name] for name in arrays}


def _on_devices(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
  """Returns the digests of arrays, computed on the devices that hold them."""
  if not arrays:
    return {}
  return {
    name: f"{arrays[name].dtype}:{total}:{placed_total}"
    for name, (total, placed_total) in jax.device_get(_sums(arrays)).items()
  }


def _is_on_host(array: jax.Array | np.ndarray) -> bool:
  if isinstance(array, np.ndarray):
    return True
  platforms = {device.platform for device in array.sharding.device_set}
  return array.is_fully_addressable and platforms == {"cpu"}


def _whole(array: jax.Array | np.ndarray) -> np.ndarray:
  """Returns an array that is in host memory as one NumPy array.

  `np.asarray` would do, but JAX keeps the copy that it makes of a sharded array
  as long as the array itself.
  """
  if isinstance(array, np.ndarray):
    return array
  if array.is_fully_replicated:
    return np.asarray(array.addressable_data(0))
  whole = np.empty(array.shape, array.dtype)
  for shard in array.addressable_shards:
    if shard.replica_id == 0:
      whole[shard.index] = np.asarray(shard.data)
  return whole


class Digest:
  """The digest of one array, as in `fingerprint`, computed chunk by chunk."""

  def __init__(self, dtype: np.dtype) -> None:
    """Starts with no chunk.

    Args:
      dtype: the array's dtype.
    """
    self._dtype = np.dtype(dtype)
    self._sum = self._placed_sum = self.num_entries = 0

  def add(self, first: int, chunk: np.ndarray) -> None:
    """Adds consecutive entries.

    Args:
      first: the index of the first one in the flattened array.
      chunk: the entries, in C order.
    """
    words = np.ascontiguousarray(chunk).reshape(-1).view(self._word_type)
    self.num_entries += chunk.size
    place = first * (words.size // max(1, chunk.size))
    while words.size:
      low, high = place % _BLOCK, place // _BLOCK
      block = words[: _BLOCK - low].astype(np.uint32)
      total = int(block.sum(dtype=np.uint32))
      placed = int(np.dot(block, _LOW_WEIGHTS[low : low + block.size]))
      self._sum += total
      self._placed_sum += placed + total * int(_high_weight(np.uint32(high)))
      place, words = place + block.size, words[block.size :]

  def __str__(self) -> str:
    """Returns it as `fingerprint` does, such as "float32:1:2"."""
    return f"{self._dtype}:{self._sum % 2**32}:{self._placed_sum % 2**32}"

  @property
  def _word_type(self) -> type:
    return {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[
      self._dtype.itemsize
    ]


def agree(digest: str, saved: str) -> bool:
  """Returns whether a digest equals the saved one, which may lack a sum."""
  return digest.split(":")[: max(2, saved.count(":") + 1)] == saved.split(":")


def checksum(content: bytes | Mapping[str, Any]) -> int:
  """Computes the CRC-32 of bytes, or of a JSON-able mapping in any order."""
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
    if not agree(actual, saved := expected.get(name, actual))
    and saved.split(":")[0] == actual.split(":")[0]
  )
  if wrong:
    raise DamagedError(
      f"{len(wrong)} arrays are not those that were saved: "
      f"{', '.join(wrong[:3])}"
    )


_BLOCK = 2**16
"""Words whose weights differ by a constant from those of any other block."""


def _mixed(x: Any) -> Any:
  """Returns uint32 whose bits depend on all of `x` below, as murmur's do."""
  x = x * np.uint32(0x9E3779B1)
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  return x ^ (x >> np.uint32(13))


def _low_weight(place: Any) -> Any:
  return _mixed(place) | np.uint32(1)  # odd: no bit of a word is lost


def _high_weight(block: Any) -> Any:
  with np.errstate(over="ignore"):  # modulo 2**32
    return _mixed(block + np.uint32(_BLOCK)) & np.uint32(2**32 - 2)


_LOW_WEIGHTS = _low_weight(np.arange(_BLOCK, dtype=np.uint32))


@jax.jit
def _sums(
  arrays: Mapping[str, jax.Array],
) -> dict[str, tuple[jax.Array, jax.Array]]:
  return {name: _sums_of_words(array) for name, array in arrays.items()}


def _sums_of_words(array: jax.Array) -> tuple[jax.Array, jax.Array]:
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
  bits = jax.lax.bitcast_convert_type(array, words[array.dtype.itemsize])
  bits = bits.astype(jnp.uint32)
  place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
  for axis in reversed(range(bits.ndim)):
    along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place = place + along * np.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  weights = _low_weight(place % np.uint32(_BLOCK)) + _high_weight(
    place // np.uint32(_BLOCK)
  )
  return (
    jnp.sum(bits, dtype=jnp.uint32),
    jnp.sum(bits * weights, dtype=jnp.uint32),
  )


def _free(directory: epath.Path) -> str:
  """Returns a phrase with the free space of the file system, if known."""
  try:
    free = shutil.disk_usage(os.fspath(directory)).free
  except OSError:
    return ""
  return f" ({free / 2**20:,.0f} MiB are free)"
