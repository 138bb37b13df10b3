"""One division by the weights; weightless positions do not exist."""

import jax.numpy as jnp

from specialize_jax.losses import normalization


def test_a_sum_is_weighted_and_leaves_out_a_nan_of_weight_zero():
  loss = jnp.array([[1.0, 2.0, jnp.nan], [6.0, jnp.inf, 9.0]])
  weights = jnp.array([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
  assert normalization.weighted_sum(loss, weights) == 1 + 2 + 12


def test_a_batch_without_weight_has_zero_loss():
  total = normalization.weighted_sum(
    jnp.array([[jnp.nan, 3.0]]), jnp.zeros((1, 2))
  )
  assert normalization.divide(total, jnp.float32(0.0)) == 0
  assert normalization.divide(jnp.float32(6.0), jnp.float32(4.0)) == 1.5
