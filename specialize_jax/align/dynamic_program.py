"""The paper's dynamic program, vectorized over samples.

f(i, j) = c(i, j) + min{f(i-1, j), f(i, j-1), f(i-1, j-1)} depends only on the
two previous anti-diagonals, so one anti-diagonal of all samples is computed in
three array operations: samples of similar size are stacked along the last axis,
and an anti-diagonal is a strided slice. The costs are edit distances of pairs
of strings, cached in a table because most pairs recur. Backtracking advances
all samples by one step at a time.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

_MAX_CELLS = 1 << 20  # per group of samples, to fit the processor's cache
_MAX_PAIRS = 1 << 28  # of the table, two bytes each: half a GiB
_GROWTH = 1.25  # the least factor by which an axis of the table grows
_FAR = 1 << 14  # the cost of cells beyond the border


class _Axis:
  """The strings along one axis of the table, in order of first use."""

  def __init__(self) -> None:
    self.strings: list[str] = []
    self._places = np.zeros(0, np.int64)  # of each known number; -1 for none

  def places(self, numbers: np.ndarray, strings: Sequence[str]) -> np.ndarray:
    """Returns the index of each number along the axis, adding new ones."""
    if len(strings) > len(self._places):
      grown = np.full(2 * len(strings), -1, np.int64)
      grown[: len(self._places)] = self._places
      self._places = grown
    found = self._places[numbers]
    if found.min() >= 0:
      return found
    new = np.unique(numbers[found < 0])
    self._places[new] = len(self.strings) + np.arange(len(new))
    self.strings += [strings[number] for number in new.tolist()]
    return self._places[numbers]


class DistanceTable:
  """A cache of edit distances between two sets of strings.

  Entries are the distance plus 1; 0 if it is not known yet. A table that grows
  beyond 2^28 pairs is cleared.
  """

  def __init__(self) -> None:
    self._rows, self._columns = _Axis(), _Axis()
    self._table = np.zeros((0, 0), np.int16)

  def take(
    self,
    rows_LB: np.ndarray,
    columns_TB: np.ndarray,
    row_strings: Sequence[str],
    column_strings: Sequence[str],
  ) -> np.ndarray:
    """Returns the distance of every pair within each sample.

    Args:
      rows_LB: int[L, B], indices into `row_strings`; an index must refer to the
        same string in every call.
      columns_TB: int[T, B], indices into `column_strings`, likewise.
      row_strings: The teacher's strings.
      column_strings: The student's strings.

    Returns:
      int16[L, T, B].
    """
    rows = self._rows.places(rows_LB, row_strings)
    columns = self._columns.places(columns_TB, column_strings)
    self._grow()
    width = self._table.shape[1]
    index = (rows * width)[:, None, :] + columns[None, :, :]
    table = self._table.reshape(-1)
    found = table.take(index)
    if not found.all():
      new = np.unique(index[found == 0])
      table[new] = 1 + process.cpdist(
        [self._rows.strings[row] for row in (new // width).tolist()],
        [self._columns.strings[column] for column in (new % width).tolist()],
        scorer=Levenshtein.distance,
        dtype=np.int16,
      )
      found = table.take(index)
    found -= 1
    return found

  def _grow(self) -> None:
    """Grows the arrays to hold every row and column.

    An axis grows by at least a quarter, so that filling a table of n entries
    takes O(n) time; doubling both axes would need twice the memory on average.
    """
    shape = tuple(
      have if needed <= have else max(needed, math.ceil(have * _GROWTH))
      for have, needed in zip(
        self._table.shape,
        (len(self._rows.strings), len(self._columns.strings)),
        strict=True,
      )
    )
    if shape != self._table.shape:
      grown = np.zeros(shape, np.int16)
      grown[: self._table.shape[0], : self._table.shape[1]] = self._table
      self._table = grown

  @property
  def is_full(self) -> bool:
    """Whether the table should be cleared before the next group."""
    return self._table.size > _MAX_PAIRS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths:
  """The cheapest path of each sample, concatenated.

  Attributes:
    samples: The sample of each path.
    counts: The number of cells of each path.
    teacher: int64[cells], the teacher token of each cell in its sample.
    student: int64[cells], the student token of each cell in its sample.
  """

  samples: np.ndarray
  counts: np.ndarray
  teacher: np.ndarray
  student: np.ndarray


def groups_of_like_size(
  lengths_B: np.ndarray, widths_B: np.ndarray
) -> list[np.ndarray]:
  """Splits samples into groups of similar size, so that padding is small.

  Args:
    lengths_B: The number of teacher tokens of each sample.
    widths_B: The number of student tokens. A sample without tokens on either
      side is in no group.

  Returns:
    The indices of the samples of each group.
  """
  order = np.lexsort((widths_B, lengths_B))
  order = order[(lengths_B[order] > 0) & (widths_B[order] > 0)]
  groups = []
  while len(order):
    cells = np.maximum.accumulate(lengths_B[order]) * np.maximum.accumulate(
      widths_B[order]
    )
    fits = cells * np.arange(1, len(order) + 1) <= _MAX_CELLS
    size = max(1, int(fits.argmin()) if not fits.all() else len(order))
    groups.append(order[:size])
    order = order[size:]
  return groups


def padded(
  values: np.ndarray, offsets: np.ndarray, samples: np.ndarray, least: int = 1
) -> np.ndarray:
  """Stacks runs of values, each padded with its last value.

  Args:
    values: The concatenated runs of all samples.
    offsets: The index of each run's first value.
    samples: The samples to stack.
    least: The minimum length of the result.

  Returns:
    [length of the longest run, samples].
  """
  starts, ends = offsets[samples], offsets[samples + 1]
  longest = max(least, int((ends - starts).max()))
  return values[np.minimum(starts + np.arange(longest)[:, None], ends - 1)]


def cheapest_paths(
  cost_LTB: np.ndarray, lengths_B: np.ndarray, widths_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Finds every sample's cheapest path by backtracking from its last cell.

  Ties are broken in the order diagonal, up, left.

  Args:
    cost_LTB: int16[L, T, B], T at least 2; entries beyond a sample's own size
      are ignored.
    lengths_B: The number of rows of each sample.
    widths_B: The number of columns of each sample.

  Returns:
    The number of cells of each path, and the row and the column of every cell,
    in order from (0, 0), all paths concatenated.
  """
  total = _totals(cost_LTB)
  _, num_columns, num_samples = total.shape
  flat = total.reshape(-1)
  i, j = lengths_B - 1, widths_B - 1
  rows, columns, active = [i], [j], [np.ones(num_samples, bool)]
  sample = np.arange(num_samples)
  up_left = num_samples, num_columns * num_samples
  while True:
    going = (i > 0) | (j > 0)
    if not going.any():
      break
    at = (i * num_columns + j) * num_samples + sample
    diagonal = flat.take(at)
    up = flat.take(at + up_left[0])
    left = flat.take(at + up_left[1])
    straight = (diagonal <= up) & (diagonal <= left)
    goes_up = up <= left
    i = i - (going & (straight | goes_up))
    j = j - (going & (straight | ~goes_up))
    rows.append(i)
    columns.append(j)
    active.append(going)
  taken = np.stack(active[::-1], axis=1)
  return (
    taken.sum(axis=1),
    np.stack(rows[::-1], axis=1)[taken],
    np.stack(columns[::-1], axis=1)[taken],
  )


def _totals(cost_LTB: np.ndarray) -> np.ndarray:
  """Computes f, [L + 1, T + 1, B], with a border that no path crosses."""
  length, width, num_samples = cost_LTB.shape
  largest = (length + width) * int(cost_LTB.max(initial=0))
  dtype = np.int16 if largest < _FAR else np.int32
  far = _FAR if dtype is np.int16 else np.iinfo(np.int32).max // 2
  total = np.empty((length + 1, width + 1, num_samples), dtype)
  total[0], total[:, 0] = far, far
  total[0, 0] = 0
  cells = total.reshape(-1, num_samples)
  cost = cost_LTB.reshape(-1, num_samples)
  for d in range(2, length + width + 1):  # i + j, both from 1
    first, last = max(1, d - width), min(length, d - 1)
    here = slice(first * width + d, last * width + d + 1, width)
    up = slice(here.start - width - 1, here.stop - width - 1, width)
    left = slice(here.start - 1, here.stop - 1, width)
    diagonal = slice(up.start - 1, up.stop - 1, width)
    at = first * (width - 1) + d - width - 1
    costs = slice(at, at + (last - first) * (width - 1) + 1, width - 1)
    best = np.minimum(cells[up], cells[left])
    np.minimum(best, cells[diagonal], out=best)
    np.add(best, cost[costs], out=cells[here], casting="unsafe")
  return total


def paths(
  rows_L: np.ndarray,
  offsets_L: np.ndarray,
  columns_P: np.ndarray,
  offsets_P: np.ndarray,
  *,
  row_strings: Sequence[str],
  column_strings: Sequence[str],
  table: DistanceTable,
) -> Paths:
  """Finds the cheapest path of every sample that has tokens on both sides.

  Args:
    rows_L: Each teacher token's index in `row_strings`.
    offsets_L: The index of each sample's first teacher token.
    columns_P: Each student token's index in `column_strings`.
    offsets_P: The index of each sample's first student token.
    row_strings: The strings that stand for teacher tokens in the distance.
    column_strings: The strings that stand for student tokens.
    table: The cache of distances.
  """
  lengths_B, widths_B = np.diff(offsets_L), np.diff(offsets_P)
  samples, found = [np.zeros(0, np.int64)], []
  for group in groups_of_like_size(lengths_B, widths_B):
    cost_LTB = table.take(
      padded(rows_L, offsets_L, group),
      padded(columns_P, offsets_P, group, least=2),
      row_strings,
      column_strings,
    )
    samples.append(group)
    found.append(cheapest_paths(cost_LTB, lengths_B[group], widths_B[group]))
  counts, teacher, student = (
    np.concatenate([np.zeros(0, np.int64), *(part[k] for part in found)])
    for k in range(3)
  )
  return Paths(
    samples=np.concatenate(samples),
    counts=counts,
    teacher=teacher,
    student=student,
  )
