import collections
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import features, preprocessors, task_parts


def demonstrations(count):
  return [
    formats.Demonstration(
      question=f"q{i}?", rationale=f"r{i}. The answer is {i}", answer=str(i)
    )
    for i in range(count)
  ]


def drawn(question, seeds, count=10, shown=4):
  """Returns the numbers of the demonstrations drawn under each seed."""
  draw = preprocessors.demonstration_drawer(
    demonstrations(count), formats.IN_CONTEXT_ANSWER_ONLY, shown
  )
  texts = tf.data.Dataset.range(seeds).map(
    lambda seed: draw(tf.constant(question), tf.stack([seed, 7]))
  )
  return [
    [int(block.split("?")[0]) for block in text.decode().split("Q: q")[1:]]
    for text in texts.as_numpy_iterator()
  ]


def test_demonstrations_are_different_and_never_the_question():
  for shown in drawn("q3?", 200):
    assert len(set(shown)) == len(shown) == 4
    assert 3 not in shown


def test_demonstrations_are_drawn_afresh_and_evenly():
  shown = drawn("other?", 600, 6, 2)
  counts = collections.Counter(one for pair in shown for one in pair)
  assert set(counts) == set(range(6))
  # 200 each are expected; 5 standard deviations are 58.
  assert all(142 < n < 258 for n in counts.values())
  # The order is random too: 100 each, 5 standard deviations are 46.
  first = collections.Counter(pair[0] for pair in shown)
  assert all(54 < first[i] < 146 for i in range(6))


def test_the_same_seed_draws_the_same():
  assert drawn("q1?", 5) == drawn("q1?", 5)


def test_a_repeated_question_counts_once():
  twice = demonstrations(3) + demonstrations(3)
  with pytest.raises(errors.UserError, match="3 different questions"):
    preprocessors.demonstration_drawer(twice, formats.IN_CONTEXT_ANSWER_ONLY, 3)


def test_a_demonstration_reads_as_the_formats_say():
  draw = preprocessors.demonstration_drawer(
    demonstrations(2), formats.IN_CONTEXT_CHAIN_OF_THOUGHT, 1
  )
  text = draw(tf.constant("q0?"), tf.constant([0, 0], tf.int64))
  assert text.numpy().decode() == formats.render_demonstration(
    demonstrations(2)[1], formats.IN_CONTEXT_CHAIN_OF_THOUGHT
  )


def test_distinct_numbers_cover_every_subset():
  seen = {
    tuple(preprocessors.distinct(3, 2, tf.constant([s, 1], tf.int64)).numpy())
    for s in range(60)
  }
  assert seen == {(a, b) for a in range(3) for b in range(3) if a != b}


@pytest.mark.parametrize("data_format", formats.FORMATS, ids=lambda f: f.name)
def test_rendering_in_tensorflow_is_rendering_in_python(data_format):
  row = {
    "question": "Tom's {cats} \\1 %s?",
    "rationale": "a\nb. The answer is 5",
    "answer": "5",
  }
  dataset = tf.data.Dataset.from_tensors(row)
  one = next(
    preprocessors.render(
      dataset,
      data_format=data_format,
      read_demonstrations=lambda: demonstrations(5),
      num_demonstrations=4,
    ).as_numpy_iterator()
  )
  inputs = one["inputs"].decode()
  assert inputs.endswith(formats.render_question(row["question"], data_format))
  if not data_format.in_context:
    assert inputs == formats.render_prompt(row["question"], data_format)
  assert one["targets"].decode() == formats.render_target(
    data_format, row["rationale"], row["answer"]
  )


@pytest.mark.parametrize("answer", ["나", 'so "he" said', "a\\b\nc"])
def test_an_answer_within_json_is_escaped_in_tensorflow_as_in_python(answer):
  wording = formats.Wording(answer='{"정답": "{answer}"}', answer_is_json=True)
  data_format = formats.worded(wording)[2]
  row = {"question": "q", "rationale": "r", "answer": answer}
  (rendered,) = preprocessors.render(
    tf.data.Dataset.from_tensors(row), data_format=data_format
  ).as_numpy_iterator()
  target = rendered["targets"].decode()
  assert target == formats.render_target(data_format, "", answer)
  assert json.loads(target) == {"정답": answer}


def test_an_in_context_format_needs_demonstrations():
  with pytest.raises(errors.UserError, match="needs demonstrations"):
    preprocessors.render(
      tf.data.Dataset.from_tensors({"question": "q"}),
      data_format=formats.IN_CONTEXT_ANSWER_ONLY,
    )


def test_one_hot_targets_are_certain_and_the_unknown_piece_has_none():
  dataset = tf.data.Dataset.from_tensors({"targets": np.array([7, 2, 1], "i4")})
  vocabulary = seqio.ByteVocabulary()
  assert vocabulary.unk_id == 2
  found = preprocessors.add_one_hot_teacher(
    dataset, task_parts.training_features(vocabulary)
  )
  one = next(found.as_numpy_iterator())
  np.testing.assert_array_equal(
    one["teacher_top_ids"], [[7, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(
    one["teacher_top_probs"],
    [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]],
  )
  np.testing.assert_array_equal(one["teacher_top_mask"], [0, 0, 0])
  assert features.is_taught(one).tolist() == [True, False, True]
