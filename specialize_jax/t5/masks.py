"""Which key each query may look at.

Every mask comes from segment ids: 0 is padding, and each packed example of a
row has a number of its own. A row that is not packed is one segment, so that
packed and unpacked batches take the same way.
"""

import jax
import jax.numpy as jnp


def segments_of_tokens(tokens_BS: jax.Array, pad_id: int) -> jax.Array:
  """Returns int32 segment 1 where there is a token and 0 where padding."""
  return (tokens_BS != pad_id).astype(jnp.int32)


def encoder_mask(segment_ids_BS: jax.Array) -> jax.Array:
  """Gives bool `[B, 1, S, S]`: the keys of the query's own segment.

  A padding position sees nothing; attention gives it finite values that no
  other position reads.
  """
  return _same_segment(segment_ids_BS, segment_ids_BS)


def decoder_mask(
  length: int, segment_ids_BT: jax.Array | None = None
) -> jax.Array:
  """Gives bool `[B or 1, 1, T, T]`: no later key, no other segment's.

  Without segments padding needs no mask: it follows all tokens, and what
  starts the decoder may itself be the padding token.
  """
  index = jnp.arange(length)
  causal_11TT = (index[None, :] <= index[:, None])[None, None]
  if segment_ids_BT is None:
    return causal_11TT
  same_B1TT = segment_ids_BT[:, None, :, None] == segment_ids_BT[:, None, None]
  return same_B1TT & causal_11TT


def cross_mask(
  segment_ids_BS: jax.Array, segment_ids_BT: jax.Array | None = None
) -> jax.Array:
  """Gives bool `[B, 1, T or 1, S]`: the input that a target belongs to."""
  if segment_ids_BT is None:
    return (segment_ids_BS > 0)[:, None, None, :]
  return _same_segment(segment_ids_BT, segment_ids_BS)


def _same_segment(
  query_segment_ids_BT: jax.Array, key_segment_ids_BS: jax.Array
) -> jax.Array:
  query_B1T1 = query_segment_ids_BT[:, None, :, None]
  key_B11S = key_segment_ids_BS[:, None, None, :]
  return (query_B1T1 == key_B11S) & (key_B11S > 0)
