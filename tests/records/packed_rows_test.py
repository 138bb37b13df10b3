import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specialize_jax.records import packed_rows


def positions(lengths, seed=0, vocab_size=65_536):
  """Targets of every kind: full, one-hot, empty, not their own first."""
  rng = np.random.default_rng(seed)
  total = sum(lengths)
  used = np.arange(5) < rng.integers(0, 6, total)[:, None]
  top_ids = np.where(used, rng.integers(1, vocab_size, (total, 5)), 0)
  own = rng.integers(0, 2, total) == 1
  return packed_rows.Positions(
    lengths=np.array(lengths, np.int64),
    target_ids=np.where(
      own, top_ids[:, 0], rng.integers(1, vocab_size, total)
    ).astype(np.int32),
    top_ids=top_ids.astype(packed_rows.id_dtype(vocab_size)),
    top_log_probs=np.where(used, rng.normal(-3, 1, (total, 5)), -np.inf).astype(
      np.float16
    ),
    mask=rng.integers(0, 2, total).astype(np.uint8),
  )


def unpacked(rows):
  return packed_rows.unpack(
    [row.flags for row in rows],
    [row.ids for row in rows],
    [row.log_probs for row in rows],
  )


@settings(deadline=None)
@given(
  st.lists(st.integers(0, 9), min_size=1, max_size=8),
  st.integers(0, 1000),
  st.sampled_from([65_536, 152_000]),
)
def test_rows_come_back_exactly(lengths, seed, vocab_size):
  given_ = positions(lengths, seed, vocab_size)
  numbers = range(len(lengths))
  truncated = [bool(length % 2) for length in lengths]
  rows = packed_rows.pack(
    given_, questions=numbers, samples=numbers, truncated=truncated
  )
  bits = [bool(row.flags[-1:] >= b"\x20") for row in rows]
  assert bits == truncated
  assert [row.question for row in rows] == list(numbers)
  back = unpacked(rows)
  for name, value in vars(given_).items():
    np.testing.assert_array_equal(getattr(back, name), value, name)
    if sum(lengths):  # without an id there is no width to show
      assert getattr(back, name).dtype == value.dtype, name


def test_a_row_comes_back_without_the_others():
  given_ = positions([3, 4, 2])
  rows = packed_rows.pack(given_, questions=[7, 8, 9], samples=[0, 0, 1])
  back = unpacked(rows[1:2])
  np.testing.assert_array_equal(back.top_ids, given_.top_ids[3:7])
  np.testing.assert_array_equal(back.target_ids, given_.target_ids[3:7])


def test_a_position_takes_21_bytes_and_a_one_hot_one_5():
  full = packed_rows.Positions(
    lengths=np.array([1]),
    target_ids=np.array([9], np.int32),
    top_ids=np.array([[9, 8, 7, 6, 5]], np.uint16),
    top_log_probs=np.full((1, 5), -2, np.float16),
    mask=np.array([1], np.uint8),
  )
  (row,) = packed_rows.pack(full, questions=[0], samples=[0])
  assert [len(x) for x in (row.flags, row.ids, row.log_probs)] == [1, 10, 10]
  one_hot = packed_rows.Positions(
    lengths=np.array([1]),
    target_ids=np.array([9], np.int32),
    top_ids=np.array([[9, 0, 0, 0, 0]], np.uint16),
    top_log_probs=np.array([[0, *[-np.inf] * 4]], np.float16),
    mask=np.array([0], np.uint8),
  )
  (row,) = packed_rows.pack(one_hot, questions=[0], samples=[0])
  assert [len(x) for x in (row.flags, row.ids, row.log_probs)] == [1, 2, 2]


def test_a_target_beyond_its_candidates_dtype_is_a_defect():
  given_ = positions([2])
  given_.target_ids[0] = 70_000
  with pytest.raises(ValueError, match="70000"):
    packed_rows.pack(given_, questions=[0], samples=[0])


def test_the_width_of_ids_is_that_of_the_vocabulary():
  assert packed_rows.id_dtype(65_536) is np.uint16
  assert packed_rows.id_dtype(65_537) is np.uint32
