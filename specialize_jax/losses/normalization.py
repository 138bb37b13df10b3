"""The one place where a loss is divided by its weights."""

import jax
import jax.numpy as jnp


def weighted_sum(values_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
  """Sums weighted values; what lies at weight zero, even nan, is left out."""
  weights_BT = weights_BT.astype(values_BT.dtype)
  return jnp.sum(
    jnp.where(weights_BT != 0, values_BT * weights_BT, 0.0),
    dtype=values_BT.dtype,
  )


def divide(total: jax.Array, weight_sum: jax.Array) -> jax.Array:
  """A weighted mean from its two sums; zero where nothing has weight."""
  return jnp.where(
    weight_sum > 0, total / jnp.where(weight_sum > 0, weight_sum, 1.0), 0.0
  )


def normalize(
  loss_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Averages a loss over the weights of the whole global batch.

  Under `jit` the arrays are global, so the sums run over all devices and
  hosts. A batch split into microbatches sums each with `weighted_sum` and
  divides once at the end by the sum over all of them: the mean of the
  microbatches' means would weigh their tokens unequally.

  Args:
    loss_BT: unreduced loss.
    weights_BT: non-negative; zero at padding.

  Returns:
    The mean, and the sum of the weights.
  """
  weight_sum = jnp.sum(weights_BT.astype(loss_BT.dtype))
  return divide(weighted_sum(loss_BT, weights_BT), weight_sum), weight_sum
