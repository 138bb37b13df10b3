"""Named arrays as bytes."""

import io

import numpy as np
import pytest

from specialize_jax.files import npz


@pytest.mark.parametrize("compress", [False, True])
def test_bytes_hold_arrays_exactly(compress):
  arrays = {
    "halves": np.array([0.5, np.inf], np.float16),
    "ids": np.array([b"a", b"bc"]),
    "none": np.zeros((0, 5), np.uint16),
    "one": np.array(7),
  }
  found = npz.from_bytes(npz.to_bytes(arrays, compress=compress))
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    assert found[name].dtype == array.dtype
    assert found[name].shape == array.shape
    np.testing.assert_array_equal(found[name], array)


def test_a_pickle_is_refused():
  file = io.BytesIO()
  np.savez(file, objects=np.array([{"a": 1}], object))
  with pytest.raises(ValueError, match="allow_pickle=False"):
    npz.from_bytes(file.getvalue())
