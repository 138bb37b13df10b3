"""Lays examples out as few batches of few shapes, on one device or a mesh."""

import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from specialize_jax import errors

_MIN_LENGTH = 32

Params = Mapping[str, object]


def batches(
  examples: Sequence[np.ndarray], *, batch_size: int, limit: int
) -> Iterator[tuple[list[int], np.ndarray]]:
  """Groups examples of like length into batches of few shapes.

  The longest come first, so that a batch too large for memory fails at
  once. A batch is as long as the power of two (at least 32, at most `limit`)
  that holds its longest example. The last batch is filled by repeating its
  last row: an empty row would never end, and hold up the others.

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
    longest = len(examples[indices[0]])
    length = _MIN_LENGTH
    while length < longest:
      length *= 2
    inputs = np.zeros((batch_size, min(length, limit)), np.int32)
    for row, index in enumerate(indices):
      inputs[row, : len(examples[index])] = examples[index]
    yield indices, inputs


def batch_sharding(
  params: Params, batch_size: int
) -> jax.sharding.NamedSharding | None:
  """How to lay batches on the mesh that the parameters lie on."""
  leaves = jax.tree.leaves(params)
  sharding = getattr(leaves[0], "sharding", None) if leaves else None
  if not isinstance(sharding, jax.sharding.NamedSharding):
    return None
  mesh = sharding.mesh
  axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
  num_shards = math.prod(mesh.shape[axis] for axis in axes)
  if batch_size % num_shards:
    raise errors.UserError(
      f"batch_size={batch_size} of the evaluation cannot be split over the "
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


def to_host(tokens: jax.Array) -> np.ndarray:
  """The whole batch's tokens, on every process."""
  if not tokens.is_fully_addressable:
    return multihost_utils.process_allgather(tokens, tiled=True)
  return np.asarray(tokens)
