"""Attention masks, from segment ids.

Segment id 0 is padding, and each packed example of a row has its own id. A row
that is not packed is one segment, so packed and unpacked batches use the same
code.
"""

import flax.struct
import jax
import jax.numpy as jnp


class Pairs(flax.struct.PyTreeNode):
  """The pairs of query and key that attend to each other.

  A query attends to the keys of its segment and, with `causal`, only to those
  that are not after it. No query attends to padding, segment 0.

  Attributes:
    query_segment_ids_BT: int32; None where queries attend to all segments.
    key_segment_ids_BS: int32; None where all is one segment and no key is
      padding.
    causal: whether a query attends only to keys up to its own position.
  """

  query_segment_ids_BT: jax.Array | None
  key_segment_ids_BS: jax.Array | None
  causal: bool = flax.struct.field(default=False, pytree_node=False)

  def mask(self, num_queries: int, num_keys: int) -> jax.Array:
    """Returns bool `[B or 1, 1, T or 1, S]`, true where a pair is in it."""
    mask = jnp.ones((1, 1, 1, num_keys), bool)
    if self.key_segment_ids_BS is not None:
      key_B11S = self.key_segment_ids_BS[:, None, None, :]
      mask = key_B11S > 0
      if self.query_segment_ids_BT is not None:
        # Not in place: NumPy arrays cannot be broadcast in place.
        mask = mask & (self.query_segment_ids_BT[:, None, :, None] == key_B11S)
    if self.causal:
      query_T1 = jnp.arange(num_queries)[:, None]
      mask = mask & (jnp.arange(num_keys)[None, :] <= query_T1)[None, None]
    return mask

  def segment_ids(
    self, batch_size: int, num_queries: int, num_keys: int
  ) -> tuple[jax.Array, jax.Array]:
    """Returns ids `[B, T]` and `[B, S]`; equal ones except 0 are pairs."""
    query_ids, key_ids = self.query_segment_ids_BT, self.key_segment_ids_BS
    if key_ids is None:
      key_ids = jnp.ones((batch_size, num_keys), jnp.int32)
      query_ids = None
    elif query_ids is None:
      key_ids = (key_ids > 0).astype(jnp.int32)
    if query_ids is None:
      query_ids = jnp.ones((batch_size, num_queries), jnp.int32)
    return query_ids.astype(jnp.int32), key_ids.astype(jnp.int32)


def segments_of_tokens(tokens_BS: jax.Array, pad_id: int) -> jax.Array:
  """Returns int32 segment 1 where there is a token and 0 where padding."""
  return (tokens_BS != pad_id).astype(jnp.int32)


def encoder(segment_ids_BS: jax.Array) -> Pairs:
  """Pairs each position with those of its own segment.

  The attention output at padding is zero.
  """
  return Pairs(
    query_segment_ids_BT=segment_ids_BS, key_segment_ids_BS=segment_ids_BS
  )


def decoder(segment_ids_BT: jax.Array | None = None) -> Pairs:
  """Pairs each position with itself and the earlier ones of its segment.

  Without segment ids padding needs no mask: it follows all tokens, and the
  decoder's start token may itself be the padding token.
  """
  return Pairs(
    query_segment_ids_BT=segment_ids_BT,
    key_segment_ids_BS=segment_ids_BT,
    causal=True,
  )


def cross(
  segment_ids_BS: jax.Array, segment_ids_BT: jax.Array | None = None
) -> Pairs:
  """Pairs each target position with the input of its example."""
  return Pairs(
    query_segment_ids_BT=segment_ids_BT, key_segment_ids_BS=segment_ids_BS
  )
