"""A configuration accepts valid values, and names the invalid ones."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from specialize_jax import errors
from specialize_jax.t5 import config as t5_config

TINY = {
  "vocab_size": 32,
  "embed_dim": 8,
  "mlp_dim": 16,
  "num_heads": 2,
  "head_dim": 3,
  "num_encoder_layers": 2,
  "num_decoder_layers": 1,
  "mlp_activations": ("gelu", "linear"),
  "tied_head": False,
}


def test_any_spelling_of_a_dtype_is_kept_as_its_name():
  config = t5_config.T5Config(**TINY, dtype=jnp.bfloat16)
  assert config.dtype == "bfloat16"
  assert config == t5_config.T5Config(**TINY)
  assert hash(config) == hash(t5_config.T5Config(**TINY))


def test_a_config_survives_json():
  config = t5_config.T5Config(**TINY, attention_block_sizes=(384, 256))
  text = json.dumps(dataclasses.asdict(config))
  assert t5_config.T5Config(**json.loads(text)) == config


def test_heads_need_not_fill_the_residual_stream():
  assert t5_config.T5Config(**TINY).joined_kv_dim == 6


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"embed_dim": 0}, "embed_dim is 0, and must be a whole number"),
    ({"num_heads": 2.0}, "num_heads is 2.0, and must be a whole number"),
    ({"mlp_activations": ("swish",)}, r"mlp_activations is \('swish',\)"),
    ({"mlp_activations": ()}, r"mlp_activations is \(\)"),
    ({"remat_policy": "some"}, "remat_policy is 'some', and must be one of"),
    (
      {"attention_block_sizes": (512, 0)},
      r"attention_block_sizes is \(512, 0\), and must be two whole numbers",
    ),
    ({"attention_block_sizes": 512}, "attention_block_sizes is 512, and must"),
    ({"dropout_rate": 1.0}, "dropout_rate is 1.0, and must be at least 0"),
    ({"dtype": "int32"}, "dtype is 'int32', and must be a floating"),
    ({"param_dtype": "half-ish"}, "param_dtype is 'half-ish', and must be"),
    (
      {"relative_bias": "per_head"},
      "relative_bias is 'per_head', and must be one of per_stack, per_layer",
    ),
    (
      {"relative_attention_num_buckets": 2},
      "relative_attention_num_buckets is 2, and must be at least 4",
    ),
    (
      {"relative_attention_max_distance": 16},
      "relative_attention_max_distance is 16, and must be above 16",
    ),
    ({"dtype": "float64"}, "dtype is 'float64', which JAX has only with"),
    ({"param_dtype": "float8_e4m3fn"}, "param_dtype is 'float8_e4m3fn', and"),
  ],
)
def test_a_wrong_value_is_named_with_what_was_expected(changes, message):
  with pytest.raises(errors.UserError, match=message):
    t5_config.T5Config(**{**TINY, **changes})
