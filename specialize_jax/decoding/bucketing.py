"""Lays examples out as few batches of few shapes, on one device or a mesh.

Every shape is a program of its own to compile, so lengths are rounded up to
the powers of two from 32: one program a doubling. Finer steps (say two a
doubling) would take off at most a quarter of the encoder's work, which is a
small part of decoding's, and compile twice as much; nobody's batch is
shorter than 32 in earnest.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from specialize_jax import errors

_MIN_LENGTH = 32

Params = Mapping[str, object]


def bucket_length(length: int, *, limit: int | None = None) -> int:
  """Gives the length that a batch with an example of `length` is padded to.

  Example: 3, 32, 33 and 100 give 32, 32, 64 and 128; with `limit=100` the
  last gives 100.
  """
  bucket = _MIN_LENGTH
  while bucket < length:
    bucket *= 2
  return bucket if limit is None else min(bucket, limit)


def batches(
  examples: Sequence[np.ndarray], *, batch_size: int, limit: int
) -> Iterator[tuple[list[int], np.ndarray]]:
  """Groups examples of like length into batches of few shapes.

  The longest come first, so that a batch too large for memory fails at
  once. A batch is as long as its bucket, at most `limit`. The last batch is
  filled by repeating its last row: an empty row would never end, and hold up
  the others.

  Example: examples of 3, 40 and 5 tokens with `batch_size=2` and `limit=48`
  give indices [1, 2] of shape [2, 48], then [0, 0] of shape [2, 32].

  Args:
    examples: token ids, one array an example, without padding.
    batch_size: rows of every batch.
    limit: the greatest length of an example.

  Yields:
    The rows' places in `examples`, and int32 ids [batch_size, length],
    padded with 0.
  """
  order = sorted(range(len(examples)), key=lambda i: (-len(examples[i]), i))
  for start in range(0, len(order), batch_size):
    indices = order[start : start + batch_size]
    indices += indices[-1:] * (batch_size - len(indices))
    yield indices, padded([examples[i] for i in indices], limit=limit)


def padded(
  rows: Sequence[np.ndarray], *, limit: int | None = None
) -> np.ndarray:
  """Gives rows as int32 `[rows, length]`, as long as their bucket."""
  length = bucket_length(max(map(len, rows)), limit=limit)
  batch = np.zeros((len(rows), length), np.int32)
  for place, row in enumerate(rows):
    batch[place, : len(row)] = row
  return batch


def fitting_batch_size(
  num_examples: int, *, batch_size: int, num_shards: int = 1
) -> int:
  """Gives the batch size for so few examples that one batch holds them.

  Example: 3 examples in batches of 32 over 2 shards give 4, and 40 give 32.
  """
  few = num_shards * math.ceil(max(1, num_examples) / num_shards)
  return min(batch_size, few)


def batch_sharding(
  params: Params, batch_size: int
) -> jax.sharding.NamedSharding | None:
  """How to lay batches on the mesh that the parameters lie on.

  Raises:
    UserError: the mesh's `data` times `fsdp` does not divide the batch size.
  """
  leaves = jax.tree.leaves(params)
  sharding = getattr(leaves[0], "sharding", None) if leaves else None
  if not isinstance(sharding, jax.sharding.NamedSharding):
    return None
  mesh = sharding.mesh
  axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
  num_shards = math.prod(mesh.shape[axis] for axis in axes)
  if batch_size % num_shards:
    raise errors.UserError(
      f"batch_size={batch_size} of the decoding cannot be split over the "
      f"mesh's {' x '.join(axes)} = {num_shards}: give a multiple of it."
    )
  spec = jax.sharding.PartitionSpec(axes or None)
  return jax.sharding.NamedSharding(mesh, spec)


def place(
  inputs: np.ndarray, sharding: jax.sharding.Sharding | None
) -> jax.Array | np.ndarray:
  """Lays a batch, which every process holds whole, on the mesh."""
  if sharding is None:
    return inputs
  return jax.make_array_from_callback(
    inputs.shape, sharding, lambda index: inputs[index]
  )


def to_host(array: jax.Array) -> np.ndarray:
  """The whole of a batch's result, on every process."""
  if not array.is_fully_addressable:
    return multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)
