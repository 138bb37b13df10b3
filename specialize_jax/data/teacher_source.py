"""The teacher's rows as a seqio source.

The dataset is the one that `specialize prepare` wrote. It is searched for in
seqio's directory of TFDS datasets (`seqio.set_tfds_data_dir_override`), or else
in `tfds/` of the data directory. Its rows are in memory in the packed form in
which they are stored (400 MB for 207,000 samples of 100 tokens), and shared by
all formats.

The source yields row numbers. The rows are looked up in batches when a format
is rendered, so that the state of an iterator is small.
"""

import dataclasses
import functools

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from specialize_jax import errors
from specialize_jax.data import sources, vocabularies
from specialize_jax.records import tfds_builder

VALIDATION = "validation"
"""The name of the second split, and the key that marks its elements."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class QuestionTable:
  """The questions of a dataset.

  Attributes:
    ids: Their ids.
    texts: Their texts.
    answers: Their bare answers.
  """

  ids: list[str]
  texts: list[str]
  answers: list[str]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RowTable:
  """All rows of a dataset, packed as defined by `records.packed_rows`.

  Attributes:
    question: int32[N], the index of each row's question in a `QuestionTable`.
    sample: int64[N], the index of each row among its question's samples.
    flags: string[N].
    ids: string[N].
    log_probs: string[N].
  """

  question: tf.Tensor
  sample: tf.Tensor
  flags: tf.Tensor
  ids: tf.Tensor
  log_probs: tf.Tensor


class TeacherSource(sources.TableSource):
  """Row numbers of correct samples or, with `one_per_question`, of questions.

  An element is `{"row": int64}`, an index into `rows` or into `questions`. The
  split "validation" is a separate dataset with the rows of the validation
  questions. Its elements also have the key "validation", from which
  preprocessors know the split when they build their graph.
  """

  def __init__(
    self,
    dataset_name: str,
    vocabulary: vocabularies.LocatedSentencePieceVocabulary,
    *,
    one_per_question: bool = False,
    salt: str = "",
    directory: str | None = None,
  ) -> None:
    """Creates a source, without reading anything.

    Args:
      dataset_name: The TFDS dataset, such as `gsm8k_teacher`.
      vocabulary: The student's vocabulary. Reading a dataset that was aligned
        with another vocabulary raises an error.
      one_per_question: Whether elements are questions instead of rows.
      salt: See `sources.TableSource`.
      directory: The directory of TFDS datasets if seqio has no override; None
        for `tfds/` in the data directory.
    """
    super().__init__(
      lambda split: {"row": range(self.num_input_examples(split))},
      splits=["train", "validation"],
      description=f"TFDS dataset {dataset_name!r}",
      salt=salt,
    )
    self._dataset_name = dataset_name
    self._vocabulary = vocabulary
    self._directory = directory
    self.one_per_question = one_per_question

  def num_input_examples(self, split: str) -> int:
    """Returns the number of elements, from the dataset's metadata."""
    config = (
      tfds_builder.QUESTIONS if self.one_per_question else tfds_builder.ROWS
    )
    builder = self._open(config, split)
    return builder.info.splits[tfds_builder.SPLIT].num_examples

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused_options: object,
  ) -> tf.data.Dataset:
    """Returns row numbers; see `sources.TableSource.get_dataset`."""
    numbers = sources.row_numbers(
      self.num_input_examples(split), shuffle=shuffle, seed=seed, salt=self.salt
    )
    if shard_info is not None:
      numbers = numbers.shard(shard_info.num_shards, shard_info.index)
    if split == VALIDATION:
      return numbers.map(lambda number: {"row": number, VALIDATION: True})
    return numbers.map(lambda number: {"row": number})

  def questions(self, split: str = "train") -> QuestionTable:
    """Returns the questions of a split, which are read once for all formats."""
    return _questions_once(*self._version(tfds_builder.QUESTIONS, split))

  def rows(self, split: str = "train") -> RowTable:
    """Returns the rows of a split, which are read once for all formats."""
    return _rows_once(
      *self._version(tfds_builder.ROWS, split),
      *self._version(tfds_builder.QUESTIONS, split),
    )

  def files(self, split: str = "train") -> list[epath.Path]:
    """Returns the files of the rows and questions of a split."""
    return [
      file
      for config in (tfds_builder.ROWS, tfds_builder.QUESTIONS)
      for file in sorted(
        epath.Path(self._version(config, split)[0]).glob("*.tfrecord*")
      )
    ]

  def _version(self, config: str, split: str) -> tuple[str, str]:
    """Returns a key that changes when the dataset is prepared again."""
    builder = self._open(config, split)
    edition = builder.info.metadata[tfds_builder.EDITION]
    return str(builder.data_dir), edition

  @property
  def tfds_dir(self) -> str:
    """The directory of TFDS datasets."""
    return sources.tfds_dir(self._directory)

  def _open(self, config: str, split: str) -> tfds.core.DatasetBuilder:
    """Opens the dataset, and checks the vocabulary it was aligned with."""
    name = self._dataset_name
    if split == VALIDATION:
      name = tfds_builder.validation_name(name)
      if not (epath.Path(self.tfds_dir) / name).exists():
        raise errors.UserError(
          f"{self.tfds_dir} has no dataset {name}: `specialize prepare"
          f" --dataset_name={self._dataset_name}` writes it where the records"
          " have right answers to validation questions. Without them, leave"
          " HELD_OUT_LOSSES out, or under T5X give"
          " --gin.train_script.train.train_eval_dataset_cfg=None"
        )
    elif split != "train":
      raise errors.UserError(
        f"split={split!r}: TFDS dataset {name!r} has 'train' and 'validation'"
      )
    builder = tfds_builder.open_dataset(self.tfds_dir, name, config)
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


def _columns(folder: str) -> dict[str, tf.Tensor]:
  builder = tfds.builder_from_directory(folder)
  return tfds_builder.parse(
    tfds_builder.read_serialized(builder), builder.info.features
  )


@functools.lru_cache(maxsize=8)
def _question_columns(folder: str, edition: str) -> dict[str, tf.Tensor]:
  del edition
  return _columns(folder)


@functools.lru_cache(maxsize=8)
def _questions_once(folder: str, edition: str) -> QuestionTable:
  columns = _question_columns(folder, edition)

  def strings(name: str) -> list[str]:
    return [text.decode() for text in columns[name].numpy().tolist()]

  return QuestionTable(
    ids=strings("question_id"),
    texts=strings("text"),
    answers=strings("answer"),
  )


@functools.lru_cache(maxsize=2)
def _rows_once(
  folder: str, edition: str, questions_folder: str, questions_edition: str
) -> RowTable:
  del edition
  columns = _columns(folder)
  numbers = _question_columns(questions_folder, questions_edition)["question"]
  place_of = np.zeros(1 + int(numbers.numpy().max()), np.int32)
  place_of[numbers.numpy()] = np.arange(len(numbers), dtype=np.int32)
  return RowTable(
    question=tf.constant(place_of[columns["question"].numpy()]),
    sample=columns["sample"],
    flags=columns["flags"],
    ids=columns["ids"],
    log_probs=columns["log_probs"],
  )
