"""Writes checkpoints as T5X itself writes them today.

`checkpoint_<step>/state` is an Orbax item of a T5X train state: `target` (the
parameters), `state/step`, and `state/param_states`, the moments of T5X's
Adafactor under its standard factor rules. They are converted from our run's if
it used Adafactor, and otherwise zero, as at the start of a T5X run.

Layers are listed, or scanned along axis 1, the default of `scalable_t5`. Listed
layers with one position table per stack are T5X's `t5`; every other model is
`scalable_t5`, which has a table in each layer and separate axes for heads and
head width in its attention kernels.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Literal

import flax.traverse_util
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import (
  adafactor_moments,
  damage,
  manifests,
  name_table,
  sources,
  streaming,
  t5x,
)
from specialize_jax.t5 import config as t5_config

Layers = Literal["listed", "scanned"]

SCAN_AXIS = 1
"""`param_scan_axis` of T5X's scalable_t5."""

_LAYER = re.compile(r"^(encoder|decoder)/layers_(\d+)/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Leaf:
  """A parameter in T5X's tree.

  Attributes:
    name: its path in that tree.
    parts: our names of its parts: one, or one for each layer.
    shape: T5X's shape of one part.
    axes: logical axis names of one part.
    stacked: whether the parts are stacked along `SCAN_AXIS`.
  """

  name: str
  parts: tuple[str, ...]
  shape: tuple[int, ...]
  axes: tuple[str, ...]
  stacked: bool

  @property
  def whole_shape(self) -> tuple[int, ...]:
    if not self.stacked:
      return self.shape
    return (*self.shape[:SCAN_AXIS], len(self.parts), *self.shape[SCAN_AXIS:])

  @property
  def whole_axes(self) -> tuple[str, ...]:
    if not self.stacked:
      return self.axes
    return (*self.axes[:SCAN_AXIS], "layers", *self.axes[SCAN_AXIS:])


_FIXED = (
  "pad_id",
  "decoder_start_id",
  "relative_attention_max_distance",
  "layer_norm_epsilon",
)
"""Fields that are constants in T5X's networks, equal to our defaults."""

_ACTIVATIONS = (("relu",), ("gelu", "linear"))
"""Activations that are inferred from a T5X checkpoint, which names none."""


def check_function(config: t5_config.T5Config, where: str) -> None:
  """Checks that T5X's networks compute a model's function.

  Args:
    config: the model.
    where: its checkpoint, for the error.

  Raises:
    UserError: it has special tokens or constants that T5X's have not.
  """
  defaults = {field.name: field.default for field in dataclasses.fields(config)}
  possible = {name: (defaults[name],) for name in _FIXED}
  possible["mlp_activations"] = _ACTIVATIONS
  for name, values in possible.items():
    value = getattr(config, name)
    if value not in values:
      raise errors.UserError(
        f"{where} is of a model whose T5Config.{name} is {value!r}, and a"
        f" checkpoint of T5X has no place for it, whose networks have"
        f" {' or '.join(map(repr, values))}: convert it with --to=ours or"
        " --to=huggingface"
      )


def network_name(config: t5_config.T5Config, layers: Layers) -> str:
  """Returns the network of t5x/examples/ that reads the checkpoint."""
  per_stack = config.relative_bias == "per_stack"
  return "t5" if layers == "listed" and per_stack else "scalable_t5"


def write(
  output: epath.Path,
  config: t5_config.T5Config,
  source: sources.Source,
  *,
  step: int,
  layers: Layers,
  moments: adafactor_moments.Moments | None = None,
) -> epath.Path:
  """Writes `checkpoint_<step>` to a directory, as a T5X run would.

  Args:
    output: T5X's model_dir.
    config: the model; the tensors are written as its `param_dtype`.
    source: its tensors.
    step: the number of completed steps.
    layers: "listed" or "scanned".
    moments: Adafactor's second moments; None to write zeros.

  Returns:
    The path of `checkpoint_<step>`.

  Raises:
    UserError: the checkpoint exists already, or the disk is full.
  """
  if "://" not in os.fspath(output):
    output = output.resolve()  # Orbax rejects relative paths
  path = output / f"checkpoint_{step}"
  if path.exists():
    raise errors.UserError(
      f"{path} exists already: give a folder that does not exist."
    )
  state = {"state/step": np.asarray(step, np.int32)}
  if network_name(config, layers) == "scalable_t5":
    source = sources.TablesInLayers(source)
    config = dataclasses.replace(config, relative_bias="per_layer")
  for leaf in _leaves(config, layers):
    state[f"target/{leaf.name}"] = _streamed(
      leaf, np.dtype(config.param_dtype), config, source
    )
    arrays = adafactor_moments.stored(
      leaf.whole_shape,
      leaf.whole_axes,
      adafactor_moments.t5x_rule(leaf.whole_shape, leaf.whole_axes),
      None
      if moments is None
      else [moments.second_moment(part) for part in leaf.parts],
    )
    for kind, array in arrays.items():
      state[f"state/param_states/{leaf.name}/{kind}"] = array
    # The first moment, which T5X's Adafactor does not use by default.
    state[f"state/param_states/{leaf.name}/m"] = np.zeros((1,), np.float32)
  tree = flax.traverse_util.unflatten_dict(state, sep="/")
  with (
    damage.explained(output),
    ocp.CheckpointManager(
      output,
      item_handlers={
        "state": ocp.PyTreeCheckpointHandler(
          type_handler_registry=streaming.registry()
        )
      },
      options=ocp.CheckpointManagerOptions(step_prefix="checkpoint"),
    ) as manager,
  ):
    saved = ocp.args.PyTreeSave(
      tree, custom_metadata={manifests.LISTED_IN: manifests.NAME}
    )
    manager.save(step, args=ocp.args.Composite(state=saved))
  return path


def _leaves(config: t5_config.T5Config, layers: Layers) -> Iterator[_Leaf]:
  """Yields the parameters of T5X's tree."""
  split_heads = network_name(config, layers) == "scalable_t5"
  by_leaf: dict[str, list[name_table.Tensor]] = {}
  for tensor in name_table.tensors(config):
    leaf = tensor.name
    if layers == "scanned":
      leaf = _LAYER.sub(r"\1/\1/", leaf)
    by_leaf.setdefault(leaf, []).append(tensor)
  for leaf, parts in by_leaf.items():
    shape = _shape(config, parts[0], split_heads=split_heads)
    yield _Leaf(
      name=leaf,
      parts=tuple(part.name for part in parts),
      shape=shape,
      axes=t5x.logical_axes(leaf, len(shape)),
      stacked=leaf != parts[0].name,
    )


def _shape(
  config: t5_config.T5Config, tensor: name_table.Tensor, *, split_heads: bool
) -> tuple[int, ...]:
  """Returns T5X's shape of a tensor of one layer."""
  heads = (config.num_heads, config.head_dim)
  if split_heads and t5x.INTO_HEADS.search(tensor.name):
    return (tensor.shape[0], *heads)
  if split_heads and t5x.OUT_OF_HEADS.search(tensor.name):
    return (*heads, tensor.shape[1])
  return tensor.shape


def _streamed(
  leaf: _Leaf,
  dtype: np.dtype,
  config: t5_config.T5Config,
  source: sources.Source,
) -> streaming.StreamedArray:
  """Returns a parameter whose layers are read while it is written."""

  def pieces() -> Iterator[tuple[int, np.ndarray]]:
    for place, part in enumerate(leaf.parts):
      value = name_table.cast(
        name_table.read(config, source, part),
        dtype,
        name=part,
        where=source.where,
      ).reshape(leaf.shape)
      yield place, np.expand_dims(value, SCAN_AXIS) if leaf.stacked else value

  return streaming.StreamedArray(
    shape=leaf.whole_shape,
    dtype=dtype,
    read=pieces,
    rows_of_piece=1 if leaf.stacked else leaf.shape[0],
    axis=SCAN_AXIS if leaf.stacked else 0,
  )
