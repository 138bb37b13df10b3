"""Aligned rows as a TFDS dataset on disk: written whole, read by row.

A dataset has two splits: `train` has every row, `questions` the first row of
each question, for formats that show a question and its answer once. Tensors
are compressed row by row (TFDS's own zlib encoding), since half of their
bits repeat. The student's vocabulary is part of the dataset's metadata: rows
mean nothing under another.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from specialize_jax import errors
from specialize_jax.records import schema

VERSION = "1.0.0"
ALL_SAMPLES = "train"
ONE_PER_QUESTION = "questions"
FINGERPRINT = "vocabulary_fingerprint"

_SHARD_EXAMPLES = 25_000
# The writer rewrites the dataset's metadata with every call.
_WRITTEN_TOGETHER = 1_000


class EmptyDatasetError(errors.UserError):
  """There was no row to write."""


def row_features() -> tfds.features.FeaturesDict:
  """Gives the features of a row, as `schema.AlignedRow` names them."""
  text = tfds.features.Text

  def tensor(shape: tuple, dtype: type) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")

  return tfds.features.FeaturesDict(
    {
      "question_id": text(),
      "sample": np.int64,
      "question": text(),
      "answer": text(),
      "rationale": text(),
      "target_ids": tensor((None,), np.uint16),
      "top_ids": tensor((None, schema.NUM_CANDIDATES), np.uint16),
      "top_log_probs": tensor((None, schema.NUM_CANDIDATES), np.float16),
      "mask": tensor((None,), np.uint8),
    }
  )


def write(
  rows: Iterable[schema.AlignedRow],
  *,
  data_dir: str | os.PathLike,
  name: str,
  metadata: Mapping[str, str],
) -> str:
  """Writes a dataset, replacing one of the same name.

  It appears under its name complete or not at all: what was there before
  stays until then, also when `rows` raises.

  Args:
    rows: the rows; those of a question need not stand together.
    data_dir: the folder of TFDS datasets; made where missing.
    name: the dataset's name, in lower case with underscores.
    metadata: kept with the dataset; `FINGERPRINT` is expected.

  Returns:
    The dataset's folder, `data_dir/name/VERSION`.

  Raises:
    EmptyDatasetError: there is no row at all.
    UserError: `data_dir` cannot be written.
  """
  with _replaced_when_done(pathlib.Path(data_dir), name) as folder:
    info = _dataset_info(name, folder, metadata)
    writer = tfds.core.SequentialWriter(
      info, max_examples_per_shard=_SHARD_EXAMPLES
    )
    writer.initialize_splits([ALL_SAMPLES, ONE_PER_QUESTION])
    seen: set[str] = set()
    batch: dict[str, list] = {ALL_SAMPLES: [], ONE_PER_QUESTION: []}
    for row in rows:
      example = to_example(row)
      batch[ALL_SAMPLES].append(example)
      if example["question_id"] not in seen:
        seen.add(example["question_id"])
        batch[ONE_PER_QUESTION].append(example)
      if len(batch[ALL_SAMPLES]) >= _WRITTEN_TOGETHER:
        writer.add_examples(batch)
        batch = {split: [] for split in batch}
    if not seen:
      raise EmptyDatasetError(
        f"dataset {name!r} would be empty: expected at least one row"
      )
    writer.add_examples(batch)
    writer.close_all()
  return str(pathlib.Path(data_dir) / name / VERSION)


def to_example(row: schema.AlignedRow) -> dict[str, object]:
  """Gives a row in the dtypes that are stored."""
  return {
    "question_id": str(row.question_id),
    "sample": row.sample,
    "question": row.question,
    "answer": row.answer,
    "rationale": row.rationale,
    "target_ids": row.target_ids.astype(np.uint16),
    "top_ids": row.top_ids.astype(np.uint16),
    "top_log_probs": row.top_log_probs.astype(np.float16),
    "mask": row.mask.astype(np.uint8),
  }


def open_dataset(
  data_dir: str | os.PathLike, name: str
) -> tfds.core.DatasetBuilder:
  """Opens a dataset that `write` wrote.

  Raises:
    UserError: there is none of that name.
  """
  folder = pathlib.Path(data_dir) / name / VERSION
  if not (folder / "dataset_info.json").is_file():
    raise errors.UserError(
      f"{folder} has no dataset: expected the one that `specialize prepare"
      f" --data_dir={data_dir} --dataset_name={name}` writes"
    )
  return tfds.builder_from_directory(folder)


def read_serialized(builder: tfds.core.DatasetBuilder, split: str) -> tf.Tensor:
  """Reads a split's rows undecoded, a string tensor in the order written.

  Decode one with `builder.info.features.deserialize_example`.
  """
  files = [str(file) for file in builder.info.splits[split].filepaths]
  chunks = list(tf.data.TFRecordDataset(files).batch(8192))
  return tf.concat(chunks, axis=0) if chunks else tf.zeros([0], tf.string)


def _dataset_info(
  name: str, folder: pathlib.Path, metadata: Mapping[str, str]
) -> tfds.core.DatasetInfo:
  identity = tfds.core.DatasetIdentity(
    name=name,
    version=tfds.core.Version(VERSION),
    data_dir=str(folder),
    module_name=__name__,
  )
  return tfds.core.DatasetInfo(
    builder=identity,
    description="A teacher's rationales in a student's tokens, each token"
    " with the teacher's most probable candidates.",
    features=row_features(),
    metadata=tfds.core.MetadataDict(metadata),
  )


@contextlib.contextmanager
def _replaced_when_done(
  data_dir: pathlib.Path, name: str
) -> Iterator[pathlib.Path]:
  """Gives a folder to write a version in; puts it in place at the end."""
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{name}.", dir=data_dir))
  except OSError as error:
    raise errors.UserError(
      f"--data_dir={data_dir} cannot be written: {error.strerror}"
    ) from error
  try:
    folder = scratch / "new" / VERSION
    folder.mkdir(parents=True)
    yield folder
    if (data_dir / name).exists():
      (data_dir / name).rename(scratch / "old")
    (scratch / "new").rename(data_dir / name)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
