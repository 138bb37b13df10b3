"""Names, dtypes and ranks of what a task yields and of what a model reads.

A task example has token ids with EOS appended and, for every target token,
the teacher's candidates:

  inputs             int32 [source]
  targets            int32 [target]
  teacher_top_ids    int32 [target, 5]    unused slots hold 0
  teacher_top_probs  float32 [target, 5]  unused slots hold 0.0
  teacher_top_mask   int32 [target]       1 where the teacher was aligned

  example_id         string []            for example "gsm8k/train/7#3:FORMAT"
  data_format        int32 []             1 + its index in `formats.FORMATS`,
                                          0 for an example without a format

Where the mask is 0 (EOS, or a token that no teacher token matches) the
candidates are the one-hot target: its id and probability 1.0 in slot 0. A
position of mask 0 without candidates is not taught: its target is the unknown
piece, for characters that the vocabulary cannot spell, and the model reads a
loss weight of 0 there.

The model reads seqio's batch keys and `decoder_teacher_top_{ids,probs,mask}`;
only metrics read `decoder_data_formats`.
"""

from collections.abc import Mapping

import numpy as np

from specialize_jax.records import schema

NUM_CANDIDATES = schema.NUM_CANDIDATES

INPUTS = "inputs"
TARGETS = "targets"
TEACHER_TOP_IDS = "teacher_top_ids"
TEACHER_TOP_PROBS = "teacher_top_probs"
TEACHER_TOP_MASK = "teacher_top_mask"
EXAMPLE_ID = "example_id"
DATA_FORMAT = "data_format"

# Every feature that runs along the target: its dtype and trailing shape.
TARGET_FEATURES: Mapping[str, tuple[type, tuple[int, ...]]] = {
  TARGETS: (np.int32, ()),
  TEACHER_TOP_IDS: (np.int32, (NUM_CANDIDATES,)),
  TEACHER_TOP_PROBS: (np.float32, (NUM_CANDIDATES,)),
  TEACHER_TOP_MASK: (np.int32, ()),
}
TRAINING_FEATURES: Mapping[str, tuple[type, tuple[int, ...]]] = {
  INPUTS: (np.int32, ()),
  **TARGET_FEATURES,
}
# Features of a whole example; one that lacks them has no id and format 0.
EXAMPLE_FEATURES: Mapping[str, type] = {
  EXAMPLE_ID: np.bytes_,
  DATA_FORMAT: np.int32,
}


def is_taught(example: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns which target positions of an example have a target, bool[target].

  Args:
    example: has `TEACHER_TOP_PROBS` and `TEACHER_TOP_MASK`.
  """
  has_candidate = (example[TEACHER_TOP_PROBS] > 0).any(axis=-1)
  return has_candidate | (example[TEACHER_TOP_MASK] > 0)
