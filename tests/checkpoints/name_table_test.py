"""The table covers the model, and says by name what does not fit."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from testdata import tiny_checkpoints

from specialize_jax import errors
from specialize_jax.checkpoints import name_table, sources

CONFIG = tiny_checkpoints.config("t5_1_1")
T5_1_0 = tiny_checkpoints.config("t5_1_0", scan_layers=False)
BOTH = pytest.mark.parametrize("config", [CONFIG, T5_1_0], ids=["1_1", "1_0"])


def numbers(config):
  """Tensors that hold their own number, entry by entry."""
  return {
    tensor.name: np.arange(np.prod(tensor.shape), dtype=np.float32).reshape(
      tensor.shape
    )
    + 1000 * number
    for number, tensor in enumerate(name_table.tensors(config))
  }


def source_of(config):
  return sources.Leaves("numbers", numbers(config))


@BOTH
def test_what_was_read_is_written(config):
  source = source_of(config)
  params = name_table.assemble(config, source)
  expected = name_table.abstract_params(config)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
    lambda x: (x.shape, x.dtype), expected
  )
  again = tiny_checkpoints.source_of(params)
  assert again.shapes == source.shapes
  for name in source.shapes:
    np.testing.assert_array_equal(again.read(name), source.read(name))


@BOTH
def test_no_two_tensors_share_a_name(config):
  tensors = name_table.tensors(config)
  assert len({tensor.name for tensor in tensors}) == len(tensors)
  assert len({tensor.hugging_face for tensor in tensors}) == len(tensors)


def test_layers_are_stacked_in_their_order():
  source = source_of(CONFIG)
  params = name_table.assemble(CONFIG, source)
  kernel = params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
  assert kernel.shape == (3, 20, 16)
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
  source = source_of(CONFIG)
  params = name_table.assemble(CONFIG, source, shardings=shardings)
  assert jax.tree.map(lambda x: x.sharding, params) == shardings
  plain = name_table.assemble(CONFIG, source)
  jax.tree.map(np.testing.assert_array_equal, params, plain)


def test_a_short_vocabulary_is_filled_up_with_the_padding_token():
  short = source_of(dataclasses.replace(CONFIG, vocab_size=38))
  params = name_table.assemble(CONFIG, short)
  embedding = np.asarray(params["token_embedder"]["embedding"])
  head = np.asarray(params["decoder"]["logits_dense"]["kernel"])
  np.testing.assert_array_equal(embedding[:38], short.read(sources.EMBEDDING))
  np.testing.assert_array_equal(embedding[38:], embedding[[0, 0]])
  np.testing.assert_array_equal(head[:, 38:], head[:, [0, 0]])


def test_all_that_does_not_fit_is_named():
  tensors = numbers(CONFIG)
  del tensors["encoder/encoder_norm/scale"]
  tensors["decoder/pooler"] = np.zeros(3)
  tensors["decoder/decoder_norm/scale"] = np.zeros(9)
  with pytest.raises(errors.UserError) as raised:
    name_table.assemble(CONFIG, sources.Leaves("numbers", tensors))
  message = str(raised.value)
  assert "missing: encoder/encoder_norm/scale;" in message
  assert "unexpected: decoder/pooler;" in message
  assert "decoder/decoder_norm/scale (9,) instead of (16,)" in message


def test_a_long_list_of_names_is_cut():
  with pytest.raises(errors.UserError, match="and 37 more"):
    name_table.check(
      dataclasses.replace(CONFIG, num_encoder_layers=8), source_of(CONFIG)
    )


def test_a_longer_vocabulary_does_not_fit_until_it_is_trimmed():
  source = source_of(dataclasses.replace(CONFIG, vocab_size=41))
  with pytest.raises(errors.UserError, match=r"\(41, 16\) instead of \(40, 16"):
    name_table.assemble(CONFIG, source)
  params = name_table.assemble(CONFIG, sources.Trimmed(source, 40))
  head = params["decoder"]["logits_dense"]["kernel"]
  np.testing.assert_array_equal(head, source.read(sources.HEAD)[:, :40])


def test_parameters_may_be_read_piece_by_piece():
  source = source_of(CONFIG)
  streamed = name_table.streamed(CONFIG, source)["decoder"]
  scale = streamed["layers"]["pre_mlp_layer_norm"]["scale"]
  pieces = list(scale.read())
  assert [(begin, piece.shape) for begin, piece in pieces] == [
    (0, (1, 16)),
    (1, (1, 16)),
  ]
  np.testing.assert_array_equal(
    pieces[1][1][0], source.read("decoder/layers_1/pre_mlp_layer_norm/scale")
  )
