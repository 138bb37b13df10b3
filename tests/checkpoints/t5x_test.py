"""T5X's own checkpoint, and others written here in the same layout."""

import dataclasses

import jax
import numpy as np
import pytest
from testdata import real_files, tiny_checkpoints

from specialize_jax import errors
from specialize_jax.checkpoints import name_table, t5x
from specialize_jax.t5 import network

CONFIG = tiny_checkpoints.config("t5_1_1", dtype="bfloat16")
DEFAULT_DISTANCE = {"relative_attention_max_distance": 128}


def test_logits_are_those_that_t5x_recorded():
  tiny = real_files.find("t5x", "tiny_t5_1_1")
  checkpoint = t5x.Checkpoint(tiny / "checkpoint_0")
  config = dataclasses.replace(checkpoint.config, dtype="float32")
  params = name_table.assemble(config, checkpoint)
  reference = np.load(tiny / "reference.npz")
  model = network.EncoderDecoder(config)
  # Compiled as users compile it: without the optimizer, which conftest.py turns
  # off, rounding alone is 1.4e-4.
  compiled_as_usual = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_use_fusion_emitters": True,
  }
  logits = jax.jit(
    lambda params, source, target: model.apply(
      {"params": params}, source, target, deterministic=True
    ),
    compiler_options=compiled_as_usual,
  )(
    params,
    reference["ids"].astype(np.int32),
    reference["dec"].astype(np.int32),
  )
  np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)


def written(tmp_path, tensors, **options):
  path = tiny_checkpoints.write_t5x(
    tmp_path / "checkpoint_7", tensors, **options
  )
  return t5x.Checkpoint(path)


def check_tensors(checkpoint, config, tensors):
  assert checkpoint.config == dataclasses.replace(config, **DEFAULT_DISTANCE)
  params = name_table.assemble(config, checkpoint)
  again = tiny_checkpoints.source_of(params)
  assert again.shapes.keys() == tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(again.read(name), value, err_msg=name)


@pytest.mark.parametrize("family", tiny_checkpoints.FAMILIES)
@pytest.mark.parametrize("layers", ["listed", "scanned"])
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_every_layout_gives_the_tensors_that_were_written(
  tmp_path, family, layers, with_optimizer
):
  config = tiny_checkpoints.config(family, dtype="bfloat16")
  tensors = tiny_checkpoints.random_tensors(config)
  stored = (
    tensors if layers == "listed" else tiny_checkpoints.scanned(tensors, config)
  )
  checkpoint = written(
    tmp_path,
    stored,
    with_optimizer=with_optimizer,
    inline=["encoder/encoder_norm/scale"],
  )
  check_tensors(checkpoint, config, tensors)


@pytest.mark.parametrize("layout", ["old_spec", "placeholder"])
def test_an_index_may_name_arrays_in_any_of_t5x_s_ways(tmp_path, layout):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  check_tensors(written(tmp_path, tensors, layout=layout), CONFIG, tensors)


def test_layers_may_be_stacked_along_the_first_axis(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  stored = tiny_checkpoints.scanned(tensors, CONFIG, axis=0)
  check_tensors(written(tmp_path, stored), CONFIG, tensors)


def test_listed_layers_may_each_have_the_table_of_their_stack(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  stored = tiny_checkpoints.per_layer_tables(tensors, CONFIG)
  check_tensors(written(tmp_path, stored), CONFIG, tensors)


def test_bfloat16_stays_as_it_is(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG, "bfloat16")
  checkpoint = written(tmp_path, tensors)
  assert {dtype.name for dtype in checkpoint.dtypes} == {"bfloat16"}
  name = "decoder/layers_1/mlp/wi_1/kernel"
  np.testing.assert_array_equal(checkpoint.read(name), tensors[name])


def test_the_first_t5x_s_disguised_bfloat16_is_refused(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  tensors["encoder/encoder_norm/scale"] = np.ones(16, np.uint16)
  with pytest.raises(errors.UserError, match="encoder_norm/scale is of type u"):
    written(tmp_path, tensors)


def test_layers_with_tables_of_their_own_are_refused(tmp_path):
  stored = tiny_checkpoints.scanned(
    tiny_checkpoints.random_tensors(CONFIG), CONFIG
  )
  stored["decoder/layers/relative_posemb/rel_embedding"][0, 1, 0] += 1
  checkpoint = written(tmp_path, stored)
  with pytest.raises(errors.UserError, match="the decoder's layers have diff"):
    name_table.assemble(CONFIG, checkpoint)


def test_another_model_is_refused_by_name(tmp_path):
  checkpoint = written(tmp_path, tiny_checkpoints.random_tensors(CONFIG))
  with pytest.raises(errors.UserError, match="missing: encoder/layers_3/"):
    name_table.assemble(
      dataclasses.replace(CONFIG, num_encoder_layers=4), checkpoint
    )


def test_what_is_no_checkpoint_is_named(tmp_path):
  with pytest.raises(errors.UserError, match="is not a T5X checkpoint"):
    t5x.Checkpoint(tmp_path)
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  path = tiny_checkpoints.write_t5x(tmp_path / "checkpoint_7", tensors)
  directory = path / "target.encoder.encoder_norm.scale"
  directory.rename(tmp_path / "lost")
  with pytest.raises(errors.UserError, match="encoder_norm.scale cannot be re"):
    t5x.Checkpoint(path)
  other = {"transformer/w": np.zeros((2, 2), np.float32)}
  tiny_checkpoints.write_t5x(tmp_path / "other", other)
  with pytest.raises(errors.UserError, match="but not of a T5"):
    _ = t5x.Checkpoint(tmp_path / "other").config
