"""What the model thinks of given targets: one log-probability a token."""

import functools
import math

import jax
import jax.numpy as jnp

from specialize_jax.losses import student_scores, vocab_chunks
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

_CHUNK_LENGTH = 16
"""Positions whose logits are held at one time."""


@functools.partial(jax.jit, static_argnames="model")
def score(
  model: network.EncoderDecoder,
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  decoder_target_tokens_BT: jax.Array,
  target_lengths_B: jax.Array | None = None,
) -> jax.Array:
  """Gives each target token's log-probability after the ones before it.

  `[B, T, V]` logits are never held whole.

  Args:
    model: the network, its layers scanned or not.
    params: its parameters.
    encoder_input_tokens_BS: int32, 0 where padding.
    decoder_target_tokens_BT: int32 without a start token.
    target_lengths_B: int32, how many tokens each target has. None: padding is
      the zeros after the last token; one before it was said, and is scored.

  Returns:
    float32 `[B, T]`, in nats; 0 where the target is padding.
  """
  targets_BT = decoder_target_tokens_BT
  batch_size, length = targets_BT.shape
  start_B1 = jnp.full((batch_size, 1), t5_config.PAD_ID, targets_BT.dtype)
  hidden_BTD = model.apply(
    {"params": params},
    encoder_input_tokens_BS,
    jnp.concatenate([start_B1, targets_BT[:, :-1]], axis=1),
    deterministic=True,
    method="hidden",
  )
  # No token is set apart: the one slot stands outside of the vocabulary.
  unused_BT1 = jnp.full((batch_size, length, 1), model.config.vocab_size)
  scores = vocab_chunks.measure_chunked(
    hidden_BTD,
    network.output_kernel(params),
    unused_BT1,
    targets_BT,
    num_chunks=math.ceil(length / _CHUNK_LENGTH),
  )
  log_probs_BT = scores.target_logits_BT - student_scores.log_normalizer(scores)
  if target_lengths_B is None:
    greatest_left_BT = jax.lax.cummax(targets_BT, axis=1, reverse=True)
    is_token_BT = greatest_left_BT != t5_config.PAD_ID
  else:
    is_token_BT = jnp.arange(length)[None] < target_lengths_B[:, None]
  return jnp.where(is_token_BT, log_probs_BT, jnp.float32(0))
