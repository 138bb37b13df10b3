"""Cached decoding = full forward, and what the loop does with its rows."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize_jax import errors
from specialize_jax.decoding import loop, strategies
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

T5_1_1 = t5_config.T5Config(
  vocab_size=24,
  embed_dim=16,
  mlp_dim=24,
  num_heads=3,
  head_dim=4,
  num_encoder_layers=1,
  num_decoder_layers=2,
  mlp_activations=("gelu", "linear"),
  tied_head=False,
  dropout_rate=0.0,
  dtype="float32",
)
T5_1_0 = dataclasses.replace(
  T5_1_1, mlp_activations=("relu",), tied_head=True, scan_layers=False
)
BOTH = pytest.mark.parametrize("config", [T5_1_1, T5_1_0], ids=["1_1", "1_0"])
LENGTH = 10


@functools.cache
def init(config):
  """Random parameters, drawn in NumPy: nothing to compile, and lively."""
  model = network.EncoderDecoder(config)
  tokens = jnp.ones((1, 4), jnp.int32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), tokens, tokens, deterministic=True)
  )
  rng = np.random.default_rng(0)

  def draw(leaf):
    scale = leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 1.0
    return jnp.asarray(rng.normal(0, 2 * scale, leaf.shape), leaf.dtype)

  return model, jax.tree.map(draw, nn.meta.unbox(shapes["params"]))


def sources(num_rows, length=7, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, 24, (num_rows, length))
  lengths = rng.integers(1, length + 1, (num_rows, 1))
  return jnp.asarray(
    np.where(np.arange(length) < lengths, tokens, 0), jnp.int32
  )


def decode(config, source, **kwargs):
  model, params = init(config)
  arguments = {"max_new_tokens": LENGTH, "strategy": strategies.Greedy()}
  return loop.decode(model, params, source, **{**arguments, **kwargs})


def forward(config, source, tokens):
  model, params = init(config)
  inputs = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  return jax.jit(functools.partial(model.apply, deterministic=True))(
    {"params": params}, source, inputs
  )


@BOTH
def test_cached_steps_give_the_hidden_states_of_the_whole_pass(config):
  model, params = init(config)
  source = sources(3)
  target = jnp.asarray(
    np.random.default_rng(1).integers(2, 24, (3, 6)), jnp.int32
  )
  apply = jax.jit(
    model.apply, static_argnames=("method", "deterministic", "max_length")
  )
  variables = {"params": params}
  encoded = apply(variables, source, method="encode", deterministic=True)
  whole = apply(
    variables, encoded, source, target, method="decode", deterministic=True
  )
  model, params = network.unrolled(model, params)
  variables = {"params": params}
  apply = jax.jit(model.apply, static_argnames=("method", "max_length"))
  cache = apply(variables, encoded, source, max_length=8, method="start_cache")
  # Two positions at once, then one by one.
  parts = [target[:, :2], *(target[:, t : t + 1] for t in range(2, 6))]
  hidden = []
  for part in parts:
    states, cache = apply(variables, cache, part, method="extend")
    hidden.append(states)
  np.testing.assert_allclose(jnp.concatenate(hidden, axis=1), whole, atol=1e-5)
  assert cache.index == 6


@BOTH
def test_greedy_tokens_are_the_maxima_of_the_whole_pass(config):
  source = sources(8)
  output = decode(config, source)
  logits = forward(config, source, output.tokens)
  ends = np.asarray(output.tokens) == 1
  ended = np.cumsum(ends, axis=1) > ends
  np.testing.assert_array_equal(
    output.tokens, np.where(ended, 0, np.argmax(logits, axis=-1))
  )
  log_probs = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)),
    np.asarray(output.tokens)[..., None],
    axis=-1,
  )[..., 0]
  np.testing.assert_allclose(
    output.log_probs, np.where(ended, 0, log_probs), atol=1e-5
  )
  assert len({tuple(row) for row in output.tokens.tolist()}) > 3


def test_a_row_decodes_the_same_in_every_batch_and_padding():
  source = sources(6)
  sampling = {
    "strategy": strategies.Sampling(top_k=8),
    "decode_rng": jax.random.key(0),
  }
  for arguments in ({}, sampling):
    whole = decode(T5_1_1, source, **arguments)
    row_ids = jnp.array([4, 2], jnp.int32)
    few = decode(
      T5_1_1,
      jnp.pad(source[row_ids], ((0, 0), (0, 5))),
      row_ids_B=row_ids,
      **arguments,
    )
    np.testing.assert_array_equal(few.tokens, whole.tokens[row_ids])


def test_draws_differ_by_step_row_and_key():
  source = jnp.broadcast_to(sources(1), (4, 7))
  arguments = {"strategy": strategies.Sampling(temperature=5.0)}
  one = decode(T5_1_1, source, decode_rng=jax.random.key(0), **arguments)
  two = decode(T5_1_1, source, decode_rng=jax.random.key(1), **arguments)
  assert (one.tokens != two.tokens).any()
  assert len({tuple(row) for row in one.tokens.tolist()}) == 4
  assert len(set(np.asarray(one.tokens[0]).tolist())) > 2
  again = decode(T5_1_1, source, decode_rng=jax.random.key(0), **arguments)
  np.testing.assert_array_equal(one.tokens, again.tokens)


@dataclasses.dataclass(frozen=True)
class Ends:
  """Ends every row at once, and counts the steps that are run."""

  needs_rng = False
  steps = []

  def __call__(self, logits_BV, decode_rngs_B):
    del decode_rngs_B
    jax.debug.callback(lambda: self.steps.append(1))
    return jnp.full(logits_BV.shape[:1], 1, jnp.int32)


def test_the_loop_ends_with_its_last_row():
  source = sources(2)
  output = decode(T5_1_1, source, strategy=Ends())
  assert output.tokens.tolist() == [[1] + [0] * (LENGTH - 1)] * 2
  assert (output.log_probs[:, 1:] == 0).all()
  jax.effects_barrier()
  assert len(Ends.steps) == 1
  unended = decode(T5_1_1, source, strategy=Ends(), eos_id=None)
  assert unended.tokens.tolist() == [[1] * LENGTH] * 2


def test_nothing_compiles_twice():
  source = sources(5)
  decode(T5_1_1, source)
  compiled = loop._decode._cache_size()
  decode(dataclasses.replace(T5_1_1), source + 0, strategy=strategies.Greedy())
  assert loop._decode._cache_size() == compiled


def test_bfloat16_decodes():
  config = dataclasses.replace(T5_1_1, dtype="bfloat16")
  output = decode(config, sources(3))
  assert np.isfinite(output.log_probs).all()


def test_a_strategy_that_draws_needs_a_key():
  with pytest.raises(errors.UserError, match="decode_rng is None, and Sampl"):
    decode(T5_1_1, sources(1), strategy=strategies.Sampling())


def test_there_must_be_room_for_a_token():
  with pytest.raises(errors.UserError, match="max_new_tokens is 0"):
    decode(T5_1_1, sources(1), max_new_tokens=0)
