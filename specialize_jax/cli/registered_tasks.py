"""Registers the tasks that gin files name, without TensorFlow's chatter."""

import argparse
import contextlib
import gc
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

from specialize_jax.files import paths

DATA_DIRECTORY = paths.INPUT_DIRECTORY.local(
  "the tasks read their files from a local disk; copy them to every host"
)
PATHS = {"data_dir": DATA_DIRECTORY, "tfds_data_dir": paths.INPUT_DIRECTORY}
"""What the flags of `add_flags` have to be, for `paths.check_flags`."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds where files lie, as every command that reads tasks has it."""
  parser.add_argument(
    "--data_dir",
    default=None,
    metavar="DIR",
    help="where the datasets and vocabularies of the tasks lie "
    "(default: $SPECIALIZE_DATA)",
  )
  parser.add_argument(
    "--tfds_data_dir",
    default=None,
    metavar="DIR",
    help="where the datasets of `specialize prepare` lie (default: tfds/ "
    "below the data directory)",
  )


def register(data_dir: str | None, tfds_data_dir: str | None) -> None:
  """Registers every task with seqio, and says where their files lie.

  Args:
    data_dir: as `--data_dir` was given.
    tfds_data_dir: as `--tfds_data_dir` was given.

  Raises:
    UserError: one of them cannot be read.
  """
  given = {"data_dir": data_dir, "tfds_data_dir": tfds_data_dir}
  paths.check_flags(argparse.Namespace(**given), PATHS)
  # tfds warns of its own deprecated property, once for each feature.
  logging.getLogger("absl").addFilter(
    lambda record: "FeatureConnector.dtype" not in record.getMessage()
  )
  with quiet_import():
    import seqio

    from specialize_jax.data import sources
    from tasks import mixtures  # noqa: F401  (registers every task)
  if data_dir is not None:
    sources.set_data_dir(data_dir)
  if tfds_data_dir is not None:
    seqio.set_tfds_data_dir_override(tfds_data_dir)


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
  """Holds back what libraries print as they load, unless the block fails.

  TensorFlow says on every import, to the file descriptor and below every log
  level, that there is no GPU. Nor is garbage looked for, of which imports make
  none: that takes a third of their time.
  """
  sys.stderr.flush()
  collects = gc.isenabled()
  gc.disable()
  with tempfile.TemporaryFile() as held:
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
