"""Multi-head attention, over whole sequences or one step with a cache.

`attention` has three implementations: the plain form, which defines it; blocks,
for packed rows on a CPU; and a kernel for TPUs.

Scores are not divided by `sqrt(head_dim)`: T5's initial query kernel includes
this factor.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from specialize_jax import errors
from specialize_jax.parallel import row_sums
from specialize_jax.t5 import (
  attend,
  attend_blocks,
  attend_tpu,
  cache,
  layers,
  masks,
  relative_position,
)
from specialize_jax.t5 import config as t5_config


class Scope(flax.struct.PyTreeNode):
  """The mask and the bias of attention, shared by all layers of a stack.

  The TPU kernel's arguments are `pairs` and `bias`; those of the other
  implementations are a mask and a bias for every pair of query and key.

  Attributes:
    pairs: which queries attend to which keys; None if `mask` is set.
    bias: the relative position bias; None without one, or if `mask` is set.
    mask: bool, broadcasts to `[B, H, T, S]`, true where query t attends to
      key s; None for the kernel.
    bias_HTS: float32, added to the scores; None without one, and for the
      kernel.
  """

  pairs: masks.Pairs | None = None
  bias: relative_position.Bias | None = None
  mask: jax.Array | None = None
  bias_HTS: jax.Array | None = None

  @classmethod
  def of(
    cls,
    config: t5_config.T5Config,
    pairs: masks.Pairs,
    lengths: tuple[int, int],
    bias: relative_position.Bias | None = None,
  ) -> "Scope":
    """Returns the scope for the implementation that `config` selects.

    Args:
      config: the network.
      pairs: which queries attend to which keys.
      lengths: T and S.
      bias: the relative position bias; None without one.
    """
    if runs_kernel(config, lengths, bias):
      return cls(pairs=pairs, bias=bias)
    return cls(
      mask=pairs.mask(*lengths),
      bias_HTS=None if bias is None else bias.on_plane(*lengths),
    )

  def with_bias(
    self,
    config: t5_config.T5Config,
    bias: relative_position.Bias,
    length: int,
  ) -> "Scope":
    """Returns the scope of T = S = `length` positions with a bias added.

    The kernel stores the bias in VMEM. If it does not fit, the plain form is
    used.
    """
    if self.pairs is not None:
      return Scope.of(config, self.pairs, (length, length), bias)
    return self.replace(bias_HTS=bias.on_plane(length, length))


def runs_kernel(
  config: t5_config.T5Config,
  lengths: tuple[int, int],
  bias: relative_position.Bias | None,
) -> bool:
  """Returns whether attention uses the Pallas kernel for TPUs.

  Args:
    config: the network.
    lengths: the lengths of queries and keys.
    bias: the relative position bias; None without one.

  Raises:
    UserError: `config` requires the kernel where it cannot run.
  """
  if config.attention == "plain":
    return False
  interpreted = config.attention == "tpu_interpreted"
  if not interpreted and not _device_kind().startswith("TPU"):
    if config.attention == "default":
      return False
    raise errors.UserError(
      "T5Config.attention='tpu' is a kernel for TPUs, and this runs on "
      f"{_device_kind()}: set T5Config.attention='default', which takes the "
      "kernel on a TPU alone."
    )
  problem = attend_tpu.problem(
    config,
    lengths,
    num_heads=_heads_of_a_device(config),
    bias=bias,
    interpret=interpreted,
  )
  if problem and config.attention != "default":
    raise errors.UserError(
      f"T5Config.attention={config.attention!r} is not possible: {problem}; "
      "set T5Config.attention='plain'."
    )
  return not problem


def _device_kind() -> str:
  """Returns the kind of the mesh's devices, which may not be this host's."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None:
    return device.device_kind
  return jax.local_devices()[0].device_kind


class KeysValues(flax.struct.PyTreeNode):
  """The keys and values of one attention layer.

  Attributes:
    keys_BSJ: the keys of all heads side by side, J = H * K, in the compute
      dtype.
    values_BSJ: the values, likewise.
  """

  keys_BSJ: jax.Array
  values_BSJ: jax.Array

  @property
  def num_rows(self) -> int:
    """The number of rows, B."""
    return len(self.values_BSJ)

  def cached(self, config: t5_config.T5Config) -> cache.CachedKeysValues:
    """Returns them in the layout of the cache."""
    return cache.CachedKeysValues.of(
      _split_heads(self.keys_BSJ, config), _split_heads(self.values_BSJ, config)
    )


def attention(
  queries_BTJ: jax.Array,
  memory: KeysValues | cache.CachedKeysValues,
  scope: Scope,
  config: t5_config.T5Config,
  *,
  values_scale_BHS: jax.Array | None = None,
) -> jax.Array:
  """Computes softmax attention.

  Args:
    queries_BTJ: the queries of all heads side by side, J = H * K.
    memory: keys and values.
    scope: which of them each query attends to.
    config: selects the implementation.
    values_scale_BHS: float32, multiplies each head's values; None for ones,
      and for a cache.

  Returns:
    `[B, T, J]` in the values' dtype; zeros for a query without visible keys.
  """
  if scope.pairs is not None:
    return _kernel_on_each_device(
      queries_BTJ, memory, scope, config, values_scale_BHS
    )
  queries_BHTK = _split_heads(queries_BTJ, config)
  if isinstance(memory, cache.CachedKeysValues):
    output_BHTK = memory.attended_by(queries_BHTK, scope.bias_HTS, scope.mask)
  else:
    values_BHSK = _split_heads(memory.values_BSJ, config)
    if values_scale_BHS is not None:
      scaled_BHSK = (
        values_BHSK.astype(jnp.float32) * values_scale_BHS[..., None]
      )
      values_BHSK = scaled_BHSK.astype(values_BHSK.dtype)
    arrays = (
      queries_BHTK,
      _split_heads(memory.keys_BSJ, config),
      values_BHSK,
      scope.bias_HTS,
      scope.mask,
    )
    block_sizes = config.attention_block_sizes
    # With only two blocks of keys, most queries would visit both.
    if block_sizes and values_BHSK.shape[2] > 2 * block_sizes[1]:
      output_BHTK = attend_blocks.attend_in_blocks(
        *arrays, block_sizes=block_sizes
      )
    else:
      output_BHTK = attend.attend(*arrays)
  joined = output_BHTK.swapaxes(1, 2).reshape(queries_BTJ.shape)
  return nn.with_logical_constraint(joined, ("batch", "length", "joined_kv"))


def _kernel_on_each_device(
  queries_BTJ: jax.Array,
  memory: KeysValues,
  scope: Scope,
  config: t5_config.T5Config,
  values_scale_BHS: jax.Array | None,
) -> jax.Array:
  """Runs the kernel on each device's rows and heads (`shard_map`)."""
  mesh = jax.sharding.get_abstract_mesh()
  batch_axes = row_sums.dividing_axes("batch", len(queries_BTJ))
  head_axes = row_sums.dividing_axes("heads", config.num_heads)
  of_rows = jax.P(batch_axes)
  of_columns = jax.P(batch_axes, None, head_axes)
  num_heads = _heads_of_a_device(config)

  def on_device(
    queries_BTJ: jax.Array,
    memory: KeysValues,
    pairs: masks.Pairs,
    bias: relative_position.Bias | None,
    values_scale_BHS: jax.Array | None,
  ) -> jax.Array:
    return attend_tpu.attend_on_tpu(
      queries_BTJ,
      memory.keys_BSJ,
      memory.values_BSJ,
      pairs,
      bias,
      values_scale_BHS=values_scale_BHS,
      num_heads=num_heads,
      block_size=config.attention_kernel_block,
      interpret=config.attention == "tpu_interpreted",
    )

  arguments = (queries_BTJ, memory, scope.pairs, scope.bias, values_scale_BHS)
  if mesh.empty or mesh.size == 1:
    return on_device(*arguments)
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(
      of_columns,
      of_columns,
      of_rows,
      jax.P(head_axes),
      jax.P(batch_axes, head_axes),
    ),
    out_specs=of_columns,
    # The bias's gradient is summed over the devices that share the bias.
    check_vma=False,
  )(*arguments)


def _heads_of_a_device(config: t5_config.T5Config) -> int:
  """Returns the number of heads that the kernel computes on each device."""
  if row_sums.dividing_axes("heads", config.num_heads) is None:
    return config.num_heads
  return config.num_heads // row_sums.num_shards("heads")


def _split_heads(joined: jax.Array, config: t5_config.T5Config) -> jax.Array:
  """Returns `[B, T, H * K]` as `[B, H, T, K]`, each head one matrix."""
  batch_size, length, _ = joined.shape
  heads_BTHK = joined.reshape(
    batch_size, length, config.num_heads, config.head_dim
  )
  return nn.with_logical_constraint(
    heads_BTHK.swapaxes(1, 2), ("batch", "heads", "length", "kv")
  )


class Attention(nn.Module):
  """Projects, attends, and projects back; T5X's parameter names."""

  config: t5_config.T5Config

  def setup(self) -> None:
    """Declares the four projections."""
    config = self.config
    into_heads = ("embed", "joined_kv")

    def query_init(*args: object) -> jax.Array:
      # T5X folds the 1 / sqrt(head_dim) of the scores into the kernel.
      kernel = layers.dense_init(*args)
      return kernel * jnp.asarray(config.head_dim**-0.5, kernel.dtype)

    self.query = layers.Dense(
      config.joined_kv_dim, into_heads, config, query_init
    )
    self.key = layers.Dense(config.joined_kv_dim, into_heads, config)
    self.value = layers.Dense(config.joined_kv_dim, into_heads, config)
    self.out = layers.Dense(config.embed_dim, ("joined_kv", "embed"), config)
    self.values_dropout = nn.Dropout(config.dropout_rate)

  def keys_values(self, inputs_BSD: jax.Array | layers.Shared) -> KeysValues:
    """Computes the keys and values of positions."""
    return KeysValues(
      keys_BSJ=_joined(self.key(inputs_BSD)),
      values_BSJ=_joined(self.value(inputs_BSD)),
    )

  def __call__(
    self,
    inputs_BTD: jax.Array,
    memory: KeysValues | cache.CachedKeysValues,
    scope: Scope,
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Returns the attention output of each position, `[B, T, D]`.

    Args:
      inputs_BTD: the hidden states that queries are computed from.
      memory: keys and values, from `keys_values` or a cache.
      scope: which of them each query attends to.
      deterministic: whether dropout is off.
    """
    values_scale_BHS = None
    if not deterministic and self.config.dropout_rate:
      # T5X drops attention weights, with the same keys for all queries of a
      # head, which is equivalent to dropping values, a smaller array.
      batch_size, num_keys, _ = memory.values_BSJ.shape
      values_scale_BHS = self.values_dropout(
        jnp.ones((batch_size, self.config.num_heads, num_keys), jnp.float32),
        deterministic=False,
      )
    return self.out(
      attention(
        _joined(self.query(inputs_BTD)),
        memory,
        scope,
        self.config,
        values_scale_BHS=values_scale_BHS,
      )
    )


def _joined(array: jax.Array) -> jax.Array:
  return nn.with_logical_constraint(array, ("batch", "length", "joined_kv"))
