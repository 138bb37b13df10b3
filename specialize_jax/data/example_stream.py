"""A mixture's examples, mixed and shuffled, as a resumable stream.

This module is the boundary between TensorFlow and NumPy: it yields examples as
NumPy arrays, and its state has a few kilobytes.
"""

import difflib
import io
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import features, packing, sources

# The number of examples that are converted to NumPy at once. Converting them
# one by one would take longer than packing.
_CHUNK_EXAMPLES = 32


class ExampleStream:
  """Reads a training dataset in chunks; its position can be restored."""

  def __init__(self, dataset: tf.data.Dataset) -> None:
    """Starts at the beginning of a dataset.

    Args:
      dataset: The result of `training_dataset`.
    """
    self._elements = iter(dataset.ragged_batch(_CHUNK_EXAMPLES))

  def next_examples(self) -> Sequence[packing.Example]:
    """Returns the next chunk of examples; empty at the end of the data."""
    chunk = next(self._elements, None)
    return [] if chunk is None else list(_examples(chunk))

  def state(self) -> bytes:
    """Serializes the position."""
    with tempfile.TemporaryDirectory() as directory:
      prefix = f"{directory}/elements"
      tf.train.Checkpoint(elements=self._elements).write(prefix)
      files = {
        path.name: np.frombuffer(path.read_bytes(), np.uint8)
        for path in sorted(pathlib.Path(directory).iterdir())
      }
    file = io.BytesIO()
    np.savez(file, **files)
    return file.getvalue()

  def restore(self, state: bytes) -> None:
    """Moves to a position that `state` returned."""
    with tempfile.TemporaryDirectory() as directory:
      with np.load(io.BytesIO(state), allow_pickle=False) as files:
        for name in files.files:
          (pathlib.Path(directory) / name).write_bytes(files[name].tobytes())
      prefix = f"{directory}/elements"
      status = tf.train.Checkpoint(elements=self._elements).read(prefix)
      status.assert_consumed()


def training_dataset(
  mixture_or_task_name: str,
  *,
  task_feature_lengths: Mapping[str, int],
  seed: int,
  split: str = "train",
  num_epochs: int | None = None,
) -> tf.data.Dataset:
  """Builds a dataset of a mixture's examples, mixed and shuffled.

  Args:
    mixture_or_task_name: A name registered with seqio.
    task_feature_lengths: Row lengths in tokens. Longer examples are neither
      truncated nor dropped here.
    seed: The seed of mixing, shuffling and demonstrations.
    split: The split of the tasks.
    num_epochs: The number of passes over the data; None to repeat forever.

  Raises:
    UserError: the name is unknown, or its tasks have no such split, no
      examples, or no target distribution.
  """
  provider = find_provider(mixture_or_task_name)
  if split not in provider.splits:
    raise errors.UserError(
      f"split={split!r}: {mixture_or_task_name!r} has"
      f" {', '.join(map(repr, sorted(provider.splits)))}"
    )
  wanted = {**features.TRAINING_FEATURES, **features.EXAMPLE_FEATURES}
  missing = wanted.keys() - provider.output_features.keys()
  if missing:
    raise errors.UserError(
      f"MIXTURE_OR_TASK_NAME={mixture_or_task_name!r} is for evaluation: its"
      f" examples lack {', '.join(sorted(missing))}; name a training mixture"
    )
  tasks = seqio.get_subtasks(provider)
  foreign = [
    task.name
    for task in tasks
    if not isinstance(task.source, sources.TableSource)
  ]
  if foreign and num_epochs not in (None, 1):
    raise errors.UserError(
      f"num_epochs={num_epochs}: {foreign[0]!r} reads a source that is not a"
      " table; expected 1 epoch, or None for no end"
    )
  with sources.passes(num_epochs):
    dataset = provider.get_dataset(
      sequence_length=dict(task_feature_lengths),
      split=split,
      shuffle=True,
      seed=seed,
      # Tables already repeat themselves; repeating an infinite dataset again
      # has no effect.
      num_epochs=None if num_epochs is None else 1,
      # Long examples are dropped and counted later, never truncated.
      trim_output_features=False,
      # A cache would fill checkpoints.
      try_in_mem_cache=False,
    )
  return dataset.map(
    # Without autograph: there is no Python control flow to convert.
    tf.autograph.experimental.do_not_convert(
      lambda row: {name: row[name] for name in wanted}
    ),
    num_parallel_calls=tf.data.AUTOTUNE,
  )


def find_provider(
  mixture_or_task_name: str, flag: str = "MIXTURE_OR_TASK_NAME"
) -> seqio.Task | seqio.Mixture:
  """Returns a registered mixture or task.

  Args:
    mixture_or_task_name: Its name.
    flag: The flag or field with the name, for errors.

  Raises:
    UserError: no such name is registered; suggests similar ones.
  """
  names = {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}
  if mixture_or_task_name in names:
    return seqio.get_mixture_or_task(mixture_or_task_name)
  near = difflib.get_close_matches(
    mixture_or_task_name, sorted(names), n=3, cutoff=0.4
  )
  hint = f", or did you mean {' or '.join(map(repr, near))}?" if near else ""
  raise errors.UserError(
    f"{flag}={mixture_or_task_name!r} is not registered: give"
    f" --dataset=FILE.yaml or --import=MODULE if it is your own{hint}"
  )


def _examples(
  chunk: Mapping[str, tf.RaggedTensor | tf.Tensor],
) -> Iterator[packing.Example]:
  """Splits a ragged batch into examples of NumPy arrays."""
  columns = {}
  for name, column in chunk.items():
    if name in features.EXAMPLE_FEATURES:
      columns[name] = column.numpy()
      continue
    ends = column.row_splits.numpy()
    columns[name] = np.split(column.flat_values.numpy(), ends[1:-1])
  for values in zip(*columns.values(), strict=True):
    yield dict(zip(columns, values, strict=True))
