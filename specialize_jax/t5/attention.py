"""Multi-head attention, whole or one step at a time over a cache.

Scores are not divided by `sqrt(head_dim)`: T5 folds that into the initial
query kernel. Keys and values are laid out `[B, H, S, K]`, so that each head
of each row is one contiguous matrix; in a cache keys are turned, see `cache`.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from specialize_jax.t5 import attend, attend_blocks, cache, layers
from specialize_jax.t5 import config as t5_config


class KeysValues(flax.struct.PyTreeNode):
  """What the queries of one attention look at.

  Attributes:
    keys_BHSK: in the compute dtype.
    values_BHSK: in the compute dtype.
    block_sizes: of attention in blocks, see `T5Config.attention_block_sizes`.
  """

  keys_BHSK: jax.Array
  values_BHSK: jax.Array
  block_sizes: tuple[int, int] | None = flax.struct.field(
    default=None, pytree_node=False
  )

  def gathered_by(
    self,
    queries_BHTK: jax.Array,
    bias_HTS: jax.Array | None,
    mask: jax.Array,
  ) -> jax.Array:
    """Gives what each query gathers, `[B, H, T, K]`; see `attend.attend`."""
    arguments = (queries_BHTK, self.keys_BHSK, self.values_BHSK, bias_HTS, mask)
    # Two blocks of keys would mostly be visited both.
    if self.block_sizes and self.keys_BHSK.shape[2] > 2 * self.block_sizes[1]:
      return attend_blocks.attend_in_blocks(
        *arguments, block_sizes=self.block_sizes
      )
    return attend.attend(*arguments)

  def cached(self) -> cache.CachedKeysValues:
    """Gives them as decoding keeps them."""
    return cache.CachedKeysValues.of(self.keys_BHSK, self.values_BHSK)


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
    self.values_dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-1,))

  def keys_values(self, inputs_BSD: jax.Array) -> KeysValues:
    """Gives the keys and values of the positions that are looked at."""
    return KeysValues(
      keys_BHSK=self._heads(self.key(inputs_BSD)),
      values_BHSK=self._heads(self.value(inputs_BSD)),
      block_sizes=self.config.attention_block_sizes,
    )

  def __call__(
    self,
    inputs_BTD: jax.Array,
    memory: KeysValues | cache.CachedKeysValues,
    mask: jax.Array,
    bias_HTS: jax.Array | None = None,
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Gives what each position gathers from the positions it may look at.

    Args:
      inputs_BTD: where queries come from.
      memory: keys and values, from `keys_values` or a cache.
      mask: bool, broadcasts to `[B, H, T, S]`, true where query t may look
        at key s.
      bias_HTS: float32 relative position bias; None in cross-attention.
      deterministic: whether dropout is off.

    Returns:
      `[B, T, D]` in the compute dtype.
    """
    queries_BHTK = self._heads(self.query(inputs_BTD))
    # T5X drops weights, the same keys for every query of a head: that is to
    # drop values, of which there are fewer.
    memory = memory.replace(
      values_BHSK=self.values_dropout(
        memory.values_BHSK, deterministic=deterministic
      )
    )
    gathered_BHTK = memory.gathered_by(queries_BHTK, bias_HTS, mask)
    batch_size, _, length, _ = gathered_BHTK.shape
    joined = gathered_BHTK.swapaxes(1, 2).reshape(
      batch_size, length, self.config.joined_kv_dim
    )
    joined = nn.with_logical_constraint(
      joined, ("batch", "length", "joined_kv")
    )
    return self.out(joined)

  def _heads(self, joined: jax.Array) -> jax.Array:
    """Splits `[B, T, H * K]` into heads, `[B, H, T, K]`."""
    batch_size, length, _ = joined.shape
    heads_BTHK = joined.reshape(
      batch_size, length, self.config.num_heads, self.config.head_dim
    )
    return nn.with_logical_constraint(
      heads_BTHK.swapaxes(1, 2), ("batch", "heads", "length", "kv")
    )
