"""T5X's own checkpoint, and others written here in the same layout."""

import dataclasses
import os
import pathlib

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import pytest
import tensorstore

from specialize_jax import errors
from specialize_jax.checkpoints import name_table, t5x
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

DATA = pathlib.Path(
  os.environ.get(
    "SPECIALIZE_DATA",
    pathlib.Path(__file__).parents[2] / ".." / "shared" / "data",
  )
)
TINY = DATA / "t5x" / "tiny_t5_1_1"

CONFIG = t5_config.T5Config(
  vocab_size=12,
  embed_dim=8,
  mlp_dim=16,
  num_heads=2,
  head_dim=3,
  num_encoder_layers=3,
  num_decoder_layers=2,
  mlp_activations=("gelu", "linear"),
  tied_head=False,
)
T5_1_0 = dataclasses.replace(CONFIG, mlp_activations=("relu",), tied_head=True)


@pytest.mark.skipif(not TINY.exists(), reason=f"{TINY} is not here")
def test_logits_are_those_that_t5x_recorded():
  checkpoint = t5x.Checkpoint(TINY / "checkpoint_0")
  config = dataclasses.replace(checkpoint.config, dtype="float32")
  params = name_table.assemble(config, checkpoint)
  reference = np.load(TINY / "reference.npz")
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


def random_tensors(config):
  rng = np.random.default_rng(0)
  return {
    tensor.name: rng.normal(size=tensor.shape).astype(np.float32)
    for tensor in name_table.tensors(config)
  }


def scanned(tensors, config):
  """Stacks listed layers along axis 1, each with the stack's own table."""
  tensors, stacked = dict(tensors), {}
  depths = {
    "encoder": config.num_encoder_layers,
    "decoder": config.num_decoder_layers,
  }
  for stack, depth in depths.items():
    table = tensors.pop(f"{stack}/relpos_bias/rel_embedding")
    stacked[f"{stack}/layers/relative_posemb/rel_embedding"] = np.stack(
      [table] * depth, axis=1
    )
    first = f"{stack}/layers_0/"
    for name in [name for name in tensors if name.startswith(first)]:
      rest = name.removeprefix(first)
      stacked[f"{stack}/layers/{rest}"] = np.stack(
        [tensors.pop(f"{stack}/layers_{i}/{rest}") for i in range(depth)],
        axis=1,
      )
  return stacked | tensors


def write(path, tensors, *, with_optimizer=False, inline=()):
  """Writes what T5X writes: zarr arrays, and the msgpack index last."""
  path.mkdir()
  index = {}
  for name, value in tensors.items():
    key = f"target/{name}"
    if name in inline:
      index[key] = value
      continue
    directory = key.replace("/", ".")
    metadata = {
      "chunks": list(value.shape),
      "compressor": {"id": "gzip", "level": 1},
      "shape": list(value.shape),
    }
    spec = {
      "driver": "zarr",
      "dtype": value.dtype.name,
      "kvstore": {"driver": "file", "path": f"{path / directory}/"},
      "metadata": metadata,
    }
    tensorstore.open(spec, create=True).result().write(value).result()
    spec["kvstore"] = {"driver": "gfile", "path": f"{directory}/"}
    index[key] = spec
  tree = flax.traverse_util.unflatten_dict(index, sep="/")
  if with_optimizer:
    tree["state"] = {"step": np.int32(7), "param_states": {"m": np.zeros(3)}}
  (path / "checkpoint").write_bytes(
    flax.serialization.msgpack_serialize({"optimizer": tree, "version": 3})
  )
  return path


@pytest.mark.parametrize("config", [CONFIG, T5_1_0], ids=["1_1", "1_0"])
@pytest.mark.parametrize("layout", ["listed", "scanned"])
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_every_layout_gives_the_tensors_that_were_written(
  tmp_path, config, layout, with_optimizer
):
  tensors = random_tensors(config)
  stored = tensors if layout == "listed" else scanned(tensors, config)
  checkpoint = t5x.Checkpoint(
    write(
      tmp_path / "checkpoint_7",
      stored,
      with_optimizer=with_optimizer,
      inline=["encoder/encoder_norm/scale"],
    )
  )
  assert checkpoint.config == config
  params = name_table.assemble(config, checkpoint)
  for tensor, value in name_table.disassemble(config, params):
    np.testing.assert_array_equal(value, tensors[tensor.name])


def test_layers_with_tables_of_their_own_are_refused(tmp_path):
  stored = scanned(random_tensors(CONFIG), CONFIG)
  stored["decoder/layers/relative_posemb/rel_embedding"][0, 1, 0] += 1
  checkpoint = t5x.Checkpoint(write(tmp_path / "checkpoint_7", stored))
  with pytest.raises(errors.UserError, match="the decoder's layers have diff"):
    name_table.assemble(CONFIG, checkpoint)


def test_another_model_is_refused_by_name(tmp_path):
  stored = random_tensors(CONFIG)
  checkpoint = t5x.Checkpoint(write(tmp_path / "checkpoint_7", stored))
  with pytest.raises(errors.UserError, match="missing: encoder/layers_3/"):
    name_table.assemble(
      dataclasses.replace(CONFIG, num_encoder_layers=4), checkpoint
    )


def test_what_is_no_checkpoint_is_named(tmp_path):
  with pytest.raises(errors.UserError, match="is not a T5X checkpoint"):
    t5x.Checkpoint(tmp_path)
  stored = random_tensors(CONFIG)
  path = write(tmp_path / "checkpoint_7", stored)
  directory = path / "target.encoder.encoder_norm.scale"
  directory.rename(tmp_path / "lost")
  with pytest.raises(errors.UserError, match="encoder_norm.scale cannot be re"):
    t5x.Checkpoint(path)
  write(tmp_path / "other", {"transformer/w": np.zeros((2, 2), np.float32)})
  with pytest.raises(errors.UserError, match="but not of a T5"):
    _ = t5x.Checkpoint(tmp_path / "other").config
