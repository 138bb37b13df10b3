"""Named arrays as bytes, in NumPy's `.npz` format."""

import io
from collections.abc import Mapping

import numpy as np


def to_bytes(
  arrays: Mapping[str, np.ndarray], *, compress: bool = False
) -> bytes:
  """Serializes named arrays exactly.

  Args:
    arrays: the arrays by name; none of objects.
    compress: whether to compress them.
  """
  file = io.BytesIO()
  (np.savez_compressed if compress else np.savez)(file, **arrays)
  return file.getvalue()


def from_bytes(state: bytes) -> dict[str, np.ndarray]:
  """Deserializes the result of `to_bytes`, and executes no pickle in it."""
  with np.load(io.BytesIO(state), allow_pickle=False) as arrays:
    return {name: arrays[name] for name in arrays.files}
