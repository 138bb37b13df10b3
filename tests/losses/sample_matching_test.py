"""Cross-entropy by worked numbers, log-softmax and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import test_util

from specialize_jax.losses import divergence, sample_matching


def test_hand_worked_number_of_the_docstring():
  loss = sample_matching.cross_entropy(jnp.zeros((1, 1, 4)), jnp.array([[3]]))
  np.testing.assert_allclose(loss, [[1.3863]], atol=5e-5)


def test_equals_log_softmax_and_finite_differences():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((2, 3, 7))
  targets = rng.integers(0, 7, (2, 3)).astype(np.int32)
  expected = -np.take_along_axis(
    logits - np.log(np.exp(logits).sum(-1, keepdims=True)),
    targets[..., None],
    -1,
  )[..., 0]
  with jax.enable_x64(True):

    @jax.jit
    def loss_fn(x):
      return sample_matching.cross_entropy(x, jnp.asarray(targets))

    np.testing.assert_allclose(loss_fn(jnp.asarray(logits)), expected)
    test_util.check_grads(
      loss_fn, (jnp.asarray(logits),), 1, modes=["rev"], rtol=1e-6
    )


def test_equals_the_sparse_kl_of_a_one_hot_teacher():
  rng = np.random.default_rng(1)
  logits = rng.standard_normal((2, 3, 7)).astype(np.float32)
  targets = rng.integers(0, 7, (2, 3)).astype(np.int32)
  np.testing.assert_allclose(
    sample_matching.cross_entropy(logits, targets),
    divergence.sparse_kl(
      logits, targets[..., None], np.ones((2, 3, 1), np.float32)
    ),
    rtol=1e-6,
  )
