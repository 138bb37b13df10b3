"""The feature converter, as T5X's trainer and evaluator build and call it.

T5X pads by seqio, which cannot pack a teacher's candidates: a row is an
example.
"""

from collections.abc import Mapping

import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import feature_converter, features


class FeatureConverter(feature_converter.DistillationFeatureConverter):
  """The project's converter, taking `inputs` and `targets` lengths alone.

  A dataset without a teacher, such as one that is only decoded, is converted
  without.
  """

  def __init__(
    self, pack: bool = False, use_custom_packing_ops: bool = False
  ) -> None:
    """Takes what `t5x.utils.get_dataset` gives.

    Raises:
      UserError: packing was asked for.
    """
    if pack or use_custom_packing_ops:
      raise errors.UserError(
        "utils.DatasetConfig.pack=True: seqio cannot pack a teacher's "
        "candidates, set pack and use_custom_packing_ops to False; packed "
        "rows come from `specialize train`."
      )
    super().__init__()

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Gives rows, one an example."""
    if features.TEACHER_TOP_IDS not in ds.element_spec:
      converter = feature_converter.DistillationFeatureConverter(teacher=False)
      return converter(ds, task_feature_lengths)
    return super().__call__(ds, self.task_feature_lengths(task_feature_lengths))
