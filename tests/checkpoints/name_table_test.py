"""The table covers the model, and says by name what does not fit."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from specialize_jax import errors
from specialize_jax.checkpoints import name_table
from specialize_jax.t5 import config as t5_config

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
T5_1_0 = dataclasses.replace(
  CONFIG, mlp_activations=("relu",), tied_head=True, scan_layers=False
)
BOTH = pytest.mark.parametrize("config", [CONFIG, T5_1_0], ids=["1_1", "1_0"])


class Numbers:
  """A source whose tensors hold their own number, entry by entry."""

  where = "numbers"

  def __init__(self, config):
    self.values = {
      tensor.name: np.arange(np.prod(tensor.shape), dtype=np.float32).reshape(
        tensor.shape
      )
      + 1000 * number
      for number, tensor in enumerate(name_table.tensors(config))
    }

  @property
  def shapes(self):
    return {name: value.shape for name, value in self.values.items()}

  def read(self, name):
    return self.values[name]


@BOTH
def test_what_was_read_is_written(config):
  source = Numbers(config)
  params = name_table.assemble(config, source)
  expected = name_table.abstract_params(config)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
    lambda x: (x.shape, x.dtype), expected
  )
  written = dict(name_table.disassemble(config, params))
  assert len(written) == len(source.values)
  for tensor, value in written.items():
    np.testing.assert_array_equal(value, source.values[tensor.name])


@BOTH
def test_no_two_tensors_share_a_name(config):
  tensors = name_table.tensors(config)
  assert len({tensor.name for tensor in tensors}) == len(tensors)
  assert len({tensor.hugging_face for tensor in tensors}) == len(tensors)


def test_layers_are_stacked_in_their_order():
  source = Numbers(CONFIG)
  params = name_table.assemble(CONFIG, source)
  kernel = params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
  assert kernel.shape == (3, 16, 8)
  for layer in range(3):
    np.testing.assert_array_equal(
      kernel[layer], source.read(f"encoder/layers_{layer}/mlp/wo/kernel")
    )


def test_parameters_arrive_on_the_mesh():
  mesh = jax.make_mesh(
    (8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  )

  def place(leaf):
    spec = PartitionSpec(*[None] * (leaf.ndim - 1), "fsdp")
    return NamedSharding(
      mesh, spec if leaf.shape[-1] % 8 == 0 else PartitionSpec()
    )

  shardings = jax.tree.map(place, name_table.abstract_params(CONFIG))
  source = Numbers(CONFIG)
  params = name_table.assemble(CONFIG, source, shardings=shardings)
  assert jax.tree.map(lambda x: x.sharding, params) == shardings
  plain = name_table.assemble(CONFIG, source)
  jax.tree.map(np.testing.assert_array_equal, params, plain)


def test_a_short_vocabulary_is_filled_up_with_the_padding_token():
  short = Numbers(dataclasses.replace(CONFIG, vocab_size=10))
  params = name_table.assemble(CONFIG, short)
  embedding = np.asarray(params["token_embedder"]["embedding"])
  head = np.asarray(params["decoder"]["logits_dense"]["kernel"])
  np.testing.assert_array_equal(
    embedding[:10], short.read(name_table.EMBEDDING)
  )
  np.testing.assert_array_equal(embedding[10:], embedding[[0, 0]])
  np.testing.assert_array_equal(head[:, 10:], head[:, [0, 0]])


def test_all_that_does_not_fit_is_named():
  source = Numbers(CONFIG)
  del source.values["encoder/encoder_norm/scale"]
  source.values["decoder/pooler"] = np.zeros(3)
  source.values["decoder/decoder_norm/scale"] = np.zeros(9)
  with pytest.raises(errors.UserError) as raised:
    name_table.assemble(CONFIG, source)
  message = str(raised.value)
  assert "missing: encoder/encoder_norm/scale;" in message
  assert "unexpected: decoder/pooler;" in message
  assert "decoder/decoder_norm/scale (9,) instead of (8,)" in message


def test_a_long_list_of_names_is_cut():
  with pytest.raises(errors.UserError, match="and 37 more"):
    name_table.check(
      dataclasses.replace(CONFIG, num_encoder_layers=8), Numbers(CONFIG)
    )


def test_a_longer_vocabulary_does_not_fit():
  source = Numbers(dataclasses.replace(CONFIG, vocab_size=13))
  with pytest.raises(errors.UserError, match=r"\(13, 8\) instead of \(12, 8\)"):
    name_table.assemble(CONFIG, source)
