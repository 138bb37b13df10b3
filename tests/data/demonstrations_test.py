import collections

import pytest
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import demonstrations


def solved(count):
  return [
    formats.Demonstration(question=f"q{i}?", rationale=f"r{i}", answer=str(i))
    for i in range(count)
  ]


def drawn(asked, rows, count=10, shown=4, seed=0):
  """Draws for the first question, many rows at once."""
  drawer = demonstrations.Drawer(solved(count), shown, asked=asked)
  seed = tf.constant([seed, 7], tf.int64)
  return drawer.draw(tf.zeros([rows], tf.int32), seed).numpy().tolist()


def test_demonstrations_are_different_and_never_the_question():
  for numbers in drawn(["q3? ", "q4?"], 300):
    assert len(set(numbers)) == len(numbers) == 4
    assert 3 not in numbers


@pytest.mark.parametrize(
  "code", [*range(33), 0x85, 0xA0, 0x200B, 0x2028, 0x3000]
)
def test_tensors_are_stripped_as_python_strips(code):
  """Else a question could be shown its own answer."""
  text = f"{chr(code)} a{chr(code)}b \u00a0{chr(code)}"
  stripped = demonstrations.stripped(tf.constant(text)).numpy().decode()
  assert stripped == text.strip()


def test_they_are_drawn_evenly_and_in_any_order():
  numbers = drawn(["another?"], 600, 6, 2)
  counts = collections.Counter(one for pair in numbers for one in pair)
  assert set(counts) == set(range(6))
  # 200 each are expected; 5 standard deviations are 58.
  assert all(142 < n < 258 for n in counts.values())
  # The order is random too: 100 each, 5 standard deviations are 46.
  first = collections.Counter(pair[0] for pair in numbers)
  assert all(54 < first[i] < 146 for i in range(6))


def test_the_question_s_own_place_is_filled_evenly():
  numbers = drawn(["q0?"], 600, 4, 2)
  counts = collections.Counter(one for pair in numbers for one in pair)
  # 400 each are expected; 5 standard deviations are 58.
  assert set(counts) == {1, 2, 3}
  assert all(342 < n < 458 for n in counts.values())


def test_the_same_seed_draws_the_same_and_another_seed_others():
  assert drawn(["q1?"], 20) == drawn(["q1?"], 20)
  assert drawn(["q1?"], 20) != drawn(["q1?"], 20, seed=1)


def test_every_subset_is_drawn():
  rows = demonstrations.distinct_rows(
    tf.constant(200), 3, 2, tf.constant([3, 1], tf.int64)
  )
  assert {tuple(row) for row in rows.numpy()} == {
    (a, b) for a in range(3) for b in range(3) if a != b
  }


def test_a_repeated_question_counts_once():
  with pytest.raises(errors.UserError, match="3 different questions"):
    demonstrations.Drawer(solved(3) + solved(3), 3, asked=["q"])


def test_an_in_context_format_needs_demonstrations():
  with pytest.raises(errors.UserError, match="needs demonstrations"):
    demonstrations.read(formats.IN_CONTEXT_ANSWER_ONLY, None)
