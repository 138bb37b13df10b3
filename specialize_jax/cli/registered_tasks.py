"""Registers tasks with seqio, suppressing TensorFlow's messages."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import sys
import tempfile
import typing
from collections.abc import Iterator, Sequence

from specialize_jax.cli import own_modules
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from specialize_jax.datasets import files

DATA_DIRECTORY = paths.INPUT_DIRECTORY.local(
  "the tasks read their files from a local disk; copy them to every host"
)
DATASET_FILE = paths.INPUT_FILE.local(
  "its sets lie beside it; copy the folder to every host"
)
PATHS = {
  "data_dir": DATA_DIRECTORY,
  "tfds_data_dir": paths.INPUT_DIRECTORY,
  "dataset": DATASET_FILE,
}
"""The kinds of path of the flags of `add_flags`, for `paths.check_flags`."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of every command that reads tasks."""
  parser.add_argument(
    "--data_dir",
    default=None,
    metavar="DIR",
    help="the directory of the tasks' datasets and vocabularies "
    "(default: $SPECIALIZE_DATA)",
  )
  parser.add_argument(
    "--tfds_data_dir",
    default=None,
    metavar="DIR",
    help="the directory of the datasets of `specialize prepare` (default: "
    "tfds/ next to --dataset, or in the data directory)",
  )
  add_dataset_flag(parser)


def add_dataset_flag(parser: argparse.ArgumentParser) -> None:
  """Adds `--dataset` and `--import`."""
  parser.add_argument(
    "--dataset",
    metavar="FILE.yaml",
    help="your own domain, described in one file (docs/own_domain.md); its"
    " tasks and mixtures are registered",
  )
  own_modules.add_flag(parser)


def load_dataset(
  path: str | None, imports: Sequence[str] = ()
) -> files.DatasetFile | None:
  """Imports a user's modules, then reads and checks the dataset file.

  Args:
    path: the value of `--dataset`.
    imports: the values of `--import`.

  Raises:
    UserError: a module or the file cannot be read, or has mistakes.
  """
  own_modules.import_named(imports)
  if path is None:
    return None
  from specialize_jax.datasets import files

  return files.load(path)


def register(
  data_dir: str | None,
  tfds_data_dir: str | None,
  dataset: str | None = None,
  imports: Sequence[str] = (),
) -> files.DatasetFile | None:
  """Registers every task with seqio, and sets the directories of their files.

  Args:
    data_dir: the value of `--data_dir`.
    tfds_data_dir: that of `--tfds_data_dir`.
    dataset: that of `--dataset`.
    imports: those of `--import`.

  Returns:
    The dataset file, if one was given.

  Raises:
    UserError: one of them cannot be read, or has mistakes.
  """
  given = {
    "data_dir": data_dir,
    "tfds_data_dir": tfds_data_dir,
    "dataset": dataset,
  }
  paths.check_flags(argparse.Namespace(**given), PATHS)
  own_modules.check_named(imports)
  # tfds warns of its own deprecated property, once for each feature.
  logging.getLogger("absl").addFilter(
    lambda record: "FeatureConnector.dtype" not in record.getMessage()
  )
  with quiet_import():
    import seqio

    from specialize_jax.data import sources
    from specialize_jax.tasks import mixtures  # noqa: F401  (registers all)
  if data_dir is not None:
    sources.set_data_dir(data_dir)
  if tfds_data_dir is not None:
    seqio.set_tfds_data_dir_override(tfds_data_dir)
  own = load_dataset(dataset, imports)
  if own is not None:
    from specialize_jax.datasets import registration

    registration.add(own.dataset)
  return own


def register_for(flags: argparse.Namespace) -> files.DatasetFile | None:
  """Registers every task by the flags of `add_flags`; see `register`."""
  return register(
    flags.data_dir, flags.tfds_data_dir, flags.dataset, flags.imports
  )


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
  """Hides what libraries print while they are imported, unless the block fails.

  TensorFlow writes on every import that there is no GPU, to the file descriptor
  whatever the log level. Garbage collection is off: it takes a third of the
  time of imports, and they leave no garbage.
  """
  sys.stderr.flush()
  try:
    held = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
  except OSError:  # no room for what is hidden: it is shown
    yield
    return
  collects = gc.isenabled()
  gc.disable()
  with held:
    kept = os.dup(2)
    os.dup2(held.fileno(), 2)
    try:
      yield
    except BaseException:
      os.dup2(kept, 2)
      held.seek(0)
      sys.stderr.write(held.read().decode(errors="replace"))
      raise
    finally:
      os.dup2(kept, 2)
      os.close(kept)
      if collects:
        gc.enable()
