"""Writes and reads aligned rows as a TFDS dataset.

A dataset has two configurations. `rows` has one row per correct sample, packed
by `packed_rows`. `questions` has each question that a row refers to, with its
number in the training file, by which rows refer to it. The metadata identify
the student's vocabulary, without which the rows are meaningless.
"""

import contextlib
import dataclasses
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format

from specialize_jax import errors
from specialize_jax.files import paths
from specialize_jax.records import packed_rows

VERSION = "2.0.0"
ROWS = "rows"
QUESTIONS = "questions"
SPLIT = "train"
FINGERPRINT = "vocabulary_fingerprint"
EDITION = "edition"
"""Metadata key that distinguishes a dataset from one that replaces it."""

_LAST_WRITTEN = "dataset_info.json"
_SHARD_EXAMPLES = 25_000
# The writer rewrites the dataset's metadata with every call.
_WRITTEN_TOGETHER = 5_000


class EmptyDatasetError(errors.UserError):
  """There are no rows to write."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionRow:
  """A question that rows refer to.

  Attributes:
    question: its number in the training file, from 0.
    question_id: its id.
    text: the question.
    answer: the bare gold answer.
  """

  question: int
  question_id: str
  text: str
  answer: str


def row_features() -> tfds.features.FeaturesDict:
  """Returns the features of `rows`, named as in `packed_rows.PackedRow`."""
  content = tfds.features.Scalar(dtype=np.object_)
  return tfds.features.FeaturesDict(
    {
      "question": np.int64,
      "sample": np.int64,
      "flags": content,
      "ids": content,
      "log_probs": content,
    }
  )


def question_features() -> tfds.features.FeaturesDict:
  """Returns the features of `questions`, named as in `QuestionRow`."""
  return tfds.features.FeaturesDict(
    {
      "question": np.int64,
      "question_id": tfds.features.Text(),
      "text": tfds.features.Text(),
      "answer": tfds.features.Text(),
    }
  )


def write(
  rows: Iterable[packed_rows.PackedRow],
  questions: Mapping[int, QuestionRow],
  *,
  data_dir: str | os.PathLike,
  name: str,
  metadata: Mapping[str, str],
  finish: Callable[[epath.Path], object] = lambda folder: None,
) -> str:
  """Writes a dataset atomically, replacing one of the same name.

  An existing dataset remains until the new one is complete, also if `rows`
  raises.

  Args:
    rows: the rows, in any order.
    questions: questions by number, at least those that rows refer to.
    data_dir: the folder of TFDS datasets; created if missing.
    name: the dataset's name, in lower case with underscores.
    metadata: metadata of the dataset, from `new_metadata`.
    finish: called with the folder of the complete dataset before it is moved
      into place, to write what belongs to it.

  Returns:
    The dataset's folder, `data_dir/name`.

  Raises:
    EmptyDatasetError: there are no rows.
    UserError: `data_dir` is not writable, or the disk is full.
  """
  with replaced_when_done(epath.Path(data_dir), name) as folder:
    fill(rows, questions, folder=folder, name=name, metadata=metadata)
    finish(folder)
  return str(epath.Path(data_dir) / name)


def fill(
  rows: Iterable[packed_rows.PackedRow],
  questions: Mapping[int, QuestionRow],
  *,
  folder: epath.Path,
  name: str,
  metadata: Mapping[str, str],
) -> None:
  """Writes a dataset's files to an empty folder; arguments as of `write`.

  Raises:
    EmptyDatasetError: there are no rows.
  """
  named: dict[int, None] = {}

  def noted() -> Iterator[packed_rows.PackedRow]:
    for row in rows:
      named[row.question] = None
      yield row

  _write_config(noted(), folder, name, ROWS, metadata)
  if not named:
    raise EmptyDatasetError(
      f"dataset {name!r} would be empty: expected at least one row"
    )
  asked = (questions[number] for number in named)
  write_questions(asked, folder=folder, name=name, metadata=metadata)


def write_questions(
  questions: Iterable[QuestionRow],
  *,
  folder: epath.Path,
  name: str,
  metadata: Mapping[str, str],
) -> None:
  """Writes the questions to a dataset's folder, beside the rows.

  Args:
    questions: the questions.
    folder: the folder of the dataset.
    name: the name of the dataset.
    metadata: further metadata of the dataset.
  """
  _write_config(questions, folder, name, QUESTIONS, metadata)


def validation_name(name: str) -> str:
  """Returns the name of the dataset of the validation questions' rows."""
  return f"{name}_validation"


def remove(data_dir: str | os.PathLike, name: str) -> None:
  """Removes a dataset, if there is one: that of records prepared earlier."""
  folder = epath.Path(data_dir) / name
  if folder.exists():
    folder.rmtree()


def new_metadata(fingerprint: str, **others: str) -> dict[str, str]:
  """Returns metadata for a new dataset, with a unique edition."""
  return {FINGERPRINT: fingerprint, EDITION: uuid.uuid4().hex, **others}


def open_dataset(
  data_dir: str | os.PathLike, name: str, config: str = ROWS
) -> tfds.core.DatasetBuilder:
  """Opens a dataset that `write` wrote.

  Args:
    data_dir: the directory of datasets.
    name: the name of the dataset.
    config: the builder config, for the rows or the questions.

  Raises:
    UserError: the dataset does not exist, has another version or is damaged.
  """
  whole = epath.Path(data_dir) / name
  folder = whole / config / VERSION
  again = f"`specialize prepare --data_dir={data_dir} --dataset_name={name}`"
  if (folder / _LAST_WRITTEN).is_file():
    try:
      return tfds.builder_from_directory(folder)
    except (
      *(ValueError, LookupError, TypeError, AttributeError, OSError),
      json_format.Error,
    ) as error:
      raise _damaged(folder, str(error)) from error
  others = sorted(
    other.parent.name
    for pattern in ("*/dataset_info.json", "*/*/dataset_info.json")
    for other in whole.glob(pattern)
    if other.parent.name != VERSION
  )
  if others:
    raise errors.UserError(
      f"{whole} is of version {others[-1]}; this version of specialize reads"
      f" {VERSION}: run {again} again"
    )
  if whole.is_dir() and any(whole.iterdir()):
    raise _damaged(folder, f"it lacks {folder / _LAST_WRITTEN}")
  raise errors.UserError(
    f"{whole} has no dataset: expected the one that {again} writes"
  )


def read_serialized(builder: tfds.core.DatasetBuilder) -> tf.Tensor:
  """Reads serialized examples, a string tensor in the order of writing.

  Decode them with `parse`.

  Raises:
    UserError: a file is missing, truncated, or not what was written.
  """
  split = builder.info.splits[SPLIT]
  files = [str(file) for file in split.filepaths]
  try:
    chunks = list(tf.data.TFRecordDataset(files).batch(8192))
  except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
    raise _damaged(builder.data_path, error.message) from error
  serialized = tf.concat(chunks, axis=0) if chunks else tf.zeros([0], tf.string)
  if len(serialized) != split.num_examples:
    raise _damaged(
      builder.data_path,
      f"it has {len(serialized):,} examples instead of {split.num_examples:,}",
    )
  return serialized


def _damaged(folder: epath.Path, what: str) -> errors.UserError:
  what = " ".join(what.split())[:200]
  return errors.UserError(
    f"dataset {folder} is damaged ({what}): copy it again from where it is"
    " whole, or run `specialize prepare` again"
  )


def parse(
  serialized: tf.Tensor, features: tfds.features.FeaturesDict
) -> dict[str, tf.Tensor]:
  """Parses many examples of scalars at once.

  Args:
    serialized: string [N].
    features: `row_features()` or `question_features()`.

  Returns:
    A tensor [N] for each feature.
  """
  return tf.io.parse_example(
    serialized,
    {
      name: tf.io.FixedLenFeature(
        [], tf.int64 if one.np_dtype == np.int64 else tf.string
      )
      for name, one in features.items()
    },
  )


def _write_config(
  rows: Iterable[packed_rows.PackedRow | QuestionRow],
  folder: epath.Path,
  name: str,
  config: str,
  metadata: Mapping[str, str],
) -> None:
  """Writes a configuration of a dataset."""
  writer = _Writer(
    _dataset_info(name, folder, config, metadata),
    max_examples_per_shard=_SHARD_EXAMPLES,
  )
  writer.initialize_splits([SPLIT])
  batch: list[dict] = []
  for row in rows:
    batch.append(vars(row))
    if len(batch) >= _WRITTEN_TOGETHER:
      writer.add_examples({SPLIT: batch})
      batch = []
  writer.add_examples({SPLIT: batch})
  writer.close_all()


class _Serializer(tfds.core.ExampleSerializer):
  """Serializes equal examples to equal bytes.

  An example is a protobuf map, whose entries protobuf writes in an order that
  depends on the process, unless it is asked to sort them.
  """

  def serialize_example(self, example: Mapping[str, Any]) -> bytes:
    """Returns the serialized example, its features sorted by name."""
    return self.get_tf_example(example).SerializeToString(deterministic=True)


class _Writer(tfds.core.SequentialWriter):
  """Writes the same files whenever it is given the same examples."""

  def __init__(
    self, info: tfds.core.DatasetInfo, *, max_examples_per_shard: int
  ) -> None:
    super().__init__(info, max_examples_per_shard=max_examples_per_shard)
    # TFDS has no argument for it.
    self._serializer = _Serializer(info.features.get_serialized_info())


def _dataset_info(
  name: str, folder: epath.Path, config: str, metadata: Mapping[str, str]
) -> tfds.core.DatasetInfo:
  target = folder / config / VERSION
  target.mkdir(parents=True)
  identity = tfds.core.DatasetIdentity(
    name=name,
    version=tfds.core.Version(VERSION),
    data_dir=str(target),
    module_name=__name__,
    config_name=config,
  )
  return tfds.core.DatasetInfo(
    builder=identity,
    description="A teacher's rationales in a student's tokens, each token"
    " with the teacher's most probable candidates.",
    features=row_features() if config == ROWS else question_features(),
    metadata=tfds.core.MetadataDict(metadata),
  )


@contextlib.contextmanager
def replaced_when_done(
  data_dir: epath.Path, name: str, *, beside: bool = False
) -> Iterator[epath.Path]:
  """Yields a folder to write a dataset to, and moves it into place at the end.

  One writer at a time, as the commands see to: what a killed one has left is
  removed, but for a dataset that it was about to replace.

  Args:
    data_dir: the folder of datasets, local or in a bucket.
    name: the dataset's name.
    beside: whether the folder is in `data_dir` though that is in a bucket, for
      workers that have no other disk in common; else it is on this machine.

  Raises:
    UserError: `data_dir` is not writable, or the disk is full; an existing
      dataset is unchanged.
  """
  if paths.is_in_bucket(data_dir) and not beside:
    with tempfile.TemporaryDirectory() as scratch:
      folder = epath.Path(scratch) / "new"
      folder.mkdir()
      yield folder
      if data_dir.exists():
        _clear_abandoned(data_dir, name)
      # The upload may fail; a copy within the bucket hardly does.
      staged = data_dir / f".{name}.{uuid.uuid4().hex}"
      try:
        move(folder, staged)
      except BaseException:
        if staged.exists():
          staged.rmtree()
        raise
      if (data_dir / name).exists():
        (data_dir / name).rmtree()
      move(staged, data_dir / name)
    return
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(data_dir, name)
    scratch = data_dir / f".{name}.{uuid.uuid4().hex}"
    scratch.mkdir()
  except OSError as error:
    raise errors.UserError(
      f"--data_dir={data_dir} cannot be written: {error.strerror}"
    ) from error
  try:
    folder = scratch / "new"
    folder.mkdir()
    yield folder
    if (data_dir / name).exists():
      move(data_dir / name, scratch / "old")
    move(folder, data_dir / name)
  except (OSError, tf.errors.OpError) as error:
    reason = _no_room(error)
    if reason is None:
      raise
    raise errors.UserError(
      f"--data_dir={data_dir} has no room ({reason}): nothing was written;"
      " free some space and run the same command again"
    ) from error
  finally:
    if scratch.exists():
      scratch.rmtree()


def move(folder: epath.Path, place: epath.Path) -> None:
  """Moves a folder to where nothing is.

  A bucket has objects alone, and no client renames many at once: each is copied
  there, those that make a dataset one that can be opened last.
  """
  if not paths.is_in_bucket(place):
    folder.rename(place)
    return
  found = [
    directory / name for directory, _, names in folder.walk() for name in names
  ]
  for file in sorted(found, key=lambda one: one.name == _LAST_WRITTEN):
    target = place / file.relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    file.copy(target, overwrite=True)
  folder.rmtree()


def _clear_abandoned(data_dir: epath.Path, name: str) -> None:
  for scratch in data_dir.iterdir():
    if re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{32}}", scratch.name):
      if (scratch / "old").exists() and not (data_dir / name).exists():
        (scratch / "old").rename(data_dir / name)
      scratch.rmtree()


def _no_room(error: OSError | tf.errors.OpError) -> str | None:
  """Returns the system's message if the disk is full, otherwise None.

  TensorFlow's errors have that message, but no error number.
  """
  if isinstance(error, OSError):
    return error.strerror if error.errno in paths.NO_SPACE else None
  words = (os.strerror(number) for number in paths.NO_SPACE)
  return next((w for w in words if error.message.endswith(w)), None)
