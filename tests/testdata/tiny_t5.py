"""Lively random networks, one of each kind, and rows to decode."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

T5_1_1 = t5_config.T5Config(
  vocab_size=24,
  embed_dim=16,
  mlp_dim=24,
  num_heads=3,
  head_dim=4,
  num_encoder_layers=1,
  num_decoder_layers=2,
  mlp_activations=("gelu", "linear"),
  tied_head=False,
  dropout_rate=0.0,
  dtype="float32",
)
T5_1_0 = dataclasses.replace(
  T5_1_1, mlp_activations=("relu",), tied_head=True, scan_layers=False
)
PER_LAYER = dataclasses.replace(T5_1_1, relative_bias="per_layer")


@functools.cache
def init(config, std=2.0):
  """Returns the network and random parameters, drawn in NumPy.

  So nothing is compiled. `std` is that of a layer's outputs, roughly: at 2
  the logits are far from uniform.
  """
  model = network.EncoderDecoder(config)
  tokens = jnp.ones((1, 4), jnp.int32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), tokens, tokens, deterministic=True)
  )
  rng = np.random.default_rng(0)

  def draw(leaf):
    scale = leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 1.0
    return jnp.asarray(rng.normal(0, std * scale, leaf.shape), leaf.dtype)

  return model, jax.tree.map(draw, nn.meta.unbox(shapes["params"]))


def sources(num_rows, length=7, seed=0):
  """Rows of random lengths, padded."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, 24, (num_rows, length))
  lengths = rng.integers(1, length + 1, (num_rows, 1))
  return jnp.asarray(
    np.where(np.arange(length) < lengths, tokens, 0), jnp.int32
  )


def is_token(tokens_BT):
  """All up to the last token that is not padding, which may be said too."""
  said = np.asarray(tokens_BT)[:, ::-1] != 0
  return np.cumsum(said, axis=1)[:, ::-1] > 0
