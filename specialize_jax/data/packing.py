"""Packs examples of any length into rows of two fixed lengths.

seqio's packer casts to int32, supports rank 1 only and determines an example's
length by counting non-zeros, so it cannot handle a teacher's `[length, 5]`
probabilities. This one packs by the lengths of `inputs` and `targets`, and
places every other target feature at the offsets of the targets.

Example. With lengths `{"inputs": 6, "targets": 5}` the examples

  inputs [7, 8, 1]  targets [3, 1]  mask [1, 0]
  inputs [9, 1]     targets [4, 5, 1]  mask [1, 1, 0]

fill one row:

  encoder_input_tokens      7 8 1 9 1 0
  encoder_segment_ids       1 1 1 2 2 0
  decoder_target_tokens     3 1 4 5 1
  decoder_input_tokens      0 3 0 4 5    shifted right within a segment
  decoder_loss_weights      1 1 1 1 1
  decoder_segment_ids       1 1 2 2 2
  decoder_teacher_top_mask  1 0 1 1 0
  decoder_data_formats      0 0 0 0 0    the example's, at each of its tokens
"""

import bisect
import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from specialize_jax import errors
from specialize_jax.data import features
from specialize_jax.files import npz

# A task example: arrays for all of `features.TRAINING_FEATURES`, and for some
# of `features.EXAMPLE_FEATURES`.
Example = Mapping[str, np.ndarray]


class Outline(NamedTuple):
  """An example before it is rendered: its content by number, and its lengths.

  Attributes:
    task: The index of its task in the mixture.
    row: The row of the task's source.
    shown: The indices of the demonstrations before its question.
    sizes: The number of tokens of its inputs and of its targets.
  """

  task: int
  row: int
  shown: tuple[int, ...]
  sizes: tuple[int, int]


# The examples that share one row, in order: all rendered, or all outlines.
Row = Sequence[Example | Outline]


class Packer:
  """Best-fit packing over a bounded number of open rows.

  An example is placed in the open row in which it leaves the least space on the
  side (inputs or targets) that has less free space over all open rows; if it
  fits into none, a new row is opened. If there are more than `max_open_rows`,
  the row with the least space on either side is closed first. A row's content
  is thus a function of the examples and their order.

  For the four formats of GSM8K, in rows of 2,304 and 528 tokens, 2.2 % of the
  inputs and 14 % of the targets are padding, 4.4 % overall; in rows of 1,536
  and 352, 5.7 %. Shorter rows have more padding: in-context examples have some
  600 tokens, and the others, of some 65, are too few to fill the gaps.

  With `pack=False` every example is in a row of its own.
  """

  def __init__(
    self,
    task_feature_lengths: Mapping[str, int],
    *,
    max_open_rows: int = 256,
    pack: bool = True,
  ) -> None:
    """Creates a packer without open rows.

    Args:
      task_feature_lengths: Row lengths in tokens, for `inputs` and `targets`.
      max_open_rows: The maximum number of open rows.
      pack: Whether several examples may share a row.

    Raises:
      UserError: a length or `max_open_rows` is not positive.
    """
    check_lengths(task_feature_lengths)
    if max_open_rows < 1:
      raise errors.UserError(
        f"max_open_rows={max_open_rows}: expected at least one open row."
      )
    self._lengths = (
      task_feature_lengths[features.INPUTS],
      task_feature_lengths[features.TARGETS],
    )
    self._max_open_rows = max_open_rows
    self._pack = pack
    # Open rows by number, the oldest first, and their free tokens, inputs and
    # targets.
    self._open: dict[int, list[Example | Outline]] = {}
    self._free: dict[int, tuple[int, int]] = {}
    # For either side (free tokens, number) of every open row, sorted, and the
    # free tokens of all rows.
    self._by_free: tuple[list[tuple[int, int]], ...] = ([], [])
    self._total_free = [0, 0]
    self._numbers = itertools.count()

  def fits(self, example: Example | Outline) -> bool:
    """Returns whether an example fits into an empty row."""
    inputs, targets = sizes(example)
    return inputs <= self._lengths[0] and targets <= self._lengths[1]

  def add(self, example: Example | Outline) -> list[Row]:
    """Places an example, and returns the rows that were closed.

    Raises:
      ValueError: the example is longer than a row; check with `fits` first.
    """
    inputs, targets = sizes(example)
    if inputs > self._lengths[0] or targets > self._lengths[1]:
      raise ValueError(
        f"an example of {[inputs, targets]} tokens does not fit a row"
        f" of {list(self._lengths)}; drop it by `fits` first"
      )
    if not self._pack:
      return [[example]]
    closed: list[Row] = []
    number = self._best_fit((inputs, targets))
    if number is None:
      if len(self._open) == self._max_open_rows:
        closed.append(self._close(self._fullest()))
      number = self._opened([], self._lengths)
    free = self._remove(number)
    left = free[0] - inputs, free[1] - targets
    self._insert(number, left)
    self._open[number].append(example)
    if not all(left):  # one side is full, so no example fits
      closed.append(self._close(number))
    return closed

  def flush(self) -> list[Row]:
    """Closes and returns all open rows, oldest first."""
    return [self._close(number) for number in list(self._open)]

  def state(self) -> bytes:
    """Serializes the open rows, for `restore`."""
    return rows_to_bytes(self._open.values())

  def restore(self, state: bytes) -> None:
    """Replaces the open rows by those of a `state`."""
    self.flush()
    for row in rows_from_bytes(state):
      used = np.sum([*map(sizes, row)], axis=0).tolist()
      left = self._lengths[0] - used[0], self._lengths[1] - used[1]
      self._opened(list(row), left)

  def _best_fit(self, needed: tuple[int, int]) -> int | None:
    """Returns the best open row for an example (ties: the oldest), or None."""
    shares = [
      total / length
      for total, length in zip(self._total_free, self._lengths, strict=True)
    ]
    scarcer = 0 if shares[0] <= shares[1] else 1
    other = 1 - scarcer
    by_free = self._by_free[scarcer]
    first = bisect.bisect_left(by_free, (needed[scarcer], 0))
    for place in range(first, len(by_free)):
      number = by_free[place][1]
      if self._free[number][other] >= needed[other]:
        return number
    return None

  def _fullest(self) -> int:
    """Returns the row with the least room on either side (ties: the oldest)."""
    candidates = [
      (by_free[0][0] / length, by_free[0][1])
      for by_free, length in zip(self._by_free, self._lengths, strict=True)
    ]
    return min(candidates)[1]

  def _opened(self, row: list[Example | Outline], free: tuple[int, int]) -> int:
    number = next(self._numbers)
    self._open[number] = row
    self._insert(number, free)
    return number

  def _close(self, number: int) -> Row:
    self._remove(number)
    return self._open.pop(number)

  def _insert(self, number: int, free: tuple[int, int]) -> None:
    self._free[number] = free
    for side, tokens in enumerate(free):
      bisect.insort(self._by_free[side], (tokens, number))
      self._total_free[side] += tokens

  def _remove(self, number: int) -> tuple[int, int]:
    free = self._free.pop(number)
    for side, tokens in enumerate(free):
      by_free = self._by_free[side]
      del by_free[bisect.bisect_left(by_free, (tokens, number))]
      self._total_free[side] -= tokens
    return free


def check_lengths(task_feature_lengths: Mapping[str, int]) -> None:
  """Raises a `UserError` unless both lengths are given and positive."""
  expected = {features.INPUTS, features.TARGETS}
  if set(task_feature_lengths) != expected or not all(
    isinstance(n, int) and n > 0 for n in task_feature_lengths.values()
  ):
    raise errors.UserError(
      f"TASK_FEATURE_LENGTHS={dict(task_feature_lengths)}: expected positive"
      ' token counts for "inputs" and "targets", as in'
      ' {"inputs": 768, "targets": 256}.'
    )


def to_batch(
  rows: Sequence[Row],
  task_feature_lengths: Mapping[str, int],
  *,
  decoder_start_id: int = 0,
) -> dict[str, np.ndarray]:
  """Builds a model's batch from rows of examples; padding is 0.

  Args:
    rows: The examples of each row, which must fit into it.
    task_feature_lengths: Row lengths in tokens, for `inputs` and `targets`.
    decoder_start_id: The first decoder input of every example.

  Returns:
    The features in the module's docstring, [rows, length], and those of the
    teacher's ids (int32) and probabilities (float32), [rows, length, 5].
  """
  source = task_feature_lengths[features.INPUTS]
  target = task_feature_lengths[features.TARGETS]
  batch = empty_batch(len(rows), source, target)
  for r, row in enumerate(rows):
    start_s = start_t = 0
    for segment, example in enumerate(row, start=1):
      ids, targets = example[features.INPUTS], example[features.TARGETS]
      s = slice(start_s, start_s + len(ids))
      t = slice(start_t, start_t + len(targets))
      batch["encoder_input_tokens"][r, s] = ids
      batch["encoder_segment_ids"][r, s] = segment
      batch["decoder_target_tokens"][r, t] = targets
      if len(targets):
        batch["decoder_input_tokens"][r, start_t] = decoder_start_id
      batch["decoder_input_tokens"][r, start_t + 1 : t.stop] = targets[:-1]
      batch["decoder_segment_ids"][r, t] = segment
      data_format = example.get(features.DATA_FORMAT, 0)
      batch["decoder_data_formats"][r, t] = data_format
      for name in features.TARGET_FEATURES:
        if name != features.TARGETS:
          batch[f"decoder_{name}"][r, t] = example[name]
      start_s, start_t = s.stop, t.stop
  # Of all rows at once; padding has no candidates, and so no weight.
  batch["decoder_loss_weights"][:] = features.is_taught(
    {
      name: batch[f"decoder_{name}"]
      for name in (features.TEACHER_TOP_PROBS, features.TEACHER_TOP_MASK)
    }
  )
  return batch


def padding_shares(batch: Mapping[str, np.ndarray]) -> Mapping[str, float]:
  """Computes the fraction of positions that are padding, on each side."""
  return {
    "encoder": float((batch["encoder_segment_ids"] == 0).mean()),
    "decoder": float((batch["decoder_segment_ids"] == 0).mean()),
  }


def rows_to_bytes(rows: Iterable[Row]) -> bytes:
  """Serializes rows of examples exactly (NumPy's own file format)."""
  rows = [list(row) for row in rows]
  examples = [example for row in rows for example in row]
  arrays = {"row_sizes": np.array([len(row) for row in rows], np.int64)}
  if examples and isinstance(examples[0], Outline):
    arrays["outlines"] = _numbers(examples)
    return npz.to_bytes(arrays)
  for name in (features.INPUTS, features.TARGETS):
    arrays[f"{name}_sizes"] = np.array(
      [len(example[name]) for example in examples], np.int64
    )
  for name, (dtype, shape) in features.TRAINING_FEATURES.items():
    parts = [np.asarray(example[name], dtype) for example in examples]
    arrays[name] = np.concatenate([np.zeros((0, *shape), dtype), *parts])
  for name, dtype in features.EXAMPLE_FEATURES.items():
    # `dtype()` is the default: an empty id, or 0 for no format.
    values = [example.get(name, dtype()) for example in examples]
    arrays[name] = np.array(values, dtype)
  return npz.to_bytes(arrays)


def _numbers(outlines: Iterable[Outline]) -> np.ndarray:
  """Returns outlines as int64, one after another."""
  return np.array(
    [
      number
      for task, row, shown, (inputs, targets) in outlines
      for number in (task, row, inputs, targets, len(shown), *shown)
    ],
    np.int64,
  )


def _outlines(numbers: np.ndarray) -> list[Outline]:
  found, values = [], iter(numbers.tolist())
  for task in values:
    row, inputs, targets, count = itertools.islice(values, 4)
    shown = tuple(itertools.islice(values, count))
    found.append(Outline(task, row, shown, (inputs, targets)))
  return found


def checksum(rows: Iterable[Row]) -> int:
  """Returns a CRC-32 of the content of rows.

  The checksum of outlines is that of what is to be rendered: processes with the
  same data render the same examples from it.
  """
  value = 0
  for row in rows:
    value = zlib.crc32(len(row).to_bytes(4), value)
    if row and isinstance(row[0], Outline):
      value = zlib.crc32(_numbers(row).data, value)
      continue
    for example in row:
      for name, (dtype, _) in features.TRAINING_FEATURES.items():
        array = np.ascontiguousarray(example[name], dtype)
        value = zlib.crc32(array.view(np.uint8).reshape(-1), value)
  return value


def rows_from_bytes(state: bytes) -> list[Row]:
  """Deserializes the result of `rows_to_bytes`."""
  arrays = npz.from_bytes(state)
  if "outlines" in arrays:
    outlines = iter(_outlines(arrays["outlines"]))
    return [[*itertools.islice(outlines, size)] for size in arrays["row_sizes"]]
  columns = {}
  for name in features.TRAINING_FEATURES:
    side = features.INPUTS if name == features.INPUTS else features.TARGETS
    ends = np.cumsum(arrays[f"{side}_sizes"])
    columns[name] = np.split(arrays[name], ends)[:-1]
  columns |= {name: list(arrays[name]) for name in features.EXAMPLE_FEATURES}
  row_sizes = arrays["row_sizes"]
  examples = iter(
    [
      dict(zip(columns, values, strict=True))
      for values in zip(*columns.values(), strict=True)
    ]
  )
  return [[next(examples) for _ in range(size)] for size in row_sizes]


def sizes(example: Example | Outline) -> tuple[int, int]:
  """Returns the number of tokens of an example's inputs and targets."""
  if isinstance(example, Outline):
    return example.sizes
  return len(example[features.INPUTS]), len(example[features.TARGETS])


def empty_batch(rows: int, source: int, target: int) -> dict[str, np.ndarray]:
  """Returns a batch of padding, with all features of a model's batch.

  Args:
    rows: The number of rows.
    source: The length of the inputs, in tokens.
    target: The length of the targets, in tokens.
  """
  batch = {
    name: np.zeros((rows, source), np.int32)
    for name in ("encoder_input_tokens", "encoder_segment_ids")
  }
  for name in (
    "decoder_target_tokens",
    "decoder_input_tokens",
    "decoder_segment_ids",
    "decoder_data_formats",
  ):
    batch[name] = np.zeros((rows, target), np.int32)
  batch["decoder_loss_weights"] = np.zeros((rows, target), np.float32)
  for name, (dtype, shape) in features.TARGET_FEATURES.items():
    if name != features.TARGETS:
      batch[f"decoder_{name}"] = np.zeros((rows, target, *shape), dtype)
  return batch
