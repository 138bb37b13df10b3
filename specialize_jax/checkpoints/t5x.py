"""T5X's native checkpoints in: a msgpack index beside zarr arrays.

The index, a file called `checkpoint`, holds the tree of the train state. A
leaf is a small array itself, or where a zarr array lies, named by its path in
the tree (`target.encoder.encoder_norm.scale`): a tensorstore spec, or the
`PLACEHOLDER://NAME` of those that T5X writes through Orbax. Only the
parameters (`target`) are read; an optimizer's state is left alone. Names are
ours already. T5X's scalable_t5 (t5x/examples/scalable_t5/network.py) has a
relative position table in each layer, and its scanned layers are one array,
along `param_scan_axis`, which is the second axis by default.
"""

import collections
import functools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import sources
from specialize_jax.t5 import config as t5_config

_LAYER = re.compile(r"^(encoder|decoder)/layers_(\d+)/")
_LAYER_TABLE = re.compile(
  r"^(encoder|decoder)/layers_(\d+)/relative_posemb/rel_embedding$"
)
_PLACEHOLDER = "PLACEHOLDER://"


class Checkpoint:
  """A `checkpoint_<step>` directory, as a `sources.Source`."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Reads the index; tensors stay where they are.

    Args:
      path: the directory, local or on `gs://`.

    Raises:
      UserError: it is not a T5X checkpoint.
    """
    self.where = os.fspath(path)
    leaves = _leaves(epath.Path(path))
    self._leaves = sources.Leaves(self.where, leaves, axis=_scan_axis(leaves))

  @functools.cached_property
  def config(self) -> t5_config.T5Config:
    """The model that the shapes tell, with our defaults for the rest.

    T5X keeps the configuration elsewhere, but only dropout, epsilon and the
    largest relative distance cannot be seen in the shapes.
    """
    shapes = self.shapes
    try:
      vocab_size, embed_dim = shapes[sources.EMBEDDING]
      layer, mlp = "encoder/layers_0", "encoder/layers_0/mlp"
      gated = f"{mlp}/wi_0/kernel" in shapes
      _, mlp_dim = shapes[f"{mlp}/{'wi_0' if gated else 'wi'}/kernel"]
      num_heads, num_buckets = shapes[_table_name("encoder")]
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
      tied_head=sources.HEAD not in shapes,
      relative_attention_num_buckets=num_buckets,
    )

  @functools.cached_property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all tensors, layers listed, one table a stack."""
    shapes = {}
    for name, shape in self._leaves.shapes.items():
      match = _LAYER_TABLE.match(name)
      shapes[_table_name(match.group(1)) if match else name] = shape
    return shapes

  @property
  def dtypes(self) -> Iterable[np.dtype]:
    """The types of the tensors."""
    return self._leaves.dtypes

  def read(self, name: str) -> np.ndarray:
    """Gives one tensor; of a scanned one only its layer."""
    if name not in self._leaves.shapes:
      return self._shared_table(name.split("/", maxsplit=1)[0])
    return self._leaves.read(name)

  def _shared_table(self, stack: str) -> np.ndarray:
    """Gives the one table of a stack whose layers each have a copy."""
    first, *others = [
      self._leaves.read(name)
      for name in self._leaves.shapes
      if (match := _LAYER_TABLE.match(name)) and match.group(1) == stack
    ]
    if not all(np.array_equal(first, other) for other in others):
      raise errors.UserError(
        f"{self.where}: the {stack}'s layers have different relative position "
        "tables, and a T5 has one for all layers of a stack: this is a "
        "network of T5X's scalable_t5 that was trained from scratch."
      )
    return first


def _table_name(stack: str) -> str:
  return f"{stack}/relpos_bias/rel_embedding"


def _scan_axis(leaves: Mapping[str, Any]) -> int:
  """Tells where layers are stacked, by a norm, which is as long as a token."""
  embedding = leaves.get(sources.EMBEDDING)
  norm = leaves.get(f"encoder{sources.STACKED}pre_mlp_layer_norm/scale")
  if embedding is None or norm is None:
    return 1
  return 1 if norm.shape[0] == embedding.shape[-1] else 0


def _leaves(path: epath.Path) -> dict[str, Any]:
  """Gives the parameters' leaves by name: arrays, or open zarr arrays."""
  try:
    index = flax.serialization.msgpack_restore(
      (path / "checkpoint").read_bytes()
    )
    state = index.get("optimizer", index)
    target = flax.traverse_util.flatten_dict(
      state["target"], sep="/", is_leaf=lambda _, x: _stored_name(x) is not None
    )
  except (OSError, KeyError, ValueError, AttributeError) as error:
    raise errors.UserError(
      f"{path} is not a T5X checkpoint: its index, a file called "
      f"'checkpoint', cannot be read ({type(error).__name__}: {error}). Give "
      "the directory checkpoint_<step> itself."
    ) from error
  leaves = {}
  for name, leaf in target.items():
    stored = _stored_name(leaf)
    leaves[name] = np.asarray(leaf) if stored is None else _open(path, stored)
    _check_dtype(path, name, leaves[name])
  return leaves


def _stored_name(leaf: Any) -> str | None:
  """Gives the name of the array that a leaf of the index refers to, if any."""
  if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
    return leaf.removeprefix(_PLACEHOLDER)
  if not isinstance(leaf, Mapping) or leaf.get("driver") != "zarr":
    return None
  # Where tensorstore keeps the path; before its 0.1.14, beside the place.
  path = leaf["kvstore"].get("path") or leaf["path"]
  # The index may name the place it was written to: only the last part counts.
  return path.rstrip("/").split("/")[-1]


def _open(path: epath.Path, name: str) -> Any:
  try:
    if (path / name).is_dir():
      return sources.open_zarr(path / name)
    return sources.open_zarr(path, key=name)
  except ValueError as error:
    raise errors.UserError(
      f"{path / name} cannot be read, though the checkpoint's index names it "
      f"({error}): copy the checkpoint again."
    ) from error


def _check_dtype(path: epath.Path, name: str, leaf: Any) -> None:
  # The first T5X stored bfloat16 as uint16; T5X itself no longer reads it.
  dtype = getattr(leaf.dtype, "name", "")
  if "float" not in dtype:
    raise errors.UserError(
      f"{path}: {name} is of type {dtype}, and a parameter must be of a "
      "floating point type: save the checkpoint again with a T5X of version 3."
    )
