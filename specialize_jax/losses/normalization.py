"""Weighted sums and means, and the only division of a loss by its weights."""

import jax
import jax.numpy as jnp


def weighted_sum(values_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
  """Sums weighted values, ignoring values of weight zero, even nan.

  Under `jit` arrays are global, so the sum runs over all devices and hosts.
  Microbatches are summed and divided once, by the sum of all weights: a mean of
  their means would weight their tokens unequally.
  """
  weights_BT = weights_BT.astype(values_BT.dtype)
  return jnp.sum(
    jnp.where(weights_BT != 0, values_BT * weights_BT, 0.0),
    dtype=values_BT.dtype,
  )


def divide(total: jax.Array, weight_sum: jax.Array) -> jax.Array:
  """Computes `total / weight_sum`, or zero where `weight_sum` is zero."""
  return jnp.where(
    weight_sum > 0, total / jnp.where(weight_sum > 0, weight_sum, 1.0), 0.0
  )
