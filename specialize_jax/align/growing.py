"""Arrays that grow: the columns of tables that a run fills as it meets words.

A lookup in a table is one NumPy index, whatever the number of tokens, so the
columns are arrays; and they grow by doubling, so that a table of n entries
costs O(n) to fill.
"""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np


class Column:
  """One array that values are appended to."""

  def __init__(self, dtype: type) -> None:
    self._values = np.zeros(1024, dtype)
    self._size = 0

  def __len__(self) -> int:
    return self._size

  @property
  def values(self) -> np.ndarray:
    """All that was appended; a view that a later append may leave behind."""
    return self._values[: self._size]

  def extend(self, values: Sequence | np.ndarray) -> None:
    """Appends values."""
    size = self._size + len(values)
    if size > len(self._values):
      grown = np.zeros(max(size, 2 * len(self._values)), self._values.dtype)
      grown[: self._size] = self.values
      self._values = grown
    self._values[self._size : size] = values
    self._size = size


class Numbering(dict):
  """Numbers keys from 0 in the order in which they are first asked for.

  Example:
    >>> numbering = Numbering()
    >>> numbering.of(["a", "b", "a"]).tolist(), numbering.take_new()
    ([0, 1, 0], ['a', 'b'])
  """

  def __init__(self) -> None:
    super().__init__()
    self._new: list[Hashable] = []

  def __missing__(self, key: Hashable) -> int:
    number = self[key] = len(self)
    self._new.append(key)
    return number

  def of(self, keys: Iterable[Hashable]) -> np.ndarray:
    """Gives each key's number, int64."""
    return np.fromiter(map(self.__getitem__, keys), np.int64)

  def take_new(self) -> list:
    """Gives the keys that were numbered since the last call."""
    new, self._new = self._new, []
    return new


def ragged_index(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Gives the places of runs that begin at `starts`, one after another.

  Example:
    >>> ragged_index(np.array([7, 0]), np.array([2, 3])).tolist()
    [7, 8, 0, 1, 2]
  """
  ends = np.cumsum(counts)
  total = int(ends[-1]) if len(ends) else 0
  return np.repeat(starts - ends + counts, counts) + np.arange(total)


def offsets(counts: np.ndarray) -> np.ndarray:
  """Gives where each run begins, and where the last ends, int64[n + 1].

  Example:
    >>> offsets(np.array([2, 3])).tolist()
    [0, 2, 5]
  """
  result = np.zeros(len(counts) + 1, np.int64)
  np.cumsum(counts, out=result[1:])
  return result
