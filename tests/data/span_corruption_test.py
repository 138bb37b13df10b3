import numpy as np
import pytest
import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import span_corruption, task_parts, vocabularies


def key(seed):
  return tf.constant([seed, seed + 1], tf.int64)


def mask(length, seed, density=0.15, mean=3.0):
  return span_corruption.noise_mask(
    tf.constant(length),
    noise_density=density,
    mean_span_tokens=mean,
    keys=(key(seed), key(seed + 1000)),
  ).numpy()


def spans(is_noise):
  return int(is_noise[0]) + int((np.diff(is_noise.astype(int)) == 1).sum())


def test_hidden_spans_become_sentinels_as_in_the_docstring():
  tokens = tf.constant([11, 12, 13, 14, 15, 16])
  hidden = tf.constant([False, True, False, False, True, True])
  inputs = span_corruption.hide(tokens, hidden, 99).numpy().tolist()
  targets = span_corruption.hide(tokens, ~hidden, 99).numpy().tolist()
  assert inputs == [11, 99, 13, 14, 98]
  assert targets == [99, 12, 98, 15, 16]


@pytest.mark.parametrize("length", [2, 3, 10, 100, 333])
def test_the_mask_hides_the_share_in_as_many_spans_as_asked(length):
  for seed in range(5):
    is_noise = mask(length, seed)
    assert len(is_noise) == length
    expected = int(np.clip(np.round(length * 0.15), 1, length - 1))
    assert is_noise.sum() == expected
    assert spans(is_noise) == max(1, round(expected / 3))
    assert not is_noise[0] and is_noise[-1]


def test_masks_differ_by_seed_and_agree_by_seed():
  assert len({mask(60, seed).tobytes() for seed in range(20)}) > 15
  np.testing.assert_array_equal(mask(60, 3), mask(60, 3))


def test_dense_noise_never_needs_more_spans_than_there_are_tokens():
  is_noise = mask(10, 0, density=0.9, mean=1.0)
  assert is_noise.sum() == 9
  assert spans(is_noise) == 1


def test_a_vocabulary_without_sentinels_is_refused():
  feature = seqio.Feature(seqio.ByteVocabulary(extra_ids=0))
  dataset = tf.data.Dataset.from_tensors({"text": "a text"})
  with pytest.raises(errors.UserError, match="needs sentinels"):
    span_corruption.span_corruption(dataset, {"inputs": feature})


def test_a_window_is_whole_or_as_long_as_allowed():
  tokens = tf.range(10)
  assert span_corruption.window(tokens, 20, key(1)).shape == (10,)
  starts = {
    int(span_corruption.window(tokens, 4, key(seed))[0]) for seed in range(80)
  }
  assert starts == set(range(7))


def corrupt(text, sequence_length=None):
  vocabulary = vocabularies.mini()
  dataset = tf.data.Dataset.from_tensors({"text": text})
  made = span_corruption.span_corruption(
    dataset, task_parts.training_features(vocabulary), sequence_length
  )
  return vocabulary, list(made.as_numpy_iterator())


def test_inputs_and_targets_together_spell_the_text(world):
  text = "Ann has 3 apples and buys 12. How many apples? Bob has 4 pens."
  vocabulary, made = corrupt(text)
  inputs, targets = made[0]["inputs"], made[0]["targets"]
  assert inputs[-1] == targets[-1] == vocabulary.eos_id
  first = vocabulary.vocab_size - vocabulary.extra_ids
  hidden = {}
  for token in targets[:-1].tolist():
    if token >= first:
      hidden[token] = []
    else:
      hidden[list(hidden)[-1]].append(token)
  assert list(hidden)[0] == vocabulary.vocab_size - 1
  restored = [
    piece
    for token in inputs[:-1].tolist()
    for piece in hidden.get(token, [token])
  ]
  assert restored == list(vocabulary.encode(text))


def test_long_texts_are_cut_to_a_window_and_single_tokens_dropped(world):
  _, made = corrupt("Ann has 3 apples. " * 200, {"inputs": 30, "targets": 9})
  assert len(made[0]["inputs"]) <= 30
  vocabulary, made = corrupt("Ann has 3 apples. " * 200)
  sentinels = made[0]["targets"] >= (
    vocabulary.vocab_size - vocabulary.extra_ids
  )
  assert sentinels.sum() <= vocabulary.extra_ids
  assert corrupt("")[1] == []
