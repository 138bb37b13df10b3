"""The training iterator: packed global batches, with exact resumption.

It has three parts: `_Batches` reads and packs examples, and has a position in
the data; `prefetching.Prefetcher` runs it ahead of time in a thread; and
`TrainIterator` returns the batches and serializes the state.

Global batch n is a pure function of (seed, mixture, n). Every host packs the
same global batch, but builds arrays for its own rows only, so a run can be
resumed on another number of hosts with the same batches. Packing needs lengths
alone: of the teacher's formats a host renders only the examples of its own rows
(`example_stream.OutlineStream`). Of other tasks, whose lengths are known only
once they are tokenized, it renders all examples.
"""

import collections
import dataclasses
import io
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from specialize_jax import errors
from specialize_jax.data import example_stream, features, packing, prefetching

# The number of batches that are prefetched.
PREFETCHED_BATCHES = 2
# After this many consecutive examples that are too long, raise an error.
_MAX_DROPPED_IN_A_ROW = 10_000
_STATE_VERSION = 4


@dataclasses.dataclass
class Counters:
  """Counts of the examples read so far.

  Attributes:
    batches: Global batches returned.
    examples: Examples packed into rows.
    inputs_too_long: Examples dropped because their inputs are too long.
    targets_too_long: Examples dropped because only their targets are.
  """

  batches: int = 0
  examples: int = 0
  inputs_too_long: int = 0
  targets_too_long: int = 0

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
      sums_up: Whether to compute `digest`, which takes a few milliseconds per
        batch.

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
    self._stream = example_stream.training_stream(
      mixture_or_task_name,
      task_feature_lengths=task_feature_lengths,
      seed=seed,
      split=split,
      num_epochs=num_epochs,
    )
    self._batches = _Batches(
      self._stream,
      packing.Packer(task_feature_lengths, pack=pack),
      self._options,
      local_rows=range(batch_size) if rows is None else rows,
      decoder_start_id=decoder_start_id,
      sums_up=sums_up,
    )
    self._prefetcher = prefetching.Prefetcher(
      self._batches.next, num_ahead=PREFETCHED_BATCHES, name="batches"
    )
    self._last_rows: Sequence[packing.Row] = ()
    self._digest = 0

  @property
  def counters(self) -> Counters:
    """Counts of examples packed and dropped, in the batches returned so far."""
    return self._batches.counters

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
    self.counters.batches += 1
    self._last_rows = batch.rows
    self._digest = zlib.crc32(batch.checksum.to_bytes(4), self._digest)
    return batch.arrays

  def example_ids(self) -> list[list[str]]:
    """Returns the ids of the examples of each row of the last global batch."""
    ids = iter(self._stream.ids([*itertools.chain(*self._last_rows)]))
    return [[*itertools.islice(ids, len(row))] for row in self._last_rows]

  def dropped(self) -> str:
    """Describes the examples dropped so far; see `Counters`."""
    return self.counters.dropped_in_words()

  def digest(self) -> str:
    """Returns a checksum of all global batches returned so far.

    Every process packs all examples, so processes with different digests have
    different data.
    """
    return f"{self._digest:08x}"

  def state(self) -> bytes:
    """Serializes the position after the last batch, for `restore`."""
    with self._prefetcher.paused() as ready:
      header = {"version": _STATE_VERSION, "options": self._options}
      return self._batches.state(header, [b.rows for b in ready])

  def restore(self, state: bytes) -> None:
    """Continues after the batch at which `state` was called.

    The number of hosts may differ, but no other option may.

    Raises:
      UserError: the state is of a stream with other options.
    """
    with np.load(io.BytesIO(state), allow_pickle=False) as arrays:
      parts = {name: arrays[name].tobytes() for name in arrays.files}
    header = json.loads(parts["header"])
    self._check_options(header)
    with self._prefetcher.restarted():
      self._batches.restore(header, parts)

  def close(self) -> None:
    """Stops the thread, which ends the stream."""
    self._prefetcher.close()

  def _check_options(self, header: Mapping) -> None:
    if header["version"] != _STATE_VERSION:
      raise errors.UserError(
        f"the data iterator's state has version {header['version']}; this"
        f" version of specialize reads {_STATE_VERSION}"
      )
    for name, now in self._options.items():
      then = header["options"][name]
      if then != now:
        raise errors.UserError(
          f"the checkpoint's data iterator had {name}={then!r}, this run has"
          f" {now!r}: resume with the same value, or start in another"
          " MODEL_DIR"
        )


@dataclasses.dataclass(frozen=True)
class _Batch:
  """A global batch's rows, their checksum, and this process's arrays."""

  rows: Sequence[packing.Row]
  arrays: dict[str, np.ndarray]
  checksum: int


class _Batches:
  """Reads examples, packs them into rows, and builds batches."""

  def __init__(
    self,
    stream: example_stream.Stream,
    packer: packing.Packer,
    options: Mapping,
    *,
    local_rows: Sequence[int],
    decoder_start_id: int,
    sums_up: bool,
  ) -> None:
    self._sums_up = sums_up
    self._stream = stream
    self._packer = packer
    self._options = options
    self._lengths = options["task_feature_lengths"]
    self._local_rows = local_rows
    self._decoder_start_id = decoder_start_id
    self.counters = Counters()
    self._rows: collections.deque[packing.Row] = collections.deque()
    self._dropped_in_a_row = 0
    self._exhausted = False

  def next(self) -> _Batch | None:
    """Returns the next global batch, or None at the end of the data."""
    batch_size = self._options["batch_size"]
    while len(self._rows) < batch_size and not self._exhausted:
      self._read_chunk()
    size = min(batch_size, len(self._rows))
    if not size:
      if not self.counters.examples:
        raise self._nothing_fits()
      return None
    rows = [self._rows.popleft() for _ in range(size)]
    padded = [*rows, *[[]] * (batch_size - size)]
    arrays = packing.to_batch(
      self._stream.rendered([padded[row] for row in self._local_rows]),
      self._lengths,
      decoder_start_id=self._decoder_start_id,
    )
    checksum = packing.checksum(rows) if self._sums_up else 0
    return _Batch(rows=rows, arrays=arrays, checksum=checksum)

  def state(
    self, header: Mapping, ahead: Sequence[Sequence[packing.Row]]
  ) -> bytes:
    """Serializes the position in the data before the prefetched batches.

    Args:
      header: Values that identify the stream.
      ahead: The rows of each prefetched batch, which are part of the state.
    """
    rows = [row for batch in ahead for row in batch] + list(self._rows)
    header = {
      **header,
      "counters": dataclasses.asdict(self.counters),
      "exhausted": self._exhausted,
    }
    arrays = {
      "header": _to_array(json.dumps(header).encode()),
      "elements": _to_array(self._stream.state()),
      "rows": _to_array(packing.rows_to_bytes(rows)),
      "open_rows": _to_array(self._packer.state()),
    }
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()

  def restore(self, header: Mapping, parts: Mapping[str, bytes]) -> None:
    """Moves to the position of a `state`."""
    self._stream.restore(parts["elements"])
    self._packer.restore(parts["open_rows"])
    self._rows = collections.deque(packing.rows_from_bytes(parts["rows"]))
    self.counters = Counters(**header["counters"])
    self._exhausted = header["exhausted"]

  def _read_chunk(self) -> None:
    """Packs the next examples, or closes the open rows at the end."""
    examples = self._stream.next_examples()
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


def _to_array(content: bytes) -> np.ndarray:
  return np.frombuffer(content, np.uint8)
