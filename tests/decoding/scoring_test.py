"""Scores are log-probabilities of a full forward pass, and of decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testdata import tiny_t5

from specialize_jax.decoding import loop, scoring, strategies

BOTH = pytest.mark.parametrize(
  "config", [tiny_t5.T5_1_1, tiny_t5.T5_1_0], ids=["1_1", "1_0"]
)


@BOTH
def test_scores_of_decoded_tokens_are_those_of_decoding(config):
  model, params = tiny_t5.init(config)
  source = tiny_t5.sources(6)
  decoded = loop.decode(
    model,
    params,
    source,
    max_new_tokens=10,
    strategy=strategies.Sampling(),
    decode_rng=jax.random.key(0),
  )
  scores = scoring.score(model, params, source, decoded.tokens)
  assert scores.dtype == jnp.float32
  said = tiny_t5.is_token(decoded.tokens)
  np.testing.assert_allclose(
    scores, np.where(said, decoded.log_probs, 0), atol=1e-4
  )
  # Padding that was said between two tokens is scored too.
  assert (said & (np.asarray(decoded.tokens) == 0)).any()


def test_scores_are_log_softmax_whatever_the_chunks_and_0_at_padding():
  model, params = tiny_t5.init(tiny_t5.T5_1_1)
  source = tiny_t5.sources(3)
  # 19 positions are two chunks, the second one short.
  target = np.random.default_rng(1).integers(2, 24, (3, 19))
  target[1, 4:] = 0
  inputs = np.pad(target, ((0, 0), (1, 0)))[:, :-1]
  logits = jax.jit(functools.partial(model.apply, deterministic=True))(
    {"params": params}, source, jnp.asarray(inputs, jnp.int32)
  )
  expected = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), target[..., None], axis=-1
  )[..., 0]
  scores = scoring.score(model, params, source, jnp.asarray(target, jnp.int32))
  np.testing.assert_allclose(
    scores, np.where(target > 0, expected, 0), atol=1e-4
  )


def test_a_score_does_not_see_later_tokens():
  model, params = tiny_t5.init(tiny_t5.T5_1_1)
  source = tiny_t5.sources(2)
  target = jnp.full((2, 6), 5, jnp.int32)
  scores = scoring.score(model, params, source, target)
  other = scoring.score(model, params, source, target.at[:, 4:].set(9))
  np.testing.assert_allclose(scores[:, :4], other[:, :4], atol=1e-6)
  assert (scores[:, 4] != other[:, 4]).all()
