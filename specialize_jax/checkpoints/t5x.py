"""Reads T5X's checkpoints: legacy (msgpack and zarr) and Orbax.

A legacy checkpoint has an index, a file called `checkpoint`, with the tree of
the train state. A leaf is a small array itself, or refers to a zarr array that
is named by its path in the tree (`target.encoder.encoder_norm.scale`): by a
tensorstore spec, or by `PLACEHOLDER://NAME`, which T5X wrote through its first
version of Orbax. Today T5X writes `checkpoint_<step>/state`, whose tree is in
Orbax's metadata and whose arrays are in one OCDBT database. The parameters are
called `target`, or `params` if not T5X's trainer wrote them.

Two of T5X's networks are read. t5x/examples/t5 has our names.
t5x/examples/scalable_t5 has a relative position table in each layer, attention
kernels with separate axes for heads and head width (`[embed, heads, kv]`) and,
if its layers are scanned, one array for all of them (`encoder/encoder/...`),
stacked along `param_scan_axis`, 0 or 1. If all layers of a stack have equal
tables, as in a converted T5, the model has one table per stack.
"""

import collections
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import tensorstore
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import (
  adafactor_moments,
  damage,
  manifests,
  sources,
)
from specialize_jax.files import reading
from specialize_jax.t5 import config as t5_config

INDEX = "checkpoint"
"""The index of a legacy checkpoint, which no other kind has."""

OF_TENSORFLOW = b"model_checkpoint_path"
"""How TensorFlow's file of that name begins."""

_LAYER = re.compile(r"^(encoder|decoder)/layers_(\d+)/")
_LAYER_TABLE = re.compile(
  r"^(encoder|decoder)/layers_\d+/relpos_bias/rel_embedding$"
)
_SCANNED = re.compile(r"^(encoder|decoder)/\1/")
INTO_HEADS = re.compile(r"/(query|key|value)/kernel$")
"""Names of attention kernels `[embed, heads, kv]` or `[embed, joined_kv]`."""

OUT_OF_HEADS = re.compile(r"/out/kernel$")
"""Names of attention kernels `[heads, kv, embed]` or `[joined_kv, embed]`."""

_PLACEHOLDER = "PLACEHOLDER://"
_ITEMS = ("state", "default")
_DATABASE = "manifest.ocdbt"
_METADATA = "_METADATA"

# Networks with the tensors of a T5 1.1, distinguished by vocabulary size alone.
_OTHER_VOCABULARIES = {250_112: "mT5", 256_384: "UMT5"}
# Widths of the residual stream and of a head that no T5 has. UL2's tensors are
# called as T5 1.1's, and its activation is another one, gated SiLU.
_UL2_WIDTHS = (4096, 256)


def item(directory: epath.Path) -> epath.Path | None:
  """Returns the directory with the train state of `checkpoint_<step>`.

  Args:
    directory: a checkpoint of either format.

  Returns:
    The directory with the index or Orbax's metadata: `directory` itself or an
    item in it; None if neither is found.
  """
  for place in (directory, *(directory / name for name in _ITEMS)):
    if (place / INDEX).is_file() or any(
      (place / name).is_file() for name in (_METADATA, _DATABASE)
    ):
      return place
  return None


class Checkpoint:
  """A `checkpoint_<step>` directory, as a `sources.Source`."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Reads the tree, but no tensor.

    Args:
      path: the directory, local or on `gs://`.

    Raises:
      UserError: it is not a T5X checkpoint, or is torn.
    """
    self.where = os.fspath(path)
    place = item(epath.Path(path))
    if place is None:
      raise errors.UserError(
        f"{self.where} is not a T5X checkpoint: it has neither an index (a "
        "file called 'checkpoint') nor a 'state' that Orbax wrote. Give the "
        "directory checkpoint_<step> itself."
      )
    self._tree = _in_index if (place / INDEX).is_file() else _in_orbax
    self._place = place
    self._params = _leaves(place, self._tree(place, _parameters))
    self._axis = _scan_axis(self.where, self._params)
    self._leaves = sources.Leaves(self.where, self._params, axis=self._axis)

  @functools.cached_property
  def config(self) -> t5_config.T5Config:
    """The model, inferred from the shapes, with our defaults for the rest.

    T5X does not save its configuration here; only dropout, epsilon and the
    maximum relative distance cannot be inferred.
    """
    shapes = self.shapes
    stacks = {"encoder": 0, "decoder": 0} | collections.Counter(
      match.group(1)
      for name in shapes
      if (match := _LAYER.match(name))
      and name.endswith("pre_mlp_layer_norm/scale")
    )
    try:
      vocab_size, embed_dim = shapes[sources.EMBEDDING]
      layer, mlp = "encoder/layers_0", "encoder/layers_0/mlp"
      gated = f"{mlp}/wi_0/kernel" in shapes
      _, mlp_dim = shapes[f"{mlp}/{'wi_0' if gated else 'wi'}/kernel"]
      table = sources.table_name("encoder")
      if table not in shapes:
        table = sources.table_name("encoder", layer=0)
      num_heads, num_buckets = shapes[table]
      _, joined_kv_dim = shapes[f"{layer}/attention/query/kernel"]
    except (KeyError, ValueError) as error:
      raise errors.UserError(
        f"{self.where} is a T5X checkpoint, but not of a T5 (an encoder and a "
        f"decoder with relative positions): {error} is missing or has another "
        "number of axes."
      ) from error
    if other := _OTHER_VOCABULARIES.get(vocab_size):
      raise errors.UserError(
        f"{self.where} is a checkpoint of {other} (its vocabulary has "
        f"{vocab_size:,} rows), and expected is a T5 1.0, T5 1.1 or FlanT5: "
        "the pieces of other vocabularies are other words."
      )
    head_dim = joined_kv_dim // num_heads
    if (embed_dim, head_dim) == _UL2_WIDTHS:
      raise errors.UserError(
        f"{self.where} is a checkpoint of UL2 or Flan-UL2 (width {embed_dim},"
        f" heads of {head_dim}), whose gated SiLU is not supported: expected is"
        " a T5 1.0, T5 1.1 or FlanT5."
      )
    return t5_config.T5Config(
      vocab_size=vocab_size,
      embed_dim=embed_dim,
      mlp_dim=mlp_dim,
      num_heads=num_heads,
      head_dim=head_dim,
      num_encoder_layers=stacks["encoder"],
      num_decoder_layers=stacks["decoder"],
      mlp_activations=("gelu", "linear") if gated else ("relu",),
      tied_head=sources.HEAD not in shapes,
      relative_bias=(
        "per_stack" if table == sources.table_name("encoder") else "per_layer"
      ),
      relative_attention_num_buckets=num_buckets,
    )

  @property
  def manifest(self) -> str:
    """The name of the manifest that it was written with; "" if none."""
    custom = _orbax_metadata(self._place).get("custom_metadata")
    return (
      custom.get(manifests.LISTED_IN, "") if isinstance(custom, dict) else ""
    )

  @functools.cached_property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all tensors, layers listed, heads and head width joined.

    If all layers of a stack have equal tables, there is one for the stack.
    """
    shapes = {}
    for name, shape in self._leaves.shapes.items():
      table = _LAYER_TABLE.match(name)
      if table and self._one_table_a_stack:
        shapes[sources.table_name(table.group(1))] = shape
      else:
        shapes[name] = _joined_shape(name, shape)
    return shapes

  @property
  def dtypes(self) -> Iterable[np.dtype]:
    """The dtypes of the tensors."""
    return self._leaves.dtypes

  def moments(self) -> adafactor_moments.Moments:
    """Opens the second moments of Adafactor, without reading them.

    Raises:
      UserError: it has no optimizer state, or that of another optimizer.
    """
    states = self._tree(self._place, _optimizer_state)
    step = states.pop("step", None)
    kinds = {name.rsplit("/", maxsplit=1)[-1] for name in states}
    if step is None or not {*adafactor_moments.KINDS} <= kinds:
      raise adafactor_moments.NoMomentsError(
        f"{self.where} has no state of T5X's Adafactor: take its parameters "
        "alone."
      )
    opened = _leaves(
      self._place,
      {name.removeprefix("param_states/"): x for name, x in states.items()},
    )
    (count,) = _leaves(self._place, {"step": step}, floats=False).values()
    return _Moments(
      self.where,
      self._params,
      opened,
      axis=self._axis,
      count=int(sources.read_leaf(count)),
    )

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor; of a scanned one only its layer.

    Raises:
      UserError: one of its files is missing, truncated or altered.
    """
    stored = name
    if name not in self._leaves.shapes:
      stored = sources.table_name(name.split("/", maxsplit=1)[0], layer=0)
    value = self._read(stored)
    return value.reshape(_joined_shape(name, value.shape))

  def _read(self, name: str) -> np.ndarray:
    try:
      return self._leaves.read(name)
    except (ValueError, OSError) as error:
      if not damage.is_damage(error):
        raise
      raise errors.UserError(
        f"{self.where} is torn: {name} cannot be read, though the checkpoint "
        f"names it ({_first_line(error)}): copy the checkpoint again."
      ) from error

  @functools.cached_property
  def _one_table_a_stack(self) -> bool:
    """Whether all layers of each stack have equal tables."""
    first: dict[str, np.ndarray] = {}
    for name in self._leaves.shapes:
      if match := _LAYER_TABLE.match(name):
        table = self._read(name)
        if not np.array_equal(first.setdefault(match.group(1), table), table):
          return False
    return True


def logical_axes(name: str, rank: int) -> tuple[str, ...]:
  """Returns T5X's logical axis names of a parameter of one layer.

  Args:
    name: its path.
    rank: its number of axes: 3 if heads have an axis of their own.
  """
  if INTO_HEADS.search(name):
    return ("embed", "heads", "kv") if rank == 3 else ("embed", "joined_kv")
  if OUT_OF_HEADS.search(name):
    return ("heads", "kv", "embed") if rank == 3 else ("joined_kv", "embed")
  match name.split("/")[-2:]:
    case ["wo", "kernel"]:
      return ("mlp", "embed")
    case ["logits_dense", "kernel"]:
      return ("embed", "vocab")
    case [_, "kernel"]:
      return ("embed", "mlp")
    case [_, "embedding"]:
      return ("vocab", "embed")
    case [_, "rel_embedding"]:
      return ("heads", "relpos_buckets")
  return ("embed",)


class _Moments:
  """The second moments of T5X's Adafactor, under our names."""

  def __init__(
    self,
    where: str,
    params: Mapping[str, Any],
    states: Mapping[str, Any],
    *,
    axis: int,
    count: int,
  ) -> None:
    self._where = where
    self._params = params
    self._states = states
    self._axis = axis
    self.count = count

  def second_moment(self, name: str) -> adafactor_moments.SecondMoment:
    """Reads the second moment of one tensor, layers listed."""
    leaf, layer = adafactor_moments.place_of(name, self._params)
    shape = tuple(self._params[leaf].shape)
    own = shape
    if layer is not None:
      own = shape[: self._axis] + shape[self._axis + 1 :]
    axes = logical_axes(leaf, len(own))
    if layer is not None:
      axes = (*axes[: self._axis], "layers", *axes[self._axis :])
    arrays = {
      kind: sources.read_leaf(self._states[f"{leaf}/{kind}"])
      for kind in adafactor_moments.KINDS
    }
    rule = adafactor_moments.t5x_rule(shape, axes)
    try:
      return adafactor_moments.loaded(
        arrays,
        shape,
        axes,
        rule if arrays["v"].shape != shape else None,
        layer=layer,
        joined_shape=_joined_shape(leaf, own),
      )
    except ValueError as error:
      raise errors.UserError(
        f"{self._where}: the optimizer's state of {leaf} is not that of T5X's "
        f"Adafactor with its standard_logical_factor_rules ({error}): take the "
        "parameters alone."
      ) from error


def _joined_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns a shape with the axes of heads and head width joined, if any."""
  if len(shape) != 3:
    return shape
  if INTO_HEADS.search(name):
    return shape[0], shape[1] * shape[2]
  if OUT_OF_HEADS.search(name):
    return shape[0] * shape[1], shape[2]
  return shape


def _scan_axis(where: str, leaves: Mapping[str, Any]) -> int:
  """Infers the axis along which layers are stacked; 1 if they are not.

  A norm has the shape `[layers, embed]` or `[embed, layers]`. If both are equal
  the shape of another tensor decides.
  """
  embedding = leaves.get(sources.EMBEDDING)
  stacked = {
    stack: norm.shape
    for stack in ("encoder", "decoder")
    if (norm := leaves.get(f"{stack}{sources.STACKED}pre_mlp_layer_norm/scale"))
    is not None
  }
  if embedding is None or not stacked:
    return 1
  embed_dim = embedding.shape[-1]
  for shape in stacked.values():
    if len(shape) != 2 or embed_dim not in shape:
      raise errors.UserError(
        f"{where} is a T5X checkpoint, but not of a T5: a norm of its scanned "
        f"layers has the shape {shape}, and expected are the layers and the "
        f"{embed_dim} of the embedding."
      )
    if shape[0] != shape[1]:
      return 1 if shape[0] == embed_dim else 0
  # wo is [layers, mlp, embed] or [mlp, layers, embed], and layers == embed:
  # the axis that differs is mlp.
  wo = leaves.get(f"encoder{sources.STACKED}mlp/wo/kernel")
  return 0 if wo is not None and wo.shape[0] == embed_dim else 1


def _leaves(
  place: epath.Path,
  stored: Mapping[str, str | np.ndarray],
  *,
  floats: bool = True,
) -> dict[str, Any]:
  """Opens leaves, as arrays or zarr arrays under our names.

  Scanned layers are called `encoder/layers/...`, as in our own tree.
  """
  leaves, driver = {}, _driver(place)
  for name, leaf in stored.items():
    opened = leaf
    if isinstance(leaf, str):
      opened = _open(place, leaf, name, driver)
    if floats:
      _check_dtype(place, name, opened)
    leaves[_SCANNED.sub(r"\1/layers/", name)] = opened
  return leaves


def _in_index(
  place: epath.Path, select: Callable[[Any], Mapping[str, Any]]
) -> dict[str, str | np.ndarray]:
  """Returns the selected leaves of a legacy index: names or small arrays."""
  content = reading.read_description(place / INDEX)
  if content.startswith(OF_TENSORFLOW):
    raise errors.UserError(
      f"{place} is a TensorFlow checkpoint, as Mesh TensorFlow's T5 wrote "
      "them, and not one of T5X: give the same model from "
      "gs://t5-data/pretrained_models/t5x, or have T5X restore this one and "
      "save it."
    )
  try:
    tree = select(flax.serialization.msgpack_restore(content))
    flat = flax.traverse_util.flatten_dict(
      tree, sep="/", is_leaf=lambda _, leaf: _stored_name(leaf) is not None
    )
  except Exception as error:
    if not damage.is_damage(error) and not _is_msgpack(error):
      raise
    raise errors.UserError(
      f"{place} is not a T5X checkpoint, or torn: its index, a file called "
      f"'{INDEX}', cannot be read ({type(error).__name__}: {error}). Give the "
      "directory checkpoint_<step> itself, or copy the checkpoint again."
    ) from error
  return {
    name: np.asarray(leaf) if (key := _stored_name(leaf)) is None else key
    for name, leaf in flat.items()
  }


def _in_orbax(
  place: epath.Path, select: Callable[[Any], Mapping[str, Any]]
) -> dict[str, str | np.ndarray]:
  """Returns the names under which Orbax stores the selected leaves.

  They are read from Orbax's file: its `metadata()` would open every array, the
  optimizer's too, and print tracebacks for those of a torn checkpoint.
  """
  try:
    metadata = reading.read_json_description(place / _METADATA)
    entries = metadata["tree_metadata"]
    keys = [
      tuple(str(part["key"]) for part in entry["key_metadata"])
      for entry in entries.values()
      if not entry["value_metadata"].get("skip_deserialize")
    ]
    tree = select(
      flax.traverse_util.unflatten_dict({key: ".".join(key) for key in keys})
    )
    return flax.traverse_util.flatten_dict(tree, sep="/")
  except Exception as error:
    if not damage.is_damage(error):
      raise
    raise errors.UserError(
      f"{place} is not a T5X checkpoint, or torn: its tree, a file called "
      f"'{_METADATA}', cannot be read ({type(error).__name__}: "
      f"{_first_line(error)}). Give the directory checkpoint_<step> itself, or "
      "copy the checkpoint again."
    ) from error


def _parameters(tree: Any) -> Mapping[str, Any]:
  """Returns the subtree of the parameters of a train state.

  Raises:
    KeyError: there is none.
  """
  found = False
  for key in ("optimizer", "target", "params"):
    if key in tree:
      tree, found = tree[key], key != "optimizer" or found
  if not found or not isinstance(tree, Mapping):
    raise KeyError("neither 'target' nor 'params' is in it")
  return tree


def _optimizer_state(tree: Any) -> Mapping[str, Any]:
  """Returns the subtrees `step` and `param_states`, as far as they exist."""
  state = tree.get("optimizer", tree).get("state", {})
  return {
    name: state[name] for name in ("step", "param_states") if name in state
  }


def _is_msgpack(error: Exception) -> bool:
  return type(error).__module__.startswith("msgpack")


def _stored_name(leaf: Any) -> str | None:
  """Returns the name of the array that a leaf of the index refers to."""
  if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
    return leaf.removeprefix(_PLACEHOLDER)
  if not isinstance(leaf, Mapping) or leaf.get("driver") != "zarr":
    return None
  # Before its version 0.1.14 tensorstore had the path outside of "kvstore".
  path = leaf["kvstore"].get("path") or leaf["path"]
  # The path may be that of the original place: only its last part counts.
  return path.rstrip("/").split("/")[-1]


def _open(
  place: epath.Path, key: str, name: str, driver: sources.ZarrDriver
) -> tensorstore.TensorStore:
  """Opens a stored array, in a directory of its own or in OCDBT.

  Raises:
    UserError: it is missing, outside the checkpoint, or absurdly large.
  """
  if pathlib.PurePath(key).name != key or key in ("", ".."):
    raise errors.UserError(
      f"{place} is not a T5X checkpoint: its index refers {name} to {key!r}, "
      "which is not the name of an array in the checkpoint's own directory."
    )
  in_database = (place / _DATABASE).is_file() and not (place / key).is_dir()
  try:
    return sources.open_zarr(
      place if in_database else place / key,
      key=key if in_database else None,
      whole=True,
      driver=driver,
    )
  except ValueError as error:
    if not damage.is_damage(error):
      raise
    raise errors.UserError(
      f"{place} is torn: {name} cannot be opened, though the checkpoint names "
      f"it ({_first_line(error)}): copy the checkpoint again."
    ) from error


def _driver(place: epath.Path) -> sources.ZarrDriver:
  """Returns the array format, according to Orbax's metadata."""
  return "zarr3" if _orbax_metadata(place).get("use_zarr3") else "zarr"


def _orbax_metadata(place: epath.Path) -> Mapping[str, Any]:
  """Returns Orbax's metadata of the arrays.

  It is empty for a legacy checkpoint and an early Orbax. Torn metadata were
  refused when the tree was read.
  """
  try:
    metadata = reading.read_json_description(place / _METADATA)
  except (FileNotFoundError, ValueError):
    return {}
  return metadata if isinstance(metadata, dict) else {}


def _check_dtype(place: epath.Path, name: str, leaf: Any) -> None:
  # The first T5X stored bfloat16 as uint16; T5X itself no longer reads it.
  dtype = getattr(leaf.dtype, "name", "")
  if "float" not in dtype:
    raise errors.UserError(
      f"{place}: {name} is of type {dtype}, and a parameter must be of a "
      "floating point type: save the checkpoint again with a T5X of version 3."
    )


def _first_line(error: Exception) -> str:
  """Returns an error's first line, without tensorstore's dump of its spec."""
  text = str(error).split(" [tensorstore_spec=")[0] or "no reason given"
  return text.splitlines()[0][:300]
