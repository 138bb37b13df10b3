"""A mixture's examples, mixed and shuffled, as resumable streams.

This module is the boundary between TensorFlow and NumPy: it yields examples as
NumPy arrays, and its state has a few kilobytes.

A stream yields examples (`ExampleStream`) or, where their lengths are known
before they are rendered, outlines of them (`OutlineStream`), which are rendered
only for the rows that a host trains on. Both yield the same examples in the
same order.

A mixture is one stream, or is divided into several that can be read apart. Each
pass over a task's rows is then divided among them: every row is in one of them.
Each mixes the tasks and draws demonstrations with a seed of its own.
"""

import functools
import inspect
import itertools
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import (
  comparison,
  features,
  packing,
  sources,
  teacher_formats,
  teacher_source,
)
from specialize_jax.files import npz

# The number of examples that are converted to NumPy at once. Converting them
# one by one would take longer than packing.
_CHUNK_EXAMPLES = 32


# The number of examples whose tasks are chosen at once.
_CHUNK_CHOICES = 64

# The fewest rows of a task in one of several streams.
_MIN_ROWS = 8
# The most streams of rendered examples: each has datasets of its own, which one
# host may have to open and to run.
_MOST_RENDERED = 4


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
    self._dataset = dataset.ragged_batch(_CHUNK_EXAMPLES)
    self._elements = iter(self._dataset.with_options(_options()))

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
    """Serializes the position.

    Raises:
      UserError: TensorFlow cannot save that of a source.
    """
    try:
      return npz.to_bytes(_saved(elements=self._elements))
    except (
      tf.errors.FailedPreconditionError,
      tf.errors.UnimplementedError,
    ) as error:
      raise errors.UserError(
        "the position in the data cannot be saved, so that no run could be"
        f" resumed ({' '.join(error.message.split())[:300]}): a task must not"
        " read from a Python generator, call py_function or draw random numbers"
        " without a seed"
      ) from error

  def restore(self, state: bytes) -> None:
    """Moves to a position that `state` returned.

    Raises:
      UserError: the state is of other tasks, or of another TensorFlow.
    """
    files = npz.from_bytes(state)
    try:
      _load(files, elements=self._elements)
    except tf.errors.NotFoundError:
      self._restore_unfused(files)

  def _restore_unfused(self, files: Mapping[str, np.ndarray]) -> None:
    """Moves to a position of a version that did not fuse maps.

    All later positions of the run are of that kind too.
    """
    self._elements = iter(self._dataset)
    try:
      _load(files, elements=self._elements)
    except tf.errors.NotFoundError as error:
      raise errors.UserError(
        "the position in the data cannot be restored, since the steps of a task"
        " are not those of the run that saved it"
        f" ({' '.join(error.message.split())[:300]}): go on with the code and"
        " the TensorFlow of that run, or start another one from its checkpoint"
        " (INITIAL_CHECKPOINT_PATH, in another MODEL_DIR)"
      ) from error


def _options() -> tf.data.Options:
  """Returns options that fuse the maps of each task, some ten, into one.

  Each map is a thread that hands every example to the next one, which took half
  of the time in which short examples are read.
  """
  options = tf.data.Options()
  options.experimental_optimization.map_fusion = True
  return options


class OutlineStream:
  """Reads outlines of a mixture of the teacher's formats, and renders them.

  Its examples are those of the mixture's own dataset, in the same order, or a
  share of them. Its position consists of counts alone: every choice of a task,
  row and demonstrations is a function of the seed and a count.
  """

  def __init__(
    self,
    outlined: "_Outlined",
    *,
    seed: int,
    num_epochs: int | None,
    number: int = 0,
    of: int = 1,
  ) -> None:
    """Starts at the beginning.

    Args:
      outlined: The tasks of the mixture, with their order of rows.
      seed: The seed of mixing and demonstrations.
      num_epochs: The number of passes over the data; None for no end.
      number: The number of this stream, from 0.
      of: The number of streams that share the rows of each task.
    """
    self._outlined = outlined
    self._seed = seed
    self._num_epochs = num_epochs
    self._number, self._of = number, of
    self._num_chunks = 0
    # The number of outlines of each task that were returned, and those that
    # were read with the last of them.
    self._taken = [0] * len(outlined.tasks)
    self._waiting: list[list[packing.Outline]] = [[] for _ in outlined.tasks]
    self._ended = False

  def next_examples(self) -> Sequence[packing.Outline]:
    """Returns the next chunk of outlines; empty at the end of the data."""
    choices = self._next_choices()
    taken = []
    for task, waiting in enumerate(self._waiting):
      count = int((choices == task).sum())
      while len(waiting) < count:
        waiting.extend(self._read(task, self._taken[task] + len(waiting)))
      taken.append(iter(waiting[:count]))
      del waiting[:count]
      self._taken[task] += count
    return [next(taken[task]) for task in choices.tolist()]

  def _next_choices(self) -> np.ndarray:
    """Returns the tasks of the next chunk.

    Those before the first of a task that has no more examples: there the
    mixture ends, as seqio's does; the task is not left out.
    """
    if self._ended:
      return np.array([], np.int64)
    choices = self._outlined.choices(self._seed, self._num_chunks)
    self._num_chunks += 1
    if self._num_epochs is None:
      return choices
    end = len(choices)
    for number, task in enumerate(self._outlined.tasks):
      left = self._num_epochs * task.num_rows - self._taken[number]
      end = min([end, *np.flatnonzero(choices == number)[left:]])
    self._ended = end < len(choices)
    return choices[:end]

  def _read(self, number: int, first: int) -> list[packing.Outline]:
    """Returns outlines of a task, from a multiple of the rows of a batch."""
    task = self._outlined.tasks[number]
    places = self._number + self._of * np.arange(
      first, first + teacher_formats.BATCH_SIZE
    )
    if self._num_epochs is not None:
      places = places[places < self._num_epochs * task.num_rows]
    rows = task.rows_at(places)
    shown, sizes = task.outline(
      rows, self._seed, first // teacher_formats.BATCH_SIZE
    )
    return [
      packing.Outline(number, row, tuple(shown), tuple(sizes))
      for row, shown, sizes in zip(
        rows.tolist(), shown.tolist(), sizes.tolist(), strict=True
      )
    ]

  def rendered(
    self, rows: Sequence[packing.Row]
  ) -> Sequence[Sequence[packing.Example]]:
    """Returns rows with all outlines rendered."""
    return self._outlined.rendered(rows)

  def ids(self, examples: packing.Row) -> Sequence[str]:
    """Returns the ids of examples."""
    return self._outlined.ids(examples)

  def state(self) -> bytes:
    """Serializes the position."""
    counts = [int(self._ended), self._num_chunks, *self._taken]
    return npz.to_bytes({_COUNTS: np.array(counts, np.int64)})

  def restore(self, state: bytes) -> None:
    """Moves to a position that `state` returned."""
    ended, num_chunks, *taken = npz.from_bytes(state)[_COUNTS].tolist()
    self._move(bool(ended), num_chunks, taken)

  def skip(self, num_examples: int) -> None:
    """Moves to after the first examples of a stream without end.

    Args:
      num_examples: Their number, that of whole chunks.
    """
    num_chunks, rest = divmod(num_examples, _CHUNK_CHOICES)
    if rest or self._num_epochs is not None:
      raise ValueError(f"{num_examples} examples are not those of whole chunks")
    taken = np.zeros(len(self._taken), np.int64)
    for chunk in range(num_chunks):
      choices = self._outlined.choices(self._seed, chunk)
      taken += np.bincount(choices, minlength=len(taken))
    self._move(False, num_chunks, taken.tolist())

  def _move(self, ended: bool, num_chunks: int, taken: list[int]) -> None:
    self._ended, self._num_chunks, self._taken = ended, num_chunks, taken
    for task, count in enumerate(taken):
      begun = count % teacher_formats.BATCH_SIZE
      read = self._read(task, count - begun) if begun else []
      self._waiting[task] = read[begun:]


_COUNTS = "counts"


class _Outlined:
  """The tasks of a mixture whose examples are outlined, shared by its streams.

  Attributes:
    tasks: Each task.
  """

  def __init__(
    self, tasks: Sequence[tuple[seqio.Task, float]], *, seed: int, split: str
  ) -> None:
    """Reads the tables of each task.

    Args:
      tasks: Tasks that pass `_has_outlines`, each with its mixing rate.
      seed: The seed of the order of rows.
      split: The split to read.
    """
    self.tasks = [_OutlinedTask(task, seed, split) for task, _ in tasks]
    self._used = [i for i, (_, rate) in enumerate(tasks) if rate > 0]
    self._choose = _choosing_fn([rate for _, rate in tasks if rate > 0])

  def choices(self, seed: int, chunk: int) -> np.ndarray:
    """Returns the numbers of the tasks that tf.data would mix, int64[C].

    They are the choices of `tf.data.Dataset.sample_from_datasets`, which calls
    a function for each of them, at a third of its time.

    Args:
      seed: The seed.
      chunk: The number of the chunk of `_CHUNK_CHOICES`.
    """
    if len(self._used) == 1:  # tf.data draws nothing then
      return np.full(_CHUNK_CHOICES, self._used[0])
    count = 2 * _CHUNK_CHOICES  # two seeds a choice
    seeds = _random_numbers(seed, chunk * count, count).reshape(-1, 2)
    return np.asarray(self._used)[self._choose(tf.constant(seeds)).numpy()]

  def rendered(
    self, rows: Sequence[packing.Row]
  ) -> Sequence[Sequence[packing.Example]]:
    """Returns rows with all outlines rendered."""
    found = iter(
      self._by_task([*itertools.chain(*rows)], _OutlinedTask.examples)
    )
    return [[*itertools.islice(found, len(row))] for row in rows]

  def ids(self, outlines: packing.Row) -> Sequence[str]:
    """Returns the ids of examples."""
    return self._by_task(outlines, _OutlinedTask.ids)

  def _by_task(
    self, outlines: Sequence[packing.Outline], make: Callable[..., list]
  ) -> list:
    """Returns what `make` returns for the outlines of each task, in order."""
    made: list = [None] * len(outlines)
    places: list[list[int]] = [[] for _ in self.tasks]
    for place, one in enumerate(outlines):
      places[one.task].append(place)
    for task, own in zip(self.tasks, places, strict=True):
      if own:
        of_task = make(task, [outlines[place] for place in own])
        for place, one in zip(own, of_task, strict=True):
          made[place] = one
    return made


class _OutlinedTask:
  """A task of the teacher's formats: its rows, outlines and examples.

  Attributes:
    num_rows: The number of its source's rows.
  """

  def __init__(self, task: seqio.Task, seed: int, split: str) -> None:
    """Reads the tables."""
    (render,) = _steps(task)
    rendering = teacher_formats.Rendering(
      task.output_features, split=split, **render.keywords
    )
    self._rendering = rendering
    self._render = _rendering_fn(rendering)
    self._outline = tf.function(
      rendering.outline, autograph=False
    ).get_concrete_function(
      tf.TensorSpec([None], tf.int64), tf.TensorSpec([2], tf.int64)
    )
    self.num_rows = task.source.num_input_examples(split)
    # Streams that are at different passes take turns.
    self._order = functools.lru_cache(maxsize=8)(
      lambda number: sources.order(
        self.num_rows, number, seed=seed, salt=task.source.salt
      ).numpy()
    )

  def rows_at(self, places: np.ndarray) -> np.ndarray:
    """Returns rows by their places in all passes one after another, int64[B].

    Args:
      places: int64[B], ascending.
    """
    passes, offsets = np.divmod(places, self.num_rows)
    rows = np.empty_like(places)
    for number in np.unique(passes).tolist():
      at = passes == number
      rows[at] = self._order(number)[offsets[at]]
    return rows

  def outline(
    self, rows: np.ndarray, seed: int, batch: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws the demonstrations of rows, and measures their examples.

    Args:
      rows: int64[B].
      seed: The seed of demonstrations.
      batch: The number of the batch of rows.

    Returns:
      The demonstrations, int64[B, n], and the sizes, int64[B, 2].
    """
    # The seeds of `seqio.map_over_dataset`, by which `render` draws.
    seeds = [_random_numbers(seed + i, batch, 1)[0] for i in range(2)]
    shown, sizes = self._outline(
      tf.constant(rows), tf.constant(seeds, tf.int64)
    )
    return shown.numpy(), sizes.numpy()

  def examples(
    self, outlines: Sequence[packing.Outline]
  ) -> list[packing.Example]:
    """Renders outlines."""
    runs, scalars = self._render(*_tensors(outlines))
    columns = {
      name: _split(values.numpy(), ends.numpy())
      for values_by_name, ends in runs
      for name, values in values_by_name.items()
    }
    columns |= {name: values.numpy() for name, values in scalars.items()}
    return [
      dict(zip(columns, values, strict=True))
      for values in zip(*columns.values(), strict=True)
    ]

  def ids(self, outlines: Sequence[packing.Outline]) -> list[str]:
    """Returns the ids of examples."""
    rows, _ = _tensors(outlines)
    names = self._rendering.names(rows)[features.EXAMPLE_ID]
    return [name.decode() for name in names.numpy().tolist()]


def _random_numbers(seed: int, first: int, count: int) -> np.ndarray:
  """Returns the numbers of `tf.data.Dataset.random(seed)`, int64[count].

  Args:
    seed: The seed.
    first: The index of the first number to return.
    count: The number of numbers.
  """
  page, skipped = divmod(first, _PAGE)
  pages = range(page, (first + count - 1) // _PAGE + 1)
  numbers = np.concatenate([_page_of_random_numbers(seed, n) for n in pages])
  return numbers[skipped : skipped + count]


@functools.lru_cache(maxsize=128)
def _page_of_random_numbers(seed: int, page: int) -> np.ndarray:
  key, high = tf.compat.v1.random.get_seed(seed)
  numbers = tf.raw_ops.StatelessRandomUniformFullIntV2(
    shape=[_PAGE],
    key=tf.constant([key], tf.uint64),
    counter=tf.constant([page * _PAGE // _PHILOX_BLOCK, high], tf.uint64),
    dtype=tf.uint32,
    alg=_PHILOX,
  )
  return numbers.numpy().astype(np.int64)


# TensorFlow's number of the Philox generator, and the numbers of one counter.
_PHILOX, _PHILOX_BLOCK = 1, 4
# Random numbers that are drawn at once: a draw takes a millisecond.
_PAGE = 1024


def _choosing_fn(rates: Sequence[float]) -> Callable[..., tf.Tensor]:
  """Returns the function of seeds, int64[C, 2], that chooses by rates."""
  logits = tf.math.log([rates])

  def choose(seeds: tf.Tensor) -> tf.Tensor:
    # As a loop of the graph: to trace each draw took half a second of a start.
    return tf.map_fn(
      lambda seed: tf.random.stateless_categorical(logits, 1, seed)[0, 0],
      seeds,
      fn_output_signature=tf.int64,
    )

  return tf.function(choose, autograph=False).get_concrete_function(
    tf.TensorSpec([_CHUNK_CHOICES, 2], tf.int64)
  )


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


def training_streams(
  mixture_or_task_name: str,
  *,
  task_feature_lengths: Mapping[str, int],
  seed: int,
  split: str = "train",
  num_epochs: int | None = None,
  numbers: Sequence[int] = (0,),
  of: int = 1,
) -> list[Stream]:
  """Returns streams of the training examples of a mixture.

  They yield outlines where possible, which any of them renders.

  Args:
    mixture_or_task_name: A name registered with seqio.
    task_feature_lengths: As in `training_dataset`.
    seed: The seed of order, mixing and demonstrations.
    split: The split of the tasks.
    num_epochs: The number of passes over the data; None to repeat forever.
    numbers: The numbers, from 0, of the streams to return.
    of: The number of streams into which the examples are divided; at most
      `most_streams`, and 1 with a number of passes.

  Raises:
    ValueError: several streams of a number of passes, which would end at
      different batches.
    UserError: as `training_dataset`.
  """
  if of > 1 and num_epochs is not None:
    raise ValueError(f"num_epochs={num_epochs}: expected None with of={of}.")
  provider = find_provider(mixture_or_task_name)
  tasks = _tasks(provider, split)
  if tasks and isinstance(provider, seqio.Mixture):
    _check_rates([(task, float(provider.get_rate(task))) for task in tasks])
  outlined = None
  if tasks and _is_mixed_by_rates(provider) and all(map(_has_outlines, tasks)):
    rate = getattr(provider, "get_rate", lambda _: 1.0)
    outlined = _Outlined(
      [(task, rate(task)) for task in tasks], seed=seed, split=split
    )
  streams: list[Stream] = []
  tables: dict = {}
  for number in numbers:
    own_seed = sources.salted(seed, f"stream {number}") if number else seed
    if outlined is not None:
      streams.append(
        OutlineStream(
          outlined, seed=own_seed, num_epochs=num_epochs, number=number, of=of
        )
      )
      continue
    share = None
    if of > 1:
      share = sources.Share(number=number, of=of, seed=seed, tables=tables)
    with sources.shared(share):
      dataset = training_dataset(
        mixture_or_task_name,
        task_feature_lengths=task_feature_lengths,
        seed=own_seed,
        split=split,
        num_epochs=num_epochs,
      )
    streams.append(ExampleStream(dataset))
  return streams


def most_streams(mixture_or_task_name: str, *, split: str = "train") -> int:
  """Returns the largest number of streams that a mixture is divided into.

  Each has at least `_MIN_ROWS` of the rows of every task. There are few where
  examples are rendered before they are packed, and one if the rows of any
  source cannot be divided by number (`sources.is_divisible`).

  Args:
    mixture_or_task_name: A name registered with seqio.
    split: The split of the tasks.

  Raises:
    UserError: the name is unknown, or a task has no examples.
  """
  tasks = _tasks(find_provider(mixture_or_task_name), split)
  if not all(sources.is_divisible(task.source) for task in tasks):
    return 1
  fewest = min(
    (task.source.num_input_examples(split) for task in tasks), default=1
  )
  most = max(1, fewest // _MIN_ROWS)
  provider = find_provider(mixture_or_task_name)
  has_outlines = _is_mixed_by_rates(provider) and all(map(_has_outlines, tasks))
  return most if has_outlines else min(most, _MOST_RENDERED)


def _is_mixed_by_rates(provider: seqio.Task | seqio.Mixture) -> bool:
  """Returns whether a mixture draws from its tasks as seqio's own do."""
  if isinstance(provider, seqio.Task):
    return True
  plain = inspect.signature(seqio.Mixture.__init__).parameters["sample_fn"]
  own = comparison.described(provider._sample_fn)
  return type(provider) is seqio.Mixture and own == comparison.described(
    plain.default
  )


def _check_rates(rates: Sequence[tuple[seqio.Task, float]]) -> None:
  """Raises UserError for rates by which nothing can be drawn."""
  for task, rate in rates:
    if not (math.isfinite(rate) and rate >= 0):
      raise errors.UserError(
        f"task {task.name!r} has the rate {rate:g}: expected a number of at"
        " least 0"
      )
  if not any(rate for _, rate in rates):
    names = ", ".join(task.name for task, _ in rates)
    raise errors.UserError(
      f"all rates of the mixture are 0, of {names}: give one a rate above 0"
    )


def _tasks(
  provider: seqio.Task | seqio.Mixture, split: str
) -> list[seqio.Task]:
  """Returns the tasks of a mixture that have a split."""
  return [task for task in seqio.get_subtasks(provider) if split in task.splits]


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
    try:
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
    except ValueError as error:
      if "must have initial args" not in str(error):
        raise
      raise errors.UserError(
        f"MIXTURE_OR_TASK_NAME={mixture_or_task_name!r}: a dataset_fn of its"
        " tasks takes no seed, by which runs are reproduced: define it as"
        " dataset_fn(split, shuffle_files, seed)"
      ) from error
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
    if isinstance(column, tf.RaggedTensor):
      ends = column.row_splits.numpy()
      columns[name] = _split(column.flat_values.numpy(), ends)
    else:  # of a task whose examples are all of one length
      columns[name] = list(column.numpy())
  for values in zip(*columns.values(), strict=True):
    yield dict(zip(columns, values, strict=True))


def _split(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
  """Returns views between neighbouring ends, as np.split in half its time."""
  return [values[a:b] for a, b in itertools.pairwise(ends.tolist())]
