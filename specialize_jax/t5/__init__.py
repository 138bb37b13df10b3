"""The encoder-decoder network, v1.0 and v1.1/FLAN, as Flax linen modules.

Example:
  >>> import jax, jax.numpy as jnp
  >>> from specialize_jax import t5
  >>> config = t5.T5Config(
  ...   vocab_size=32,
  ...   embed_dim=8,
  ...   mlp_dim=16,
  ...   num_heads=2,
  ...   head_dim=4,
  ...   num_encoder_layers=1,
  ...   num_decoder_layers=1,
  ...   mlp_activations=("gelu", "linear"),
  ...   tied_head=False,
  ... )
  >>> model = t5.EncoderDecoder(config)
  >>> tokens = jnp.array([[5, 6, 1]])
  >>> rng = jax.random.key(0)  # dropout is off
  >>> variables = model.init(rng, tokens, tokens, deterministic=True)
  >>> logits = model.apply(variables, tokens, tokens, deterministic=True)
  >>> logits.shape  # [batch, target, vocabulary]
  (1, 3, 32)
"""

from specialize_jax.t5.config import T5Config as T5Config
from specialize_jax.t5.network import EncoderDecoder as EncoderDecoder

__all__ = ["EncoderDecoder", "T5Config"]
