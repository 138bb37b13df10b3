"""Logical axes onto mesh axes: one dataclass, one field per logical axis."""

import dataclasses
from collections.abc import Sequence

import jax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from specialize_jax import errors

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxisRules:
  """The mesh axis, or axes, that each logical axis is cut over.

  The names are T5X's (t5x/partitioning.py), without its two sets of rules for
  activations and parameters: an activation's `batch` takes `fsdp` first, so its
  `embed` stays whole, while a parameter has no `batch` and is cut along
  `embed`. The order of the fields is that precedence.

  Attributes:
    batch: rows of a batch.
    vocab: rows of the embedding, columns of the output kernel.
    mlp: the hidden layer of the feed-forward block.
    heads: attention heads.
    joined_kv: heads x size of a head, where they are one axis.
    embed: width of the residual stream.
    kv: size of a head.
    length: positions of a sequence.
    relpos_buckets: buckets of relative positions.
    layers: the axis that scanned layers are stacked along.
  """

  batch: MeshAxes = ("data", "fsdp")
  vocab: MeshAxes = "model"
  mlp: MeshAxes = "model"
  heads: MeshAxes = "model"
  joined_kv: MeshAxes = "model"
  embed: MeshAxes = "fsdp"
  kv: MeshAxes = None
  length: MeshAxes = None
  relpos_buckets: MeshAxes = None
  layers: MeshAxes = None

  def logical_rules(self) -> list[tuple[str, MeshAxes]]:
    """The rules as `flax.linen.logical_axis_rules` takes them, by priority."""
    return [
      (field.name, getattr(self, field.name))
      for field in dataclasses.fields(self)
    ]

  def partition_spec(
    self, logical_axes: Sequence[str | None], name: str = "an array"
  ) -> PartitionSpec:
    """The placement of a parameter.

    Args:
      logical_axes: one logical axis, or None for a whole one, per dimension.
      name: what the array is called, for the error.

    Raises:
      UserError: an axis has no rule, or two axes share a mesh axis.
    """
    rules = dict(self.logical_rules())
    taken: dict[str, str] = {}
    for axis in logical_axes:
      if axis is not None and axis not in rules:
        raise errors.UserError(
          f"The axis {axis!r} of {name} has no rule: expected one of "
          f"{', '.join(sorted(rules))}."
        )
      for mesh_axis in _as_tuple(rules.get(axis)):
        if mesh_axis in taken:
          raise errors.UserError(
            f"The axes {taken[mesh_axis]!r} and {axis!r} of {name} are both "
            f"cut over the mesh axis {mesh_axis!r}: set AxisRules."
            f"{axis}=None, or give it another mesh axis."
          )
        taken[mesh_axis] = axis
    return PartitionSpec(*(rules.get(axis) for axis in logical_axes))

  def batch_sharding(self, mesh: jax.sharding.Mesh) -> NamedSharding:
    """The placement of every array of a batch: cut along its rows."""
    return NamedSharding(mesh, PartitionSpec(self.batch))

  def batch_shards(self, mesh: jax.sharding.Mesh) -> int:
    """How many pieces a batch is cut into; its size is a multiple of it."""
    shards = 1
    for axis in _as_tuple(self.batch):
      shards *= mesh.shape[axis]
    return shards

  def tree_shardings(self, mesh: jax.sharding.Mesh, boxed: object) -> object:
    """Places a tree of parameters by its logical axis metadata.

    Args:
      mesh: the mesh.
      boxed: abstract arrays, those with named axes in `nn.LogicallyPartitioned`
        boxes, as `jax.eval_shape` of a linen `init` gives them. Arrays without
        a box are whole on every device.

    Returns:
      A tree of `NamedSharding` like the unboxed tree. A dimension that the
      mesh axes do not divide is left whole.
    """

    def place(path: tuple, leaf: object) -> NamedSharding:
      if not isinstance(leaf, nn.LogicallyPartitioned):
        return NamedSharding(mesh, PartitionSpec())
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      spec = self.partition_spec(leaf.names, name)
      return NamedSharding(mesh, _dividing(spec, leaf.value.shape, mesh))

    return jax.tree_util.tree_map_with_path(
      place, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )


def _dividing(
  spec: PartitionSpec, shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> PartitionSpec:
  """Drops the mesh axes that do not divide their dimension.

  A `relpos` table of 12 heads on a model axis of 8 is small enough to be whole.
  """

  def fits(size: int, axes: MeshAxes) -> bool:
    pieces = 1
    for axis in _as_tuple(axes):
      pieces *= mesh.shape[axis]
    return size % pieces == 0

  return PartitionSpec(
    *(
      axes if fits(size, axes) else None
      for size, axes in zip(shape, spec, strict=True)
    )
  )


def _as_tuple(axes: MeshAxes) -> tuple[str, ...]:
  return axes if isinstance(axes, tuple) else (axes,) if axes else ()
