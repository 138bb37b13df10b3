"""Tiny T5s of both families: their tensors, and checkpoints of every kind.

All have `num_heads * head_dim != embed_dim` and stacks of different depths.
"""

import functools

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import tensorstore
import transformers
from testdata import recorded

from specialize_jax.checkpoints import name_table, sources
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

FAMILIES = {
  "t5_1_0": {"mlp_activations": ("relu",), "tied_head": True},
  "t5_1_1": {"mlp_activations": ("gelu", "linear"), "tied_head": False},
}
FEED_FORWARD = {"t5_1_0": "relu", "t5_1_1": "gated-gelu"}
RNG = np.random.default_rng(0)
SOURCE = RNG.integers(2, 40, (3, 9)).astype(np.int32)
TARGET = RNG.integers(2, 40, (3, 5)).astype(np.int32)


def config(family, **changes):
  """Our configuration."""
  return t5_config.T5Config(
    **{
      "vocab_size": 40,
      "embed_dim": 16,
      "mlp_dim": 20,
      "num_heads": 3,
      "head_dim": 6,
      "num_encoder_layers": 3,
      "num_decoder_layers": 2,
      "relative_attention_num_buckets": 8,
      "relative_attention_max_distance": 20,
      "dtype": "float32",
      **FAMILIES[family],
      **changes,
    }
  )


@functools.cache
def theirs(family):
  """The PyTorch model of the same configuration; do not change it."""
  torch = recorded.torch()
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=40,
      d_model=16,
      d_kv=6,
      d_ff=20,
      num_heads=3,
      num_layers=3,
      num_decoder_layers=2,
      relative_attention_num_buckets=8,
      relative_attention_max_distance=20,
      feed_forward_proj=FEED_FORWARD[family],
      tie_word_embeddings=family == "t5_1_0",
      decoder_start_token_id=0,
    )
  ).eval()
  if family == "t5_1_1":
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
  return model


@functools.cache
def _forward(model_config):
  model = network.EncoderDecoder(model_config)
  return jax.jit(
    lambda params: model.apply(
      {"params": params}, SOURCE, TARGET, deterministic=True
    )
  )


def our_logits(model_config, params):
  """Logits at `SOURCE` and `TARGET`."""
  return _forward(model_config)(params)


def save_theirs(family, path):
  """Writes the folder that transformers saves; returns its path."""
  return recorded.folder(
    f"t5/{family}", lambda path: theirs(family).save_pretrained(path), path
  )


def their_logits(folder, name):
  """Logits at `SOURCE` and `TARGET` of a folder that transformers loads.

  Args:
    folder: its path.
    name: of the recording of the logits, which depend on the family alone or on
      what a test changed.
  """

  def compute():
    torch = recorded.torch()
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
      output = model.eval()(
        input_ids=torch.from_numpy(SOURCE).long(),
        decoder_input_ids=torch.from_numpy(TARGET).long(),
      )
    return {"logits": output.logits.numpy()}

  return recorded.arrays(f"logits/{name}", compute)["logits"]


def random_tensors(model_config, dtype=np.float32):
  """A tensor for each name, layers listed.

  Small enough that attention is not decided by rounding.
  """
  rng = np.random.default_rng(0)
  return {
    tensor.name: (0.3 * rng.normal(size=tensor.shape)).astype(dtype)
    for tensor in name_table.tensors(model_config)
  }


def source_of(params):
  """A tree of parameters, or tensors by name, as a source."""
  leaves = flax.traverse_util.flatten_dict(params, sep="/")
  return sources.Leaves("memory", leaves)


def scanned(tensors, model_config, axis=1):
  """Stacks layers as scalable_t5 does, each with a table of its own."""
  tensors = per_layer_tables(tensors, model_config)
  stacked = {}
  depths = {
    "encoder": model_config.num_encoder_layers,
    "decoder": model_config.num_decoder_layers,
  }
  for stack, depth in depths.items():
    first = f"{stack}/layers_0/"
    for name in [name for name in tensors if name.startswith(first)]:
      rest = name.removeprefix(first)
      stacked[f"{stack}/layers/{rest}"] = np.stack(
        [tensors.pop(f"{stack}/layers_{i}/{rest}") for i in range(depth)],
        axis=axis,
      )
  return stacked | tensors


def per_layer_tables(tensors, model_config):
  """Returns every layer the table of its stack, as scalable_t5 has it."""
  tensors = dict(tensors)
  depths = {
    "encoder": model_config.num_encoder_layers,
    "decoder": model_config.num_decoder_layers,
  }
  for stack, depth in depths.items():
    table = tensors.pop(f"{stack}/relpos_bias/rel_embedding")
    for layer in range(depth):
      name = f"{stack}/layers_{layer}/relpos_bias/rel_embedding"
      tensors[name] = table.copy()
  return tensors


def write_t5x(path, tensors, *, layout="spec", with_optimizer=False, inline=()):
  """Writes what T5X writes: zarr arrays, and the msgpack index last.

  Args:
    path: of `checkpoint_<step>`.
    tensors: by name.
    layout: how the index names an array: "spec"; "old_spec", of tensorstore
      before 0.1.14, on gs://; "placeholder", as written through Orbax.
    with_optimizer: adds the optimizer's state.
    inline: names that are in the index themselves.
  """
  path.mkdir(parents=True)
  index = {}
  for name, value in tensors.items():
    key = f"target/{name}"
    if name in inline:
      index[key] = value
      continue
    directory = key.replace("/", ".")
    spec = {
      "driver": "zarr",
      "dtype": value.dtype.name,
      "kvstore": {"driver": "file", "path": f"{path / directory}/"},
      "context": {"file_io_sync": False},
      "metadata": {
        "chunks": list(value.shape),
        "compressor": {"id": "gzip", "level": 1},
        "shape": list(value.shape),
      },
    }
    tensorstore.open(spec, create=True).result().write(value).result()
    del spec["context"]
    if layout == "placeholder":
      index[key] = f"PLACEHOLDER://{directory}"
    elif layout == "old_spec":
      spec["kvstore"] = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
      index[key] = spec | {"path": f"{directory}/"}
    else:
      spec["kvstore"] = {"driver": "gfile", "path": f"{directory}/"}
      index[key] = spec
  tree = flax.traverse_util.unflatten_dict(index, sep="/")
  if with_optimizer:
    tree["state"] = {"step": np.int32(7), "param_states": {"m": np.zeros(3)}}
  (path / "checkpoint").write_bytes(
    flax.serialization.msgpack_serialize({"optimizer": tree, "version": 3})
  )
  return path
