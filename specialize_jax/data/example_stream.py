"""A mixture's examples, mixed and shuffled, as a resumable stream.

This module is the boundary between TensorFlow and NumPy: it yields examples as
NumPy arrays, and its state has a few kilobytes.

A stream yields examples (`ExampleStream`) or, where their lengths are known
before they are rendered, outlines of them (`OutlineStream`), which are rendered
only for the rows that a host trains on. Both yield the same examples in the
same order.
"""

import functools
import io
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import (
  features,
  packing,
  sources,
  teacher_formats,
  teacher_source,
)

# The number of examples that are converted to NumPy at once. Converting them
# one by one would take longer than packing.
_CHUNK_EXAMPLES = 32


# The number of examples whose tasks are chosen at once.
_CHUNK_CHOICES = 64


class Stream(Protocol):
  """The training examples of a mixture, in order."""

  def next_examples(self) -> Sequence[packing.Example | packing.Outline]:
    """Returns the next chunk of examples; empty at the end of the data."""

  def rendered(
    self, rows: Sequence[packing.Row]
  ) -> Sequence[Sequence[packing.Example]]:
    """Returns rows with all outlines rendered."""

  def ids(self, examples: packing.Row) -> Sequence[str]:
    """Returns the ids of examples."""

  def state(self) -> bytes:
    """Serializes the position."""

  def restore(self, state: bytes) -> None:
    """Moves to a position that `state` returned."""


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

  def rendered(
    self, rows: Sequence[packing.Row]
  ) -> Sequence[Sequence[packing.Example]]:
    """Returns the rows, whose examples are rendered already."""
    return rows

  def ids(self, examples: packing.Row) -> Sequence[str]:
    """Returns the ids of examples."""
    return [example[features.EXAMPLE_ID].decode() for example in examples]

  def state(self) -> bytes:
    """Serializes the position."""
    return _to_bytes(_saved(elements=self._elements))

  def restore(self, state: bytes) -> None:
    """Moves to a position that `state` returned."""
    _load(_from_bytes(state), elements=self._elements)


class OutlineStream:
  """Reads outlines of a mixture of the teacher's formats, and renders them.

  Its examples are those of the mixture's own dataset, in the same order: each
  task reads the same source with the same seeds, and the same function mixes
  the tasks.
  """

  def __init__(
    self,
    tasks: Sequence[tuple[seqio.Task, float]],
    *,
    seed: int,
    split: str,
    num_epochs: int | None,
  ) -> None:
    """Reads the tables of each task, and starts at the beginning.

    Args:
      tasks: Tasks that pass `_has_outlines`, each with its mixing rate.
      seed: The seed of order, mixing and demonstrations.
      split: The split to read.
      num_epochs: The number of passes over the data; None for no end.
    """
    self._renderings, self._outlines = [], []
    # The number of examples left of each task; None for no end.
    self._left: list[int | None] = []
    for task, _ in tasks:
      (render,) = _steps(task)
      rendering = teacher_formats.Rendering(
        task.output_features, split=split, **render.keywords
      )
      with sources.passes(num_epochs), seqio.utils.map_seed_manager(seed):
        rows = task.source.row_numbers(split, shuffle=True, seed=seed)
        outlines = teacher_formats.outlines(rows, rendering)
      self._renderings.append(rendering)
      self._outlines.append(iter(outlines.prefetch(tf.data.AUTOTUNE)))
      self._left.append(
        None
        if num_epochs is None
        else num_epochs * task.source.num_input_examples(split)
      )
    self._choices = iter(_choices([rate for _, rate in tasks], seed))
    # Outlines of each task that were read and not returned yet.
    self._waiting: list[list[packing.Outline]] = [[] for _ in tasks]
    self._render = [_rendering_fn(one) for one in self._renderings]

  def next_examples(self) -> Sequence[packing.Outline]:
    """Returns the next chunk of outlines; empty at the end of the data."""
    choices = self._until_the_end(next(self._choices).numpy())
    taken = []
    for task, waiting in enumerate(self._waiting):
      count = int((choices == task).sum())
      while len(waiting) < count:
        waiting.extend(self._read(task))
      taken.append(iter(waiting[:count]))
      del waiting[:count]
    return [next(taken[task]) for task in choices.tolist()]

  def _until_the_end(self, choices: np.ndarray) -> np.ndarray:
    """Returns the choices before the first of a task that has no more examples.

    There the mixture ends, as seqio's does: the task is not left out.
    """
    end = len(choices)
    for task, left in enumerate(self._left):
      if left is not None:
        end = min([end, *np.flatnonzero(choices == task)[left:]])
    for task, left in enumerate(self._left):
      if left is not None:
        taken = int(np.sum(choices[:end] == task))
        self._left[task] = left - taken if end == len(choices) else 0
    return choices[:end]

  def _read(self, task: int) -> list[packing.Outline]:
    batch = next(self._outlines[task])
    columns = (
      batch[name].numpy().tolist() for name in ("row", "shown", "sizes")
    )
    return [
      packing.Outline(task, row, tuple(shown), tuple(sizes))
      for row, shown, sizes in zip(*columns, strict=True)
    ]

  def rendered(
    self, rows: Sequence[packing.Row]
  ) -> Sequence[Sequence[packing.Example]]:
    """Returns rows with all outlines rendered."""
    found = iter(self._by_task([*itertools.chain(*rows)], self._examples))
    return [[*itertools.islice(found, len(row))] for row in rows]

  def ids(self, examples: packing.Row) -> Sequence[str]:
    """Returns the ids of examples."""
    return self._by_task(examples, self._ids)

  def _by_task(
    self, outlines: Sequence[packing.Outline], make: Callable[..., list]
  ) -> list:
    """Returns what `make` returns for the outlines of each task, in order."""
    made: list = [None] * len(outlines)
    for task in range(len(self._renderings)):
      places = [i for i, one in enumerate(outlines) if one.task == task]
      if places:
        of_task = make(task, [outlines[place] for place in places])
        for place, one in zip(places, of_task, strict=True):
          made[place] = one
    return made

  def _examples(
    self, task: int, outlines: Sequence[packing.Outline]
  ) -> list[packing.Example]:
    runs, scalars = self._render[task](*_tensors(outlines))
    columns = {
      name: np.split(values.numpy(), ends.numpy()[1:-1])
      for values_by_name, ends in runs
      for name, values in values_by_name.items()
    }
    columns |= {name: values.numpy() for name, values in scalars.items()}
    return [
      dict(zip(columns, values, strict=True))
      for values in zip(*columns.values(), strict=True)
    ]

  def _ids(self, task: int, outlines: Sequence[packing.Outline]) -> list[str]:
    rows, _ = _tensors(outlines)
    names = self._renderings[task].names(rows)[features.EXAMPLE_ID]
    return [name.decode() for name in names.numpy().tolist()]

  def state(self) -> bytes:
    """Serializes the position."""
    waiting = np.frombuffer(packing.rows_to_bytes(self._waiting), np.uint8)
    left = np.array([-1 if n is None else n for n in self._left], np.int64)
    return _to_bytes(
      {**self._iterators(_saved), _WAITING: waiting, _LEFT: left}
    )

  def restore(self, state: bytes) -> None:
    """Moves to a position that `state` returned."""
    files = _from_bytes(state)
    waiting = packing.rows_from_bytes(files.pop(_WAITING).tobytes())
    self._left = [None if n < 0 else n for n in files.pop(_LEFT).tolist()]
    self._iterators(functools.partial(_load, files))
    self._waiting = [list(outlines) for outlines in waiting]

  def _iterators(self, use: Callable[..., object]) -> object:
    return use(
      choices=self._choices,
      **{f"task_{n}": one for n, one in enumerate(self._outlines)},
    )


# Beside the files of a checkpoint of iterators.
_WAITING, _LEFT = "waiting", "left"


def _choices(rates: Sequence[float], seed: int) -> tf.data.Dataset:
  """Returns batches of the numbers of the datasets that tf.data would mix.

  They are the choices of `tf.data.Dataset.sample_from_datasets`, which calls a
  function for each of them, at a third of its time.

  Args:
    rates: The mixing rate of each dataset.
    seed: The seed.
  """
  used = [number for number, rate in enumerate(rates) if rate > 0]
  if len(used) == 1:  # tf.data draws nothing then
    return tf.data.Dataset.from_tensors([used[0]] * _CHUNK_CHOICES).repeat()
  logits = tf.math.log([[rates[number] for number in used]])

  @tf.autograph.experimental.do_not_convert
  def chosen(seeds: tf.Tensor) -> tf.Tensor:
    draws = [
      tf.random.stateless_categorical(logits, 1, seeds[i])[0, 0]
      for i in range(_CHUNK_CHOICES)
    ]
    return tf.gather(used, tf.stack(draws))

  # Two seeds a choice.
  seeds = tf.data.Dataset.random(seed).batch(2).batch(_CHUNK_CHOICES)
  return seeds.map(chosen)


def _rendering_fn(rendering: teacher_formats.Rendering) -> Callable[..., tuple]:
  """Returns the function that renders rows, compiled for any number of them."""

  @tf.function(
    autograph=False,
    input_signature=[
      tf.TensorSpec([None], tf.int64),
      tf.TensorSpec([None, None], tf.int64),
    ],
  )
  def render(rows: tf.Tensor, shown: tf.Tensor) -> tuple:
    runs, scalars = rendering.of(rows, shown)
    return (
      [(dict(one.values), one.ends) for one in runs],
      {name: scalars[name] for name in features.EXAMPLE_FEATURES},
    )

  return render


def _tensors(
  outlines: Sequence[packing.Outline],
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the rows, int64 [B], and the demonstrations, int64 [B, n]."""
  shown = np.array([one.shown for one in outlines], np.int64)
  return (
    tf.constant([one.row for one in outlines], tf.int64),
    tf.constant(shown.reshape(len(outlines), -1)),
  )


def _saved(**iterators: tf.data.Iterator) -> dict[str, np.ndarray]:
  """Returns the files of a checkpoint of iterators."""
  with tempfile.TemporaryDirectory() as directory:
    tf.train.Checkpoint(**iterators).write(f"{directory}/elements")
    return {
      path.name: np.frombuffer(path.read_bytes(), np.uint8)
      for path in sorted(pathlib.Path(directory).iterdir())
    }


def _load(
  files: Mapping[str, np.ndarray], **iterators: tf.data.Iterator
) -> None:
  """Moves iterators to where `_saved` found them."""
  with tempfile.TemporaryDirectory() as directory:
    for name, content in files.items():
      (pathlib.Path(directory) / name).write_bytes(content.tobytes())
    status = tf.train.Checkpoint(**iterators).read(f"{directory}/elements")
    status.assert_consumed()


def _to_bytes(files: Mapping[str, np.ndarray]) -> bytes:
  file = io.BytesIO()
  np.savez(file, **files)
  return file.getvalue()


def _from_bytes(state: bytes) -> dict[str, np.ndarray]:
  with np.load(io.BytesIO(state), allow_pickle=False) as files:
    return {name: files[name] for name in files.files}


def training_stream(
  mixture_or_task_name: str,
  *,
  task_feature_lengths: Mapping[str, int],
  seed: int,
  split: str = "train",
  num_epochs: int | None = None,
) -> Stream:
  """Returns the training examples of a mixture, as outlines where possible.

  Raises:
    UserError: as `training_dataset`.
  """
  provider = find_provider(mixture_or_task_name)
  tasks = [
    task for task in seqio.get_subtasks(provider) if split in task.splits
  ]
  if tasks and all(map(_has_outlines, tasks)):
    rate = getattr(provider, "get_rate", lambda _: 1.0)
    return OutlineStream(
      [(task, rate(task)) for task in tasks],
      seed=seed,
      split=split,
      num_epochs=num_epochs,
    )
  return ExampleStream(
    training_dataset(
      mixture_or_task_name,
      task_feature_lengths=task_feature_lengths,
      seed=seed,
      split=split,
      num_epochs=num_epochs,
    )
  )


def _has_outlines(task: seqio.Task) -> bool:
  """Returns whether a task renders the teacher's rows, of known lengths."""
  steps = _steps(task)
  return (
    isinstance(task.source, teacher_source.TeacherSource)
    and len(steps) == 1
    and isinstance(steps[0], functools.partial)
    and steps[0].func is teacher_formats.render
    and teacher_formats.joins_tokens(
      task.output_features[features.INPUTS].vocabulary
    )
  )


def _steps(task: seqio.Task) -> list[Callable]:
  """Returns a task's preprocessors, without the place of its offline cache."""
  return [
    step
    for step in task.preprocessors
    if not isinstance(step, seqio.CacheDatasetPlaceholder)
  ]


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
  hint = errors.did_you_mean(mixture_or_task_name, names)
  raise errors.UserError(
    f"{flag}={mixture_or_task_name!r} is not registered: give"
    " --dataset=FILE.yaml or --import=MODULE if it is your own"
    + (f"; {hint}" if hint else "")
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
