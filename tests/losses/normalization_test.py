"""One division by the weights; weightless positions do not exist."""

import jax.numpy as jnp
import numpy as np

from specialize_jax.losses import normalization


def test_mean_is_over_weights_and_a_nan_at_weight_zero_is_left_out():
  loss = jnp.array([[1.0, 2.0, jnp.nan], [6.0, jnp.inf, 9.0]])
  weights = jnp.array([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
  mean, weight_sum = normalization.normalize(loss, weights)
  assert (mean, weight_sum) == ((1 + 2 + 12) / 4, 4)


def test_a_batch_without_weight_has_zero_loss():
  mean, weight_sum = normalization.normalize(
    jnp.array([[jnp.nan, 3.0]]), jnp.zeros((1, 2))
  )
  np.testing.assert_array_equal((mean, weight_sum), (0, 0))
