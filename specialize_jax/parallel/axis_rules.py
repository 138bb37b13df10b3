"""The mapping of logical axes to mesh axes, as one dataclass."""

import dataclasses
from collections.abc import Sequence

import jax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from specialize_jax import errors
from specialize_jax.parallel import mesh as mesh_lib

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxisRules:
  """The mesh axis or axes over which each logical axis is sharded.

  The names are T5X's (t5x/partitioning.py). Unlike T5X there is one set of
  rules for activations and parameters. An activation's `batch` claims `fsdp`
  first, so its `embed` stays unsharded; a parameter has no `batch` and is
  sharded along `embed`. The order of the fields is this precedence.

  Attributes:
    batch: rows of a batch.
    vocab: rows of the embedding, columns of the output kernel.
    mlp: the hidden layer of the feed-forward block.
    heads: attention heads.
    joined_kv: heads x head size, where they form one axis.
    embed: width of the residual stream.
    kv: head size.
    length: positions of a sequence.
    relpos_buckets: buckets of relative positions.
    layers: the axis along which scanned layers are stacked.
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

  def __post_init__(self) -> None:
    """Checks the names of the mesh axes; a list of them becomes a tuple."""
    for field in dataclasses.fields(self):
      axes = getattr(self, field.name)
      if isinstance(axes, list):
        axes = tuple(axes)
        object.__setattr__(self, field.name, axes)
      for axis in as_tuple(axes):
        if axis not in mesh_lib.AXES:
          raise errors.UserError(
            f"AxisRules.{field.name} names the mesh axis {axis!r}: expected"
            f" {', '.join(mesh_lib.AXES)}, several of them, or None"
          )

  def logical_rules(self) -> list[tuple[str, MeshAxes]]:
    """Returns the rules for `flax.linen.logical_axis_rules`, by priority."""
    return [
      (field.name, getattr(self, field.name))
      for field in dataclasses.fields(self)
    ]

  def partition_spec(
    self, logical_axes: Sequence[str | None], name: str = "an array"
  ) -> PartitionSpec:
    """Returns the partition spec of a parameter.

    Args:
      logical_axes: the logical axis of each dimension, None if unsharded.
      name: the name of the array, for error messages.

    Raises:
      UserError: an axis has no rule, or two axes map to one mesh axis.
    """
    rules = dict(self.logical_rules())
    taken: dict[str, str] = {}
    for axis in logical_axes:
      if axis is not None and axis not in rules:
        raise errors.UserError(
          f"The axis {axis!r} of {name} has no rule: expected one of "
          f"{', '.join(sorted(rules))}."
        )
      for mesh_axis in as_tuple(rules.get(axis)):
        if mesh_axis in taken:
          raise errors.UserError(
            f"The axes {taken[mesh_axis]!r} and {axis!r} of {name} are both "
            f"sharded over the mesh axis {mesh_axis!r}: set AxisRules."
            f"{axis}=None, or map it to another mesh axis."
          )
        taken[mesh_axis] = axis
    return PartitionSpec(*(rules.get(axis) for axis in logical_axes))

  def batch_sharding(self, mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of every array of a batch, along its rows."""
    return NamedSharding(mesh, PartitionSpec(self.batch))

  def batch_shards(self, mesh: jax.sharding.Mesh) -> int:
    """Returns the number of batch shards; it must divide the batch size."""
    shards = 1
    for axis in as_tuple(self.batch):
      shards *= mesh.shape[axis]
    return shards

  def tree_shardings(self, mesh: jax.sharding.Mesh, boxed: object) -> object:
    """Returns the shardings of a tree with logical axis metadata.

    Args:
      mesh: the mesh.
      boxed: abstract arrays as `jax.eval_shape` of a linen `init` returns them,
        those with named axes in `nn.LogicallyPartitioned` boxes. Arrays
        without a box are replicated.

    Returns:
      A tree of `NamedSharding` with the structure of the unboxed tree. A
      dimension that the mesh axes do not divide is not sharded.
    """

    def sharding(path: tuple, leaf: object) -> NamedSharding:
      if not isinstance(leaf, nn.LogicallyPartitioned):
        return NamedSharding(mesh, PartitionSpec())
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      spec = self.partition_spec(leaf.names, name)
      return NamedSharding(
        mesh, drop_non_dividing(spec, leaf.value.shape, mesh)
      )

    return jax.tree_util.tree_map_with_path(
      sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )


def drop_non_dividing(
  spec: PartitionSpec,
  shape: tuple[int, ...],
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> PartitionSpec:
  """Removes mesh axes that do not divide the size of their dimension.

  For example, a relative position table of 12 heads on a model axis of size 8
  is replicated.
  """

  def fits(size: int, axes: MeshAxes) -> bool:
    shards = 1
    for axis in as_tuple(axes):
      shards *= mesh.shape[axis]
    return size % shards == 0

  return PartitionSpec(
    *(
      axes if fits(size, axes) else None
      for size, axes in zip(shape, spec, strict=True)
    )
  )


def as_tuple(axes: MeshAxes) -> tuple[str, ...]:
  """Returns the names of one mesh axis, of several, or of none."""
  return axes if isinstance(axes, tuple) else (axes,) if axes else ()
