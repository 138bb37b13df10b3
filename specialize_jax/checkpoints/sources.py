"""What a checkpoint of any format is to the rest: names, shapes, tensors.

Tensors are called by our names with listed layers (`name_table.py`) and have
our orientation, wherever they come from and however they are stacked there.
"""

import functools
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import tensorstore
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import damage

EMBEDDING = "token_embedder/embedding"
HEAD = "decoder/logits_dense/kernel"

VOCABULARY_AXIS = {EMBEDDING: 0, HEAD: 1}
"""Where the tensors that have one row a token have it."""

STACKED = "/layers/"
"""In the name of a leaf that holds all layers of a stack."""

# Bounds on what is believed of metadata: the largest tensor of T5 11B, all 24
# layers of an MLP, has 6.4 GiB in float32.
_MAX_ARRAY_BYTES = 64 << 30
_MAX_LAYERS = 1000


def table_name(stack: str, *, layer: int | None = None) -> str:
  """Returns the name of a relative position table.

  Args:
    stack: "encoder" or "decoder".
    layer: whose own table it is; None for the one of the whole stack.
  """
  owner = stack if layer is None else f"{stack}/layers_{layer}"
  return f"{owner}/relpos_bias/rel_embedding"


class Source(Protocol):
  """A checkpoint of any format, in our names and orientation."""

  @property
  def where(self) -> str:
    """The path or name that the user gave, for errors."""

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor, layers listed; what is unknown included."""

  @property
  def dtypes(self) -> Iterable[np.dtype]:
    """The types that its tensors have."""

  def read(self, name: str) -> np.ndarray:
    """Gives one tensor."""


class Leaves:
  """Arrays by the names of leaves, in memory or stored, as a `Source`."""

  def __init__(
    self, where: str, leaves: Mapping[str, Any], *, axis: int = 0
  ) -> None:
    """Reads nothing yet.

    Args:
      where: for errors.
      leaves: NumPy's, JAX's or tensorstore's arrays; `/layers/` in a name says
        that the layers of a stack are in one.
      axis: along which they are stacked.
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
      if shape[self._axis] > _MAX_LAYERS:
        raise errors.UserError(
          f"{self.where}: {name} of the shape {shape} would be of "
          f"{shape[self._axis]:,} layers: expected at most {_MAX_LAYERS:,}."
        )
      for layer in range(shape[self._axis]):
        shapes[name.replace(STACKED, f"/layers_{layer}/", 1)] = one
    return shapes

  @property
  def dtypes(self) -> Iterable[np.dtype]:
    """The types of the leaves."""
    return {
      leaf.dtype.numpy_dtype if _is_stored(leaf) else np.dtype(leaf.dtype)
      for leaf in self._leaves.values()
    }

  def read(self, name: str) -> np.ndarray:
    """Gives one tensor, of a stacked leaf its layer."""
    leaf, layer = self.place(name)
    if layer is None:
      return read_leaf(self._leaves[leaf])
    return read_leaf(
      self._cuttable(leaf)[(slice(None),) * self._axis + (layer,)]
    )

  def place(self, name: str) -> tuple[str, int | None]:
    """Returns the leaf that holds a tensor, and its layer of a stacked one."""
    if name in self._leaves:
      return name, None
    stack, layer, rest = name.split("/", maxsplit=2)
    return f"{stack}{STACKED}{rest}", int(layer.removeprefix("layers_"))

  def num_entries(self, leaf: str) -> int:
    """Returns the size of a leaf, all layers together."""
    return math.prod(self._leaves[leaf].shape)

  def _cuttable(self, name: str) -> Any:
    """Gives a leaf of which a layer costs no more than a layer.

    A stored array whose layers share a chunk is read whole, and kept until
    another leaf is asked for, since each layer alone would cost as much.
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

  Tensors are summed as they are read, so that nothing is read twice; a leaf is
  compared when its last layer has been read.
  """

  def __init__(self, source: Leaves, digests: Mapping[str, str]) -> None:
    """Reads nothing yet.

    Args:
      source: the leaves.
      digests: by the name of a leaf, as `damage.fingerprint` has them; a leaf
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
    """Returns one tensor.

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
    if not damage.agree(str(digest), self.digests[leaf]):
      raise damage.DamagedError(
        f"an array is not the one that was saved: {leaf}"
      )
    del self._digests[leaf]


class Trimmed:
  """A source without the last rows of its vocabulary."""

  def __init__(self, source: Source, vocab_size: int) -> None:
    """Keeps the first `vocab_size` rows of the embedding and the head."""
    self.where = source.where
    self.dtypes = source.dtypes
    self._source = source
    self._vocab_size = vocab_size

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor that is left."""
    shapes = dict(self._source.shapes)
    for name, axis in VOCABULARY_AXIS.items():
      if name in shapes:
        kept = min(shapes[name][axis], self._vocab_size)
        shapes[name] = shapes[name][:axis] + (kept, *shapes[name][axis + 1 :])
    return shapes

  def read(self, name: str) -> np.ndarray:
    """Gives one tensor, without the rows."""
    value = self._source.read(name)
    axis = VOCABULARY_AXIS.get(name)
    if axis is None:
      return value
    return value[(slice(None),) * axis + (slice(self._vocab_size),)]


class TablesInLayers:
  """A source whose layers each have a copy of their stack's position table.

  Where they have tables of their own already it changes nothing.
  """

  def __init__(self, source: Source) -> None:
    """Reads nothing."""
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
    """Returns one tensor."""
    return self._source.read(self._copied.get(name, name))


def _is_stored(leaf: Any) -> bool:
  return isinstance(leaf, tensorstore.TensorStore)


def read_leaf(leaf: Any) -> np.ndarray:
  """Returns an array of NumPy's, JAX's or tensorstore's, on the host."""
  if _is_stored(leaf):
    return leaf.read().result()
  return np.asarray(jax.device_get(leaf))


def open_zarr(
  directory: epath.Path, *, key: str | None = None, whole: bool = False
) -> tensorstore.TensorStore:
  """Opens a stored array, local or on `gs://`; reads none of it.

  Args:
    directory: where it lies.
    key: its name in the OCDBT database at `directory`; None if the directory
      is the array itself.
    whole: whether reading fails where a part of it is missing, which else
      counts as zeros. Right for writers that store parts of zeros too.

  Raises:
    ValueError: it is not there, no zarr array, or one of an absurd size.
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
    {"driver": "zarr", "kvstore": place, **options}, open=True
  ).result()
  # What a stranger's metadata ask for is allocated before a part is read.
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
