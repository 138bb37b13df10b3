"""Scores given targets: the model's log-probability of each token."""

import functools
import math

import jax
import jax.numpy as jnp

from specialize_jax import losses
from specialize_jax.t5 import network

_HELD_POSITIONS = 16
"""Bounds the memory for logits: a chunk of the vocabulary has, over all target
positions of a row, at most as many logits as the whole vocabulary has over this
number of positions."""


@functools.partial(jax.jit, static_argnames="model")
def score(
  model: network.EncoderDecoder,
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  decoder_target_tokens_BT: jax.Array,
  target_lengths_B: jax.Array | None = None,
) -> jax.Array:
  """Computes the log-probability of each target token given those before it.

  `[B, T, V]` logits are never materialized: they are computed in chunks of the
  vocabulary, whose number grows with T.

  Args:
    model: the network, its layers scanned or not.
    params: its parameters.
    encoder_input_tokens_BS: int32, `T5Config.pad_id` where padding.
    decoder_target_tokens_BT: int32 without a start token.
    target_lengths_B: int32, the number of tokens of each target. If None,
      padding is what follows the last token other than `T5Config.pad_id`; a
      padding token before it is a token, and is scored.

  Returns:
    float32 `[B, T]`, in nats; 0 where the target is padding.
  """
  targets_BT = decoder_target_tokens_BT
  batch_size, length = targets_BT.shape
  config = model.config
  start_B1 = jnp.full(
    (batch_size, 1), config.decoder_start_id, targets_BT.dtype
  )
  hidden_BTD = model.apply(
    {"params": params},
    encoder_input_tokens_BS,
    jnp.concatenate([start_B1, targets_BT[:, :-1]], axis=1),
    deterministic=True,
    method="hidden",
  )
  log_probs_BT = -losses.cross_entropy_from_hidden(
    hidden_BTD,
    network.output_kernel(params),
    targets_BT,
    num_chunks=math.ceil(length / _HELD_POSITIONS),
  )
  if target_lengths_B is None:
    is_other_BT = (targets_BT != config.pad_id).astype(jnp.int32)
    is_token_BT = jax.lax.cummax(is_other_BT, axis=1, reverse=True) > 0
  else:
    is_token_BT = jnp.arange(length)[None] < target_lengths_B[:, None]
  return jnp.where(is_token_BT, log_probs_BT, jnp.float32(0))
