"""Batches are sharded by the rules, or refused by size."""

import numpy as np
import pytest

from specialize_jax import errors
from specialize_jax.parallel import mesh, placement


def test_a_batch_is_sharded_over_data_and_fsdp():
  placed = placement.Placement(mesh=mesh.make_mesh(fsdp=2, model=2))
  rows = np.arange(24).reshape(8, 3)
  batch = placed.put_batch({"tokens": rows})
  np.testing.assert_array_equal(batch["tokens"], rows)
  assert batch["tokens"].sharding.shard_shape((8, 3)) == (2, 3)


def test_a_batch_that_cannot_be_sharded_evenly_is_refused():
  placed = placement.Placement(mesh=mesh.make_mesh())
  with pytest.raises(
    errors.UserError, match="12 rows .* over 8 devices .* multiple of 8"
  ):
    placed.put_batch({"tokens": np.zeros((12, 3))})
