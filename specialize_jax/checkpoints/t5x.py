"""T5X's native checkpoints in: a msgpack index beside zarr arrays.

The index, a file called `checkpoint`, holds the tree of the train state. A
leaf is either a small array itself or where a zarr array lies, named by its
path in the tree (`target.encoder.encoder_norm.scale`). Only the parameters
(`target`) are read; an optimizer's state is left alone. Names are ours
already; with scanned layers (t5x/examples/scalable_t5/network.py) the layers
of a stack are one array, along its second axis.
"""

import collections
import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import tensorstore
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import name_table
from specialize_jax.t5 import config as t5_config

_LAYER = re.compile(r"^(encoder|decoder)/layers_(\d+)/")
_SCANNED = re.compile(r"^(encoder|decoder)/layers/")
# The scanned network has a table in each layer, all of them equal where the
# checkpoint is a T5's.
_LAYER_TABLE = "relative_posemb/rel_embedding"
_SCAN_AXIS = 1


class Checkpoint:
  """A `checkpoint_<step>` directory, as a `name_table.Source`."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Reads the index; tensors stay where they are.

    Args:
      path: the directory, local or on `gs://`.

    Raises:
      UserError: it is not a T5X checkpoint.
    """
    self.where = os.fspath(path)
    self._leaves = _leaves(epath.Path(path))

  @functools.cached_property
  def config(self) -> t5_config.T5Config:
    """The model that the shapes tell, with our defaults for the rest.

    T5X keeps the configuration elsewhere, but only dropout, epsilon and the
    largest relative distance cannot be seen in the shapes.
    """
    shapes = self.shapes
    try:
      vocab_size, embed_dim = shapes[name_table.EMBEDDING]
      layer, mlp = "encoder/layers_0", "encoder/layers_0/mlp"
      gated = f"{mlp}/wi_0/kernel" in shapes
      _, mlp_dim = shapes[f"{mlp}/{'wi_0' if gated else 'wi'}/kernel"]
      num_heads, num_buckets = shapes["encoder/relpos_bias/rel_embedding"]
      _, joined_kv_dim = shapes[f"{layer}/attention/query/kernel"]
    except (KeyError, ValueError) as error:
      raise errors.UserError(
        f"{self.where} is a T5X checkpoint, but not of a T5: {error} is "
        "missing or has another number of axes."
      ) from error
    depth = collections.Counter(
      match.group(1)
      for name in shapes
      if (match := _LAYER.match(name))
      and name.endswith("pre_mlp_layer_norm/scale")
    )
    return t5_config.T5Config(
      vocab_size=vocab_size,
      embed_dim=embed_dim,
      mlp_dim=mlp_dim,
      num_heads=num_heads,
      head_dim=joined_kv_dim // num_heads,
      num_encoder_layers=depth["encoder"],
      num_decoder_layers=depth["decoder"],
      mlp_activations=("gelu", "linear") if gated else ("relu",),
      tied_head=name_table.HEAD not in shapes,
      relative_attention_num_buckets=num_buckets,
    )

  @functools.cached_property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all tensors, layers listed."""
    shapes = {}
    for name, leaf in self._leaves.items():
      match = _SCANNED.match(name)
      if not match:
        shapes[name] = _shape(leaf)
      elif name.endswith(_LAYER_TABLE):
        heads, _, buckets = _shape(leaf)
        shapes[_table_name(match.group(1))] = (heads, buckets)
      else:
        whole = _shape(leaf)
        one = whole[:_SCAN_AXIS] + whole[_SCAN_AXIS + 1 :]
        for layer in range(whole[_SCAN_AXIS]):
          shapes[_listed(name, layer)] = one
    return shapes

  def read(self, name: str) -> np.ndarray:
    """Gives one tensor; of a scanned one only its layer."""
    if name in self._leaves:
      return _read(self._leaves[name])
    stack = name.split("/", maxsplit=1)[0]
    if name == _table_name(stack):
      return self._shared_table(stack)
    match = _LAYER.match(name)
    leaf = self._leaves[_LAYER.sub(rf"{stack}/layers/", name)]
    return _read(leaf, layer=int(match.group(2)))

  def _shared_table(self, stack: str) -> np.ndarray:
    """Gives the one table of a stack whose layers each have a copy."""
    tables = _read(self._leaves[f"{stack}/layers/{_LAYER_TABLE}"])
    first = tables[:, 0]
    if not np.array_equal(
      np.broadcast_to(first[:, None], tables.shape), tables
    ):
      raise errors.UserError(
        f"{self.where}: the {stack}'s layers have different relative position "
        "tables, and a T5 has one for all layers of a stack: this is a "
        "network of T5X's scalable_t5 that was trained from scratch."
      )
    return first


def _table_name(stack: str) -> str:
  return f"{stack}/relpos_bias/rel_embedding"


def _listed(name: str, layer: int) -> str:
  return _SCANNED.sub(rf"\g<1>/layers_{layer}/", name)


def _leaves(path: epath.Path) -> dict[str, Any]:
  """Gives the parameters' leaves by name: arrays, or open zarr arrays."""
  try:
    index = flax.serialization.msgpack_restore(
      (path / "checkpoint").read_bytes()
    )
    state = index.get("optimizer", index)
    target = flax.traverse_util.flatten_dict(
      state["target"], sep="/", is_leaf=lambda _, x: _is_zarr(x)
    )
  except (OSError, KeyError, ValueError, AttributeError) as error:
    raise errors.UserError(
      f"{path} is not a T5X checkpoint: its index, a file called "
      f"'checkpoint', cannot be read ({type(error).__name__}: {error}). Give "
      "the directory checkpoint_<step> itself."
    ) from error
  return {
    name: _open(path, leaf) if _is_zarr(leaf) else np.asarray(leaf)
    for name, leaf in target.items()
  }


def _is_zarr(leaf: Any) -> bool:
  return isinstance(leaf, Mapping) and leaf.get("driver") == "zarr"


def _open(path: epath.Path, leaf: Mapping[str, Any]) -> Any:
  # The index may name the place it was written to: only the last part counts.
  directory = path / leaf["kvstore"]["path"].rstrip("/").split("/")[-1]
  try:
    return tensorstore.open(
      {"driver": "zarr", "kvstore": _kvstore(directory)}, open=True
    ).result()
  except ValueError as error:
    raise errors.UserError(
      f"{directory} cannot be read, though the checkpoint's index names it "
      f"({error}): copy the checkpoint again."
    ) from error


def _kvstore(directory: epath.Path) -> dict[str, str]:
  address = os.fspath(directory)
  if address.startswith("gs://"):
    bucket, _, key = address.removeprefix("gs://").partition("/")
    return {"driver": "gcs", "bucket": bucket, "path": f"{key}/"}
  return {"driver": "file", "path": f"{os.path.abspath(address)}/"}


def _shape(leaf: Any) -> tuple[int, ...]:
  return tuple(leaf.shape)


def _read(leaf: Any, layer: int | None = None) -> np.ndarray:
  if layer is not None:
    leaf = leaf[(slice(None),) * _SCAN_AXIS + (layer,)]
  if isinstance(leaf, np.ndarray):
    return leaf
  return leaf.read().result()
