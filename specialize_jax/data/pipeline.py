"""The training iterator: packed global batches, resumable to the bit.

Global batch n is a pure function of (seed, mixture, n): every host reads the
same examples, packs the same global batch and lays out its own rows, so a run
may stop and go on with another number of hosts and see the same batches.
"""

import collections
import dataclasses
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from specialize_jax import errors
from specialize_jax.data import example_stream, features, packing

# Batches made ahead of the one that is asked for.
PREFETCHED_BATCHES = 2
# After so many examples in a row that are too long the lengths are wrong.
_MAX_DROPPED_IN_A_ROW = 10_000
_STATE_VERSION = 2


@dataclasses.dataclass
class Counters:
  """What became of the examples read so far.

  Attributes:
    batches: global batches handed out.
    examples: examples packed into rows.
    inputs_too_long: examples dropped for their inputs.
    targets_too_long: examples dropped for their targets.
  """

  batches: int = 0
  examples: int = 0
  inputs_too_long: int = 0
  targets_too_long: int = 0


class TrainIterator:
  """Iterates over this process's rows of the global batches of a mixture.

  A thread makes batches ahead; `state` and `restore` may be called at any
  time between two batches and mean the batches handed out, not those made.
  An example whose inputs or targets exceed a row is dropped and counted in
  `counters`, never cut.

  Attributes:
    counters: how many examples were packed and dropped, so far as made.
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
  ) -> None:
    """Builds the pipeline; the first batch is made when asked for.

    Args:
      mixture_or_task_name: a name registered with seqio.
      task_feature_lengths: row lengths in tokens, `inputs` and `targets`.
      batch_size: rows of a global batch.
      seed: fixes order, mixing and demonstrations.
      pack: whether several examples share a row.
      split: which split of the tasks to read.
      num_epochs: passes over the data; None for no end. The last batch of a
        finite stream is filled up with empty rows.
      rows: which rows of every global batch are given, those that this
        process's devices hold; None for all.
      decoder_start_id: the first decoder input of every example.

    Raises:
      UserError: an unknown name, a mixture without examples, lengths or a
        batch size that cannot be.
    """
    if batch_size < 1:
      raise errors.UserError(
        f"BATCH_SIZE={batch_size}: expected at least one row a batch"
      )
    self._local_rows = range(batch_size) if rows is None else rows
    packing.check_lengths(task_feature_lengths)
    self._name = mixture_or_task_name
    self._lengths = dict(task_feature_lengths)
    self._batch_size = batch_size
    self._decoder_start_id = decoder_start_id
    self._options = {
      "mixture": mixture_or_task_name,
      "task_feature_lengths": self._lengths,
      "batch_size": batch_size,
      "seed": seed,
      "pack": pack,
      "split": split,
      "num_epochs": num_epochs,
    }
    self._stream = example_stream.ExampleStream(
      example_stream.training_dataset(
        mixture_or_task_name,
        task_feature_lengths=task_feature_lengths,
        seed=seed,
        split=split,
        num_epochs=num_epochs,
      )
    )
    self._packer = packing.Packer(task_feature_lengths, pack=pack)
    # Rows that wait for a batch, and the batches that wait to be handed out,
    # as rows too: so a state holds examples, whatever was made ahead.
    self._rows: collections.deque[packing.Row] = collections.deque()
    self._ready: collections.deque[_Batch] = collections.deque()
    self.counters = Counters()
    self._dropped_in_a_row = 0
    self._exhausted = False
    self._ending: _Ending | None = None
    # The first lock is held while a batch is made, and guards all that its
    # making changes; the second, taken inside the first, guards the queue.
    self._making = threading.Lock()
    self._queue = threading.Condition()
    self._thread: threading.Thread | None = None
    self._given: Sequence[packing.Row] = ()

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    """Gives itself."""
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Gives this process's rows of the next global batch.

    Raises:
      StopIteration: a finite stream has ended.
      UserError: the stream has no example that fits a row.
    """
    with self._queue:
      self._start()
      self._queue.wait_for(lambda: self._ready or self._ending)
      if not self._ready:
        raise self._ending.error or StopIteration
      batch = self._ready.popleft()
      self.counters.batches += 1
      self._given = batch.rows
      self._queue.notify_all()
    return batch.arrays

  def example_ids(self) -> list[list[str]]:
    """Names the examples of each row of the global batch given last."""
    return [
      [example[features.EXAMPLE_ID].decode() for example in row]
      for row in self._given
    ]

  def state(self) -> bytes:
    """Gives what `restore` needs to go on after the last batch given."""
    with self._making, self._queue:
      rows = [row for batch in self._ready for row in batch.rows]
      rows += self._rows
      arrays = {
        "header": _to_array(
          json.dumps(
            {
              "version": _STATE_VERSION,
              "options": self._options,
              "counters": dataclasses.asdict(self.counters),
              "exhausted": self._exhausted,
            }
          ).encode()
        ),
        "elements": _to_array(self._stream.state()),
        "rows": _to_array(packing.rows_to_bytes(rows)),
        "open_rows": _to_array(self._packer.state()),
      }
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()

  def restore(self, state: bytes) -> None:
    """Goes on after the batch that `state` was taken at.

    The number of hosts may differ; everything else must be as it was.

    Raises:
      UserError: the state is of a stream with other options.
    """
    with np.load(io.BytesIO(state), allow_pickle=False) as arrays:
      parts = {name: arrays[name].tobytes() for name in arrays.files}
    header = json.loads(parts["header"])
    self._check_options(header)
    with self._making, self._queue:
      self._stream.restore(parts["elements"])
      self._packer.restore(parts["open_rows"])
      self._ready.clear()
      self._rows = collections.deque(packing.rows_from_bytes(parts["rows"]))
      self.counters = Counters(**header["counters"])
      self._exhausted = header["exhausted"]
      self._ending = None
      self._queue.notify_all()

  def close(self) -> None:
    """Ends the thread, and with it the stream."""
    with self._queue:
      self._ending = _Ending(closed=True)
      self._queue.notify_all()
    if self._thread is not None:
      self._thread.join()

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

  def _start(self) -> None:
    if self._thread is None:
      self._thread = threading.Thread(
        target=self._produce, name="batches", daemon=True
      )
      self._thread.start()

  def _produce(self) -> None:
    """Makes batches ahead until the iterator is closed."""
    while True:
      with self._queue:
        self._queue.wait_for(self._may_produce)
        if self._ending is not None:
          return
      with self._making:
        try:
          batch, error = self._make_batch(), None
        except Exception as raised:  # noqa: BLE001 (raised where it is awaited)
          batch, error = None, raised
        with self._queue:
          if batch is not None:
            self._ready.append(batch)
          elif self._ending is None:
            self._ending = _Ending(error=error)
          self._queue.notify_all()

  def _may_produce(self) -> bool:
    if self._ending is not None:
      return self._ending.closed
    return len(self._ready) < PREFETCHED_BATCHES

  def _make_batch(self) -> "_Batch | None":
    """Gives the next global batch, or None at the end of the data."""
    while len(self._rows) < self._batch_size and not self._exhausted:
      self._read_chunk()
    size = min(self._batch_size, len(self._rows))
    if not size:
      if not self.counters.examples:
        raise self._nothing_fits()
      return None
    rows = [self._rows.popleft() for _ in range(size)]
    padded = [*rows, *[[]] * (self._batch_size - size)]
    arrays = packing.to_batch(
      [padded[row] for row in self._local_rows],
      self._lengths,
      decoder_start_id=self._decoder_start_id,
    )
    return _Batch(rows=rows, arrays=arrays)

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

  def _drop(self, example: packing.Example) -> None:
    if len(example[features.INPUTS]) > self._lengths[features.INPUTS]:
      self.counters.inputs_too_long += 1
    else:
      self.counters.targets_too_long += 1
    self._dropped_in_a_row += 1
    if self._dropped_in_a_row >= _MAX_DROPPED_IN_A_ROW:
      raise self._nothing_fits()

  def _nothing_fits(self) -> errors.UserError:
    dropped = self.counters.inputs_too_long + self.counters.targets_too_long
    if not dropped:
      return errors.UserError(
        f"{self._name!r} is empty: expected at least one example in split"
        f" {self._options['split']!r}"
      )
    return errors.UserError(
      f"TASK_FEATURE_LENGTHS={self._lengths}: no example of {self._name!r}"
      f" fits ({self.counters.inputs_too_long} dropped for their inputs,"
      f" {self.counters.targets_too_long} for their targets): raise the"
      " lengths"
    )


@dataclasses.dataclass(frozen=True)
class _Batch:
  """A global batch's rows, and this process's share as arrays."""

  rows: Sequence[packing.Row]
  arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Ending:
  """Why no batch follows: the data's end, an error, or `close`."""

  error: Exception | None = None
  closed: bool = False


def _to_array(content: bytes) -> np.ndarray:
  return np.frombuffer(content, np.uint8)
