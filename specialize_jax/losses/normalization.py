"""Weighted sums and means, and the only division of a loss by its weights."""

import jax
import jax.numpy as jnp


def weighted_sum(values_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
  """Sums weighted values, ignoring values of weight zero, even nan."""
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


def normalize(
  loss_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Computes the weighted mean of a loss over the global batch.

  Under `jit` arrays are global, so the sums run over all devices and hosts. A
  batch that is split into microbatches sums each with `weighted_sum` and
  divides once, by the sum of all weights: a mean of the microbatches' means
  would weight their tokens unequally.

  Args:
    loss_BT: unreduced loss.
    weights_BT: non-negative; zero at padding.

  Returns:
    The mean, and the sum of the weights.
  """
  weight_sum = jnp.sum(weights_BT.astype(loss_BT.dtype))
  return divide(weighted_sum(loss_BT, weights_BT), weight_sum), weight_sum
