"""Masks on rows small enough to draw."""

import jax.numpy as jnp
import numpy as np
import pytest

from specialize_jax.t5 import masks


def test_padding_is_segment_zero():
  segments = masks.segments_of_tokens(jnp.array([[7, 3, 0, 0]]), pad_id=0)
  assert segments.tolist() == [[1, 1, 0, 0]]


def test_the_encoder_sees_its_own_segment_and_no_padding():
  mask = masks.encoder(jnp.array([[1, 1, 2, 0]])).mask(4, 4)
  np.testing.assert_array_equal(
    mask[0, 0],
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
  )


def test_the_decoder_sees_no_later_position():
  mask = masks.decoder().mask(3, 3)
  np.testing.assert_array_equal(mask[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_a_packed_decoder_sees_no_other_segment():
  mask = masks.decoder(jnp.array([[1, 1, 2, 2]])).mask(4, 4)
  np.testing.assert_array_equal(
    mask[0, 0],
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
  )


def test_a_packed_target_sees_its_own_input():
  pairs = masks.cross(jnp.array([[1, 2, 0]]), jnp.array([[1, 2, 2, 0]]))
  mask = pairs.mask(4, 3)
  np.testing.assert_array_equal(
    mask[0, 0], [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
  )


def test_a_lone_target_sees_all_of_the_input_but_padding():
  mask = masks.cross(jnp.array([[1, 1, 0]])).mask(5, 3)
  assert mask.shape == (1, 1, 1, 3)
  assert mask[0, 0, 0].tolist() == [True, True, False]


@pytest.mark.parametrize(
  "pairs",
  [
    masks.encoder(jnp.array([[1, 2, 2, 0]])),
    masks.decoder(),
    masks.decoder(jnp.array([[1, 1, 2, 0]])),
    masks.cross(jnp.array([[1, 0, 2, 1]])),
    masks.cross(jnp.array([[1, 0, 2, 1]]), jnp.array([[2, 1, 1, 0]])),
  ],
)
def test_equal_segment_ids_that_are_not_padding_are_the_mask(pairs):
  query_ids, key_ids = pairs.segment_ids(1, 4, 4)
  same = (query_ids[:, :, None] == key_ids[:, None]) & (key_ids[:, None] > 0)
  if pairs.causal:
    same &= jnp.tri(4, dtype=bool)[None]
  np.testing.assert_array_equal(
    jnp.broadcast_to(pairs.mask(4, 4), (1, 1, 4, 4))[:, 0], same
  )
