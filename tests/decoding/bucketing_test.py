"""Batches have few shapes, hold every example, and are sharded."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specialize_jax import errors
from specialize_jax.decoding import bucketing


def _example(length, value=1):
  return np.full([length], value, np.int32)


def test_batches_are_the_docstrings():
  examples = [_example(3, 7), _example(40, 8), _example(5, 9)]
  first, second = bucketing.batches(examples, batch_size=2, limit=48)
  assert first[0] == [1, 2]
  assert first[1].shape == (2, 48)
  assert first[1][1].tolist() == [9] * 5 + [0] * 43
  assert second[0] == [0, 0]
  assert second[1].shape == (2, 32)
  assert (second[1][:, :3] == 7).all()


@given(
  st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(1, 9)
)
def test_every_example_occurs_once_unchanged_and_in_few_shapes(
  lengths, batch_size
):
  examples = [_example(n, i + 1) for i, n in enumerate(lengths)]
  seen, shapes = {}, set()
  for indices, inputs in bucketing.batches(
    examples, batch_size=batch_size, limit=200
  ):
    shapes.add(inputs.shape)
    assert (inputs[:, 0] != 0).all(), "a row without a token never ends"
    for index, row in zip(indices, inputs, strict=True):
      seen[index] = row[row != 0]
  assert len(shapes) <= 4
  assert sorted(seen) == list(range(len(lengths)))
  for index, tokens in seen.items():
    np.testing.assert_array_equal(tokens, examples[index])


def test_batches_are_sharded_over_the_mesh_of_the_parameters():
  mesh = jax.make_mesh(
    (2, 2, 2),
    ("data", "fsdp", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  spec = jax.sharding.PartitionSpec("model")
  sharding = jax.sharding.NamedSharding(mesh, spec)
  params = {"w": jax.device_put(np.ones([8], np.float32), sharding)}
  laid = bucketing.batch_sharding(params, 8)
  placed = bucketing.place(np.arange(16, dtype=np.int32).reshape(8, 2), laid)
  assert placed.sharding.shard_shape(placed.shape) == (2, 2)
  assert bucketing.to_host(placed)[5].tolist() == [10, 11]
  with pytest.raises(errors.UserError, match="batch_size=6.*data x fsdp = 4"):
    bucketing.batch_sharding(params, 6)


def test_parameters_on_one_device_leave_batches_alone():
  batch = np.ones([2, 3], np.int32)
  assert bucketing.batch_sharding({"w": np.ones([2])}, 3) is None
  assert bucketing.place(batch, None) is batch
