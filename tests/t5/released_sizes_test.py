"""Every released size, by its gin file and by shapes only."""

import math
import pathlib

import flax.linen as nn
import gin
import jax
import pytest

from specialize_jax import errors
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

GIN_CONFIGS = pathlib.Path(__file__).parents[2] / "gin_configs"

# Elements of the released checkpoints, a tied head counted once.
NUM_PARAMETERS = {
  "t5_1_0_small": 60_506_624,
  "t5_1_0_base": 222_903_552,
  "t5_1_0_large": 737_668_096,
  "t5_1_0_xl": 2_851_598_336,
  "t5_1_0_xxl": 11_307_321_344,
  "flan_t5_small": 76_961_152,
  "flan_t5_base": 247_577_856,
  "flan_t5_large": 783_150_080,
  "flan_t5_xl": 2_849_757_184,
  "flan_t5_xxl": 11_135_332_352,
}


@pytest.fixture(autouse=True)
def empty_gin():
  gin.clear_config()
  gin.add_config_file_search_path(str(GIN_CONFIGS))
  yield
  gin.clear_config()


def configured(name: str) -> t5_config.T5Config:
  gin.parse_config_file(f"models/{name}.gin")
  return gin.get_configurable(t5_config.T5Config)()


def abstract_params(config: t5_config.T5Config):
  return nn.meta.unbox(network.boxed_shapes(network.EncoderDecoder(config)))


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_a_released_size_has_its_published_parameter_count(name):
  config = configured(name)
  params = abstract_params(config)
  counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  assert counted == NUM_PARAMETERS[name]
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
  assert config.dtype == "bfloat16"
  assert config.tied_head == name.startswith("t5_1_0")
  shape = params["encoder"]["layers"]["attention"]["query"]["kernel"].shape
  assert shape == (
    config.num_encoder_layers,
    config.embed_dim,
    config.num_heads * config.head_dim,
  )
  kernel = jax.eval_shape(network.output_kernel, params)
  assert kernel.shape == (config.embed_dim, 32128)


def test_the_mini_model_is_small_enough_for_a_laptop():
  params = abstract_params(configured("mini"))
  counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  assert counted < 10_000_000


@pytest.mark.parametrize("name", ["t5_1_0", "flan_t5"])
def test_a_family_without_a_size_does_not_build(name):
  gin.parse_config_file(f"models/{name}.gin")
  with pytest.raises(errors.UserError, match="include the gin file of a size"):
    gin.get_configurable(t5_config.T5Config)()
