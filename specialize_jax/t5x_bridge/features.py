"""The feature converter that T5X's trainer and evaluator build and call.

seqio cannot pack a teacher's candidates, so the project's own packer builds
packed rows, from the examples in the order of T5X's dataset.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import feature_converter, features, packing
from specialize_jax.t5 import config as t5_config

_MOST_DROPPED = 10_000


class FeatureConverter(feature_converter.DistillationFeatureConverter):
  """The project's converter, with the lengths of `inputs` and `targets` alone.

  Examples longer than the lengths are dropped, as in `specialize train`: a
  truncated rationale teaches the student to stop in its middle. A dataset
  without a teacher is packed and truncated by seqio.
  """

  def __init__(
    self, pack: bool = False, use_custom_packing_ops: bool = False
  ) -> None:
    """Has the signature with which `t5x.utils.get_dataset` builds converters.

    Args:
      pack: whether several examples share a row.
      use_custom_packing_ops: must be False.

    Raises:
      UserError: `use_custom_packing_ops` is True.
    """
    if use_custom_packing_ops:
      raise errors.UserError(
        "utils.DatasetConfig.use_custom_packing_ops=True: tensor2tensor's ops "
        "cannot pack a teacher's candidates, set it to False; pack=True packs "
        "without them."
      )
    super().__init__()
    self._pack_rows = pack

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Converts examples to rows, packed or with one example per row.

    Args:
      ds: the examples of a task or mixture.
      task_feature_lengths: row lengths of "inputs" and "targets", in tokens;
        others are ignored.

    Returns:
      Rows of the features that `DistillationFeatureConverter` documents.

    Raises:
      UserError: a length is missing.
    """
    lengths = _row_lengths(task_feature_lengths)
    if features.TEACHER_TOP_IDS not in ds.element_spec:
      if self._pack_rows:
        return seqio.EncDecFeatureConverter(pack=True)(ds, lengths)
      return feature_converter.DistillationFeatureConverter(teacher=False)(
        ds, lengths
      )
    whole = _only_whole(ds, lengths)
    if self._pack_rows:
      return self._packed(whole, lengths)
    return super().__call__(whole, self.task_feature_lengths(lengths))

  def _packed(
    self, ds: tf.data.Dataset, lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Packs the examples by `packing.Packer`."""
    read = (*features.TRAINING_FEATURES, features.DATA_FORMAT)
    examples = ds.map(lambda one: {k: one[k] for k in read if k in one})
    row_lengths = self.get_model_feature_lengths(lengths)
    signature = {
      name: tf.TensorSpec(
        (row_lengths[name], *_trailing_shape(name)), spec.dtype
      )
      for name, spec in self.MODEL_FEATURES.items()
    }

    def rows() -> Iterator[Mapping[str, np.ndarray]]:
      packer, num_examples = packing.Packer(lengths), 0
      try:
        for example in examples.as_numpy_iterator():
          num_examples += 1
          yield from map(to_arrays, packer.add(example))
      except tf.errors.InvalidArgumentError as error:
        if _nothing_fits(lengths) not in str(error):
          raise
        raise errors.UserError(_nothing_fits(lengths)) from None
      if not num_examples:
        raise errors.UserError(
          f"TASK_FEATURE_LENGTHS={dict(lengths)}: no example of a task fits, "
          "or its split is empty: raise the lengths."
        )
      yield from map(to_arrays, packer.flush())

    def to_arrays(row: packing.Row) -> Mapping[str, np.ndarray]:
      batch = packing.to_batch([row], lengths)
      return {name: batch[name][0] for name in signature}

    return tf.data.Dataset.from_generator(rows, output_signature=signature)


def _trailing_shape(name: str) -> tuple[int, ...]:
  feature = name.removeprefix("decoder_")
  _, shape = features.TARGET_FEATURES.get(feature, (None, ()))
  return shape


def _row_lengths(
  task_feature_lengths: Mapping[str, int] | None,
) -> Mapping[str, int]:
  """Returns the lengths of `inputs` and `targets`."""
  given = task_feature_lengths or {}
  names = (features.INPUTS, features.TARGETS)
  if missing := [name for name in names if not given.get(name)]:
    raise errors.UserError(
      f"TASK_FEATURE_LENGTHS={task_feature_lengths} has no length of "
      f"{' and '.join(missing)}: give both in tokens, such as "
      '{"inputs": 768, "targets": 256}.'
    )
  return {name: given[name] for name in names}


def _only_whole(
  ds: tf.data.Dataset, lengths: Mapping[str, int]
) -> tf.data.Dataset:
  """Drops examples that are too long or truncated.

  A training dataset has no end: one of which nothing fits is noticed by the
  number of examples that have been dropped in a row.
  """

  def check(
    num_dropped: tf.Tensor, example: Mapping[str, tf.Tensor]
  ) -> tuple[tf.Tensor, tuple[tf.Tensor, Mapping[str, tf.Tensor]]]:
    fits = _is_whole(example, lengths=lengths)
    num_dropped = tf.where(fits, tf.zeros_like(num_dropped), num_dropped + 1)
    tf.debugging.assert_less(
      num_dropped,
      tf.constant(_MOST_DROPPED, tf.int64),
      _nothing_fits(lengths),
    )
    return num_dropped, (fits, example)

  checked = ds.scan(tf.constant(0, tf.int64), check)
  return checked.filter(lambda fits, _: fits).map(lambda _, example: example)


def _nothing_fits(lengths: Mapping[str, int]) -> str:
  # Without quotes, which TensorFlow escapes.
  given = ", ".join(f"{name} {length}" for name, length in lengths.items())
  return (
    f"TASK_FEATURE_LENGTHS of {given}: none of {_MOST_DROPPED:,} examples in a "
    "row fits: raise the lengths."
  )


def _is_whole(
  example: Mapping[str, tf.Tensor], *, lengths: Mapping[str, int]
) -> tf.Tensor:
  """Returns whether an example fits and has not been truncated already.

  `utils.DatasetConfig.trim_output_features` truncates `inputs` and `targets`,
  but not the teacher's features, for which it has no length.
  """
  inputs, targets = example[features.INPUTS], example[features.TARGETS]
  fits = (tf.size(inputs) <= lengths[features.INPUTS]) & (
    tf.size(targets) <= lengths[features.TARGETS]
  )
  num_taught = tf.size(example[features.TEACHER_TOP_MASK])
  # Only inputs that fill their length may have been cut.
  is_cut = (tf.size(inputs) == lengths[features.INPUTS]) & tf.reduce_any(
    inputs[-1:] != t5_config.EOS_ID
  )
  return fits & (num_taught == tf.size(targets)) & ~is_cut
