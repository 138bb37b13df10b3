"""Attention against its definition in NumPy, and its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize_jax.t5 import attend, attention, cache
from specialize_jax.t5 import config as t5_config

CONFIG = t5_config.T5Config(
  vocab_size=4,
  embed_dim=6,
  mlp_dim=4,
  num_heads=2,
  head_dim=5,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_activations=("relu",),
  tied_head=True,
  dropout_rate=0.0,
  dtype="float32",
)


def by_definition(kernels, inputs, memory, mask, bias):
  def split(joined):
    return joined.reshape(*joined.shape[:2], 2, 5)

  queries, keys, values = (
    split(np.asarray(x) @ np.asarray(kernels[name]["kernel"]))
    for x, name in [(inputs, "query"), (memory, "key"), (memory, "value")]
  )
  scores = np.einsum("bthk,bshk->bhts", queries, keys) + bias
  weights = np.where(mask, np.exp(scores), 0)
  weights /= weights.sum(-1, keepdims=True)
  gathered = np.einsum("bhts,bshk->bthk", weights, values)
  joined = gathered.reshape(*gathered.shape[:2], 10)
  return joined @ np.asarray(kernels["out"]["kernel"])


def test_attention_is_an_unscaled_softmax_over_the_unmasked_keys():
  rng = np.random.default_rng(0)
  inputs, memory = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 6))
  inputs, memory = inputs.astype(np.float32), memory.astype(np.float32)
  mask = rng.random((2, 1, 3, 4)) < 0.7
  mask[..., 0] = True
  bias = rng.normal(size=(2, 3, 4)).astype(np.float32)
  module = attention.Attention(CONFIG)

  def attend(module, inputs, memory):
    return module(
      inputs,
      module.keys_values(memory),
      attention.Scope(mask=jnp.asarray(mask), bias_HTS=jnp.asarray(bias)),
      deterministic=True,
    )

  out, variables = module.init_with_output(
    jax.random.key(0), inputs, memory, method=attend
  )
  kernels = jax.tree.map(
    lambda box: box.value,
    variables["params"],
    is_leaf=lambda x: hasattr(x, "names"),
  )
  expected = by_definition(kernels, inputs, memory, mask, bias[None])
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_attention_has_the_gradients_of_its_definition():
  rng = np.random.default_rng(1)

  def random(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  shape = {"queries": (2, 3, 4, 5), "keys": (2, 3, 6, 5)}
  queries, keys, values = (
    random(*shape["queries"]),
    random(*shape["keys"]),
    random(*shape["keys"]),
  )
  bias = random(3, 4, 6)
  mask = jnp.asarray(rng.random((2, 1, 4, 6)) < 0.6).at[0, 0, 1].set(False)
  weights = random(2, 3, 4, 5)

  def definition(queries, keys, values, bias):
    scores = jnp.einsum("bhtk,bhsk->bhts", queries, keys) + bias[None]
    scores = jnp.where(mask, scores, attend.MASKED_SCORE)
    shares = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bhts,bhsk->bhtk", shares, values)

  def gradients(function):
    return jax.grad(
      lambda *arrays: jnp.sum(function(*arrays) * weights), (0, 1, 2, 3)
    )(queries, keys, values, bias)

  ours = gradients(lambda *arrays: attend.attend(*arrays, mask))
  for got, expected in zip(ours, gradients(definition), strict=True):
    np.testing.assert_allclose(got, expected, atol=2e-6)
  without_bias = jax.grad(
    lambda queries: jnp.sum(
      attend.attend(queries, keys, values, None, mask) * weights
    )
  )(queries)
  expected = jax.grad(
    lambda queries: jnp.sum(
      definition(queries, keys, values, jnp.zeros_like(bias)) * weights
    )
  )(queries)
  np.testing.assert_allclose(without_bias, expected, atol=2e-6)


def test_a_cache_holds_what_was_put_at_an_index():
  cached = cache.CachedKeysValues.empty(CONFIG, 1, 4)
  ones = jnp.ones((1, 2, 1, 5), cached.values_BHSK.dtype)
  new = cache.CachedKeysValues.of(ones, 2 * ones)
  cached = cached.updated(new, jnp.int32(2))
  assert cached.keys_BHKS[0, 0, 0].tolist() == [0, 0, 1, 0]
  assert cached.values_BHSK[0, 1, :, 4].tolist() == [0, 0, 2, 0]


@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
  ("dtype", "atol"), [("float32", 2e-6), ("bfloat16", 2e-2)]
)
def test_attention_over_a_cache_is_whole_attention(
  num_queries, biased, dtype, atol
):
  rng = np.random.default_rng(num_queries)

  def random(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  queries = random(4, 2, num_queries, 5)
  keys, values = random(4, 2, 7, 5), random(4, 2, 7, 5)
  bias = random(2, num_queries, 7).astype(jnp.float32) if biased else None
  mask = jnp.asarray(rng.random((4, 1, num_queries, 7)) < 0.6)
  gathered = cache.CachedKeysValues.of(keys, values).attended_by(
    queries, bias, mask
  )
  assert gathered.dtype == dtype
  np.testing.assert_allclose(
    gathered.astype(jnp.float32),
    attend.attend(queries, keys, values, bias, mask).astype(jnp.float32),
    atol=atol,
  )
