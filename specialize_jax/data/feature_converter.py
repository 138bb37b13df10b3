"""A seqio feature converter that keeps the teacher's candidates.

For trainers that read seqio datasets through a feature converter, such as T5X
(see `t5x_bridge`). Its rows are those that `pipeline.TrainIterator` builds in
NumPy with `pack=False`. `specialize train` uses that iterator, and evaluation,
which decodes inputs only, needs no conversion.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import features

_SPEC = seqio.FeatureConverter.FeatureSpec
_ENCODER = ("encoder_input_tokens", "encoder_segment_ids")
_DECODER = (
  "decoder_target_tokens",
  "decoder_input_tokens",
  "decoder_loss_weights",
  "decoder_segment_ids",
)
_FLOATS = ("decoder_loss_weights",)


class DistillationFeatureConverter(seqio.FeatureConverter):
  """Converts each example to one row, with the teacher's candidates.

  Example. With `{"inputs": 4, "targets": 4}` and, for brevity, two candidates
  per token instead of five, the example

    inputs [7, 8, 1]  targets [3, 1]  teacher_top_ids [[3, 9], [1, 0]]
    teacher_top_probs [[0.7, 0.2], [1.0, 0.0]]  teacher_top_mask [1, 0]

  becomes

    encoder_input_tokens       7 8 1 0
    encoder_segment_ids        1 1 1 0
    decoder_target_tokens      3 1 0 0
    decoder_input_tokens       0 3 0 0
    decoder_loss_weights       1 1 0 0
    decoder_segment_ids        1 1 0 0
    decoder_teacher_top_ids    [3 9] [1 0] [0 0] [0 0]
    decoder_teacher_top_probs  [0.7 0.2] [1.0 0.0] [0 0] [0 0]
    decoder_teacher_top_mask   1 0 0 0

  Unlike seqio's encoder-decoder converter, this one adds segment ids to
  unpacked rows, so that batches have the same keys whether packed or not, and
  its `decoder_input_tokens` are 0 after the end of the target. There are no
  position features, since T5's relative attention biases do not need them. A
  target token without a target distribution (mask 0 and no candidates), such as
  an unknown piece, has loss weight 0.

  Attributes:
    TASK_FEATURES: The required features of an example; with `teacher=False`,
      for evaluation tasks, only `inputs` and `targets`.
    MODEL_FEATURES: The features of a row.
  """

  TASK_FEATURES: Mapping[str, _SPEC] = {}
  MODEL_FEATURES: Mapping[str, _SPEC] = {}
  PACKING_FEATURE_DTYPES: Mapping[str, tf.dtypes.DType] = {}

  def __init__(self, *, pack: bool = False, teacher: bool = True) -> None:
    """Creates a converter for training or for evaluation tasks.

    Args:
      pack: Must be False.
      teacher: Whether the task has `task_parts.training_features`; if not, it
        has `task_parts.evaluation_features`.

    Raises:
      UserError: `pack` is True, which this converter does not support.
    """
    if pack:
      raise errors.UserError(
        "DistillationFeatureConverter(pack=True): this converter has one"
        " example per row; packed batches come from data.pipeline.TrainIterator"
        " (pack=True)."
      )
    self._target_features = (
      features.TARGET_FEATURES if teacher else {features.TARGETS: ()}
    )
    self.TASK_FEATURES = {
      features.INPUTS: _SPEC(dtype=tf.int32),
      features.TARGETS: _SPEC(dtype=tf.int32),
    }
    self.MODEL_FEATURES = {
      name: _SPEC(dtype=tf.float32 if name in _FLOATS else tf.int32)
      for name in (*_ENCODER, *_DECODER)
    }
    for name in self._teacher_features():
      dtype, shape = features.TARGET_FEATURES[name]
      spec = _SPEC(dtype=tf.as_dtype(dtype), rank=1 + len(shape))
      self.TASK_FEATURES[name] = spec
      self.MODEL_FEATURES[f"decoder_{name}"] = spec
    super().__init__(pack=False)

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """Returns the row length of every model feature, in tokens."""
    source = task_feature_lengths[features.INPUTS]
    target = task_feature_lengths[features.TARGETS]
    return {
      name: source if name in _ENCODER else target
      for name in self.MODEL_FEATURES
    }

  def task_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """Adds the lengths of the teacher's features, equal to the targets'.

    seqio requires a length for every task feature, but users specify only those
    of `inputs` and `targets`.
    """
    target = task_feature_lengths[features.TARGETS]
    return {
      **task_feature_lengths,
      **dict.fromkeys(self._teacher_features(), target),
    }

  def _teacher_features(self) -> list[str]:
    return [n for n in self._target_features if n != features.TARGETS]

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    lengths = dict(task_feature_lengths)

    def convert(example: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
      ids, targets = example[features.INPUTS], example[features.TARGETS]
      target = tf.shape(targets)[0]
      row = {
        "encoder_input_tokens": ids,
        "encoder_segment_ids": tf.ones_like(ids),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": tf.pad(targets, [[1, 0]])[:target],
        "decoder_loss_weights": tf.ones([target], tf.float32),
        "decoder_segment_ids": tf.ones_like(targets),
      }
      for name in self._teacher_features():
        row[f"decoder_{name}"] = example[name]
      if features.TEACHER_TOP_PROBS in self.TASK_FEATURES:
        has_candidate = tf.reduce_any(
          example[features.TEACHER_TOP_PROBS] > 0, axis=-1
        )
        row["decoder_loss_weights"] = tf.cast(
          has_candidate | (example[features.TEACHER_TOP_MASK] > 0), tf.float32
        )
      return row

    ds = ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)
    model_lengths = self.get_model_feature_lengths(lengths)
    return seqio.utils.trim_and_pad_dataset(ds, model_lengths)
