"""Attention on TPUs as one Pallas kernel, which writes no scores to HBM.

The plain form (`attend.attend`) writes and reads `[B, H, T, S]` several times
in each layer. Here a grid step holds the queries, keys and values of one row
and a group of heads in VMEM, and visits blocks of the `[T, S]` plane with an
online softmax (Dao et al., 2022, arXiv:2205.14135). Blocks that are entirely
masked are skipped: those above the causal diagonal, and those whose queries and
keys belong to different segments. The backward pass is one kernel, too. It
recomputes the weights from the log-sum-exp of each query, and computes each of
its five matmuls once.

Specific to T5:

- Queries, keys and values have the shape `[B, T, H * K]` that the projections
  return and accept. A grid step holds as many heads as fill 128 lanes (two of
  64), so nothing is transposed in HBM, and no head is padded to 128.
- The relative position bias depends only on the distance. The kernel reads one
  strip per head for each offset between blocks that has a bias of its own,
  expands it to a block in VMEM at the first row of the batch, and reuses it for
  all others. The gradient of the bias takes the reverse path.
- Dropout multiplies the values by one number per head and key, in VMEM.

JAX's own kernels do not suffice: `flash_attention` takes a bias of
`[B, H, T, S]` and returns a gradient of that size, `splash_attention` takes
none, and both require separate heads that are padded to 128 lanes.

A block of scores is stored transposed, keys by queries: maxima and sums over
keys are then over sublanes, and one number per query is a row of lanes.
"""

import dataclasses
import functools
import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from specialize_jax import errors
from specialize_jax.t5 import attend, masks, relative_position
from specialize_jax.t5 import config as t5_config

RESIDUALS = ("attention_output", "attention_log_sum_exp")
"""Names of the kernel's residuals, for remat policies."""

_BLOCKS = (512, 384, 256, 128)
LANES = t5_config.LANES
# The fraction of VMEM that is left to the compiler.
_SPARE = 0.125
_MOST_VMEM = 96 * 2**20
# Heads that share a grid step are slices of the rows of a transposed block, of
# which a register holds this many.
_LEAST_HEAD_DIM = 16


def attend_on_tpu(
  queries_BTJ: jax.Array,
  keys_BSJ: jax.Array,
  values_BSJ: jax.Array,
  pairs: masks.Pairs,
  bias: relative_position.Bias | None = None,
  *,
  values_scale_BHS: jax.Array | None = None,
  num_heads: int,
  block_size: int | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Computes softmax attention on a TPU; differentiable.

  Args:
    queries_BTJ: the queries of all heads side by side, J = H * K; their scores
      are not divided by `sqrt(K)`.
    keys_BSJ: the keys, in the queries' dtype.
    values_BSJ: the values.
    pairs: which query attends to which key.
    bias: the relative position bias, added to the scores; None without one.
    values_scale_BHS: float32, multiplies each head's values (dropout); None for
      ones.
    num_heads: H.
    block_size: the maximum number of queries and of keys of a block, a multiple
      of 128; None for the largest that fits into VMEM.
    interpret: whether to run the kernel in interpret mode, on any platform.

  Returns:
    `[B, T, J]` in the values' dtype. A query without visible keys has an output
    and gradients of zero.

  Raises:
    UserError: the kernel does not support the head size, or a row does not fit
      into VMEM.
  """
  batch_size, num_queries, joined = queries_BTJ.shape
  num_keys = keys_BSJ.shape[1]
  plan = _Plan.of(
    num_heads=num_heads,
    head_dim=joined // num_heads,
    num_queries=num_queries,
    num_keys=num_keys,
    dtype=jnp.dtype(values_BSJ.dtype),
    bias=bias,
    causal=pairs.causal,
    scaled=values_scale_BHS is not None,
    block_size=block_size,
    interpret=interpret,
  )
  if plan.problem():
    raise errors.UserError(
      f"attention on a TPU is not possible: {plan.problem()}; set "
      "T5Config.attention='plain'."
    )
  query_ids_BT, key_ids_BS = pairs.segment_ids(
    batch_size, num_queries, num_keys
  )
  # Padding gets a segment id that no query has.
  key_ids_BS = jnp.where(key_ids_BS > 0, key_ids_BS, -1)
  query_ids_BT = _padded(query_ids_BT, 1, plan.queries, fill=0)
  key_ids_BS = _padded(key_ids_BS, 1, plan.keys, fill=-1)
  shared = {
    "query_ids": query_ids_BT.reshape(
      batch_size, plan.query_blocks, 1, plan.block_queries
    ),
    "key_ids": key_ids_BS.reshape(
      batch_size, plan.key_blocks, 1, plan.block_keys
    ),
  }
  if values_scale_BHS is not None:
    shared["scale"] = (
      _padded(values_scale_BHS.astype(jnp.float32), 2, plan.keys)
      .reshape(
        batch_size, plan.groups, plan.heads, plan.key_blocks, plan.block_keys
      )
      .swapaxes(2, 3)
    )
  arrays = {
    "queries": _padded(queries_BTJ, 1, plan.queries),
    "keys": _padded(keys_BSJ, 1, plan.keys),
    "values": _padded(values_BSJ, 1, plan.keys),
  }
  if bias is not None:
    arrays["strips"] = bias.by_distance(plan.distances())[:, :, None]
  return _attend(plan, arrays, shared)[:, :num_queries]


def problem(
  config: t5_config.T5Config,
  lengths: tuple[int, int],
  *,
  num_heads: int,
  bias: relative_position.Bias | None,
  interpret: bool,
) -> str:
  """Returns why the kernel cannot run, as a clause; empty if it can.

  Args:
    config: the network.
    lengths: T and S.
    num_heads: the number of heads on each device.
    bias: the relative position bias; None without one.
    interpret: whether it runs in interpret mode, which has no limits.
  """
  return _Plan.of(
    num_heads=num_heads,
    head_dim=config.head_dim,
    num_queries=lengths[0],
    num_keys=lengths[1],
    dtype=jnp.dtype(config.dtype),
    bias=bias,
    causal=False,
    scaled=config.dropout_rate > 0,
    block_size=config.attention_kernel_block,
    interpret=interpret,
  ).problem()


def _padded(
  array: jax.Array, axis: int, length: int, fill: float = 0
) -> jax.Array:
  missing = length - array.shape[axis]
  if not missing:
    return array
  widths = [(0, 0)] * array.ndim
  widths[axis] = (0, missing)
  return jnp.pad(array, widths, constant_values=fill)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
  """The division of one call into blocks.

  Attributes:
    num_heads: H.
    head_dim: K.
    heads: the number of heads of a grid step.
    queries: T, padded to whole blocks.
    keys: S, padded to whole blocks.
    block_queries: the number of queries of a block.
    block_keys: the number of keys of a block; equal to `block_queries` with a
      bias.
    far: the offset between blocks from which all distances share the last
      bucket; 0 without a bias.
    causal: whether a query attends only to keys up to its own position.
    scaled: whether values are multiplied by a scale.
    dtype: the dtype of queries, keys and values.
    interpret: whether the kernel runs in interpret mode.
  """

  num_heads: int
  head_dim: int
  heads: int
  queries: int
  keys: int
  block_queries: int
  block_keys: int
  far: int
  causal: bool
  scaled: bool
  dtype: np.dtype
  interpret: bool

  @classmethod
  def of(
    cls,
    *,
    num_heads: int,
    head_dim: int,
    num_queries: int,
    num_keys: int,
    dtype: np.dtype,
    bias: relative_position.Bias | None,
    causal: bool,
    scaled: bool,
    block_size: int | None,
    interpret: bool,
  ) -> "_Plan":
    """Chooses the largest blocks that fit into VMEM, if any do."""
    found = None
    for size in _BLOCKS if block_size is None else (block_size,):
      sizes = [_block(length, size) for length in (num_queries, num_keys)]
      if bias is not None:
        sizes = [max(sizes)] * 2
      found = cls(
        num_heads=num_heads,
        head_dim=head_dim,
        heads=_heads_of_a_step(num_heads, head_dim),
        queries=_whole(num_queries, sizes[0]),
        keys=_whole(num_keys, sizes[1]),
        block_queries=sizes[0],
        block_keys=sizes[1],
        far=0
        if bias is None
        else math.ceil((bias.farthest() + sizes[0] - 1) / sizes[0]),
        causal=causal,
        scaled=scaled,
        dtype=dtype,
        interpret=interpret,
      )
      if found.vmem_bytes() <= _vmem_bytes():
        return found
    return found

  def problem(self) -> str:
    """Returns why the kernel cannot run, as a clause; empty if it can."""
    if self.interpret:
      return ""
    if self.heads > 1 and self.head_dim % _LEAST_HEAD_DIM:
      return (
        f"the kernel takes heads of a multiple of {_LEAST_HEAD_DIM} "
        f"dimensions, and T5Config.head_dim is {self.head_dim}"
      )
    if self.vmem_bytes() > _vmem_bytes():
      return (
        f"{self.queries} queries and {self.keys} keys need "
        f"{self.vmem_bytes() / 2**20:.0f} MiB of a core's VMEM, of which "
        f"the kernel may take {_vmem_bytes() / 2**20:.0f}"
      )
    return ""

  @property
  def groups(self) -> int:
    """The number of groups of heads: the grid steps of a row."""
    return self.num_heads // self.heads

  @property
  def lanes(self) -> int:
    """The number of columns of queries, keys and values of a grid step."""
    return self.heads * self.head_dim

  @property
  def query_blocks(self) -> int:
    """The number of blocks of queries."""
    return self.queries // self.block_queries

  @property
  def key_blocks(self) -> int:
    """The number of blocks of keys."""
    return self.keys // self.block_keys

  @property
  def num_offsets(self) -> int:
    """The number of offsets with a bias of their own, from -far to far."""
    return 2 * self.far + 1 if self.far else 0

  @property
  def width(self) -> int:
    """The width of a strip: all distances of a block, and an unused one."""
    return self.block_queries + self.block_keys

  @property
  def bias_shape(self) -> tuple[int, ...]:
    """The shape of the expanded bias of a group's heads."""
    return (self.heads, self.num_offsets, self.block_keys, self.block_queries)

  @property
  def transposed_keys(self) -> tuple[int, ...]:
    """Shape of keys or values, each block transposed."""
    return (self.key_blocks, self.lanes, self.block_keys)

  def log_sum_exp_shape(self, batch_size: int) -> tuple[int, ...]:
    """Shape of one number a query and head."""
    return (
      batch_size,
      self.groups,
      self.query_blocks,
      self.heads,
      self.block_queries,
    )

  def distances(self) -> np.ndarray:
    """Returns key minus query for each strip, `[num_offsets, width]`.

    Row b of a block is the strip rotated right by b columns. The first columns
    of the strip are therefore the distances from each query to key 0, and its
    last ones, read backwards, those from query 0 to keys 1, 2, ...
    """
    place = np.arange(self.width)
    back = np.where(place < self.block_queries, place, place - self.width)
    offsets = np.arange(-self.far, self.far + 1)[:, None] * self.block_keys
    return offsets - back

  def offset(self, query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the index of the strip for a pair of blocks."""
    return jnp.clip(key - query, -self.far, self.far) + self.far

  def vmem_bytes(self) -> int:
    """Returns the VMEM of the backward pass, the larger one, in bytes."""
    lanes = _whole(self.lanes, LANES)
    item = self.dtype.itemsize
    # Queries, output, keys, values and their gradients, all double-buffered.
    rows = 2 * item * lanes * (4 * self.queries + 4 * self.keys)
    scratch = lanes * (4 * self.queries + item * self.keys)
    scratch += 4 * self.keys * (LANES + self.scaled * lanes)
    block = 4 * self.block_queries * self.block_keys
    return rows + scratch + block * (2 * self.heads * self.num_offsets + 5)

  def visited_blocks(self) -> int:
    """Returns the number of blocks that the causal mask does not hide."""
    if not self.causal:
      return self.query_blocks * self.key_blocks
    last = (1 + np.arange(self.query_blocks)) * self.block_queries - 1
    return int(np.minimum(last // self.block_keys + 1, self.key_blocks).sum())

  def seen(self, query_ids: jax.Array, key_ids: jax.Array) -> jax.Array:
    """Returns which blocks may see each other.

    Two blocks may share a segment if the ranges of their segment ids overlap,
    which is exact for contiguous segments that are numbered in order.

    Returns:
      bool `[B, query blocks, key blocks]`.
    """

    def lowest_and_highest(ids: jax.Array) -> tuple[jax.Array, jax.Array]:
      ids = ids[:, :, 0]
      most = jnp.iinfo(ids.dtype).max
      lowest = jnp.where(ids > 0, ids, most).min(axis=-1)
      return lowest, jnp.where(ids > 0, ids, 0).max(axis=-1)

    query_low, query_high = lowest_and_highest(query_ids)
    key_low, key_high = lowest_and_highest(key_ids)
    seen = (query_low[:, :, None] <= key_high[:, None]) & (
      key_low[:, None] <= query_high[:, :, None]
    )
    if self.causal:
      last = (1 + np.arange(self.query_blocks)) * self.block_queries - 1
      first = np.arange(self.key_blocks) * self.block_keys
      seen &= jnp.asarray(first[None] <= last[:, None])[None]
    return seen


def _block(length: int, most: int) -> int:
  """Divides a length evenly into blocks of whole lanes."""
  num_blocks = math.ceil(length / most)
  return _whole(math.ceil(length / num_blocks), LANES)


def _whole(length: int, size: int) -> int:
  return math.ceil(length / size) * size


def _heads_of_a_step(num_heads: int, head_dim: int) -> int:
  """Returns the fewest heads that fill whole lanes; all if no number does."""
  for heads in range(1, num_heads):
    if num_heads % heads == 0 and heads * head_dim % LANES == 0:
      return heads
  return num_heads


def _vmem_bytes() -> int:
  """Returns the VMEM that a kernel may use on the chip compiled for."""
  try:
    capacity = pltpu.get_tpu_info().vmem_capacity_bytes
  except (ValueError, NotImplementedError):  # no TPU: the kernel is interpreted
    return _MOST_VMEM
  return min(int(capacity * (1 - _SPARE)), _MOST_VMEM)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  plan: _Plan, arrays: Mapping[str, jax.Array], shared: Mapping[str, jax.Array]
) -> jax.Array:
  """Runs the forward kernel on arrays that are padded to whole blocks.

  Args:
    plan: the division into blocks.
    arrays: queries `[B, T, J]`, keys and values `[B, S, J]`, and, with a bias,
      its strips, float32 `[H, num_offsets, 1, width]`.
    shared: query_ids, key_ids and, if values are scaled, scale, which have no
      gradients; shapes as in `_block_spec`.
  """
  return _attend_forward(plan, arrays, shared)[0]


# The inputs and the results of the forward kernel.
_Residuals = tuple[dict[str, jax.Array], dict[str, jax.Array]]


def _attend_forward(
  plan: _Plan, arrays: Mapping[str, jax.Array], shared: Mapping[str, jax.Array]
) -> tuple[jax.Array, _Residuals]:
  inputs = {**arrays, **shared}
  seen = plan.seen(shared["query_ids"], shared["key_ids"])
  results = _call(
    plan,
    _forward_kernel,
    ranges=_first_and_stop(seen),
    inputs=inputs,
    results={
      "output": (arrays["queries"].shape, plan.dtype),
      "log_sum_exp": (
        plan.log_sum_exp_shape(len(arrays["queries"])),
        jnp.float32,
      ),
    },
    scratch={
      "key_ids_column": ((plan.keys, LANES), jnp.int32),
      "values_transposed": (plan.transposed_keys, plan.dtype),
      **({"bias": (plan.bias_shape, jnp.float32)} if plan.far else {}),
    },
    num_matmuls=2,
  )
  results = {
    name: checkpoint_name(array, f"attention_{name}")
    for name, array in results.items()
  }
  return results["output"], (inputs, results)


def _attend_backward(
  plan: _Plan,
  residuals: _Residuals,
  output_gradient: jax.Array,
) -> tuple[dict[str, jax.Array], None]:
  inputs, results = residuals
  names = ("queries", "keys", "values", *(["strips"] if plan.far else []))
  seen = plan.seen(inputs["query_ids"], inputs["key_ids"])
  scratch = {
    "key_ids_column": ((plan.keys, LANES), jnp.int32),
    "keys_transposed": (plan.transposed_keys, plan.dtype),
    "queries_gradient_transposed": (
      (plan.query_blocks, plan.lanes, plan.block_queries),
      jnp.float32,
    ),
    "centre": (
      (plan.query_blocks, plan.heads, plan.block_queries),
      jnp.float32,
    ),
  }
  if plan.far:
    scratch["bias"] = (plan.bias_shape, jnp.float32)
    scratch["bias_gradient"] = (plan.bias_shape, jnp.float32)
  if plan.scaled:
    scratch["scale_column"] = ((plan.keys, plan.lanes), jnp.float32)
  gradients = _call(
    plan,
    _backward_kernel,
    ranges=_first_and_stop(seen.swapaxes(1, 2)),
    inputs={
      **inputs,
      **results,
      "output_gradient": output_gradient.astype(plan.dtype),
    },
    results={
      f"{name}_gradient": (inputs[name].shape, inputs[name].dtype)
      for name in names
    },
    scratch=scratch,
    num_matmuls=5,
  )
  return {name: gradients[f"{name}_gradient"] for name in names}, None


_attend.defvjp(_attend_forward, _attend_backward)


def _first_and_stop(seen: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the range of blocks that each block visits.

  Args:
    seen: bool `[B, blocks, other blocks]`.

  Returns:
    int32 `[B, blocks]`, the first block and the one after the last; an empty
    range if there is none.
  """
  index = jnp.arange(seen.shape[2], dtype=jnp.int32)
  first = jnp.where(seen, index, seen.shape[2]).min(axis=-1)
  return first, jnp.where(seen, index + 1, 0).max(axis=-1)


# A shape and a dtype.
_Shape = tuple[tuple[int, ...], jnp.dtype]


def _call(
  plan: _Plan,
  kernel: Callable[[_Plan, types.SimpleNamespace], None],
  *,
  ranges: tuple[jax.Array, jax.Array],
  inputs: Mapping[str, jax.Array],
  results: Mapping[str, _Shape],
  scratch: Mapping[str, _Shape],
  num_matmuls: int,
) -> dict[str, jax.Array]:
  """Runs a kernel for each group of heads of each row.

  The rows of a group are consecutive, so that its bias is expanded once. On a
  chip with two cores, the groups are divided between them.

  Args:
    plan: the division into blocks.
    kernel: called with the plan, and with references to all arrays by name.
    ranges: the blocks to visit, from `_first_and_stop`.
    inputs: the inputs by name.
    results: shapes and dtypes of the results by name.
    scratch: shapes and dtypes of the buffers in VMEM by name.
    num_matmuls: the number of matmuls for each visited block and head.

  Returns:
    The results by name.
  """
  names = ("first", "stop", *inputs, *results, *scratch)
  grid = (plan.groups, len(inputs["queries"]))

  def body(*refs: object) -> None:
    kernel(plan, types.SimpleNamespace(**dict(zip(names, refs, strict=True))))

  in_specs = [_block_spec(plan, name) for name in inputs]
  out_specs = [_block_spec(plan, name) for name in results]
  out_shapes = [jax.ShapeDtypeStruct(*shape) for shape in results.values()]
  block_matmuls = grid[1] * plan.num_heads * plan.visited_blocks()
  block_scores = plan.block_queries * plan.block_keys
  outputs = pl.pallas_call(
    body,
    out_shape=out_shapes,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=grid,
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(*shape) for shape in scratch.values()],
    ),
    # For the compiler's schedule and for `specialize plan`, which cannot look
    # into a kernel.
    cost_estimate=pl.CostEstimate(
      flops=2 * num_matmuls * block_matmuls * block_scores * plan.head_dim,
      transcendentals=block_matmuls * block_scores,
      bytes_accessed=_bytes_moved(
        grid, [*in_specs, *out_specs], [*inputs.values(), *out_shapes]
      ),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=None if plan.interpret else _vmem_bytes(),
    ),
    interpret=plan.interpret,
    name=kernel.__name__.strip("_"),
  )(*ranges, *inputs.values())
  return dict(zip(results, outputs, strict=True))


def _block_spec(plan: _Plan, name: str) -> pl.BlockSpec:
  """Returns the block of an array that a grid step (group, row) holds."""
  if name in ("strips", "strips_gradient"):
    shape = (plan.heads, plan.num_offsets, 1, plan.width)
    return pl.BlockSpec(shape, lambda group, row, *_: (group, 0, 0, 0))
  if name in ("query_ids", "key_ids"):
    shape = {
      "query_ids": (1, plan.query_blocks, 1, plan.block_queries),
      "key_ids": (1, plan.key_blocks, 1, plan.block_keys),
    }[name]
    return pl.BlockSpec(shape, lambda group, row, *_: (row, 0, 0, 0))
  if name in ("scale", "log_sum_exp"):
    shape = {
      "scale": (1, 1, plan.key_blocks, plan.heads, plan.block_keys),
      "log_sum_exp": (1, *plan.log_sum_exp_shape(1)[1:]),
    }[name]
    shape = (*shape[:1], 1, *shape[2:])
    return pl.BlockSpec(shape, lambda group, row, *_: (row, group, 0, 0, 0))
  of_keys = name.startswith(("keys", "values"))
  shape = (1, plan.keys if of_keys else plan.queries, plan.lanes)
  return pl.BlockSpec(shape, lambda group, row, *_: (row, 0, group))


def _bytes_moved(
  grid: tuple[int, ...],
  specs: Sequence[pl.BlockSpec],
  arrays: Sequence[jax.Array | jax.ShapeDtypeStruct],
) -> int:
  """Counts the bytes that the pipeline moves between HBM and VMEM.

  It moves a block if a grid step needs another one than the previous step.
  """
  steps = list(itertools.product(*map(range, grid)))
  total = 0
  for spec, array in zip(specs, arrays, strict=True):
    wanted = [spec.index_map(*step) for step in steps]
    moves = 1 + sum(a != b for a, b in itertools.pairwise(wanted))
    total += moves * math.prod(spec.block_shape) * array.dtype.itemsize
  return total


def _forward_kernel(plan: _Plan, refs: types.SimpleNamespace) -> None:
  """Writes the outputs of a row and group of heads.

  With s = q k + bias, m the largest s of a query and l = sum(exp(s - m)):
  output = sum(exp(s - m) v) / l, and its log-sum-exp is m + log(l).
  """
  _start(plan, refs)
  for key in range(plan.key_blocks):
    values = _transposed(refs.values[0, _rows(key, plan.block_keys)])
    if plan.scaled:
      values *= _for_each_dim(plan, refs.scale[0, 0, key])
    refs.values_transposed[key] = values.astype(plan.dtype)

  def one_block_of_queries(query: jax.Array, _: None) -> None:
    queries = refs.queries[0, _rows(query, plan.block_queries)]
    of_heads = _split_heads(plan, queries)

    def one_block_of_keys(key: jax.Array, carry: tuple) -> tuple:
      keys = refs.keys[0, _rows(key, plan.block_keys)]
      visible = _visible(plan, refs, query, key)
      return tuple(
        _absorb(
          _scores(
            keys, of_heads[head], _bias(plan, refs, head, query, key), visible
          ),
          refs.values_transposed[key, _dims(plan, head)],
          carry[head],
        )
        for head in range(plan.heads)
      )

    start = (
      jnp.full((1, plan.block_queries), attend.LOWEST_SCORE, jnp.float32),
      jnp.zeros((1, plan.block_queries), jnp.float32),
      jnp.zeros((plan.head_dim, plan.block_queries), jnp.float32),
    )
    found = _for_range(refs, query, one_block_of_keys, (start,) * plan.heads)
    output = []
    for head, (highest, total, weighted) in enumerate(found):
      seen = total > 0.0
      divisor = jnp.where(seen, total, 1.0)
      output.append(weighted / divisor)
      # So large that every weight, exp(score - log_sum_exp), is 0.
      refs.log_sum_exp[0, 0, query, head : head + 1] = jnp.where(
        seen, highest + jnp.log(divisor), -attend.MASKED_SCORE
      )
    refs.output[0, _rows(query, plan.block_queries)] = jnp.concatenate(
      output
    ).T.astype(plan.dtype)

  lax.fori_loop(0, plan.query_blocks, one_block_of_queries, None)


def _absorb(
  scores: jax.Array, values: jax.Array, so_far: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
  """Adds a block of keys to the online softmax.

  Args:
    scores: float32 `[keys, queries]`.
    values: `[K, keys]`.
    so_far: highest score and sum of exponentials, float32 `[1, queries]`, and
      the weighted sum of values, float32 `[K, queries]`.

  Returns:
    The same with this block.
  """
  highest, total, weighted = so_far
  new_highest = jnp.maximum(highest, scores.max(axis=0, keepdims=True))
  exps = jnp.exp(scores - new_highest)
  decay = jnp.exp(highest - new_highest)
  return (
    new_highest,
    decay * total + exps.sum(axis=0, keepdims=True),
    decay * weighted + _matmul(values, exps.astype(values.dtype)),
  )


def _backward_kernel(plan: _Plan, refs: types.SimpleNamespace) -> None:
  """Writes the gradients of a row and group of heads.

  With g the output's gradient, w = exp(s - log_sum_exp) and
  c = sum(g * output): dV = w g, dS = w (g V - c), dQ = dS K, dK = dS Q. The
  gradient of the bias at a distance is the sum of dS over its pairs.
  """
  _start(plan, refs)
  if plan.far:

    @pl.when(refs.row == 0)
    def _() -> None:
      refs.bias_gradient[...] = jnp.zeros_like(refs.bias_gradient)

  for key in range(plan.key_blocks):
    rows = _rows(key, plan.block_keys)
    refs.keys_transposed[key] = _transposed(refs.keys[0, rows]).astype(
      plan.dtype
    )
    if plan.scaled:
      scale = _for_each_dim(plan, refs.scale[0, 0, key])
      refs.scale_column[rows] = _transposed(scale)
  for query in range(plan.query_blocks):
    rows = _rows(query, plan.block_queries)
    products = refs.output[0, rows].astype(jnp.float32) * (
      refs.output_gradient[0, rows].astype(jnp.float32)
    )
    products = products.T
    for head in range(plan.heads):
      refs.centre[query, head : head + 1] = products[_dims(plan, head)].sum(
        axis=0, keepdims=True
      )
  refs.queries_gradient_transposed[...] = jnp.zeros_like(
    refs.queries_gradient_transposed
  )

  def one_block_of_keys(key: jax.Array, _: None) -> None:
    rows = _rows(key, plan.block_keys)
    keys, values = refs.keys[0, rows], refs.values[0, rows]
    if plan.scaled:
      scale = refs.scale_column[rows]
      values = (values.astype(jnp.float32) * scale).astype(plan.dtype)

    def one_block_of_queries(query: jax.Array, gradients: tuple) -> tuple:
      query_rows = _rows(query, plan.block_queries)
      queries = _split_heads(plan, refs.queries[0, query_rows])
      outputs = _split_heads(plan, refs.output_gradient[0, query_rows])
      visible = _visible(plan, refs, query, key)
      keys_gradient, values_gradient = gradients
      for head in range(plan.heads):
        one = slice(head, head + 1)
        scores = _scores(
          keys, queries[head], _bias(plan, refs, head, query, key), visible
        )
        weights = jnp.exp(scores - refs.log_sum_exp[0, 0, query, one])
        values_gradient += _matmul(weights.astype(plan.dtype), outputs[head])
        weights_gradient = _matmul_transposed(values, outputs[head])
        scores_gradient = weights * (weights_gradient - refs.centre[query, one])
        if plan.far:
          refs.bias_gradient[head, plan.offset(query, key)] += scores_gradient
        scores_gradient = scores_gradient.astype(plan.dtype)
        keys_gradient += _matmul(scores_gradient, queries[head])
        refs.queries_gradient_transposed[query, _dims(plan, head)] += _matmul(
          refs.keys_transposed[key, _dims(plan, head)], scores_gradient
        )
      return keys_gradient, values_gradient

    start = jnp.zeros((plan.block_keys, plan.lanes), jnp.float32)
    keys_gradient, values_gradient = _for_range(
      refs, key, one_block_of_queries, (start, start)
    )
    if plan.scaled:
      values_gradient *= scale
    refs.keys_gradient[0, rows] = keys_gradient.astype(plan.dtype)
    refs.values_gradient[0, rows] = values_gradient.astype(plan.dtype)

  lax.fori_loop(0, plan.key_blocks, one_block_of_keys, None)
  for query in range(plan.query_blocks):
    refs.queries_gradient[0, _rows(query, plan.block_queries)] = (
      refs.queries_gradient_transposed[query].T.astype(plan.dtype)
    )
  if plan.far:

    @pl.when(refs.row == pl.num_programs(1) - 1)
    def _() -> None:
      def sum_up(offset: jax.Array, _: None) -> None:
        for head in range(plan.heads):
          refs.strips_gradient[head, offset] = _off_block(
            plan, refs.bias_gradient, (head, offset)
          )

      lax.fori_loop(0, plan.num_offsets, sum_up, None)


def _start(plan: _Plan, refs: types.SimpleNamespace) -> None:
  """Expands the bias, once per group; stores key segment ids as a column."""
  refs.row = pl.program_id(1)
  if plan.far:

    @pl.when(refs.row == 0)
    def _() -> None:
      def lay_out(offset: jax.Array, _: None) -> None:
        for head in range(plan.heads):
          _on_block(plan, refs.strips[head, offset], refs.bias, (head, offset))

      lax.fori_loop(0, plan.num_offsets, lay_out, None)

  for key in range(plan.key_blocks):
    ids = jnp.broadcast_to(refs.key_ids[0, key], (LANES, plan.block_keys))
    refs.key_ids_column[_rows(key, plan.block_keys)] = ids.T


def _for_range(
  refs: types.SimpleNamespace,
  block: jax.Array,
  body: Callable[[jax.Array, tuple], tuple],
  start: tuple,
) -> tuple:
  """Runs `body` over the blocks that one block visits."""
  return lax.fori_loop(
    refs.first[refs.row, block], refs.stop[refs.row, block], body, start
  )


def _visible(
  plan: _Plan, refs: types.SimpleNamespace, query: jax.Array, key: jax.Array
) -> jax.Array:
  """Returns which pairs of a block are visible, bool `[keys, queries]`."""
  rows = _rows(key, plan.block_keys)
  visible = refs.key_ids_column[rows, :1] == refs.query_ids[0, query]
  if plan.causal:
    shape = (plan.block_keys, plan.block_queries)
    ahead = lax.broadcasted_iota(jnp.int32, shape, 0) - (
      lax.broadcasted_iota(jnp.int32, shape, 1)
    )
    visible &= ahead <= query * plan.block_queries - key * plan.block_keys
  return visible


def _scores(
  keys: jax.Array,
  queries: jax.Array,
  bias: jax.Array | float,
  visible: jax.Array,
) -> jax.Array:
  """Returns the scores of a block and head, float32 `[keys, queries]`."""
  scores = _matmul_transposed(keys, queries) + bias
  return jnp.where(visible, scores, attend.MASKED_SCORE)


def _bias(
  plan: _Plan,
  refs: types.SimpleNamespace,
  head: int,
  query: jax.Array,
  key: jax.Array,
) -> jax.Array | float:
  """Returns the bias of a block and head, float32 `[keys, queries]`, or 0."""
  return refs.bias[head, plan.offset(query, key)] if plan.far else 0.0


def _split_heads(plan: _Plan, rows: jax.Array) -> list[jax.Array]:
  """Returns the rows for each head, with the other heads' columns zero.

  A contraction over all columns is then one over the head's own, and takes no
  longer: the matrix unit is 128 wide.
  """
  if plan.heads == 1:
    return [rows]
  column = lax.broadcasted_iota(jnp.int32, (1, plan.lanes), 1)
  return [
    jnp.where(
      (column >= head * plan.head_dim) & (column < (head + 1) * plan.head_dim),
      rows,
      jnp.zeros_like(rows),
    )
    for head in range(plan.heads)
  ]


def _for_each_dim(plan: _Plan, rows: jax.Array) -> jax.Array:
  """Repeats each head's row for all of its dimensions, `[lanes, n]`."""
  return jnp.concatenate(
    [
      jnp.broadcast_to(rows[head : head + 1], (plan.head_dim, rows.shape[1]))
      for head in range(plan.heads)
    ]
  )


def _on_block(
  plan: _Plan, strip: jax.Array, blocks: object, at: tuple[int, jax.Array]
) -> None:
  """Expands a strip `[1, width]` to the block `blocks[at]`.

  Row b is the strip rotated right by b columns, in steps of powers of 2, which
  all TPU generations support.
  """
  for start in range(0, plan.block_keys, LANES):
    rows = jnp.broadcast_to(pltpu.roll(strip, start, 1), (LANES, plan.width))
    moved = _moved_by_row(rows, right=True)
    blocks[(*at, slice(start, start + LANES))] = moved[:, : plan.block_queries]


def _off_block(
  plan: _Plan, blocks: object, at: tuple[int, jax.Array]
) -> jax.Array:
  """Sums the pairs of each distance of a block: `_on_block` transposed."""
  total = jnp.zeros((1, plan.width), jnp.float32)
  for start in range(0, plan.block_keys, LANES):
    rows = blocks[(*at, slice(start, start + LANES))]
    rows = jnp.concatenate(
      [rows, jnp.zeros((LANES, plan.block_keys), jnp.float32)], axis=1
    )
    sums = _moved_by_row(rows, right=False).sum(axis=0, keepdims=True)
    total += pltpu.roll(sums, (plan.width - start) % plan.width, 1)
  return total


def _moved_by_row(rows: jax.Array, *, right: bool) -> jax.Array:
  """Rotates row b of 128 by b columns."""
  width = rows.shape[1]
  row = lax.broadcasted_iota(jnp.int32, rows.shape, 0)
  for step in (1, 2, 4, 8, 16, 32, 64):
    moved = pltpu.roll(rows, step if right else width - step, 1)
    rows = jnp.where((row & step) != 0, moved, rows)
  return rows


def _rows(block: jax.Array | int, size: int) -> object:
  if isinstance(block, int):
    return slice(block * size, (block + 1) * size)
  return pl.ds(pl.multiple_of(block * size, size), size)


def _dims(plan: _Plan, head: int) -> slice:
  return slice(head * plan.head_dim, (head + 1) * plan.head_dim)


def _transposed(array: jax.Array) -> jax.Array:
  """Transposes in float32, which all TPU generations support."""
  return array.astype(jnp.float32).T


def _matmul(left: jax.Array, right: jax.Array) -> jax.Array:
  """Multiplies `[m, k]` by `[k, n]`, summed in float32."""
  return _contract(left, right, 0)


def _matmul_transposed(left: jax.Array, right: jax.Array) -> jax.Array:
  """Multiplies `[m, k]` by the transpose of `[n, k]`, summed in float32."""
  return _contract(left, right, 1)


def _contract(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
  precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
  return lax.dot_general(
    left,
    right,
    (((1,), (axis,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
