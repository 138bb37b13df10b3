"""Which key each query may look at.

All of it comes from segment ids: 0 is padding, and each packed example of a
row has a number of its own. A row that is not packed is one segment, so that
packed and unpacked batches take the same way.
"""

import flax.struct
import jax
import jax.numpy as jnp


class Pairs(flax.struct.PyTreeNode):
  """The pairs of query and key that attention is over.

  A query may look at the keys of its own segment, and with `causal` at those
  only that are not after it. Padding, segment 0, is looked at by nobody.

  Attributes:
    query_segment_ids_BT: int32; None where queries look at all segments.
    key_segment_ids_BS: int32; None where all is one segment and no key is
      padding.
    causal: whether a query may look only at keys up to its own position.
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
        # Not in place: ids may be NumPy arrays, which do not broadcast so.
        mask = mask & (self.query_segment_ids_BT[:, None, :, None] == key_B11S)
    if self.causal:
      query_T1 = jnp.arange(num_queries)[:, None]
      mask = mask & (jnp.arange(num_keys)[None, :] <= query_T1)[None, None]
    return mask

  def segment_ids(
    self, batch_size: int, num_queries: int, num_keys: int
  ) -> tuple[jax.Array, jax.Array]:
    """Returns ids `[B, T]` and `[B, S]` of which equal ones pair, but for 0."""
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

  A padding position sees nothing; attention returns zeros for it.
  """
  return Pairs(
    query_segment_ids_BT=segment_ids_BS, key_segment_ids_BS=segment_ids_BS
  )


def decoder(segment_ids_BT: jax.Array | None = None) -> Pairs:
  """Pairs each position with itself and the earlier ones of its segment.

  Without segments padding needs no mask: it follows all tokens, and what
  starts the decoder may itself be the padding token.
  """
  return Pairs(
    query_segment_ids_BT=segment_ids_BT,
    key_segment_ids_BS=segment_ids_BT,
    causal=True,
  )


def cross(
  segment_ids_BS: jax.Array, segment_ids_BT: jax.Array | None = None
) -> Pairs:
  """Pairs each target position with the input that it belongs to."""
  return Pairs(
    query_segment_ids_BT=segment_ids_BT, key_segment_ids_BS=segment_ids_BS
  )
