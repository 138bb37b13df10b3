"""Blockwise attention over packed rows, which skips masked blocks.

An example of 600 tokens in a packed row of 1,536 attends to two fifths of it;
plain attention computes and masks the rest. Here queries and keys are divided
into blocks, and each block of queries visits the blocks of keys from the first
to the last with a key that is visible to one of its queries. Softmax is
computed online, as in FlashAttention (Dao et al., 2022, arXiv:2205.14135,
algorithms 1 and 2): only the bias and its gradient have shape `[T, S]`, and the
backward pass recomputes weights from each query's log-normalizer.

Rows are processed one after another, each with its own blocks; on a mesh each
device processes its own rows.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from specialize_jax.parallel import axis_rules
from specialize_jax.t5 import attend, matmuls

_AXES = {
  **dict.fromkeys(
    ("queries", "keys", "values"), ("batch", "heads", "length", "kv")
  ),
  "mask": ("batch", None, None),
  "bias": ("heads", None, None),
}


def attend_in_blocks(
  queries_BHTK: jax.Array,
  keys_BHSK: jax.Array,
  values_BHSK: jax.Array,
  bias_HTS: jax.Array | None,
  mask: jax.Array,
  *,
  block_sizes: tuple[int, int],
) -> jax.Array:
  """`attend.attend`, block by block; see there for the arguments.

  Args:
    queries_BHTK: Scores are not divided by `sqrt(K)`.
    keys_BHSK: The keys.
    values_BHSK: The values.
    bias_HTS: float32, added to the scores; None for no bias.
    mask: bool, broadcasts to `[B, 1, T, S]`.
    block_sizes: The maximum numbers of queries and of keys of a block.

  Returns:
    `[B, H, T, K]` in the values' dtype; zeros for a query without visible keys.
  """
  batch_size, _, num_queries, _ = queries_BHTK.shape
  num_keys = keys_BHSK.shape[2]
  blocks = _Blocks.of(num_queries, num_keys, block_sizes)
  mask_B1TS = jnp.broadcast_to(mask, (batch_size, 1, num_queries, num_keys))
  arrays = {
    "queries": _pad(queries_BHTK, {2: blocks.all_queries}),
    "keys": _pad(keys_BHSK, {2: blocks.all_keys}),
    "values": _pad(values_BHSK, {2: blocks.all_keys}),
    "mask": _pad(mask_B1TS[:, 0], {1: blocks.all_queries, 2: blocks.all_keys}),
  }
  if bias_HTS is not None:
    arrays["bias"] = _pad(bias_HTS, {1: blocks.all_queries, 2: blocks.all_keys})
  output_BHTK = _on_each_device(blocks, arrays)
  return output_BHTK[:, :, :num_queries]


def _on_each_device(
  blocks: "_Blocks", arrays: Mapping[str, jax.Array]
) -> jax.Array:
  """Computes attention on each device's rows and heads (`shard_map`)."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return _attend(blocks, arrays)
  specs = {
    name: axis_rules.drop_non_dividing(
      nn.logical_to_mesh_axes(_AXES[name]), array.shape, mesh
    )
    for name, array in arrays.items()
  }
  return jax.shard_map(
    functools.partial(_attend, blocks),
    mesh=mesh,
    in_specs=(specs,),
    out_specs=specs["queries"],
    # The bias's gradient is summed over the devices that share the bias.
    check_vma=False,
  )(arrays)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Blocks:
  """The division of a row's queries and keys into blocks.

  Attributes:
    queries: The number of queries of a block.
    keys: The number of keys of a block.
    num_queries: The number of blocks of queries.
    num_keys: The number of blocks of keys.
  """

  queries: int
  keys: int
  num_queries: int
  num_keys: int

  @classmethod
  def of(
    cls, num_queries: int, num_keys: int, most: tuple[int, int]
  ) -> "_Blocks":
    """Divides evenly, to minimize padding."""
    blocks = [
      math.ceil(length / size)
      for length, size in zip((num_queries, num_keys), most, strict=True)
    ]
    return cls(
      queries=math.ceil(num_queries / blocks[0]),
      keys=math.ceil(num_keys / blocks[1]),
      num_queries=blocks[0],
      num_keys=blocks[1],
    )

  @property
  def all_queries(self) -> int:
    """The number of queries of all blocks, including padding."""
    return self.queries * self.num_queries

  @property
  def all_keys(self) -> int:
    """The number of keys of all blocks, including padding."""
    return self.keys * self.num_keys

  def visits(
    self, arrays: Mapping[str, jax.Array]
  ) -> Callable[[jax.Array], "_Visit"]:
    """Returns a function from a number to its visit, in row-major order."""
    seen = (
      arrays["mask"]
      .reshape(-1, self.num_queries, self.queries, self.num_keys, self.keys)
      .any(axis=(2, 4))
    )
    index = jnp.arange(self.num_keys, dtype=jnp.int32)
    first = jnp.where(seen, index, self.num_keys).min(axis=-1)
    stop = jnp.where(seen, index + 1, 0).max(axis=-1)

    def visit(number: jax.Array) -> "_Visit":
      row, query = jnp.divmod(number, self.num_queries)
      return _Visit(
        blocks=self,
        arrays=arrays,
        row=row,
        query=query,
        first=first[row, query],
        stop=stop[row, query],
      )

    return visit


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Visit:
  """A block of queries and the blocks of keys that it visits.

  Attributes:
    blocks: The division into blocks.
    arrays: Queries, keys, values, mask and possibly a bias, of all rows.
    row: The row of the batch.
    query: The number of the block of queries.
    first: The first block of keys that is visible to one of the queries.
    stop: The number after the last one; equal to `first` if none is visible.
  """

  blocks: _Blocks
  arrays: Mapping[str, jax.Array]
  row: jax.Array
  query: jax.Array
  first: jax.Array
  stop: jax.Array

  @property
  def at(self) -> "_At":
    """The position of the queries in `[B, H, T, K]`."""
    return {0: (self.row, 1), 2: (self.query, self.blocks.queries)}

  def of_queries(self, array_BHTK: jax.Array) -> jax.Array:
    """Slices an array to the block of queries, `[H, t, K]`."""
    return _part(array_BHTK, self.at)[0]

  def of_keys(self, name: str, key: jax.Array) -> jax.Array:
    """Slices `keys` or `values` to a block of keys, `[H, s, K]`."""
    at = {0: (self.row, 1), 2: (key, self.blocks.keys)}
    return _part(self.arrays[name], at)[0]

  def plane(self, key: jax.Array) -> "_At":
    """Returns the position of a block of keys in `[.., T, S]`."""
    return {1: (self.query, self.blocks.queries), 2: (key, self.blocks.keys)}

  def scores(
    self, queries: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Computes a block's scores, float32 `[H, t, s]`, and mask `[1, t, s]`."""
    scores = matmuls.einsum("HTK,HSK->HTS", queries, self.of_keys("keys", key))
    if "bias" in self.arrays:
      scores += _part(self.arrays["bias"], self.plane(key))
    mask = _part(self.arrays["mask"], {0: (self.row, 1), **self.plane(key)})
    return scores, mask

  def over_keys(
    self, body: Callable[[jax.Array, tuple], tuple], start: tuple
  ) -> tuple:
    """Runs `body(block of keys, carry)` for each block that is visited."""
    return jax.lax.fori_loop(self.first, self.stop, body, start)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks: _Blocks, arrays: Mapping[str, jax.Array]) -> jax.Array:
  return _attend_forward(blocks, arrays)[0]


def _attend_forward(
  blocks: _Blocks, arrays: Mapping[str, jax.Array]
) -> tuple[jax.Array, tuple]:
  visits = blocks.visits(arrays)
  shape_BHTK, dtype = arrays["queries"].shape, arrays["values"].dtype

  def one_visit(number: jax.Array, outputs: tuple) -> tuple:
    visit = visits(number)
    found = _weighted_sums(visit, visit.of_queries(arrays["queries"]))
    return tuple(
      _put(whole, part[None].astype(whole.dtype), visit.at)
      for whole, part in zip(outputs, found, strict=True)
    )

  output_BHTK, normalizer_BHT1 = jax.lax.fori_loop(
    0,
    shape_BHTK[0] * blocks.num_queries,
    one_visit,
    (
      jnp.zeros(shape_BHTK, dtype),
      jnp.zeros((*shape_BHTK[:-1], 1), jnp.float32),
    ),
  )
  return output_BHTK, (arrays, output_BHTK, normalizer_BHT1)


def _weighted_sums(
  visit: _Visit, queries: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Computes weighted sums `[H, t, K]` and log-normalizers `[H, t, 1]`."""

  def one_block(key: jax.Array, sums: tuple) -> tuple:
    weighted, total, highest = sums
    scores, mask = visit.scores(queries, key)
    scores = jnp.where(mask, scores, jnp.float32(attend.MASKED_SCORE))
    higher = jnp.maximum(highest, scores.max(axis=-1, keepdims=True))
    exps = jnp.where(mask, jnp.exp(scores - higher), 0.0)
    shrink = jnp.exp(highest - higher)
    values = visit.of_keys("values", key)
    part = matmuls.einsum("HTS,HSK->HTK", exps.astype(values.dtype), values)
    total = total * shrink + exps.sum(axis=-1, keepdims=True)
    return weighted * shrink + part, total, higher

  none_T1 = jnp.zeros((*queries.shape[:-1], 1), jnp.float32)
  weighted, total, highest = visit.over_keys(
    one_block,
    (
      jnp.zeros(queries.shape, jnp.float32),
      none_T1,
      none_T1 + attend.MASKED_SCORE,
    ),
  )
  total = jnp.maximum(total, attend.LEAST_SUM)
  return weighted / total, highest + jnp.log(total)


def _attend_backward(
  blocks: _Blocks, residuals: tuple, gradient_BHTK: jax.Array
) -> tuple[dict[str, jax.Array | None]]:
  arrays, output_BHTK, normalizer_BHT1 = residuals
  visits = blocks.visits(arrays)
  centre_BHT1 = jnp.sum(
    gradient_BHTK.astype(jnp.float32) * output_BHTK.astype(jnp.float32),
    axis=-1,
    keepdims=True,
  )

  def one_visit(number: jax.Array, gradients: tuple) -> tuple:
    visit = visits(number)
    queries_gradient, *others = gradients
    part, *others = _gradients(
      visit,
      visit.of_queries(gradient_BHTK),
      visit.of_queries(centre_BHT1),
      visit.of_queries(normalizer_BHT1),
      others,
    )
    part = part[None].astype(queries_gradient.dtype)
    return _put(queries_gradient, part, visit.at), *others

  keys, values = arrays["keys"], arrays["values"]
  zeros_BHKS = jnp.zeros(keys.swapaxes(-1, -2).shape, jnp.float32)
  bias = {n: jnp.zeros_like(a) for n, a in arrays.items() if n == "bias"}
  queries_gradient, keys_gradient, values_gradient, bias = jax.lax.fori_loop(
    0,
    len(keys) * blocks.num_queries,
    one_visit,
    (jnp.zeros_like(arrays["queries"]), zeros_BHKS, zeros_BHKS, bias),
  )
  return (
    {
      "queries": queries_gradient,
      "keys": keys_gradient.swapaxes(-1, -2).astype(keys.dtype),
      "values": values_gradient.swapaxes(-1, -2).astype(values.dtype),
      "mask": None,
      **bias,
    },
  )


def _gradients(
  visit: _Visit,
  gradient: jax.Array,
  centre: jax.Array,
  normalizer: jax.Array,
  gradients: Sequence[jax.Array],
) -> tuple:
  """Computes the queries' gradient, and adds to those of keys, values, bias.

  Args:
    visit: The block of queries.
    gradient: The gradient with respect to the attention output.
    centre: `sum(gradient * output)` of each query.
    normalizer: The log-normalizer of each query, from the forward pass.
    gradients: The gradients of all keys and values, transposed, float32
      `[B, H, K, S]`, and of the bias, if there is one.

  Returns:
    The queries' gradient, float32 `[H, t, K]`, and the updated `gradients`.
  """
  queries = visit.of_queries(visit.arrays["queries"])

  def one_block(key: jax.Array, gradients: tuple) -> tuple:
    queries_gradient, keys_gradient, values_gradient, bias = gradients
    scores, mask = visit.scores(queries, key)
    weights = jnp.where(mask, jnp.exp(scores - normalizer), 0.0)
    values = visit.of_keys("values", key)
    weights_gradient = matmuls.einsum("HTK,HSK->HTS", gradient, values)
    scores_gradient = weights * (weights_gradient - centre)
    scores_gradient = scores_gradient.astype(values.dtype)
    queries_gradient += matmuls.einsum(
      "HTS,HSK->HTK", scores_gradient, visit.of_keys("keys", key)
    )
    keys_part = attend.transposed_sum_over_queries(queries, scores_gradient)
    values_part = attend.transposed_sum_over_queries(
      gradient, weights.astype(values.dtype)
    )
    at = {0: (visit.row, 1), 3: (key, visit.blocks.keys)}
    return (
      queries_gradient,
      _added(keys_gradient, keys_part[None], at),
      _added(values_gradient, values_part[None], at),
      {
        n: _added(b, scores_gradient, visit.plane(key)) for n, b in bias.items()
      },
    )

  start = jnp.zeros(queries.shape, jnp.float32)
  return visit.over_keys(one_block, (start, *gradients))


_attend.defvjp(_attend_forward, _attend_backward)


# A block along each axis: its number and its size.
_At = dict[int, tuple[jax.Array, int]]


def _starts(array: jax.Array, at: _At) -> list[jax.Array | int]:
  return [at[a][0] * at[a][1] if a in at else 0 for a in range(array.ndim)]


def _part(array: jax.Array, at: _At) -> jax.Array:
  sizes = [at[a][1] if a in at else n for a, n in enumerate(array.shape)]
  return jax.lax.dynamic_slice(array, _starts(array, at), sizes)


def _put(array: jax.Array, part: jax.Array, at: _At) -> jax.Array:
  return jax.lax.dynamic_update_slice(array, part, _starts(array, at))


def _added(array: jax.Array, part: jax.Array, at: _At) -> jax.Array:
  return _put(array, _part(array, at) + part.astype(array.dtype), at)


def _pad(array: jax.Array, lengths: Mapping[int, int]) -> jax.Array:
  """Pads axes with zeros."""
  widths = [
    (0, lengths.get(axis, size) - size) for axis, size in enumerate(array.shape)
  ]
  return jnp.pad(array, widths)
