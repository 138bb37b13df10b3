"""Reading and writing single logits is the same on TPUs and CPUs."""

import numpy as np
import pytest

from specialize_jax.losses import single_logits

BATCH, LENGTH, VOCAB = 3, 4, 7


def _case(num_slots):
  """Logits, ids (some repeated or outside the vocabulary) and values."""
  rng = np.random.default_rng(num_slots)
  shape = (BATCH, LENGTH, num_slots)
  logits = rng.standard_normal((BATCH, LENGTH, VOCAB)).astype(np.float32)
  ids = rng.integers(-2, VOCAB + 2, shape).astype(np.int32)
  return logits, ids, rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("num_slots", [0, 1, 6])
def test_reading_by_comparing_equals_reading_by_index(num_slots):
  logits, ids, _ = _case(num_slots)
  found = single_logits.read_by_comparing(logits, ids)
  np.testing.assert_array_equal(found, single_logits.read_by_index(logits, ids))
  assert (np.isneginf(found) == ((ids < 0) | (ids >= VOCAB))).all()


@pytest.mark.parametrize("num_slots", [0, 1, 6])
def test_masking_by_comparing_equals_masking_by_index(num_slots):
  logits, ids, _ = _case(num_slots)
  left = single_logits.without_by_comparing(logits, ids)
  np.testing.assert_array_equal(
    left, single_logits.without_by_index(logits, ids)
  )
  assert np.isneginf(left).any() == (num_slots > 0)


@pytest.mark.parametrize("num_slots", [0, 1, 6])
def test_adding_by_comparing_equals_adding_by_index(num_slots):
  array, ids, values = _case(num_slots)
  np.testing.assert_allclose(
    single_logits.add_by_comparing(array, ids, values),
    single_logits.add_by_index(array, ids, values),
    rtol=1e-6,
  )
