"""Rules for the next token, on distributions small enough to check."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize_jax import errors
from specialize_jax.decoding import strategies

PROBS = np.array([0.5, 0.25, 0.125, 0.125])


def draws(strategy, num_rows=4000, seed=0):
  logits = jnp.broadcast_to(
    jnp.log(jnp.asarray(PROBS, jnp.float32)), (num_rows, 4)
  )
  keys = jax.random.split(jax.random.key(seed), num_rows)
  return np.asarray(jax.jit(strategy)(logits, keys))


def shares(strategy):
  return np.bincount(draws(strategy), minlength=4) / 4000


def test_greedy_chooses_the_first_of_the_most_likely():
  logits = jnp.array([[0.0, 2.0, 2.0], [3.0, 1.0, 0.0]])
  assert strategies.Greedy()(logits).tolist() == [1, 0]
  assert not strategies.Greedy().needs_rng


def test_plain_sampling_draws_the_distribution():
  np.testing.assert_allclose(shares(strategies.Sampling()), PROBS, atol=0.03)


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_tiny_temperature_chooses_the_most_likely(top_k):
  strategy = strategies.Sampling(temperature=1e-30, top_k=top_k)
  logits = jnp.asarray([[1.0, 30.0, -4.0], [-9e4, -8e4, -7e4]], jnp.float32)
  keys = jax.random.split(jax.random.key(0), 2)
  assert strategy(logits, keys).tolist() == [1, 2]


def test_temperature_sharpens():
  squared = PROBS**2 / (PROBS**2).sum()
  np.testing.assert_allclose(
    shares(strategies.Sampling(temperature=0.5)), squared, atol=0.03
  )


@pytest.mark.parametrize(
  ("strategy", "expected"),
  [
    (strategies.Sampling(top_k=1), [1, 0, 0, 0]),
    (strategies.Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0]),
    (strategies.Sampling(top_k=99), PROBS),
    # 0.5 reaches 0.5 alone; 0.51 needs the second token too.
    (strategies.Sampling(top_p=0.5), [1, 0, 0, 0]),
    (strategies.Sampling(top_p=0.51), [2 / 3, 1 / 3, 0, 0]),
    (strategies.Sampling(top_p=1e-6), [1, 0, 0, 0]),
    # Of the top two, renormalised, the first has 2/3.
    (strategies.Sampling(top_k=2, top_p=0.6), [1, 0, 0, 0]),
  ],
)
def test_only_kept_tokens_are_sampled(strategy, expected):
  np.testing.assert_allclose(shares(strategy), expected, atol=0.03)


@pytest.mark.parametrize(
  "strategy",
  [strategies.Sampling(), strategies.Sampling(top_k=3, top_p=0.9)],
)
def test_a_row_samples_the_same_tokens_in_every_batch(strategy):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)
  keys = jax.random.split(jax.random.key(1), 8)
  whole = strategy(logits, keys)
  for row in range(8):
    assert strategy(logits[row : row + 1], keys[row : row + 1]) == whole[row]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"temperature": 0.0}, "temperature is 0.0, and must be above 0: decode g"),
    ({"temperature": 1e-39}, "temperature is 1e-39, below 1e-30"),
    ({"top_k": 0}, "top_k is 0, and must be at least 1, or None"),
    ({"top_p": 1.5}, "top_p is 1.5, and must be above 0 and at most 1"),
  ],
)
def test_a_value_out_of_range_is_named(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    strategies.Sampling(**arguments)
