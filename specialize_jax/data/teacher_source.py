"""The teacher's aligned rows as a seqio source.

The dataset is the one that `specialize prepare` wrote, found where seqio
looks for TFDS datasets (`seqio.set_tfds_data_dir_override`), else under
`tfds/` of the data directory. Its rows are held in memory as they lie on
disk and decoded one by one, so that they can be read in any order.
"""

import functools
import os
from collections.abc import Mapping

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from specialize_jax import errors
from specialize_jax.data import sources, vocabularies
from specialize_jax.records import tfds_builder


class TeacherSource(sources.TableSource):
  """Aligned rows, of every right sample or of one a question.

  An element has the fields of `records.schema.AlignedRow`.
  """

  def __init__(
    self,
    dataset_name: str,
    vocabulary: vocabularies.LocatedSentencePieceVocabulary,
    *,
    one_per_question: bool = False,
    salt: str = "",
  ) -> None:
    """Names the dataset; reads nothing.

    Args:
      dataset_name: the TFDS dataset, such as `gsm8k_teacher`.
      vocabulary: the student's; a dataset that was aligned to another is
        refused when it is read.
      one_per_question: whether to give each question's first row only.
      salt: see `sources.TableSource`.
    """
    super().__init__(
      self._read_split,
      splits=["train"],
      description=f"TFDS dataset {dataset_name!r}",
      salt=salt,
    )
    self._dataset_name = dataset_name
    self._vocabulary = vocabulary
    self._tfds_split = (
      tfds_builder.ONE_PER_QUESTION
      if one_per_question
      else tfds_builder.ALL_SAMPLES
    )

  def num_input_examples(self, split: str) -> int:
    """Counts rows from the dataset's metadata."""
    del split  # there is one
    return self._open().info.splits[self._tfds_split].num_examples

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **options: object,
  ) -> tf.data.Dataset:
    """Gives decoded rows; see `sources.TableSource.get_dataset`."""
    features = self._open().info.features
    rows = super().get_dataset(split, shuffle, seed, shard_info, **options)
    return rows.map(
      lambda row: features.deserialize_example(row["serialized"]),
      num_parallel_calls=tf.data.AUTOTUNE,
    )

  def _read_split(self, split: str) -> Mapping[str, tf.Tensor]:
    del split  # there is one
    builder = self._open()
    written = os.stat(os.path.join(builder.data_dir, "dataset_info.json"))
    return {
      "serialized": _read_once(
        builder.data_dir, self._tfds_split, written.st_mtime_ns
      )
    }

  def _open(self) -> tfds.core.DatasetBuilder:
    """Opens the dataset and checks whose tokens it holds."""
    builder = tfds_builder.open_dataset(tfds_dir(), self._dataset_name)
    aligned_to = (builder.info.metadata or {}).get(tfds_builder.FINGERPRINT)
    if aligned_to != self._vocabulary.fingerprint:
      raise errors.UserError(
        f"dataset {builder.data_dir} was aligned to another vocabulary"
        f" (fingerprint {str(aligned_to)[:12]}) than"
        f" {self._vocabulary.sentencepiece_model_file}"
        f" ({self._vocabulary.fingerprint[:12]}): run `specialize prepare`"
        " with that file as --vocabulary"
      )
    return builder


def tfds_dir() -> str:
  """Gives the folder of TFDS datasets."""
  # The override itself is private to seqio; a loader resolves it.
  chosen = seqio.utils.LazyTfdsLoader("teacher:1.0.0").data_dir
  return chosen or os.path.join(sources.data_dir(), "tfds")


@functools.lru_cache(maxsize=4)
def _read_once(folder: str, split: str, written_ns: int) -> tf.Tensor:
  """Shares rows among the formats; `written_ns` tells a dataset rebuilt."""
  del written_ns
  return tfds_builder.read_serialized(
    tfds.builder_from_directory(folder), split
  )
