import numpy as np
import pytest
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import feature_converter, packing


def example():
  top_ids = np.zeros((2, 5), np.int32)
  top_ids[0, :2] = [3, 9]
  top_ids[1, 0] = 1
  top_probs = np.zeros((2, 5), np.float32)
  top_probs[0, :2] = [0.7, 0.2]
  top_probs[1, 0] = 1.0
  return {
    "inputs": np.array([7, 8, 1], np.int32),
    "targets": np.array([3, 1], np.int32),
    "teacher_top_ids": top_ids,
    "teacher_top_probs": top_probs,
    "teacher_top_mask": np.array([1, 0], np.int32),
  }


def convert(converter, one, lengths):
  dataset = tf.data.Dataset.from_tensors(one)
  converted = converter(dataset, converter.task_feature_lengths(lengths))
  return next(converted.as_numpy_iterator())


def test_one_example_becomes_the_row_of_the_docstring():
  row = convert(
    feature_converter.DistillationFeatureConverter(),
    example(),
    {"inputs": 4, "targets": 4},
  )
  expected = {
    "encoder_input_tokens": [7, 8, 1, 0],
    "encoder_segment_ids": [1, 1, 1, 0],
    "decoder_target_tokens": [3, 1, 0, 0],
    "decoder_input_tokens": [0, 3, 0, 0],
    "decoder_loss_weights": [1, 1, 0, 0],
    "decoder_segment_ids": [1, 1, 0, 0],
    "decoder_teacher_top_mask": [1, 0, 0, 0],
  }
  for name, values in expected.items():
    np.testing.assert_array_equal(row[name], values, err_msg=name)
  np.testing.assert_array_equal(
    row["decoder_teacher_top_ids"][:, :2], [[3, 9], [1, 0], [0, 0], [0, 0]]
  )
  np.testing.assert_allclose(
    row["decoder_teacher_top_probs"][:, :2],
    [[0.7, 0.2], [1, 0], [0, 0], [0, 0]],
  )


@pytest.mark.parametrize("unknown", [False, True])
def test_the_converter_and_the_packer_give_the_same_arrays(unknown):
  lengths = {"inputs": 6, "targets": 5}
  one = example()
  if unknown:  # the second target has neither a candidate nor a mask
    one["teacher_top_probs"][1] = 0.0
  row = convert(feature_converter.DistillationFeatureConverter(), one, lengths)
  batch = packing.to_batch([[one]], lengths)
  weights = [1, 0, 0, 0, 0] if unknown else [1, 1, 0, 0, 0]
  np.testing.assert_array_equal(row["decoder_loss_weights"], weights)
  # Which of our formats an example has is for our own trainer's metrics.
  assert row.keys() == batch.keys() - {"decoder_data_formats"}
  for name in row:
    np.testing.assert_array_equal(row[name], batch[name][0], err_msg=name)
    assert row[name].dtype == batch[name].dtype, name


def test_a_task_without_teacher_gives_the_token_features():
  one = {name: example()[name] for name in ("inputs", "targets")}
  row = convert(
    feature_converter.DistillationFeatureConverter(teacher=False),
    one,
    {"inputs": 4, "targets": 4},
  )
  assert not [name for name in row if "teacher" in name]
  np.testing.assert_array_equal(row["decoder_input_tokens"], [0, 3, 0, 0])


def test_packing_in_tf_data_is_refused():
  with pytest.raises(errors.UserError, match="TrainIterator"):
    feature_converter.DistillationFeatureConverter(pack=True)
