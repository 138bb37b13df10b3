"""The data directory, and seqio sources for tables in memory.

The data directory of a process is the one that the command sets
(`set_data_dir`), or else the environment variable `SPECIALIZE_DATA`. Files are
opened when a dataset is read, never when a task is registered.

Word problems are few and short, so all columns of a split are in memory, and a
dataset is a stream of row numbers. A shuffle is then a uniform permutation of a
whole epoch, and the state of an iterator consists of a few counters instead of
a buffer of examples.
"""

import contextlib
import contextvars
import dataclasses
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf

from specialize_jax import errors

ENVIRONMENT_VARIABLE = "SPECIALIZE_DATA"

# The module's only mutable state; seqio's directories are global as well.
_chosen: dict[str, str] = {}

# The number of passes over the rows of a new dataset; see `passes`.
_PASSES: contextvars.ContextVar[int | None] = contextvars.ContextVar(
  "passes", default=1
)

# A split's columns: equally long sequences, by name.
Columns = Mapping[str, Sequence[str | bytes | int]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Share:
  """The rows of every table that a new dataset reads; see `shared`.

  Attributes:
    number: The number of the share, from 0.
    of: The number of shares that the rows are divided into.
    seed: The seed of the order of the rows, which all shares have in common.
    tables: The columns of the tables read so far, which the shares have in
      common, by source and split.
  """

  number: int
  of: int
  seed: int
  tables: dict[tuple["TableSource", str], dict[str, tf.Tensor]] = (
    dataclasses.field(default_factory=dict)
  )


_SHARE: contextvars.ContextVar[Share | None] = contextvars.ContextVar(
  "share", default=None
)


def set_data_dir(path: str | os.PathLike | None) -> None:
  """Sets the data directory of this process; None resets it."""
  _chosen.clear()
  if path is not None:
    _chosen["path"] = os.fspath(path)


def data_dir() -> str:
  """Returns the data directory: the one set, or that of the environment.

  Raises:
    UserError: neither is set.
  """
  if "path" in _chosen:
    return _chosen["path"]
  if ENVIRONMENT_VARIABLE in os.environ:
    return os.environ[ENVIRONMENT_VARIABLE]

  raise errors.UserError(
    "no data directory: pass --data_dir, or set the environment variable"
    f" {ENVIRONMENT_VARIABLE} to the folder that holds gsm8k/, svamp/, ..."
  )


def find(relative_path: str) -> str:
  """Returns the path of a file of the data directory.

  Args:
    relative_path: Relative to the data directory; absolute paths are returned
      unchanged.

  Raises:
    UserError: the file does not exist.
  """
  if os.path.isabs(relative_path):
    path = relative_path
  else:
    path = os.path.join(data_dir(), relative_path)
  if not os.path.exists(path):
    raise errors.UserError(
      f"{path} does not exist: expected {relative_path} under the data"
      f" directory, which --data_dir or {ENVIRONMENT_VARIABLE} sets"
    )
  return path


def exists(relative_path: str) -> bool:
  """Returns whether there is a data directory that has a file."""
  try:
    return os.path.exists(os.path.join(data_dir(), relative_path))
  except errors.UserError:
    return False


def tfds_dir(default: str | None = None) -> str:
  """Returns the directory of TFDS datasets.

  Args:
    default: The directory if seqio has no override; None for `tfds/` in the
      data directory.

  Raises:
    UserError: neither seqio's override nor a data directory is set.
  """
  # The override is private to seqio, but a loader returns it.
  chosen = seqio.utils.LazyTfdsLoader("teacher:1.0.0").data_dir
  return chosen or default or os.path.join(data_dir(), "tfds")


class TableSource(seqio.DataSource):
  """A seqio source of a table in memory.

  A dataset element has a scalar for each column.
  """

  def __init__(
    self,
    read_columns: Callable[[str], Columns],
    *,
    splits: Sequence[str],
    description: str,
    salt: str = "",
  ) -> None:
    """Creates a source, without reading anything.

    Args:
      read_columns: Returns a split's columns; called for every new dataset.
      splits: The names of the splits.
      description: A description of the rows, for error messages.
      salt: Added to the seed, so that two sources of the same rows are shuffled
        differently.
    """
    super().__init__(
      splits=splits, caching_permitted=True, performs_internal_shuffling=True
    )
    self._read_columns = read_columns
    self._description = description
    self.salt = salt

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True, since a shard is a stride over the rows."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns a single shard, the whole table."""
    return [split]

  def columns(self, split: str) -> Columns:
    """Reads the columns of a split.

    Raises:
      UserError: the split does not exist or has no rows.
    """
    if split not in self.splits:
      raise errors.UserError(
        f"split={split!r}: {self._description} has"
        f" {', '.join(map(repr, self.splits))}"
      )
    columns = self._read_columns(split)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
      raise errors.UserError(
        f"{self._description}, split {split!r}, has columns of different"
        f" lengths: {lengths}"
      )
    if not any(lengths.values()):
      raise errors.UserError(
        f"{self._description}, split {split!r}, is empty: expected at least"
        " one example"
      )
    return columns

  def num_input_examples(self, split: str) -> int:
    """Returns the number of a split's rows, by reading its file."""
    return len(next(iter(self.columns(split).values())))

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused_options: object,
  ) -> tf.data.Dataset:
    """Returns a dataset of a split's rows: one pass, or as set by `passes`.

    All of them, or those of the share that `shared` sets.
    """
    tensors = self._tensors(split)
    num_rows = int(next(iter(tensors.values())).shape[0])
    rows = row_numbers(num_rows, shuffle=shuffle, seed=seed, salt=self.salt)
    if shard_info is not None:
      rows = rows.shard(shard_info.num_shards, shard_info.index)
    return rows.map(
      # Without autograph: there is no Python control flow to convert.
      tf.autograph.experimental.do_not_convert(
        lambda row: {name: tensor[row] for name, tensor in tensors.items()}
      ),
      num_parallel_calls=tf.data.AUTOTUNE,
    )

  def _tensors(self, split: str) -> dict[str, tf.Tensor]:
    """Reads the columns of a split, once for all shares."""
    share = _SHARE.get()
    tables = {} if share is None else share.tables
    if (self, split) not in tables:
      tables[self, split] = {
        name: tf.constant(values)
        for name, values in self.columns(split).items()
      }
    return tables[self, split]


def is_divisible(source: seqio.DataSource) -> bool:
  """Returns whether `shared` divides the rows of a source.

  It does of this package's tables. A subclass with a `get_dataset` of its own
  may return all rows whatever the share.
  """
  return isinstance(source, TableSource) and (
    type(source).get_dataset.__module__.startswith(__package__)
  )


def row_numbers(
  num_rows: int, *, shuffle: bool, seed: int | None, salt: str = ""
) -> tf.data.Dataset:
  """Returns a dataset of the numbers 0 to num_rows - 1, in one or more passes.

  With `shuffle` every pass is a uniform permutation, a pure function of the
  seed, the salt and the pass, so that the iterator's state is two counters,
  whatever the number of rows. (The state of tf.data's own shuffle under
  `repeat` depends on a random generator, which a checkpoint taken at the end of
  a pass can miss.)

  With `shared` every row of a pass is in one share, and in another one in the
  next pass unless their number divides that of the rows.

  Args:
    num_rows: The number of rows, at least 1.
    shuffle: Whether to permute the rows.
    seed: The seed; None for a random one.
    salt: See `TableSource`.
  """
  num_passes = _PASSES.get()
  passes = tf.data.Dataset.range(
    tf.int64.max if num_passes is None else num_passes
  )
  share = _SHARE.get()
  if share is not None:
    seed = share.seed
  if seed is None:
    seed = secrets.randbelow(2**31)

  def rows_of(number: tf.Tensor) -> tf.data.Dataset:
    if shuffle:
      rows = order(num_rows, number, seed=seed, salt=salt)
    else:
      rows = tf.range(num_rows, dtype=tf.int64)
    if share is not None:
      # As `Dataset.shard` of all passes, without a step for each row left out.
      rows = rows[(share.number - number * num_rows) % share.of :: share.of]
    return tf.data.Dataset.from_tensor_slices(rows)

  return passes.flat_map(rows_of)


def order(
  num_rows: int, number: tf.Tensor | int, *, seed: int, salt: str
) -> tf.Tensor:
  """Returns the order of the rows of a table in one pass, int64[num_rows].

  Args:
    num_rows: The number of rows.
    number: The number of the pass, from 0.
    seed: The seed.
    salt: See `TableSource`.
  """
  rows = tf.range(num_rows, dtype=tf.int64)
  base = tf.constant(salted(seed, salt), tf.int64)
  key = tf.stack([base, tf.cast(number, tf.int64)])
  return tf.random.experimental.stateless_shuffle(rows, key)


@contextlib.contextmanager
def passes(num_passes: int | None) -> Iterator[None]:
  """Sets the number of passes of datasets built in this context.

  seqio repeats a source's dataset, but cannot pass the index of the epoch to
  the source; so the source itself repeats its rows.

  Args:
    num_passes: The number of passes; None to repeat forever.
  """
  token = _PASSES.set(num_passes)
  try:
    yield
  finally:
    _PASSES.reset(token)


@contextlib.contextmanager
def shared(share: Share | None) -> Iterator[None]:
  """Sets the share of the rows that datasets built in this context read.

  The rows of every table are divided among the shares by stride, in the order
  of the share's seed. Whatever else is random, such as the mixing of tasks,
  depends on the seed that the dataset is built with.

  Args:
    share: The share; None for all rows.
  """
  token = _SHARE.set(share)
  try:
    yield
  finally:
    _SHARE.reset(token)


def salted(seed: int, salt: str) -> int:
  """Derives a seed from a seed and a name; the result is in [0, 2**31)."""
  digest = hashlib.sha256(f"{seed}/{salt}".encode()).digest()
  return int.from_bytes(digest[:4], "big") >> 1
