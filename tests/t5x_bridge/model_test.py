"""The bridge to T5X: its features, and its model where T5X is installed."""

import dataclasses
import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from specialize_jax import errors
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


def test_packing_is_refused():
  with pytest.raises(errors.UserError, match="DatasetConfig.pack=True"):
    features.FeatureConverter(pack=True)


@pytest.mark.skipif(HAS_T5X, reason="T5X is installed")
def test_without_t5x_the_error_names_the_install_line():
  with pytest.raises(errors.UserError, match="pip install git"):
    model.distillation_model(loss=distillation.LossConfig())


def test_a_loss_of_t5x_own_is_refused():
  with pytest.raises(errors.UserError, match="z_loss=0.0001 is not read"):
    model.distillation_model(loss=distillation.LossConfig(), z_loss=1e-4)


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


@pytest.mark.skipif(
  not HAS_T5X, reason=f"T5X is not installed: {model.INSTALL}"
)
def test_the_model_is_one_of_t5x():
  from t5x import models

  assert issubclass(model._model_class(), models.EncoderDecoderModel)
