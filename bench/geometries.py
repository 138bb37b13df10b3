"""The sizes of FlanT5 that are measured."""

import dataclasses
from collections.abc import Mapping

HEAD_DIM = 64
VOCAB_SIZE = 32128


@dataclasses.dataclass(frozen=True)
class Geometry:
  """The sizes of a T5 1.1 with `num_layers` layers in each stack."""

  embed_dim: int
  mlp_dim: int
  num_heads: int
  num_layers: int


GEOMETRIES: Mapping[str, Geometry] = {
  "tiny": Geometry(64, 64, 1, 1),  # so small that it only shows that all runs
  "small": Geometry(512, 1024, 6, 8),
  "base": Geometry(768, 2048, 12, 12),
  "large": Geometry(1024, 2816, 16, 24),
  "xl": Geometry(2048, 5120, 32, 24),
}


def ours(
  geometry: Geometry, vocab_size: int = VOCAB_SIZE, **fields: object
) -> object:
  """Returns the geometry as a `T5Config`, with further fields of it."""
  from specialize_jax.t5 import config

  return config.T5Config(
    vocab_size=vocab_size,
    embed_dim=geometry.embed_dim,
    mlp_dim=geometry.mlp_dim,
    num_heads=geometry.num_heads,
    head_dim=HEAD_DIM,
    num_encoder_layers=geometry.num_layers,
    num_decoder_layers=geometry.num_layers,
    mlp_activations=("gelu", "linear"),
    tied_head=False,
    **fields,
  )


def huggingface(geometry: Geometry, vocab_size: int = VOCAB_SIZE) -> object:
  """Returns the geometry as a configuration of `transformers`.

  Its head is untied, as in T5 1.1; `transformers` 5 ties that of a new model
  all the same, so its weights must be set.
  """
  import transformers

  return transformers.T5Config(
    vocab_size=vocab_size,
    d_model=geometry.embed_dim,
    d_ff=geometry.mlp_dim,
    d_kv=HEAD_DIM,
    num_heads=geometry.num_heads,
    num_layers=geometry.num_layers,
    num_decoder_layers=geometry.num_layers,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    scale_decoder_outputs=False,
    decoder_start_token_id=0,
  )
