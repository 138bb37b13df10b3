"""A request's result does not depend on the rest of its batch."""

import functools

import jax
import numpy as np
import pytest
from decoding import loop_test, with_calculator_test
from testdata import chain_model, tiny_vocabulary

from specialize_jax import errors
from specialize_jax.decoding import generator, requests

NEW_TOKENS = 8


@functools.cache
def inputs():
  rng = np.random.default_rng(3)
  lengths = [3, 40, 7, 33, 5, 12, 9]
  return [rng.integers(2, 24, n).astype(np.int32) for n in lengths]


def ask(**changes):
  return [
    requests.Request(number=number, input_ids=ids, **changes)
    for number, ids in enumerate(inputs())
  ]


def run(asked, *, batch_size=3, config=loop_test.T5_1_1, ahead=0, **settings):
  model, params = loop_test.init(config)
  decoder = generator.Generator(
    model,
    requests.Settings(max_new_tokens=NEW_TOKENS, **settings),
    batch_size=batch_size,
  )
  results = {}
  for batch in decoder.run(params, asked, ahead=ahead):
    assert not results.keys() & batch.keys(), "each place comes once"
    results |= batch
  assert sorted(results) == list(range(len(asked)))
  return [results[place] for place in range(len(asked))]


def ids(results):
  return [[one.ids.tolist() for one in result.sequences] for result in results]


SAMPLING = {"strategy": "sample", "temperature": 2.0}


@pytest.mark.parametrize(
  "settings",
  [{}, {**SAMPLING, "num_samples": 2}],
  ids=["greedy", "sample"],
)
def test_the_batch_changes_nothing(settings):
  asked = ask()
  whole = run(asked, batch_size=7, **settings)
  assert ids(run(asked, batch_size=2, ahead=2, **settings)) == ids(whole)
  # Some of them, the other way round, as a resumed run asks.
  some = run(asked[4:0:-1], batch_size=3, **settings)
  assert ids(some) == ids(whole)[4:0:-1]
  assert len({tuple(one[0]) for one in ids(whole)}) > 3


def test_completed_requests_are_not_decoded_again_and_change_nothing():
  model, params = loop_test.init(loop_test.T5_1_1)
  decoder = generator.Generator(
    model, requests.Settings(max_new_tokens=NEW_TOKENS), batch_size=3
  )
  first, second, third = decoder.run(params, ask())
  rest = list(decoder.run(params, ask(), done={*first, *list(second)[:1]}))
  assert [list(batch) for batch in rest] == [list(second)[1:], list(third)]
  for place, result in rest[0].items():
    expected = second[place].output
    np.testing.assert_array_equal(result.output.ids, expected.ids)
    np.testing.assert_array_equal(result.output.log_probs, expected.log_probs)


def test_a_sample_depends_on_seed_row_and_sample_only():
  one = ids(run(ask(), batch_size=7, **SAMPLING, num_samples=1))
  three = ids(run(ask(), batch_size=7, **SAMPLING, num_samples=3))
  assert [row[:1] for row in three] == one
  assert all(len({tuple(sample) for sample in row}) > 1 for row in three)
  other = ids(run(ask(), batch_size=7, **SAMPLING, num_samples=3, seed=1))
  assert other != three
  same = [
    requests.Request(number=number, input_ids=inputs()[0])
    for number in (0, 5, 5)
  ]
  first, second, third = ids(run(same, **SAMPLING))
  assert first != second
  assert second == third


def test_an_output_ends_with_eos_and_has_a_log_probability_a_token():
  for result in run(ask()):
    (output,) = result.sequences
    assert len(output.ids) == len(output.log_probs) == result.num_tokens
    assert 1 not in output.ids[:-1]
    assert output.score == pytest.approx(output.log_probs.sum())
    assert output.text is None


def test_scores_of_decoded_sequences_are_their_log_probabilities():
  decoded = run(ask())
  asked = ask()
  scored = [
    requests.Request(
      number=r.number, input_ids=r.input_ids, target_ids=d.output.ids
    )
    for r, d in zip(asked, decoded, strict=True)
  ]
  mixed = [*scored[:3], *asked[3:5], *scored[5:]]
  for result, expected in zip(run(mixed), decoded, strict=True):
    if result.target_log_probs is None:
      assert result.output.ids.tolist() == expected.output.ids.tolist()
    else:
      np.testing.assert_allclose(
        result.target_log_probs, expected.output.log_probs, atol=1e-5
      )
      assert result.target_log_probs.dtype == np.float32


def test_beams_are_sorted_and_a_single_beam_is_greedy():
  greedy = run(ask())
  assert ids(run(ask(), strategy="beam", num_beams=1)) == ids(greedy)
  for result in run(
    ask(), strategy="beam", num_beams=3, num_return_sequences=2
  ):
    one, two = result.sequences
    assert one.score >= two.score
    assert one.ids.tolist() != two.ids.tolist()
    assert result.best == 0
    assert one.score == pytest.approx(one.log_probs.sum() / len(one.ids))


def test_samples_vote_and_the_calculator_reaches_every_sample():
  vocabulary = tiny_vocabulary.load()
  model, params = chain_model.make(vocabulary, with_calculator_test.SUMS)
  asked = [
    requests.Request(number=n, input_ids=np.array([5], np.int32))
    for n in range(5)
  ]

  def votes(**changes):
    settings = requests.Settings(
      strategy="sample",
      num_samples=6,
      self_consistency=True,
      max_new_tokens=16,
      **changes,
    )
    decoder = generator.Generator(
      model, settings, vocabulary=vocabulary, batch_size=2
    )
    results = {}
    for batch in decoder.run(params, asked):
      results |= batch
    return results

  plain, computed = votes(), votes(calculator=True)
  for result in plain.values():
    assert len(result.sequences) == 6
    assert sum(result.vote.shares.values()) == pytest.approx(1.0)
    assert result.best == result.vote.index
    assert result.output is result.sequences[result.best]
  assert any(
    one.text != two.text
    for place in plain
    for one, two in zip(
      plain[place].sequences, computed[place].sequences, strict=True
    )
  )


def test_a_mesh_decodes_what_one_device_does():
  model, params = loop_test.init(loop_test.T5_1_1)
  mesh = jax.make_mesh(
    (2, 2, 1),
    ("data", "fsdp", "model"),
    devices=jax.devices()[:4],
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  decoder = generator.Generator(
    model, requests.Settings(max_new_tokens=NEW_TOKENS), batch_size=4
  )
  results = {}
  for batch in decoder.run(jax.device_put(params, everywhere), ask()):
    results |= batch
  assert ids([results[n] for n in range(7)]) == ids(run(ask()))


def test_settings_that_read_texts_need_a_vocabulary():
  model, _ = loop_test.init(loop_test.T5_1_1)
  for settings in (
    requests.Settings(calculator=True),
    requests.Settings(strategy="sample", self_consistency=True),
  ):
    with pytest.raises(errors.UserError, match="needs a vocabulary"):
      generator.Generator(model, settings)
  with pytest.raises(errors.UserError, match="batch_size is 0"):
    generator.Generator(model, requests.Settings(), batch_size=0)


def test_one_text_or_a_long_request_is_named():
  model, params = loop_test.init(loop_test.T5_1_1)
  with pytest.raises(errors.UserError, match="is one text: expected a list"):
    generator.generate(model, params, "What is 3 + 4?", vocabulary=None)
  with pytest.raises(
    errors.UserError, match=r"^texts\[1\] is 3: expected a st"
  ):
    generator.generate(model, params, ["3 + 4?", 3], vocabulary=None)
  decoder = generator.Generator(model, requests.Settings(), input_limit=8)
  with pytest.raises(errors.UserError, match="request 1 has 40 tokens, more"):
    next(decoder.run(params, ask()))
