"""A tiny T5 1.1 in gin, for runs that are started as a user starts them.

A file that ends with it imports `specialize_jax.t5.config` first.
"""

MODEL = """
config.T5Config:
  vocab_size = 384
  embed_dim = 16
  mlp_dim = 16
  num_heads = 2
  head_dim = 8
  num_encoder_layers = 1
  num_decoder_layers = 1
  mlp_activations = ("gelu", "linear")
  tied_head = False
"""
