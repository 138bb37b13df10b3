"""The bridge to T5X: its features, and its model where T5X is installed."""

import dataclasses
import importlib.util
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import feature_converter, packing
from specialize_jax.losses import distillation, head
from specialize_jax.t5x_bridge import features, model

LENGTHS = {"inputs": 4, "targets": 3}
HAS_T5X = importlib.util.find_spec("t5x") is not None


def dataset(*, teacher):
  row = {
    "inputs": np.array([[7, 8, 1]], np.int32),
    "targets": np.array([[3, 1]], np.int32),
  }
  if teacher:
    row |= {
      "teacher_top_ids": np.ones((1, 2, 5), np.int32),
      "teacher_top_probs": np.full((1, 2, 5), 0.2, np.float32),
      "teacher_top_mask": np.array([[1, 0]], np.int32),
    }
  return tf.data.Dataset.from_tensor_slices(row)


def test_rows_carry_the_teacher_where_there_is_one():
  converter = features.FeatureConverter(
    pack=False, use_custom_packing_ops=False
  )
  (row,) = converter(dataset(teacher=True), LENGTHS).as_numpy_iterator()
  assert row["decoder_teacher_top_mask"].tolist() == [1, 0, 0]
  assert row["decoder_teacher_top_probs"].shape == (3, 5)
  (row,) = converter(dataset(teacher=False), LENGTHS).as_numpy_iterator()
  assert "decoder_teacher_top_mask" not in row
  assert row["encoder_input_tokens"].tolist() == [7, 8, 1, 0]


def examples():
  rng = np.random.default_rng(0)
  for number in range(12):
    source, target = rng.integers(1, 7), rng.integers(1, 6)
    yield {
      "inputs": np.append(rng.integers(2, 9, source), 1).astype(np.int32),
      "targets": np.append(rng.integers(2, 9, target), 1).astype(np.int32),
      "teacher_top_ids": np.full((target + 1, 5), number, np.int32),
      "teacher_top_probs": rng.random((target + 1, 5)).astype(np.float32),
      "teacher_top_mask": np.ones(target + 1, np.int32),
    }


def as_dataset(rows):
  signature = {
    name: tf.TensorSpec((None, *value.shape[1:]), value.dtype)
    for name, value in rows[0].items()
  }
  return tf.data.Dataset.from_generator(
    lambda: iter(rows), output_signature=signature
  )


def test_packed_rows_are_those_of_our_packer():
  rows, lengths = list(examples()), {"inputs": 9, "targets": 6}
  converter = features.FeatureConverter(pack=True)
  packed = converter(as_dataset(rows), lengths)
  packer = packing.Packer(lengths)
  expected = [r for one in rows if packer.fits(one) for r in packer.add(one)]
  expected = packing.to_batch(expected + packer.flush(), lengths)
  assert len(expected["encoder_input_tokens"]) < len(rows)
  (batch,) = packed.batch(100).as_numpy_iterator()
  assert batch.keys() == expected.keys() - {"decoder_data_formats"}
  for name, value in batch.items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)
  unpacked = features.FeatureConverter()(as_dataset(rows), lengths)
  assert {k: v.shape for k, v in unpacked.element_spec.items()} == {
    k: v.shape for k, v in packed.element_spec.items()
  }


@pytest.mark.parametrize("pack", [False, True])
def test_what_is_too_long_or_was_cut_is_left_out(pack):
  row = {
    "inputs": np.array([7, 8, 1], np.int32),
    "targets": np.array([3, 1], np.int32),
    "teacher_top_ids": np.ones((2, 5), np.int32),
    "teacher_top_probs": np.full((2, 5), 0.2, np.float32),
    "teacher_top_mask": np.array([1, 0], np.int32),
  }
  long_inputs = {**row, "inputs": np.array([7, 8, 7, 8, 1], np.int32)}
  cut_inputs = {**row, "inputs": np.array([7, 8, 7, 8], np.int32)}
  cut_targets = {**row, "targets": np.array([3], np.int32)}
  rows = [long_inputs, cut_inputs, row, cut_targets]
  converted = features.FeatureConverter(pack=pack)(as_dataset(rows), LENGTHS)
  (only,) = converted.as_numpy_iterator()
  assert only["encoder_input_tokens"].tolist() == [7, 8, 1, 0]


def test_a_split_of_which_nothing_fits_is_told():
  converter = features.FeatureConverter(pack=True)
  rows = converter(as_dataset(list(examples())), {"inputs": 1, "targets": 1})
  with pytest.raises(tf.errors.InvalidArgumentError, match="raise the lengths"):
    next(rows.as_numpy_iterator())


@pytest.mark.parametrize("pack", [False, True])
def test_an_endless_dataset_of_which_nothing_fits_is_told(pack, monkeypatch):
  monkeypatch.setattr(features, "_MOST_DROPPED", 20)
  rows = features.FeatureConverter(pack=pack)(
    as_dataset(list(examples())).repeat(), {"inputs": 1, "targets": 1}
  )
  with pytest.raises(
    tf.errors.InvalidArgumentError, match="20 examples in a r"
  ):
    next(rows.as_numpy_iterator())


@pytest.mark.parametrize("lengths", [None, {"inputs": 8}])
def test_a_missing_length_is_named(lengths):
  with pytest.raises(errors.UserError, match="no length of .*targets: give"):
    features.FeatureConverter()(dataset(teacher=True), lengths)


def test_a_dataset_without_a_teacher_is_packed_by_seqio():
  converter = features.FeatureConverter(pack=True)
  (row,) = converter(dataset(teacher=False), LENGTHS).as_numpy_iterator()
  assert row["encoder_segment_ids"].tolist() == [1, 1, 1, 0]


def test_tensor2tensor_s_packing_is_refused():
  with pytest.raises(errors.UserError, match="use_custom_packing_ops=True"):
    features.FeatureConverter(pack=True, use_custom_packing_ops=True)


def test_a_stock_converter_is_refused_since_it_would_drop_the_teacher():
  with pytest.raises(errors.UserError, match="pack=True"):
    feature_converter.DistillationFeatureConverter(pack=True)
  with pytest.raises(
    errors.UserError, match="feature_converter_cls=EncDecFeatureConverter drops"
  ):
    model.distillation_model(
      loss=distillation.LossConfig(),
      feature_converter_cls=seqio.EncDecFeatureConverter,
    )


@pytest.mark.skipif(HAS_T5X, reason="T5X is installed")
def test_without_t5x_the_error_names_the_install_line():
  with pytest.raises(errors.UserError, match="T5X is not installed: install"):
    model.distillation_model(loss=distillation.LossConfig())


def test_a_t5x_that_fails_to_import_says_why(tmp_path, monkeypatch):
  (tmp_path / "t5x").mkdir()
  (tmp_path / "t5x/__init__.py").write_text("")
  (tmp_path / "t5x/broken.py").write_text("from jax import xmap_of_old")
  (tmp_path / "t5x/lacking.py").write_text("import no_such_package")
  monkeypatch.syspath_prepend(tmp_path)
  loaded = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "t5x"}
  for name in loaded:
    monkeypatch.delitem(sys.modules, name)
  try:
    for name, reason in (
      (
        "broken",
        "installed but cannot be imported .ImportError: cannot import",
      ),
      ("lacking", "cannot be imported .ModuleNotFoundError: No module named"),
    ):
      with pytest.raises(errors.UserError, match=reason):
        model.t5x_module(name)
  finally:
    for name in list(sys.modules):
      if name.split(".")[0] == "t5x":
        del sys.modules[name]


@pytest.mark.parametrize("missing_mass", ["tail", "zero"])
def test_the_loss_of_logits_is_that_of_hidden_states(missing_mass):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(4, 9)), jnp.float32)
  batch = {
    "decoder_target_tokens": jnp.asarray(rng.integers(9, size=(2, 3))),
    "decoder_loss_weights": jnp.ones((2, 3)),
    "decoder_teacher_top_ids": jnp.tile(jnp.arange(5), (2, 3, 1)),
    "decoder_teacher_top_probs": jnp.full((2, 3, 5), 0.15),
    "decoder_teacher_top_mask": jnp.asarray([[1, 0, 1], [1, 1, 0]]),
  }
  config = distillation.LossConfig(missing_mass=missing_mass, num_chunks=2)
  by_hidden = head.chunked_loss(hidden, kernel, batch, config=config)
  by_logits = distillation.loss_from_logits(
    hidden @ kernel, batch, config=config
  )
  for field in dataclasses.fields(by_hidden):
    np.testing.assert_allclose(
      getattr(by_hidden, field.name), getattr(by_logits, field.name), atol=1e-5
    )
