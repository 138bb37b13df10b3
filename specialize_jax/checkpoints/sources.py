"""The common interface of checkpoints: names, shapes and tensors.

Tensors have our names with listed layers (`name_table.py`) and our orientation,
whatever the format and however layers are stacked there.
"""

import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol

import jax
import numpy as np
import tensorstore
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import damage

EMBEDDING = "token_embedder/embedding"
HEAD = "decoder/logits_dense/kernel"

VOCABULARY_AXIS = {EMBEDDING: 0, HEAD: 1}
"""The vocabulary axis of the tensors that have one."""

STACKED = "/layers/"
"""Part of the name of a leaf that holds all layers of a stack."""

ZarrDriver = Literal["zarr", "zarr3"]
"""TensorStore's drivers of the two versions of the zarr format."""

# Bounds on sizes in metadata: the largest tensor of T5 11B, all 24 layers of an
# MLP, has 6.4 GiB in float32.
_MAX_ARRAY_BYTES = 64 << 30
_PART_BYTES = 2**28
"""Bytes read at a time, in whole chunks, of an array that is only compared."""

MAX_LAYERS = 1000
"""The most layers of a stack that metadata may declare."""


def table_name(stack: str, *, layer: int | None = None) -> str:
  """Returns the name of a relative position table.

  Args:
    stack: "encoder" or "decoder".
    layer: the layer of a table per layer; None for a table per stack.
  """
  owner = stack if layer is None else f"{stack}/layers_{layer}"
  return f"{owner}/relpos_bias/rel_embedding"


class Source(Protocol):
  """A checkpoint of any format, in our names and orientation."""

  @property
  def where(self) -> str:
    """The path or name that the user gave, for messages."""

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor, layers listed, also of unknown ones."""

  @property
  def dtypes(self) -> Iterable[np.dtype]:
    """The dtypes of its tensors."""

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor."""


class Leaves:
  """A `Source` of arrays in memory or in storage, by the names of leaves."""

  def __init__(
    self, where: str, leaves: Mapping[str, Any], *, axis: int = 0
  ) -> None:
    """Initializes without reading.

    Args:
      where: the source's name in messages.
      leaves: arrays of NumPy, JAX or tensorstore; one with `/layers/` in its
        name holds all layers of a stack.
      axis: the axis along which layers are stacked.
    """
    self.where = where
    self._leaves = leaves
    self._axis = axis
    self._kept: tuple[str, np.ndarray | None] = ("", None)

  @functools.cached_property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor, layers listed."""
    shapes = {}
    for name, leaf in self._leaves.items():
      shape = tuple(leaf.shape)
      if STACKED not in name:
        shapes[name] = shape
        continue
      one = shape[: self._axis] + shape[self._axis + 1 :]
      if shape[self._axis] > MAX_LAYERS:
        raise errors.UserError(
          f"{self.where}: {name} of the shape {shape} would be of "
          f"{shape[self._axis]:,} layers: expected at most {MAX_LAYERS:,}."
        )
      for layer in range(shape[self._axis]):
        shapes[name.replace(STACKED, f"/layers_{layer}/", 1)] = one
    return shapes

  @property
  def dtypes(self) -> Iterable[np.dtype]:
    """The dtypes of the leaves."""
    return {
      leaf.dtype.numpy_dtype if _is_stored(leaf) else np.dtype(leaf.dtype)
      for leaf in self._leaves.values()
    }

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor; of a stacked leaf, its layer."""
    leaf, layer = self.place(name)
    if layer is None:
      return read_leaf(self._leaves[leaf])
    return read_leaf(
      self._cuttable(leaf)[(slice(None),) * self._axis + (layer,)]
    )

  def place(self, name: str) -> tuple[str, int | None]:
    """Returns the leaf of a tensor, and its layer if layers are stacked."""
    if name in self._leaves:
      return name, None
    stack, layer, rest = name.split("/", maxsplit=2)
    return f"{stack}{STACKED}{rest}", int(layer.removeprefix("layers_"))

  def num_entries(self, leaf: str) -> int:
    """Returns the size of a leaf, all layers together."""
    return math.prod(self._leaves[leaf].shape)

  def _cuttable(self, name: str) -> Any:
    """Returns a leaf of which single layers are cheap to read.

    If the layers of a stored array share chunks it is read whole, and kept
    until another leaf is requested, since each layer would cost as much.
    """
    leaf = self._leaves[name]
    if not _is_stored(leaf):
      return leaf
    if leaf.chunk_layout.read_chunk.shape[self._axis] == 1:
      return leaf
    if self._kept[0] != name:
      self._kept = ("", None)  # The last is freed before the next is read.
      self._kept = (name, read_leaf(leaf))
    return self._kept[1]


class Verified:
  """Leaves stacked along the first axis, compared with their digests.

  Digests are computed as tensors are read, so that nothing is read twice; a
  leaf is compared when its last layer has been read.
  """

  def __init__(self, source: Leaves, digests: Mapping[str, str]) -> None:
    """Initializes without reading.

    Args:
      source: the leaves.
      digests: digests of `damage.fingerprint` by the name of a leaf; a leaf
        without one is not compared.
    """
    self.where, self._source, self.digests = source.where, source, digests
    self._digests: dict[str, damage.Digest] = {}
    self._added: set[str] = set()

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor, layers listed."""
    return self._source.shapes

  @property
  def dtypes(self) -> Iterable[np.dtype]:
    """The types of the leaves."""
    return self._source.dtypes

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor.

    Raises:
      UserError: it, or its leaf, is not what was saved.
    """
    with damage.named(self.where):
      value = self._source.read(name)
      leaf, layer = self._source.place(name)
      if leaf in self.digests and name not in self._added:
        self._add(leaf, (layer or 0) * value.size, value)
        self._added.add(name)
    return value

  def _add(self, leaf: str, first: int, value: np.ndarray) -> None:
    digest = self._digests.setdefault(leaf, damage.Digest(value.dtype))
    digest.add(first, value)
    if digest.num_entries < self._source.num_entries(leaf):
      return
    _compare(digest, self.digests[leaf], leaf)
    del self._digests[leaf]


class VerifiedLeaf:
  """A stored array that is compared with its digest whenever it is read."""

  def __init__(self, array: Any, where: str, name: str, digest: str) -> None:
    """Initializes without reading.

    Args:
      array: the array, as `read_leaf` reads it.
      where: the checkpoint, for messages.
      name: the name of the array, for messages.
      digest: its digest, from `damage.fingerprint`.
    """
    self._array, self._where = array, where
    self._name, self._digest = name, digest

  def read(self) -> np.ndarray:
    """Reads the array.

    Raises:
      UserError: it is not what was saved.
    """
    with damage.named(self._where):
      value = read_leaf(self._array)
      digest = damage.Digest(value.dtype)
      digest.add(0, value)
      _compare(digest, self._digest, self._name)
    return value


def compare(
  array: tensorstore.TensorStore, name: str, saved: str | None
) -> int:
  """Reads a stored array in parts and compares it with its digest.

  Args:
    array: the array.
    name: its name, for messages.
    saved: its digest, from `damage.fingerprint`; None to read it only.

  Returns:
    Its size in bytes.

  Raises:
    DamagedError: it is not what was saved.
  """
  digest = damage.Digest(array.dtype.numpy_dtype)
  first = 0
  for part in _in_parts(array) if array.rank else [array]:
    value = part.read().result()
    digest.add(first, value)
    first += value.size
  if saved is not None:
    _compare(digest, saved, name)
  return first * array.dtype.numpy_dtype.itemsize


def _in_parts(
  array: tensorstore.TensorStore,
) -> Iterator[tensorstore.TensorStore]:
  """Yields consecutive rows of an array, whole chunks of bounded size."""
  rows = array.chunk_layout.read_chunk.shape[0]
  row_bytes = max(
    1, array.dtype.numpy_dtype.itemsize * math.prod(array.shape[1:])
  )
  rows *= max(1, _PART_BYTES // (rows * row_bytes))
  for begin in range(0, array.shape[0], rows):
    yield array[begin : min(begin + rows, array.shape[0])]


def _compare(digest: damage.Digest, saved: str, name: str) -> None:
  """Raises DamagedError if an array has another digest than the saved one."""
  if not damage.agree(str(digest), saved):
    raise damage.DamagedError(f"an array is not the one that was saved: {name}")


class Trimmed:
  """A source with fewer rows of the vocabulary."""

  def __init__(self, source: Source, vocab_size: int) -> None:
    """Keeps the first `vocab_size` rows of the embedding and the head."""
    self.where = source.where
    self.dtypes = source.dtypes
    self._source = source
    self._vocab_size = vocab_size

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor, without the other rows."""
    shapes = dict(self._source.shapes)
    for name, axis in VOCABULARY_AXIS.items():
      if name in shapes:
        kept = min(shapes[name][axis], self._vocab_size)
        shapes[name] = shapes[name][:axis] + (kept, *shapes[name][axis + 1 :])
    return shapes

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor, without the other rows."""
    value = self._source.read(name)
    axis = VOCABULARY_AXIS.get(name)
    if axis is None:
      return value
    return value[(slice(None),) * axis + (slice(self._vocab_size),)]


class TablesInLayers:
  """A source with a copy of the stack's relative position table in each layer.

  Tables that a source already has per layer are unchanged.
  """

  def __init__(self, source: Source) -> None:
    """Initializes without reading."""
    self.where = source.where
    self.dtypes = source.dtypes
    self._source = source
    self._copied: dict[str, str] = {}
    for stack in ("encoder", "decoder"):
      norm = f"{stack}/layers_{{}}/pre_mlp_layer_norm/scale"
      layer = 0
      while table_name(stack) in source.shapes and (
        norm.format(layer) in source.shapes
      ):
        self._copied[table_name(stack, layer=layer)] = table_name(stack)
        layer += 1

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor, the copies included."""
    shapes = dict(self._source.shapes)
    copies = {copy: shapes[table] for copy, table in self._copied.items()}
    for table in set(self._copied.values()):
      del shapes[table]
    return shapes | copies

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor."""
    return self._source.read(self._copied.get(name, name))


def _is_stored(leaf: Any) -> bool:
  return isinstance(leaf, tensorstore.TensorStore)


def read_leaf(leaf: Any) -> np.ndarray:
  """Returns an array of NumPy, JAX or tensorstore as a NumPy array.

  Raises:
    UserError: it is a `VerifiedLeaf`, and not what was saved.
  """
  if isinstance(leaf, VerifiedLeaf):
    return leaf.read()
  if _is_stored(leaf):
    return leaf.read().result()
  return np.asarray(jax.device_get(leaf))


def open_zarr(
  directory: epath.Path,
  *,
  key: str | None = None,
  whole: bool = False,
  driver: ZarrDriver = "zarr",
) -> tensorstore.TensorStore:
  """Opens a stored array, local or on `gs://`, without reading it.

  Args:
    directory: the directory of the array or of its database.
    key: its name in the OCDBT database at `directory`; None if the directory
      is the array itself.
    whole: whether reading fails if a chunk is missing, which is otherwise read
      as zeros. Set it for writers that also store chunks of zeros.
    driver: the version of the format.

  Raises:
    ValueError: it is missing, not a zarr array, or absurdly large.
  """
  address = os.fspath(directory)
  if address.startswith("gs://"):
    bucket, _, path = address.removeprefix("gs://").partition("/")
    place = {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}
  else:
    place = {"driver": "file", "path": f"{os.path.abspath(address)}/"}
  if key is not None:
    place = {"driver": "ocdbt", "base": place, "path": f"{key}/"}
  options = {"fill_missing_data_reads": False} if whole else {}
  opened = tensorstore.open(
    {"driver": driver, "kvstore": place, **options}, open=True
  ).result()
  # Memory of the size in the metadata is allocated before anything is read.
  chunk = opened.chunk_layout.read_chunk.shape or ()
  for what, shape in (("array", opened.shape), ("chunk", chunk)):
    num_bytes = math.prod(shape) * opened.dtype.numpy_dtype.itemsize
    if num_bytes > _MAX_ARRAY_BYTES:
      raise ValueError(
        f"its metadata ask for {what}s of the shape {tuple(shape)}, "
        f"{num_bytes / 2**30:,.0f} GiB: expected at most "
        f"{_MAX_ARRAY_BYTES / 2**30:g} GiB"
      )
  return opened
