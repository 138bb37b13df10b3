"""The training iterator: packed global batches, with exact resumption.

It has three parts: `_Batches` reads and packs examples, and has a position in
the data; `prefetching.Prefetcher` runs it ahead of time in a thread; and
`TrainIterator` returns the batches and serializes the state.

Global batch n is a pure function of (seed, mixture, n). Its rows are divided
into groups of consecutive rows, as many for any number of hosts: 16 groups of 8
rows for a batch of 128. Each group has a stream of its own (its share of each
pass over the data, its own choices of tasks and demonstrations), packed by
itself. A host reads the groups of its own rows alone, so that a pod reads as
many times faster as it has hosts, and a run can be resumed on another number of
hosts with the same batches. The state has the positions of all groups, which
the hosts exchange when it is saved.

Packing needs lengths alone: of the teacher's formats a host renders only the
examples of its own rows (`example_stream.OutlineStream`), also where it shares
a group with other hosts. Of other tasks, whose lengths are known only once they
are tokenized, it renders all examples of its groups.
"""

import collections
import dataclasses
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from specialize_jax import errors
from specialize_jax.data import example_stream, features, packing, prefetching
from specialize_jax.files import npz

# The number of batches that are prefetched.
PREFETCHED_BATCHES = 2
# After this many consecutive examples that are too long, raise an error.
_MAX_DROPPED_IN_A_ROW = 10_000
# The most groups of a batch, and the fewest rows of one of several groups.
MAX_GROUPS = 16
_MIN_GROUP_ROWS = 8
# The open rows of all groups together, and the fewest of one.
_OPEN_ROWS = 256
_MIN_OPEN_ROWS = 32
_STATE_VERSION = 5
# The version whose states are of a single group, and have no other parts.
_VERSION_OF_ONE_GROUP = 4

Gather = Callable[[Mapping[str, bytes]], Mapping[str, bytes]]
"""Returns the named values of all processes, which call it together."""


@dataclasses.dataclass
class Counters:
  """Counts of the examples read so far.

  Attributes:
    batches: Global batches returned.
    examples: Examples packed into rows, of the groups that this process reads.
    inputs_too_long: Examples dropped because their inputs are too long.
    targets_too_long: Examples dropped because only their targets are.
  """

  batches: int = 0
  examples: int = 0
  inputs_too_long: int = 0
  targets_too_long: int = 0

  def examples_read(self) -> int:
    """Returns the number of examples that were packed or dropped."""
    return self.examples + self.inputs_too_long + self.targets_too_long

  def dropped_in_words(self) -> str:
    """Describes the examples that were dropped; "" if there are none.

    Example:
      >>> Counters(examples=60, inputs_too_long=30, targets_too_long=10
      ...   ).dropped_in_words()
      '40 of 100 examples dropped as longer than TASK_FEATURE_LENGTHS (30 by \
their inputs, 10 by their targets)'
    """
    dropped = self.inputs_too_long + self.targets_too_long
    if not dropped:
      return ""
    return (
      f"{dropped:,} of {self.examples + dropped:,} examples dropped as longer"
      f" than TASK_FEATURE_LENGTHS ({self.inputs_too_long:,} by their inputs,"
      f" {self.targets_too_long:,} by their targets)"
    )


class TrainIterator:
  """Iterates over this process's rows of the global batches of a mixture.

  Batches are prefetched by a thread. `state` and `restore` may be called
  between any two batches, and refer to the batches returned, not to those
  prefetched. An example whose inputs or targets exceed a row is dropped and
  counted in `counters`, never truncated.
  """

  def __init__(
    self,
    mixture_or_task_name: str,
    *,
    task_feature_lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    pack: bool = True,
    split: str = "train",
    num_epochs: int | None = None,
    rows: Sequence[int] | None = None,
    decoder_start_id: int = 0,
    sums_up: bool = False,
    gather: Gather = dict,
  ) -> None:
    """Builds the pipeline. Prefetching begins with the first batch.

    Args:
      mixture_or_task_name: A name registered with seqio.
      task_feature_lengths: Row lengths in tokens, for `inputs` and `targets`.
      batch_size: The number of rows of a global batch.
      seed: The seed of shuffling, mixing and demonstrations.
      pack: Whether several examples may share a row.
      split: The split of the tasks.
      num_epochs: The number of passes over the data; None to repeat forever.
        The last batch of a finite stream is padded with empty rows.
      rows: The rows of every global batch to return, those of this process's
        devices; None for all.
      decoder_start_id: The first decoder input of every example.
      sums_up: Whether to compute checksums for `digests`, which takes a few
        milliseconds per batch.
      gather: Where several processes read the batches, exchanges named values
        among them, as `parallel.processes.gather` does.

    Raises:
      UserError: the name is unknown, the mixture has no examples, or a length
        or the batch size is not positive.
    """
    if batch_size < 1:
      raise errors.UserError(
        f"BATCH_SIZE={batch_size}: expected at least one row a batch"
      )
    packing.check_lengths(task_feature_lengths)
    self._options = {
      "mixture": mixture_or_task_name,
      "task_feature_lengths": dict(task_feature_lengths),
      "batch_size": batch_size,
      "seed": seed,
      "pack": pack,
      "split": split,
      "num_epochs": num_epochs,
    }
    self._rows = range(batch_size) if rows is None else rows
    self._decoder_start_id = decoder_start_id
    self._sums_up = sums_up
    self._gather = gather
    self._batches = self._open(self._usual_groups())
    self._prefetcher = prefetching.Prefetcher(
      self._make_batch, num_ahead=PREFETCHED_BATCHES, name="batches"
    )
    self._num_batches = 0
    self._last_rows: Mapping[int, Sequence[packing.Row]] = {}
    self._checksums: dict[int, int] = {}

  def _make_batch(self) -> "_Batch | None":
    return self._batches.next()  # of those that `restore` may have opened

  def _usual_groups(self) -> int:
    """Returns the number of groups, whatever the hosts.

    The groups of a finite number of epochs would end at different batches, so
    there is one.
    """
    batch_size = self._options["batch_size"]
    if self._options["num_epochs"] is not None:
      return 1
    if num_groups(batch_size, MAX_GROUPS) == 1:  # without reading tables
      return 1
    most = example_stream.most_streams(
      self._options["mixture"], split=self._options["split"]
    )
    return num_groups(batch_size, most)

  def _open(self, num_groups: int) -> "_Batches":
    """Opens the streams of this process's groups, at their beginning."""
    group_rows = self._options["batch_size"] // num_groups
    # A process without rows reads a group too, to end when the data do.
    numbers = sorted({int(row) // group_rows for row in self._rows}) or [0]
    options = self._options
    streams = example_stream.training_streams(
      options["mixture"],
      task_feature_lengths=options["task_feature_lengths"],
      seed=options["seed"],
      split=options["split"],
      num_epochs=options["num_epochs"],
      numbers=numbers,
      of=num_groups,
    )
    groups = {
      number: _Group(stream, options, num_groups)
      for number, stream in zip(numbers, streams, strict=True)
    }
    return _Batches(
      groups,
      options,
      num_groups=num_groups,
      local_rows=self._rows,
      decoder_start_id=self._decoder_start_id,
      sums_up=self._sums_up,
    )

  @property
  def counters(self) -> Counters:
    """Counts of examples packed and dropped, in the batches returned so far."""
    counters = Counters(batches=self._num_batches)
    for group in self._batches.groups.values():
      counters.examples += group.counters.examples
      counters.inputs_too_long += group.counters.inputs_too_long
      counters.targets_too_long += group.counters.targets_too_long
    return counters

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    """Returns itself."""
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns this process's rows of the next global batch.

    Raises:
      StopIteration: a finite stream has ended.
      UserError: no example of the stream fits into a row.
    """
    batch = self._prefetcher.take()
    self._num_batches += 1
    self._last_rows = batch.rows
    for number, checksum in batch.checksums.items():
      before = self._checksums.get(number, 0)
      self._checksums[number] = zlib.crc32(checksum.to_bytes(4), before)
    return batch.arrays

  def example_ids_fn(self) -> Callable[[], list[list[str]]]:
    """Returns a function that looks up the ids of the last global batch.

    The function returns the ids of the examples of each row. It may be called
    after later batches were returned, by all processes together.
    """
    batches, rows_by_group = self._batches, self._last_rows

    def example_ids() -> list[list[str]]:
      named = {}
      for number, rows in rows_by_group.items():
        ids = iter(batches.ids([*itertools.chain(*rows)]))
        of_rows = [[*itertools.islice(ids, len(row))] for row in rows]
        named[group_name(number)] = json.dumps(of_rows).encode()
      named = self._of_all(named, batches.num_groups)
      found = [json.loads(named[name]) for name in sorted(named)]
      return [*itertools.chain(*found)]

    return example_ids

  def dropped(self) -> str:
    """Describes the examples dropped so far; see `Counters`."""
    words = self.counters.dropped_in_words()
    if words and len(self._batches.groups) < self._batches.num_groups:
      words += ", of those that this process read"
    return words

  def digests(self) -> dict[str, object]:
    """Returns what processes with the same data have in common, by name.

    The number of groups and of batches returned so far, and of each group that
    this process reads a checksum of its rows of all these batches.
    """
    found: dict[str, object] = {
      "the number of batches": self._num_batches,
      "the number of groups of rows": self._batches.num_groups,
    }
    group_rows = self._options["batch_size"] // self._batches.num_groups
    for number in self._batches.groups:
      first = number * group_rows
      name = (
        f"the data, by the checksum of rows {first} to {first + group_rows - 1}"
        " of all batches so far,"
      )
      found[name] = f"{self._checksums.get(number, 0):08x}"
    return found

  def state(self) -> bytes:
    """Serializes the position after the last batch, for `restore`.

    All processes call it together; any one's state is that of all groups. Its
    bytes depend on how many batches are prefetched, the position does not.

    Raises:
      Exception: that of a batch which could not be read ahead: its rows would
        be missing from the state.
    """
    with self._prefetcher.paused() as ready:
      batches = self._batches
      parts = {
        group_name(number): group.state(
          [row for b in ready for row in b.rows[number]]
        )
        for number, group in batches.groups.items()
      }
    parts = self._of_all(parts, batches.num_groups)
    header = {
      "version": _STATE_VERSION,
      "options": self._options,
      "groups": batches.num_groups,
      "batches": self._num_batches,
    }
    return _to_bytes({"header": json.dumps(header).encode(), **parts})

  def _of_all(
    self, parts: Mapping[str, bytes], num_groups: int
  ) -> dict[str, bytes]:
    """Returns the parts of all groups, from the processes that have them."""
    if num_groups > 1:
      parts = self._gather(parts)
    missing = {*map(group_name, range(num_groups))} - parts.keys()
    if missing:
      raise ValueError(
        f"no process reads {', '.join(sorted(missing))} of {num_groups}:"
        " expected `gather` to return the values of all processes"
      )
    return {name: parts[name] for name in sorted(parts)}

  def restore(self, state: bytes) -> None:
    """Continues after the batch at which `state` was called.

    The number of hosts may differ, but no other option may. The rows are
    divided into as many groups as they were then.

    Raises:
      UserError: the state is of a stream with other options.
    """
    parts = _from_bytes(state)
    header = json.loads(parts["header"])
    self._check_options(header)
    if header["version"] == _VERSION_OF_ONE_GROUP:
      header |= {"groups": 1, "batches": header["counters"]["batches"]}
      parts = {group_name(0): state}
    with self._prefetcher.restarted():
      if header["groups"] != self._batches.num_groups:
        self._batches = self._open(header["groups"])
      for number, group in self._batches.groups.items():
        group.restore(parts[group_name(number)])
      self._num_batches = header["batches"]
      self._last_rows, self._checksums = {}, {}

  def close(self) -> None:
    """Stops the thread, which ends the stream."""
    self._prefetcher.close()

  def _check_options(self, header: Mapping) -> None:
    if header["version"] not in (_VERSION_OF_ONE_GROUP, _STATE_VERSION):
      raise errors.UserError(
        f"the data iterator's state has version {header['version']}; this"
        f" version of specialize reads {_VERSION_OF_ONE_GROUP} and"
        f" {_STATE_VERSION}"
      )
    for name, now in self._options.items():
      then = header["options"][name]
      if then != now:
        raise errors.UserError(
          f"the checkpoint's data iterator had {name}={then!r}, this run has"
          f" {now!r}: resume with the same value, or start in another"
          " MODEL_DIR"
        )


def num_groups(batch_size: int, most: int) -> int:
  """Returns the number of groups of a batch: a power of two that divides it.

  Args:
    batch_size: The number of rows of a global batch.
    most: The largest number of streams that the data can be divided into.

  Example:
    >>> [num_groups(size, most=1000) for size in (8, 10, 32, 128, 1024)]
    [1, 1, 4, 16, 16]
  """
  number = 1
  while (
    2 * number <= min(most, MAX_GROUPS)
    and batch_size % (2 * number) == 0
    and batch_size // (2 * number) >= _MIN_GROUP_ROWS
  ):
    number *= 2
  return number


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Rows of a global batch and their checksum by group, and local arrays."""

  rows: Mapping[int, Sequence[packing.Row]]
  arrays: dict[str, np.ndarray]
  checksums: Mapping[int, int]


class _Batches:
  """Builds this process's rows of batches from those of its groups.

  Attributes:
    groups: The groups that this process reads, by number.
    num_groups: The number of all groups.
  """

  def __init__(
    self,
    groups: Mapping[int, "_Group"],
    options: Mapping,
    *,
    num_groups: int,
    local_rows: Sequence[int],
    decoder_start_id: int,
    sums_up: bool,
  ) -> None:
    self.groups = groups
    self.num_groups = num_groups
    self._lengths = options["task_feature_lengths"]
    self._group_rows = options["batch_size"] // num_groups
    self._local_rows = local_rows
    self._decoder_start_id = decoder_start_id
    self._sums_up = sums_up

  def next(self) -> _Batch | None:
    """Returns the next batch, or None at the end of the data."""
    rows = {
      number: group.next_rows(self._group_rows)
      for number, group in self.groups.items()
    }
    if not any(rows.values()):
      return None
    padded = {
      number: [*found, *[[]] * (self._group_rows - len(found))]
      for number, found in rows.items()
    }
    local = [
      padded[row // self._group_rows][row % self._group_rows]
      for row in self._local_rows
    ]
    arrays = packing.to_batch(
      self._rendered(local),
      self._lengths,
      decoder_start_id=self._decoder_start_id,
    )
    checksums = {}
    if self._sums_up:
      checksums = {n: packing.checksum(found) for n, found in rows.items()}
    return _Batch(rows=rows, arrays=arrays, checksums=checksums)

  def _rendered(
    self, rows: Sequence[packing.Row]
  ) -> Sequence[Sequence[packing.Example]]:
    # Any group's stream renders the rows of all, in larger batches.
    return next(iter(self.groups.values())).stream.rendered(rows)

  def ids(self, examples: packing.Row) -> Sequence[str]:
    """Returns the ids of examples."""
    return next(iter(self.groups.values())).stream.ids(examples)


class _Group:
  """Reads the examples of a group, and packs them into its rows.

  Attributes:
    stream: Its examples.
    counters: Counts of its examples.
  """

  def __init__(
    self, stream: example_stream.Stream, options: Mapping, num_groups: int
  ) -> None:
    self.stream = stream
    self.counters = Counters()
    self._options = options
    self._lengths = options["task_feature_lengths"]
    self._packer = packing.Packer(
      self._lengths,
      max_open_rows=max(_OPEN_ROWS // num_groups, _MIN_OPEN_ROWS),
      pack=options["pack"],
    )
    self._rows: collections.deque[packing.Row] = collections.deque()
    self._dropped_in_a_row = 0
    self._exhausted = False

  def next_rows(self, number: int) -> list[packing.Row]:
    """Returns the next rows: so many, or fewer at the end of the data."""
    while len(self._rows) < number and not self._exhausted:
      self._read_chunk()
    if not self._rows and not self.counters.examples:
      raise self._nothing_fits()
    size = min(number, len(self._rows))
    return [self._rows.popleft() for _ in range(size)]

  def state(self, ahead: Sequence[packing.Row]) -> bytes:
    """Serializes the position in the data before some rows.

    Args:
      ahead: The rows of prefetched batches, which are part of the state.
    """
    header = {
      "counters": dataclasses.asdict(self.counters),
      "exhausted": self._exhausted,
    }
    return _to_bytes(
      {
        "header": json.dumps(header).encode(),
        "elements": self.stream.state(),
        "rows": packing.rows_to_bytes([*ahead, *self._rows]),
        "open_rows": self._packer.state(),
      }
    )

  def restore(self, state: bytes) -> None:
    """Moves to the position of a `state`."""
    parts = _from_bytes(state)
    header = json.loads(parts["header"])
    counters = Counters(**header["counters"])
    if header.get("version") == _VERSION_OF_ONE_GROUP and isinstance(
      self.stream, example_stream.OutlineStream
    ):
      # Its elements are those of datasets that this version does not have.
      self.stream.skip(counters.examples_read())
    else:
      self.stream.restore(parts["elements"])
    self._packer.restore(parts["open_rows"])
    self._rows = collections.deque(packing.rows_from_bytes(parts["rows"]))
    self.counters = counters
    self._exhausted = header["exhausted"]

  def _read_chunk(self) -> None:
    """Packs the next examples, or closes the open rows at the end."""
    examples = self.stream.next_examples()
    if not examples:
      self._exhausted = True
      self._rows.extend(self._packer.flush())
    for example in examples:
      if self._packer.fits(example):
        self._rows.extend(self._packer.add(example))
        self.counters.examples += 1
        self._dropped_in_a_row = 0
      else:
        self._drop(example)

  def _drop(self, example: packing.Example | packing.Outline) -> None:
    num_inputs, _ = packing.sizes(example)
    if num_inputs > self._lengths[features.INPUTS]:
      self.counters.inputs_too_long += 1
    else:
      self.counters.targets_too_long += 1
    self._dropped_in_a_row += 1
    if self._dropped_in_a_row >= _MAX_DROPPED_IN_A_ROW:
      raise self._nothing_fits()

  def _nothing_fits(self) -> errors.UserError:
    name = self._options["mixture"]
    dropped = self.counters.inputs_too_long + self.counters.targets_too_long
    if not dropped:
      return errors.UserError(
        f"{name!r} is empty: expected at least one example in split"
        f" {self._options['split']!r}"
      )
    return errors.UserError(
      f"TASK_FEATURE_LENGTHS={self._lengths}: no example of {name!r}"
      f" fits ({self.counters.inputs_too_long} dropped for their inputs,"
      f" {self.counters.targets_too_long} for their targets): raise the"
      " lengths"
    )


def group_name(group: int) -> str:
  """Returns the name of a group's part of a state."""
  return f"group_{group:02}"


def _to_bytes(parts: Mapping[str, bytes]) -> bytes:
  arrays = {name: np.frombuffer(part, np.uint8) for name, part in parts.items()}
  return npz.to_bytes(arrays, compress=True)


def _from_bytes(state: bytes) -> dict[str, bytes]:
  try:
    arrays = npz.from_bytes(state)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f"the data iterator's state cannot be read ({len(state)} bytes): give the"
      " bytes that `state` returned"
    ) from error
  return {name: x.tobytes() for name, x in arrays.items()}
