"""Beam search: its laws, and that it finds what an exhaustive search finds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testdata import tiny_t5

from specialize_jax import errors
from specialize_jax.decoding import beam, loop, scoring, strategies
from specialize_jax.parallel import mesh, placement

LENGTH = 8
BOTH = pytest.mark.parametrize(
  "config", [tiny_t5.T5_1_1, tiny_t5.T5_1_0], ids=["1_1", "1_0"]
)


def search(config, source, **kwargs):
  model, params = tiny_t5.init(config)
  arguments = {"max_new_tokens": LENGTH, "num_beams": 4}
  return beam.decode(model, params, source, **{**arguments, **kwargs})


@BOTH
def test_a_beam_of_one_is_greedy(config):
  model, params = tiny_t5.init(config)
  source = tiny_t5.sources(8)
  # The length counts for nothing: a worse sequence that ended would not win.
  found = search(config, source, num_beams=1, length_penalty=0.0)
  greedy = loop.decode(
    model,
    params,
    source,
    max_new_tokens=LENGTH,
    strategy=strategies.Greedy(),
  )
  np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens)
  np.testing.assert_allclose(found.log_probs[:, 0], greedy.log_probs, atol=1e-4)


@pytest.mark.parametrize(
  "config",
  [tiny_t5.T5_1_1, tiny_t5.T5_1_0, tiny_t5.PER_LAYER],
  ids=["1_1", "1_0", "per_layer"],
)
def test_scores_of_sequences_are_those_of_the_search(config):
  model, params = tiny_t5.init(config)
  source = tiny_t5.sources(6)
  found = search(config, source, num_return_sequences=3, length_penalty=0.6)
  for rank in range(3):
    tokens = found.tokens[:, rank]
    log_probs = scoring.score(model, params, source, tokens)
    said = tiny_t5.is_token(tokens)
    mine = np.asarray(found.log_probs[:, rank])
    np.testing.assert_allclose(np.where(said, mine, 0), log_probs, atol=1e-4)
    assert said.mean() > 0.25
    lengths = (mine != 0).sum(axis=1)
    np.testing.assert_allclose(
      found.scores[:, rank],
      mine.sum(axis=1) / lengths**0.6,
      atol=1e-4,
    )
  assert (np.diff(found.scores, axis=1) <= 0).all()
  for row in np.asarray(found.tokens):
    assert len({tuple(sequence) for sequence in row.tolist()}) == 3


def test_a_beam_as_wide_as_the_vocabulary_allows_finds_the_best_of_all():
  config = tiny_t5.T5_1_1
  model, params = tiny_t5.init(config)
  source = tiny_t5.sources(2)
  # Of two tokens the first is kept in 12 of 24 ways, which hold the best.
  found = search(config, source, num_beams=12, max_new_tokens=2, eos_ids=())
  every = np.array(list(itertools.product(range(1, 24), repeat=2)), np.int32)
  for row in range(2):
    inputs = jnp.broadcast_to(source[row], (len(every), source.shape[1]))
    sums = scoring.score(model, params, inputs, jnp.asarray(every)).sum(axis=1)
    best = every[np.argmax(sums)]
    if 0 not in np.asarray(found.tokens[row, 0]):
      assert found.tokens[row, 0].tolist() == best.tolist()
      np.testing.assert_allclose(
        found.scores[row, 0], sums.max() / 2, atol=1e-4
      )


def test_more_beams_find_no_worse_sums_on_the_whole():
  source = tiny_t5.sources(16)
  one, four = (
    search(
      tiny_t5.T5_1_1, source, num_beams=beams, eos_ids=(), length_penalty=0.0
    ).scores[:, 0]
    for beams in (1, 4)
  )
  assert one.mean() < four.mean()
  assert (np.asarray(one) <= np.asarray(four) + 1e-5).mean() > 0.8


def test_the_length_penalty_decides_between_short_and_long():
  source = tiny_t5.sources(16)
  short, long = (
    search(tiny_t5.T5_1_1, source, length_penalty=penalty).tokens
    for penalty in (-2.0, 4.0)
  )
  assert (np.asarray(short) > 0).sum() < (np.asarray(long) > 0).sum()


def test_a_row_is_searched_the_same_in_every_batch_and_padding():
  source = tiny_t5.sources(6)
  whole = search(tiny_t5.T5_1_1, source, num_return_sequences=2)
  rows = jnp.array([4, 2])
  few = search(
    tiny_t5.T5_1_1,
    jnp.pad(source[rows], ((0, 0), (0, 5))),
    num_return_sequences=2,
  )
  np.testing.assert_array_equal(few.tokens, whole.tokens[rows])


def test_a_mesh_finds_the_sequences_of_one_device():
  config, source = tiny_t5.T5_1_1, tiny_t5.sources(8)
  model, params = tiny_t5.init(config)
  alone = search(config, source)
  cube = placement.Placement(mesh=mesh.make_mesh(data=2, fsdp=2, model=2))
  tokens = jnp.ones((1, 4), jnp.int32)
  boxed = jax.eval_shape(
    lambda: model.init(jax.random.key(0), tokens, tokens, deterministic=True)
  )["params"]
  params = jax.device_put(params, cube.tree_shardings(boxed))
  placed = cube.put_batch({"source": np.asarray(source)})["source"]
  with cube.entered():
    sharded = beam.decode(
      model, params, placed, max_new_tokens=LENGTH, num_beams=4
    )
  np.testing.assert_array_equal(sharded.tokens, alone.tokens)
  np.testing.assert_allclose(sharded.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"num_beams": 0}, "num_beams is 0, and must be from 1 to 12"),
    ({"num_beams": 13}, "num_beams is 13, and must be from 1 to 12"),
    ({"num_return_sequences": 5}, "num_return_sequences is 5, and must be"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
  ],
)
def test_numbers_out_of_range_are_named(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    search(tiny_t5.T5_1_1, tiny_t5.sources(1), **arguments)
