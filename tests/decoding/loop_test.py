"""Cached decoding equals full forward passes; ends, pauses, forced tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testdata import tiny_t5

from specialize_jax import errors
from specialize_jax.decoding import loop, strategies
from specialize_jax.parallel import mesh, placement
from specialize_jax.t5 import network

T5_1_1, T5_1_0 = tiny_t5.T5_1_1, tiny_t5.T5_1_0
init, sources = tiny_t5.init, tiny_t5.sources
BOTH = pytest.mark.parametrize("config", [T5_1_1, T5_1_0], ids=["1_1", "1_0"])
EVERY = pytest.mark.parametrize(
  "config",
  [T5_1_1, T5_1_0, tiny_t5.PER_LAYER],
  ids=["1_1", "1_0", "per_layer"],
)
LENGTH = 10


def decode(config, source, **kwargs):
  model, params = init(config)
  arguments = {"max_new_tokens": LENGTH, "strategy": strategies.Greedy()}
  return loop.decode(model, params, source, **{**arguments, **kwargs})


@functools.cache
def _apply(model):
  return jax.jit(functools.partial(model.apply, deterministic=True))


def forward(config, source, tokens):
  model, params = init(config)
  inputs = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  return _apply(model)({"params": params}, source, inputs)


@EVERY
def test_cached_steps_equal_a_full_forward_pass(config):
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
def test_greedy_tokens_are_the_argmax_of_a_full_forward_pass(config):
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


def test_samples_differ_by_step_row_and_key():
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
  unended = decode(T5_1_1, source, strategy=Ends(), eos_ids=())
  assert unended.tokens.tolist() == [[1] * LENGTH] * 2


def test_nothing_compiles_twice():
  source = sources(5)
  decode(T5_1_1, source)
  compiled = loop._resume._cache_size()
  decode(dataclasses.replace(T5_1_1), source + 0, strategy=strategies.Greedy())
  assert loop._resume._cache_size() == compiled


def test_bfloat16_decodes():
  config = dataclasses.replace(T5_1_1, dtype="bfloat16")
  output = decode(config, sources(3))
  assert np.isfinite(output.log_probs).all()


def test_a_strategy_that_samples_needs_a_key():
  with pytest.raises(errors.UserError, match="decode_rng is None, and Sampl"):
    decode(T5_1_1, sources(1), strategy=strategies.Sampling())


def test_max_new_tokens_must_be_positive():
  with pytest.raises(errors.UserError, match="max_new_tokens is 0"):
    decode(T5_1_1, sources(1), max_new_tokens=0)


def test_continuations_of_one_input_are_those_of_its_copies():
  source = sources(3)
  row_ids = jnp.arange(12, dtype=jnp.int32).reshape(3, 4)
  sampling = {
    "strategy": strategies.Sampling(temperature=2.0),
    "decode_rng": jax.random.key(0),
  }
  together = decode(T5_1_1, source, row_ids_B=row_ids, **sampling)
  alone = decode(
    T5_1_1,
    jnp.repeat(source, 4, axis=0),
    row_ids_B=row_ids.reshape(-1),
    **sampling,
  )
  np.testing.assert_array_equal(together.tokens.reshape(12, -1), alone.tokens)
  np.testing.assert_allclose(
    together.log_probs.reshape(12, -1), alone.log_probs, atol=1e-4
  )
  assert len({tuple(row) for row in alone.tokens.tolist()}) == 12


def start(source, **kwargs):
  model, params = init(T5_1_1)
  arguments = {"max_new_tokens": LENGTH}
  return loop.start(model, params, source, **{**arguments, **kwargs})


def resume(state, **kwargs):
  model, params = init(T5_1_1)
  arguments = {"strategy": strategies.Greedy(), "eos_ids": ()}
  return loop.resume(model, params, state, **{**arguments, **kwargs})


def test_pauses_change_nothing_and_occur_after_the_given_tokens():
  source = sources(4)
  whole = decode(T5_1_1, source, eos_ids=())
  pause = np.zeros(24, bool)
  pause[np.asarray(whole.tokens)[0, [1, 4]]] = True
  hits = pause[np.asarray(whole.tokens)].any(axis=0)
  state, steps = start(source), []
  while not state.finished:
    state = resume(state, pause_V=jnp.asarray(pause))
    assert bool(state.paused) == bool(hits[int(state.step) - 1])
    steps.append(int(state.step))
  np.testing.assert_array_equal(state.tokens_BNT[:, 0], whole.tokens)
  np.testing.assert_array_equal(state.log_probs_BNT[:, 0], whole.log_probs)
  expected = [*(np.flatnonzero(hits) + 1).tolist(), LENGTH]
  assert steps == sorted(set(expected)) and len(steps) > 2


def test_forced_tokens_are_taken_scored_and_read():
  source = sources(3)
  forced = np.full((3, 1, LENGTH), -1)
  forced[1, 0, :2], forced[2, 0, 4] = [9, 11], 7
  state = resume(start(source).forcing(forced), pause_V=jnp.arange(24) == 11)
  tokens = np.asarray(state.tokens_BNT[:, 0])
  assert tokens[1, :2].tolist() == [9, 11]
  if state.paused:  # a forced token does not pause, a chosen one may
    assert (tokens[:, int(state.step) - 1] == 11).any() and state.step > 2
    state = resume(state)
    tokens = np.asarray(state.tokens_BNT[:, 0])
  assert tokens[2, 4] == 7
  free = decode(T5_1_1, source, eos_ids=())
  np.testing.assert_array_equal(tokens[0], free.tokens[0])
  assert tokens[1].tolist() != free.tokens[1].tolist()
  logits = forward(T5_1_1, source, jnp.asarray(tokens))
  best = np.argmax(logits, axis=-1)
  is_free = forced[:, 0] < 0
  np.testing.assert_array_equal(tokens[is_free], best[is_free])
  log_probs = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=-1
  )[..., 0]
  np.testing.assert_allclose(state.log_probs_BNT[:, 0], log_probs, atol=1e-5)


def test_a_forced_end_ends_the_row():
  source = sources(2)
  forced = np.full((2, 1, LENGTH), -1)
  forced[:, :, :3] = [5, 1, 6]
  state = resume(start(source).forcing(forced), eos_ids=(1,))
  assert state.step == 2 and state.finished
  assert state.tokens_BNT[:, 0].tolist() == [[5, 1] + [0] * (LENGTH - 2)] * 2


def test_forced_tokens_have_the_shape_of_all_tokens():
  with pytest.raises(errors.UserError, match=r"forced_BNT has shape \(2, 3\)"):
    start(sources(2)).forcing(np.zeros((2, 3)))


@BOTH
def test_a_mesh_decodes_the_tokens_of_one_device(config):
  source = sources(8)
  model, params = init(config)
  alone = decode(config, source)
  cube = placement.Placement(mesh=mesh.make_mesh(data=2, fsdp=2, model=2))
  tokens = jnp.ones((1, 4), jnp.int32)
  boxed = jax.eval_shape(
    lambda: model.init(jax.random.key(0), tokens, tokens, deterministic=True)
  )["params"]
  params = jax.device_put(params, cube.tree_shardings(boxed))
  placed = cube.put_batch({"source": np.asarray(source)})["source"]
  with cube.entered():
    sharded = loop.decode(
      model,
      params,
      placed,
      max_new_tokens=LENGTH,
      strategy=strategies.Greedy(),
    )
  assert len(sharded.tokens.sharding.device_set) == 8
  np.testing.assert_array_equal(sharded.tokens, alone.tokens)
  np.testing.assert_allclose(sharded.log_probs, alone.log_probs, atol=1e-5)
