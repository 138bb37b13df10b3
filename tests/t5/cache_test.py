"""A cache gives what whole attention gives, however many queries ask."""

import jax.numpy as jnp
import numpy as np
import pytest

from specialize_jax.t5 import attend, cache, config

CONFIG = config.T5Config(
  vocab_size=4,
  embed_dim=6,
  mlp_dim=4,
  num_heads=2,
  head_dim=5,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_activations=("relu",),
  tied_head=True,
)


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
def test_queries_gather_what_whole_attention_gives_them(
  num_queries, biased, dtype, atol
):
  rng = np.random.default_rng(num_queries)

  def random(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  queries = random(4, 2, num_queries, 5)
  keys, values = random(4, 2, 7, 5), random(4, 2, 7, 5)
  bias = random(2, num_queries, 7).astype(jnp.float32) if biased else None
  mask = jnp.asarray(rng.random((4, 1, num_queries, 7)) < 0.6)
  gathered = cache.CachedKeysValues.of(keys, values).gathered_by(
    queries, bias, mask
  )
  assert gathered.dtype == dtype
  np.testing.assert_allclose(
    gathered.astype(jnp.float32),
    attend.attend(queries, keys, values, bias, mask).astype(jnp.float32),
    atol=atol,
  )
