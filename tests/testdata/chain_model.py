"""A T5 that is a Markov chain over pieces: its next token is known.

Attention and feed-forward blocks are zeroed, the embedding is the unit matrix
and the head holds the chain's logits, so that what follows a token depends on
that token alone.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network


def make(vocabulary, follows, vocab_size=64):
  """Returns a model and parameters.

  Args:
    vocabulary: names the tokens.
    follows: `{piece: {next piece: weight}}`; "" is the start, "</s>" the end.
      What is not named follows with probability 0.
    vocab_size: rows of the embedding.
  """
  config = t5_config.T5Config(
    vocab_size=vocab_size,
    embed_dim=vocab_size,
    mlp_dim=8,
    num_heads=1,
    head_dim=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("relu",),
    tied_head=False,
    dropout_rate=0.0,
    dtype="float32",
    scan_layers=False,
  )
  ids = {vocabulary.piece(i): i for i in range(3, vocabulary.num_pieces)}
  ids |= {"": 0, "</s>": 1}
  logits = np.full((vocab_size, vocab_size), -30.0, np.float32)
  for piece, weights in follows.items():
    for after, weight in weights.items():
      logits[ids[piece], ids[after]] = np.log(weight)
  model = network.EncoderDecoder(config)
  tokens = jnp.ones((1, 2), jnp.int32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), tokens, tokens, deterministic=True)
  )
  params = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype),
    nn.meta.unbox(shapes["params"]),
  )
  params["token_embedder"]["embedding"] = np.eye(vocab_size, dtype=np.float32)
  params["decoder"]["decoder_norm"]["scale"] += 1
  # The norm scales a unit vector to the length of vocab_size ** 0.5.
  params["decoder"]["logits_dense"]["kernel"] = logits / vocab_size**0.5
  return model, jax.tree.map(jnp.asarray, params)
