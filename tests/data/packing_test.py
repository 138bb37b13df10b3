import numpy as np
import pytest

from specialize_jax import errors
from specialize_jax.data import features, packing


def example(inputs, targets, mask=None):
  targets = np.array(targets, np.int32)
  top_ids = np.zeros((len(targets), 5), np.int32)
  top_ids[:, 0] = targets
  top_probs = np.zeros((len(targets), 5), np.float32)
  top_probs[:, 0] = np.linspace(0.5, 1.0, len(targets))
  return {
    "inputs": np.array(inputs, np.int32),
    "targets": targets,
    "teacher_top_ids": top_ids,
    "teacher_top_probs": top_probs,
    "teacher_top_mask": np.array(
      np.zeros(len(targets)) if mask is None else mask, np.int32
    ),
  }


def random_examples(count, seed, lengths=(12, 9)):
  rng = np.random.default_rng(seed)
  return [
    example(
      rng.integers(1, 90, rng.integers(1, lengths[0] + 1)),
      rng.integers(1, 90, rng.integers(1, lengths[1] + 1)),
      None,
    )
    for _ in range(count)
  ]


def pack(examples, lengths, **options):
  packer = packing.Packer(lengths, **options)
  rows = [row for one in examples for row in packer.add(one)]
  return rows + packer.flush()


def test_two_examples_fill_a_row_as_the_docstring_says():
  lengths = {"inputs": 6, "targets": 5}
  rows = pack(
    [
      example([7, 8, 1], [3, 1], [1, 0]),
      example([9, 1], [4, 5, 1], [1, 1, 0]),
    ],
    lengths,
  )
  batch = packing.to_batch(rows, lengths)
  expected = {
    "encoder_input_tokens": [7, 8, 1, 9, 1, 0],
    "encoder_segment_ids": [1, 1, 1, 2, 2, 0],
    "decoder_target_tokens": [3, 1, 4, 5, 1],
    "decoder_input_tokens": [0, 3, 0, 4, 5],
    "decoder_loss_weights": [1, 1, 1, 1, 1],
    "decoder_segment_ids": [1, 1, 2, 2, 2],
    "decoder_teacher_top_mask": [1, 0, 1, 1, 0],
  }
  for name, values in expected.items():
    np.testing.assert_array_equal(batch[name], [values], err_msg=name)
  np.testing.assert_array_equal(
    batch["decoder_teacher_top_ids"][0, :, 0], [3, 1, 4, 5, 1]
  )
  np.testing.assert_allclose(
    batch["decoder_teacher_top_probs"][0, :, 0], [0.5, 1, 0.5, 0.75, 1]
  )
  assert batch["decoder_teacher_top_ids"].shape == (1, 5, 5)
  assert batch["decoder_loss_weights"].dtype == np.float32
  assert batch["decoder_teacher_top_probs"].dtype == np.float32


def test_every_example_comes_out_once_and_whole():
  lengths = {"inputs": 20, "targets": 16}
  examples = random_examples(200, seed=1)
  rows = pack(examples, lengths, max_open_rows=4)
  batch = packing.to_batch(rows, lengths)
  found = []
  for r in range(len(rows)):
    for segment in range(1, batch["encoder_segment_ids"][r].max() + 1):
      s = batch["encoder_segment_ids"][r] == segment
      t = batch["decoder_segment_ids"][r] == segment
      found.append(
        (
          batch["encoder_input_tokens"][r, s].tolist(),
          batch["decoder_target_tokens"][r, t].tolist(),
          batch["decoder_teacher_top_probs"][r, t, 0].tolist(),
        )
      )
      assert np.ptp(np.flatnonzero(s)) == s.sum() - 1, "not side by side"
      shifted = [0, *batch["decoder_target_tokens"][r, t][:-1]]
      np.testing.assert_array_equal(
        batch["decoder_input_tokens"][r, t], shifted
      )
  expected = [
    (
      one["inputs"].tolist(),
      one["targets"].tolist(),
      one["teacher_top_probs"][:, 0].tolist(),
    )
    for one in examples
  ]
  assert sorted(found) == sorted(expected)


def test_padding_positions_hold_nothing():
  lengths = {"inputs": 20, "targets": 16}
  rows = pack(random_examples(30, seed=2), lengths)
  batch = packing.to_batch(rows, lengths)
  for name, values in batch.items():
    side = name.split("_")[0]
    empty = batch[f"{side}_segment_ids"] == 0
    assert empty.any()
    assert not values[empty].any(), name


def test_a_position_without_a_target_has_no_weight():
  # The unknown piece: no candidate, mask 0.
  lengths = {"inputs": 6, "targets": 5}
  masked = example([7, 1], [3, 2, 1])
  masked["teacher_top_ids"][1], masked["teacher_top_probs"][1] = 0, 0.0
  batch = packing.to_batch(
    pack([example([8, 1], [4, 1]), masked], lengths), lengths
  )
  np.testing.assert_array_equal(
    batch["decoder_target_tokens"], [[4, 1, 3, 2, 1]]
  )
  np.testing.assert_array_equal(
    batch["decoder_loss_weights"], [[1, 1, 1, 0, 1]]
  )


def test_a_packed_row_is_its_examples_side_by_side():
  lengths = {"inputs": 40, "targets": 30}
  row = random_examples(3, seed=3)
  packed = packing.to_batch([row], lengths)
  alone = packing.to_batch([[one] for one in row], lengths)
  for name in packed:
    if name.endswith("segment_ids"):
      continue
    side = "inputs" if name.startswith("encoder") else "targets"
    parts = [alone[name][i, : len(one[side])] for i, one in enumerate(row)]
    joined = np.concatenate(parts)
    np.testing.assert_array_equal(packed[name][0, : len(joined)], joined)


@pytest.mark.parametrize("max_open_rows", [1, 3, 64])
def test_a_restored_packer_goes_on_as_if_never_stopped(max_open_rows):
  lengths = {"inputs": 20, "targets": 16}
  examples = random_examples(60, seed=4)
  first = packing.Packer(lengths, max_open_rows=max_open_rows)
  second = packing.Packer(lengths, max_open_rows=max_open_rows)
  for one in examples[:30]:
    first.add(one)
  for one in examples[:7]:
    second.add(one)  # what it held before does not matter
  second.restore(first.state())
  assert second.state() == first.state()
  for one in examples[30:]:
    rows = first.add(one), second.add(one)
    assert packing.rows_to_bytes(rows[0]) == packing.rows_to_bytes(rows[1])
  assert packing.rows_to_bytes(first.flush()) == packing.rows_to_bytes(
    second.flush()
  )


def test_rows_survive_their_bytes_even_when_there_are_none():
  assert packing.rows_from_bytes(packing.rows_to_bytes([])) == []
  rows = [random_examples(2, seed=5), random_examples(1, seed=6)]
  back = packing.rows_from_bytes(packing.rows_to_bytes(rows))
  assert [len(row) for row in back] == [2, 1]
  for one, other in zip(rows[0] + rows[1], back[0] + back[1], strict=True):
    for name in features.TRAINING_FEATURES:
      np.testing.assert_array_equal(one[name], other[name])
      assert one[name].dtype == other[name].dtype
    assert (other["example_id"], other["data_format"]) == (b"", 0)


def test_names_and_formats_survive_with_the_rows_and_formats_run_along():
  rows = [random_examples(2, seed=5)]
  named = [
    [
      {**one, "example_id": f"q/{i}".encode(), "data_format": np.int32(4 - i)}
      for i, one in enumerate(row)
    ]
    for row in rows
  ]
  back = packing.rows_from_bytes(packing.rows_to_bytes(named))
  assert [one["example_id"] for one in back[0]] == [b"q/0", b"q/1"]
  batch = packing.to_batch(back, {"inputs": 64, "targets": 64})
  segments = batch["decoder_segment_ids"]
  expected = np.where(segments == 1, 4, np.where(segments == 2, 3, 0))
  np.testing.assert_array_equal(batch["decoder_data_formats"], expected)


def test_no_more_rows_wait_than_allowed():
  lengths = {"inputs": 12, "targets": 9}
  packer = packing.Packer(lengths, max_open_rows=5)
  for one in random_examples(100, seed=7):
    packer.add(one)
    assert len(packing.rows_from_bytes(packer.state())) <= 5


def test_rows_fill_where_lengths_allow():
  """Rows much longer than their examples have under 5 % padding."""
  lengths = {"inputs": 240, "targets": 240}
  rng = np.random.default_rng(8)
  sizes = rng.integers(10, 60, 2000)
  examples = [example(np.ones(n), np.ones(n)) for n in sizes]
  rows = pack(examples, lengths)
  padding = packing.padding_shares(packing.to_batch(rows, lengths))
  assert padding["encoder"] < 0.05
  assert padding["decoder"] < 0.05


def test_without_packing_every_example_is_a_row():
  examples = random_examples(10, seed=9)
  rows = pack(examples, {"inputs": 20, "targets": 16}, pack=False)
  assert [len(row) for row in rows] == [1] * 10


def test_an_example_longer_than_a_row_is_refused():
  packer = packing.Packer({"inputs": 3, "targets": 9})
  long = example([1, 2, 3, 4], [1])
  assert not packer.fits(long)
  with pytest.raises(ValueError, match="does not fit"):
    packer.add(long)


@pytest.mark.parametrize(
  "lengths",
  [
    {},
    {"inputs": 3},
    {"inputs": 3, "targets": 0},
    {"inputs": 3, "targets": 4, "other": 5},
  ],
)
def test_lengths_that_cannot_be_are_an_error(lengths):
  with pytest.raises(errors.UserError, match="TASK_FEATURE_LENGTHS"):
    packing.Packer(lengths)


def test_at_least_one_row_must_be_open():
  with pytest.raises(errors.UserError, match="max_open_rows=0"):
    packing.Packer({"inputs": 3, "targets": 4}, max_open_rows=0)


def test_every_example_of_a_row_begins_with_the_models_own_start():
  row = [example([7, 8, 1], [3, 1]), example([9, 1], [4, 5, 1])]
  lengths = {"inputs": 6, "targets": 6}
  usual = packing.to_batch([row], lengths)
  other = packing.to_batch([row], lengths, decoder_start_id=7)
  segments = usual["decoder_segment_ids"]
  first = (segments > 0) & (np.diff(segments, prepend=0) != 0)
  assert first.sum() == 2
  np.testing.assert_array_equal(
    other.pop("decoder_input_tokens"),
    np.where(first, 7, usual.pop("decoder_input_tokens")),
  )
  for name, values in usual.items():
    np.testing.assert_array_equal(other[name], values)
