"""Where data lies, and seqio sources over small tables in memory.

Where: one directory a process, set once by the command (`set_data_dir`), else
the environment's `SPECIALIZE_DATA`, else `../shared/data` beside the project.
Files are looked for when a dataset is read, never when a task is registered.

Tables: word problems are few and short, so a split's columns are held in
memory and a dataset is a stream of row numbers. Shuffling is then a uniform
permutation of a whole epoch, and an iterator's checkpoint is a few counters
instead of a buffer of examples.
"""

import contextlib
import contextvars
import hashlib
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf

from specialize_jax import errors

ENVIRONMENT_VARIABLE = "SPECIALIZE_DATA"
_BESIDE_THE_PROJECT = pathlib.Path(__file__).parents[3] / "shared" / "data"

# The one thing here that changes: seqio sets its directories the same way.
_chosen: dict[str, str] = {}

# How many passes over its rows a dataset holds; see `passes`.
_PASSES: contextvars.ContextVar[int | None] = contextvars.ContextVar(
  "passes", default=1
)

# A split's columns: equally long sequences, by name.
Columns = Mapping[str, Sequence[str | bytes | int]]


def set_data_dir(path: str | os.PathLike | None) -> None:
  """Chooses the data directory of this process; None undoes the choice."""
  _chosen.clear()
  if path is not None:
    _chosen["path"] = os.fspath(path)


def data_dir() -> str:
  """Gives the data directory: chosen, from the environment, or beside.

  Raises:
    UserError: none of the three is there.
  """
  if "path" in _chosen:
    return _chosen["path"]
  if ENVIRONMENT_VARIABLE in os.environ:
    return os.environ[ENVIRONMENT_VARIABLE]
  if _BESIDE_THE_PROJECT.is_dir():
    return str(_BESIDE_THE_PROJECT)
  raise errors.UserError(
    "no data directory: pass --data_dir, or set the environment variable"
    f" {ENVIRONMENT_VARIABLE} to the folder that holds gsm8k/, svamp/, ..."
  )


def find(relative_path: str) -> str:
  """Returns the path of a file of the data directory; an absolute one as it is.

  Raises:
    UserError: there is no such file.
  """
  if os.path.isabs(relative_path) and os.path.exists(relative_path):
    return relative_path
  path = os.path.join(data_dir(), relative_path)
  if not os.path.exists(path):
    raise errors.UserError(
      f"{path} does not exist: expected {relative_path} under the data"
      f" directory, which --data_dir or {ENVIRONMENT_VARIABLE} sets"
    )
  return path


def exists(relative_path: str) -> bool:
  """Tells whether the data directory, if there is one, has a file."""
  try:
    return os.path.exists(os.path.join(data_dir(), relative_path))
  except errors.UserError:
    return False


def tfds_dir(default: str | None = None) -> str:
  """Returns the folder of TFDS datasets.

  Args:
    default: where none is set; None for `tfds/` in the data directory.

  Raises:
    UserError: neither it nor a data directory is set.
  """
  # The override itself is private to seqio; a loader resolves it.
  chosen = seqio.utils.LazyTfdsLoader("teacher:1.0.0").data_dir
  return chosen or default or os.path.join(data_dir(), "tfds")


class TableSource(seqio.DataSource):
  """A seqio source over columns that fit in memory.

  A dataset element has one scalar for each column.
  """

  def __init__(
    self,
    read_columns: Callable[[str], Columns],
    *,
    splits: Sequence[str],
    description: str,
    salt: str = "",
  ) -> None:
    """Remembers how to read; reads nothing.

    Args:
      read_columns: gives a split's columns; called when a dataset is asked
        for, and each time anew.
      splits: names that `read_columns` knows.
      description: what the rows are, for error messages.
      salt: makes two sources over the same rows shuffle differently under
        the same seed.
    """
    super().__init__(
      splits=splits, caching_permitted=False, performs_internal_shuffling=True
    )
    self._read_columns = read_columns
    self._description = description
    self.salt = salt

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Rows are numbered, so any shard is a stride over them."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """One table is one shard."""
    return [split]

  def columns(self, split: str) -> Columns:
    """Reads a split.

    Raises:
      UserError: no such split, or it has no row.
    """
    if split not in self.splits:
      raise errors.UserError(
        f"split={split!r}: {self._description} has"
        f" {', '.join(map(repr, self.splits))}"
      )
    columns = self._read_columns(split)
    if not columns or not len(next(iter(columns.values()))):
      raise errors.UserError(
        f"{self._description}, split {split!r}, is empty: expected at least"
        " one example"
      )
    return columns

  def num_input_examples(self, split: str) -> int:
    """Counts a split's rows; reads its file."""
    return len(next(iter(self.columns(split).values())))

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused_options: object,
  ) -> tf.data.Dataset:
    """Gives a split's rows, one pass unless `passes` says otherwise."""
    tensors = {
      name: tf.constant(values) for name, values in self.columns(split).items()
    }
    num_rows = int(next(iter(tensors.values())).shape[0])
    rows = row_numbers(num_rows, shuffle=shuffle, seed=seed, salt=self.salt)
    if shard_info is not None:
      rows = rows.shard(shard_info.num_shards, shard_info.index)
    return rows.map(
      # As written: autograph has nothing to rewrite here.
      tf.autograph.experimental.do_not_convert(
        lambda row: {name: tensor[row] for name, tensor in tensors.items()}
      ),
      num_parallel_calls=tf.data.AUTOTUNE,
    )


def row_numbers(
  num_rows: int, *, shuffle: bool, seed: int | None, salt: str = ""
) -> tf.data.Dataset:
  """Gives the numbers 0 to num_rows - 1, once for each pass asked for.

  With `shuffle` every pass is a uniform permutation, a pure function of the
  seed, the salt and the pass. So the iterator's state is two counters,
  however many rows there are; tf.data's own shuffling under `repeat` keeps
  its place in a generator that a checkpoint taken as a pass ends can miss.

  Args:
    num_rows: at least 1.
    shuffle: whether to permute.
    seed: fixes the permutations; None draws one.
    salt: see `TableSource`.
  """
  num_passes = _PASSES.get()
  passes = tf.data.Dataset.range(
    tf.int64.max if num_passes is None else num_passes
  )
  if seed is None:
    seed = secrets.randbelow(2**31)
  base = salted(seed, salt)

  def rows_of(number: tf.Tensor) -> tf.data.Dataset:
    rows = tf.range(num_rows, dtype=tf.int64)
    if shuffle:
      key = tf.stack([tf.constant(base, tf.int64), number])
      rows = tf.random.experimental.stateless_shuffle(rows, key)
    return tf.data.Dataset.from_tensor_slices(rows)

  return passes.flat_map(rows_of)


@contextlib.contextmanager
def passes(num_passes: int | None) -> Iterator[None]:
  """Makes datasets built inside hold so many passes; None for no end.

  seqio repeats what a source gives, but cannot tell the source which pass it
  is in; so a training stream asks the source itself for all of them.
  """
  token = _PASSES.set(num_passes)
  try:
    yield
  finally:
    _PASSES.reset(token)


def salted(seed: int, salt: str) -> int:
  """Mixes a name into a seed: non-negative, below 2**31."""
  digest = hashlib.sha256(f"{seed}/{salt}".encode()).digest()
  return int.from_bytes(digest[:4], "big") >> 1
