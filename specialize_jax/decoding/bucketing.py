"""Batches examples by length into few shapes, for one device or a mesh.

Each shape is compiled separately, so lengths are rounded up to powers of two,
at least 32. Finer buckets (two for each doubling, say) would save at most a
quarter of the encoder's work, a small part of decoding, and compile twice as
many programs. Batches shorter than 32 tokens are rare in practice.
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
  """Returns the padded length of a batch whose longest example is `length`.

  Example: 32, 32, 64 and 128 for lengths 3, 32, 33 and 100; with `limit=100`
  the last is 100.
  """
  bucket = _MIN_LENGTH
  while bucket < length:
    bucket *= 2
  return bucket if limit is None else min(bucket, limit)


def batches(
  examples: Sequence[np.ndarray],
  *,
  batch_size: int,
  limit: int,
  pad_id: int = 0,
) -> Iterator[tuple[list[int], np.ndarray]]:
  """Groups examples of similar length into batches of few shapes.

  The longest come first, so that a batch too large for memory fails at once. A
  batch is padded to its bucket, at most `limit`. The last batch is filled by
  repeating its last row: an empty row would never emit EOS, and delay the
  others.

  Example: for examples of 3, 40 and 5 tokens, `batch_size=2` and `limit=48`,
  indices [1, 2] of shape [2, 48], then [0, 0] of shape [2, 32].

  Args:
    examples: token ids, one array per example, without padding.
    batch_size: number of rows of every batch.
    limit: maximum length of an example.
    pad_id: the padding token.

  Yields:
    The indices of the rows in `examples`, and int32 ids [batch_size, length].
  """
  order = sorted(range(len(examples)), key=lambda i: (-len(examples[i]), i))
  for start in range(0, len(order), batch_size):
    indices = order[start : start + batch_size]
    indices += indices[-1:] * (batch_size - len(indices))
    chosen = [examples[i] for i in indices]
    yield indices, padded(chosen, limit=limit, pad_id=pad_id)


def padded(
  rows: Sequence[np.ndarray], *, limit: int | None = None, pad_id: int = 0
) -> np.ndarray:
  """Pads rows to the length of their bucket, int32 `[rows, length]`."""
  length = bucket_length(max(map(len, rows)), limit=limit)
  batch = np.full((len(rows), length), pad_id, np.int32)
  for place, row in enumerate(rows):
    batch[place, : len(row)] = row
  return batch


def fitting_batch_size(
  num_examples: int, *, batch_size: int, num_shards: int = 1
) -> int:
  """Reduces the batch size if all examples fit a smaller batch.

  Example: with batches of 32 over 2 shards, 4 for 3 examples and 32 for 40.
  """
  few = num_shards * math.ceil(max(1, num_examples) / num_shards)
  return min(batch_size, few)


def batch_sharding(
  params: Params, batch_size: int
) -> jax.sharding.NamedSharding | None:
  """Returns the sharding of batches over the mesh of the parameters.

  Args:
    params: the parameters.
    batch_size: number of rows of every batch.

  Returns:
    The sharding; None if the parameters are not on a mesh.

  Raises:
    UserError: the mesh's `data` times `fsdp` does not divide the batch size.
  """
  leaves = jax.tree.leaves(params)
  sharding = getattr(leaves[0], "sharding", None) if leaves else None
  if not isinstance(sharding, jax.sharding.NamedSharding):
    return None
  axes = batch_axes(sharding.mesh, batch_size)
  spec = jax.sharding.PartitionSpec(axes or None)
  return jax.sharding.NamedSharding(sharding.mesh, spec)


def batch_axes(mesh: jax.sharding.Mesh, batch_size: int) -> tuple[str, ...]:
  """Returns the mesh axes that batches are sharded over.

  Args:
    mesh: the mesh.
    batch_size: number of rows of every batch.

  Raises:
    UserError: the mesh's `data` times `fsdp` does not divide the batch size.
  """
  axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
  num_shards = math.prod(mesh.shape[axis] for axis in axes)
  if batch_size % num_shards:
    raise errors.UserError(
      f"batch_size={batch_size} for decoding cannot be sharded over the mesh's "
      f"{' x '.join(axes)} = {num_shards}: give a multiple of {num_shards}."
    )
  return axes


def place(
  inputs: np.ndarray, sharding: jax.sharding.Sharding | None
) -> jax.Array | np.ndarray:
  """Shards a batch, which every process holds in full, over the mesh."""
  if sharding is None:
    return inputs
  return jax.make_array_from_callback(
    inputs.shape, sharding, lambda index: inputs[index]
  )


def to_host(array: jax.Array) -> np.ndarray:
  """Copies a batch's whole result to the host of every process."""
  if not array.is_fully_addressable:
    return multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)
