"""Buckets by hand and by transformers; the laid-out bias by a plain gather."""

import jax
import numpy as np
import pytest
from testdata import recorded

from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import relative_position

CONFIG = t5_config.T5Config(
  vocab_size=32,
  embed_dim=8,
  mlp_dim=16,
  num_heads=3,
  head_dim=4,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_activations=("relu",),
  tied_head=True,
)


def test_small_numbers_have_the_buckets_of_the_docstring():
  distance = np.array([-20, -2, -1, 0, 1, 2, 20])
  rows = relative_position.bucket(
    distance, bidirectional=True, num_buckets=8, max_distance=16
  )
  assert rows.tolist() == [3, 2, 1, 0, 5, 6, 7]


def test_a_decoder_has_one_bucket_for_all_later_keys():
  rows = relative_position.bucket(
    np.array([3, 0, -1, -7, -8, -500]),
    bidirectional=False,
    num_buckets=32,
    max_distance=128,
  )
  assert rows.tolist() == [0, 0, 1, 7, 8, 31]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20)])
def test_buckets_are_those_of_transformers(bidirectional, buckets, distance):
  distances = np.arange(-2048, 2049)

  def theirs():
    from transformers.models.t5 import modeling_t5

    found = modeling_t5.T5Attention._relative_position_bucket(
      recorded.torch().from_numpy(distances),
      bidirectional=bidirectional,
      num_buckets=buckets,
      max_distance=distance,
    )
    return {"buckets": found.numpy().astype(np.uint8)}

  name = f"buckets/{buckets}_{distance}_{bidirectional}"
  ours = relative_position.bucket(
    distances,
    bidirectional=bidirectional,
    num_buckets=buckets,
    max_distance=distance,
  )
  expected = recorded.arrays(name, theirs)["buckets"]
  np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("lengths", [(1, 1), (5, 5), (3, 7), (6, 2), (1, 9)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_laid_out_bias_is_the_table_gathered_by_distance(
  lengths, bidirectional
):
  query_length, key_length = lengths
  module = relative_position.RelativePositionBias(
    bidirectional=bidirectional, config=CONFIG
  )
  variables = module.init(jax.random.key(0))
  table = variables["params"]["rel_embedding"].value
  bias = module.apply(variables).on_plane(query_length, key_length)
  distance = np.arange(key_length)[None, :] - np.arange(query_length)[:, None]
  rows = relative_position.bucket(
    distance, bidirectional=bidirectional, num_buckets=32, max_distance=128
  )
  np.testing.assert_array_equal(bias, np.asarray(table)[:, rows])


@pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 5), (3, 7), (6, 1)])
@pytest.mark.parametrize(
  "diagonal_sums",
  [
    relative_position.diagonal_sums_by_rows,
    relative_position.diagonal_sums_by_shifting,
  ],
)
def test_the_gradient_sums_the_pairs_of_each_distance(
  num_queries, num_keys, diagonal_sums
):
  """As a gather's gradient does, on a CPU and elsewhere."""
  rng = np.random.default_rng(0)
  gradient = rng.standard_normal((2, num_queries, num_keys), np.float32)
  expected = np.zeros((2, num_queries + num_keys), np.float32)
  for query, key in np.ndindex(num_queries, num_keys):
    expected[:, key - query + num_queries - 1] += gradient[:, query, key]
  np.testing.assert_allclose(
    diagonal_sums(gradient), expected, rtol=1e-5, atol=1e-6
  )
  _, pull_back = jax.vjp(
    lambda bias: relative_position.on_plane(bias, num_queries), expected
  )
  np.testing.assert_allclose(
    pull_back(gradient)[0], expected, rtol=1e-5, atol=1e-6
  )
