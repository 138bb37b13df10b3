"""Masks on rows small enough to draw."""

import jax.numpy as jnp
import numpy as np

from specialize_jax.t5 import masks


def test_padding_is_segment_zero():
  segments = masks.segments_of_tokens(jnp.array([[7, 3, 0, 0]]), pad_id=0)
  assert segments.tolist() == [[1, 1, 0, 0]]


def test_the_encoder_sees_its_own_segment_and_no_padding():
  mask = masks.encoder_mask(jnp.array([[1, 1, 2, 0]]))
  np.testing.assert_array_equal(
    mask[0, 0],
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
  )


def test_the_decoder_sees_no_later_position():
  mask = masks.decoder_mask(3)
  np.testing.assert_array_equal(mask[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_a_packed_decoder_sees_no_other_segment():
  mask = masks.decoder_mask(4, jnp.array([[1, 1, 2, 2]]))
  np.testing.assert_array_equal(
    mask[0, 0],
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
  )


def test_a_packed_target_sees_its_own_input():
  mask = masks.cross_mask(jnp.array([[1, 2, 0]]), jnp.array([[1, 2, 2, 0]]))
  np.testing.assert_array_equal(
    mask[0, 0], [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
  )


def test_a_lone_target_sees_all_of_the_input_but_padding():
  mask = masks.cross_mask(jnp.array([[1, 1, 0]]))
  assert mask.shape == (1, 1, 1, 3)
  assert mask[0, 0, 0].tolist() == [True, True, False]
