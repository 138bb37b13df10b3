"""The cache of keys and values, with a layout for one query at a time.

A decoding step reads every key and value once, with little arithmetic, so it is
bound by memory bandwidth. Keys are therefore stored transposed, `[B, H, K, S]`,
as in T5X: the scores of a query are then sums of whole rows, which XLA's CPU
backend computes with all cores, while for a matmul with one query it first
packs the keys, with one core.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from specialize_jax.t5 import attend
from specialize_jax.t5 import config as t5_config


class CachedKeysValues(flax.struct.PyTreeNode):
  """The cached keys and values of one attention layer.

  Attributes:
    keys_BHKS: the keys, transposed, in the compute dtype.
    values_BHSK: the values, in the compute dtype.
  """

  keys_BHKS: jax.Array
  values_BHSK: jax.Array

  @classmethod
  def empty(
    cls, config: t5_config.T5Config, batch_size: int, length: int
  ) -> "CachedKeysValues":
    """Returns a cache of zeros for `length` positions."""
    shape = (batch_size, config.num_heads, length, config.head_dim)
    zeros_BHSK = jnp.zeros(shape, config.dtype)
    return cls.of(zeros_BHSK, zeros_BHSK)

  @classmethod
  def of(
    cls, keys_BHSK: jax.Array, values_BHSK: jax.Array
  ) -> "CachedKeysValues":
    """Returns a cache of keys and values, transposing the keys."""
    return cls(
      keys_BHKS=nn.with_logical_constraint(
        keys_BHSK.swapaxes(2, 3), ("batch", "heads", "kv", "length")
      ),
      values_BHSK=nn.with_logical_constraint(
        values_BHSK, ("batch", "heads", "length", "kv")
      ),
    )

  def updated(
    self, new: "CachedKeysValues", index: jax.Array
  ) -> "CachedKeysValues":
    """Returns a copy with `new` written at the positions from `index` on."""

    def put(old: jax.Array, part: jax.Array, axis: int) -> jax.Array:
      return jax.lax.dynamic_update_slice_in_dim(old, part, index, axis)

    return CachedKeysValues(
      keys_BHKS=put(self.keys_BHKS, new.keys_BHKS, 3),
      values_BHSK=put(self.values_BHSK, new.values_BHSK, 2),
    )

  @property
  def num_rows(self) -> int:
    """The number of rows, B."""
    return len(self.values_BHSK)

  def attended_by(
    self,
    queries_BHTK: jax.Array,
    bias_HTS: jax.Array | None,
    mask: jax.Array,
  ) -> jax.Array:
    """Computes `attend.attend`, without a backward pass."""
    scores_BHTS = _multiply(queries_BHTK, self.keys_BHKS)
    if bias_HTS is not None:
      scores_BHTS += bias_HTS[None]
    exps_BHTS, sums_BHT1 = attend.exponentials(scores_BHTS, mask)
    dtype = self.values_BHSK.dtype
    weighted_BHTK = _multiply(exps_BHTS.astype(dtype), self.values_BHSK)
    return (weighted_BHTK / sums_BHT1).astype(dtype)


def _multiply(left: jax.Array, right: jax.Array) -> jax.Array:
  """Multiplies the matrices of each head; accumulates and returns float32.

  Args:
    left: `[B, H, T, M]`.
    right: `[B, H, M, N]`.

  Returns:
    `[B, H, T, N]`.
  """

  def product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)

  def sum_of_rows(left: jax.Array, right: jax.Array) -> jax.Array:
    rows = left[..., 0, :, None].astype(jnp.float32) * right.astype(jnp.float32)
    return rows.sum(axis=-2)[..., None, :]

  if left.shape[-2] > 1:
    return product(left, right)
  return jax.lax.platform_dependent(
    left, right, cpu=sum_of_rows, default=product
  )
