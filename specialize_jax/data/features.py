"""Names, dtypes and shapes of a task's features and of a model's batch.

A task example has token ids with EOS appended and, for every target token,
the teacher's candidates:

  inputs             int32 [source]
  targets            int32 [target]
  teacher_top_ids    int32 [target, 5]    0 in unused slots
  teacher_top_probs  float32 [target, 5]  0.0 in unused slots
  teacher_top_mask   int32 [target]       1 where the teacher was aligned

  example_id         string []            for example "gsm8k/train/7#3:FORMAT"
  data_format        int32 []             1 + its index in `formats.FORMATS`,
                                          0 for an example without a format

Where the mask is 0 (EOS, or a token that matches no teacher token) the target
is one-hot: its id, with probability 1.0, is in slot 0. A position with mask 0
and no candidates has loss weight 0: its token is the unknown piece, for
characters that the vocabulary cannot spell.

A model's batch has seqio's keys and `decoder_teacher_top_{ids,probs,mask}`;
`decoder_data_formats` is used by metrics only.
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

# Every feature along the target axis: its dtype and trailing shape.
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
# Features of a whole example; if they are missing, the id is empty and the
# format 0.
EXAMPLE_FEATURES: Mapping[str, type] = {
  EXAMPLE_ID: np.bytes_,
  DATA_FORMAT: np.int32,
}


def is_taught(example: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns which positions of an example have a target, bool[target].

  Args:
    example: An example with `TEACHER_TOP_PROBS` and `TEACHER_TOP_MASK`.
  """
  has_candidate = (example[TEACHER_TOP_PROBS] > 0).any(axis=-1)
  return has_candidate | (example[TEACHER_TOP_MASK] > 0)
