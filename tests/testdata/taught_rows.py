"""Small batches of random rows with a teacher, packed or not."""

import functools

import numpy as np

from specialize_jax.data import packing

LENGTHS = {"inputs": 12, "targets": 10}


def examples(count=6, seed=0):
  """Yields training examples of a vocabulary of 384 tokens."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    source, target = rng.integers(2, 6, 2)
    ids = np.stack([rng.permutation(384)[:5] for _ in range(target)])
    targets = np.append(rng.integers(2, 384, target - 1), 1)
    yield {
      "inputs": np.append(rng.integers(2, 384, source), 1).astype(np.int32),
      "targets": targets.astype(np.int32),
      "teacher_top_ids": ids.astype(np.int32),
      "teacher_top_probs": np.tile(
        np.array([0.5, 0.2, 0.1, 0.05, 0.0], np.float32), (target, 1)
      ),
      "teacher_top_mask": np.append(np.ones(target - 1), 0).astype(np.int32),
    }


@functools.cache
def batch(packed, seed=0):
  """Returns six examples as the model reads them."""
  packer = packing.Packer(LENGTHS, pack=packed)
  rows = [row for one in examples(seed=seed) for row in packer.add(one)]
  rows += packer.flush()
  assert packed == (len(rows) < 6)
  arrays = packing.to_batch(rows, LENGTHS)
  arrays.pop("decoder_data_formats")
  return arrays
