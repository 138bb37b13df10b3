"""Sums over a batch whose rows are sharded, and parameters all-gathered.

The gradient of a kernel is a sum over the rows of the batch. Under `fsdp` each
device keeps one shard of it: a reduce-scatter. Left to the partitioner, that is
an all-reduce of whole gradients on a TPU, twice the bytes: its compiler knows
no reduce-scatter over all chips of a slice, only along one physical axis. So
the sum is written out here: each device sums its own rows, and reduce-scatters
follow one another along the physical axes. With s axes the sum is divided into
s parts, part i of which starts along axis i, so that all links are busy.

All-gathers of parameters are left to the partitioner on slices of two axes. On
those of three (v4, v5p) the compiler makes an all-reduce of zeros of every one
of them, whatever its size, and they are written out likewise.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import layout

from specialize_jax.parallel import axis_rules, chips

LogicalAxes = tuple[str | None, ...]

_phases: contextvars.ContextVar[Mapping[str, tuple[int, ...]]] = (
  contextvars.ContextVar("phases", default={})  # noqa: B039
)


@contextlib.contextmanager
def over_links_of(mesh: jax.sharding.Mesh) -> Iterator[None]:
  """Enters a context in which `row_sum` follows a mesh's physical axes."""
  token = _phases.set({axis: phases(mesh, axis) for axis in mesh.axis_names})
  try:
    yield
  finally:
    _phases.reset(token)


def phases(mesh: jax.sharding.Mesh, axis: str) -> tuple[int, ...]:
  """Returns the sizes of the physical axes that a mesh axis consists of.

  Args:
    mesh: the mesh.
    axis: the name of one of its axes.

  Returns:
    The sizes, the slowest axis first, whose product is the size of the mesh
    axis: `(8, 8)` for the 64 devices of a v5e 8x8 slice in row-major order.
    Only the size of the mesh axis if devices have no coordinates, as on a CPU,
    or are not in such an order.
  """
  place = mesh.axis_names.index(axis)
  line = np.moveaxis(mesh.devices, place, -1).reshape(-1, mesh.shape[axis])[0]
  size = len(line)
  if size == 1 or any(getattr(one, "coords", None) is None for one in line):
    return (size,)
  coordinates = np.array([one.coords for one in line])
  found = {}
  for along in coordinates.T - coordinates[0, :, None]:
    if along.any():
      stride = int(np.argmax(along != 0))
      step, length = along[stride], len(np.unique(along))
      if (along != step * (np.arange(size) // stride % length)).any():
        return (size,)
      found[stride] = length
  sizes = tuple(found[stride] for stride in sorted(found, reverse=True))
  return sizes if math.prod(sizes) == size else (size,)


def dividing_axes(logical_axis: str, size: int) -> axis_rules.MeshAxes:
  """Returns the mesh axes of a logical axis within a mesh and its rules.

  Args:
    logical_axis: the name of the logical axis.
    size: the size of the dimension.

  Returns:
    The axes; None if it is not sharded, or if they do not divide `size`: then
    `axis_rules.AxisRules.tree_shardings` does not shard it either.
  """
  mesh = jax.sharding.get_abstract_mesh()
  spec = nn.logical_to_mesh_axes((logical_axis,))
  if not spec or mesh.empty:
    return None
  return axis_rules.drop_non_dividing(spec, (size,), mesh)[0]


def num_shards(logical_axis: str) -> int:
  """Returns the number of devices over which a logical axis is sharded."""
  mesh = jax.sharding.get_abstract_mesh()
  spec = nn.logical_to_mesh_axes((logical_axis,)) or (None,)
  return math.prod(
    mesh.shape.get(axis, 1) for axis in axis_rules.as_tuple(spec[0])
  )


def row_sum(
  partial_sum: Callable[..., jax.Array],
  arrays: Sequence[jax.Array],
  *,
  logical_axes: Sequence[LogicalAxes],
  result_axes: LogicalAxes,
) -> jax.Array:
  """Computes a sum over rows, sharded by its logical axes.

  Within a mesh that shards the batch, each device sums its own rows, and the
  sums are reduced over devices in the dtype that `partial_sum` returns. If the
  mesh does not divide an array, or no mesh is entered, the partitioner chooses
  the collectives.

  Args:
    partial_sum: computes the sum over the rows of its arguments. Columns of an
      array of rows whose last logical axis is one of the sum's yield the same
      columns of the sum along that axis.
    arrays: the arrays, whose first axis is that of the rows.
    logical_axes: the logical axes of each array, "batch" first; without it an
      array has no rows.
    result_axes: the logical axes of the sum.

  Returns:
    `partial_sum(*arrays)`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  result = jax.eval_shape(partial_sum, *arrays)
  specs = [
    _spec(axes, array) for axes, array in zip(logical_axes, arrays, strict=True)
  ]
  result_spec = _spec(result_axes, result)
  batch = axis_rules.as_tuple(specs[0][0]) if len(specs[0]) else ()
  if (
    math.prod(mesh.shape[axis] for axis in batch) == 1
    or mesh.manual_axes
    or not all(map(_divides, [*specs, result_spec], [*arrays, result]))
  ):
    return nn.with_logical_constraint(partial_sum(*arrays), result_axes)

  # The dimension of the sum that the last axis of each array is.
  columns = [
    result_axes.index(axes[-1])
    if axes[0] == "batch" and axes[-1] in result_axes
    else None
    for axes in logical_axes
  ]

  def on_device(*rows: jax.Array) -> jax.Array:
    left = [axis for axis in batch if mesh.shape[axis] > 1]
    total = None
    for dimension, axes in enumerate(result_spec):
      for axis in axis_rules.as_tuple(axes):
        if axis in left:
          if total is None:
            parts = functools.partial(_partial_sums, partial_sum, rows, columns)
          else:
            parts = functools.partial(_parts, total)
          total = _reduce_scattered(parts, axis, dimension, mesh.shape[axis])
          left.remove(axis)
    if total is None:
      total = partial_sum(*rows)
    return jax.lax.psum(total, tuple(left)) if left else total

  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=tuple(specs),
    out_specs=result_spec,
    # Groups of devices within an axis are beyond what it can check.
    check_vma=False,
  )(*arrays)


def gathered(array: jax.Array, logical_axes: LogicalAxes) -> jax.Array:
  """All-gathers a parameter over the devices among which a batch is divided.

  Args:
    array: a parameter, in the dtype in which it is to be sent.
    logical_axes: of the array.

  Returns:
    The array, whole but for axes of the mesh that do not divide a batch, on
    slices of three axes; elsewhere sharded as its logical axes say, for the
    partitioner to gather.
  """
  array = nn.with_logical_constraint(array, logical_axes)
  mesh = jax.sharding.get_abstract_mesh()
  spec = _spec(logical_axes, array)
  batch = nn.logical_to_mesh_axes(("batch",)) or (None,)
  over = {
    axis for axis in axis_rules.as_tuple(batch[0]) if mesh.shape[axis] > 1
  }
  if (
    not _writes_gathers_out(mesh)
    or mesh.manual_axes
    or over.isdisjoint(itertools.chain(*map(axis_rules.as_tuple, spec)))
    or not _divides(spec, array)
  ):
    return array
  left = jax.P(
    *(
      tuple(axis for axis in axis_rules.as_tuple(axes) if axis not in over)
      or None
      for axes in spec
    )
  )

  def on_device(shard: jax.Array) -> jax.Array:
    for dimension, axes in enumerate(spec):
      for axis in reversed(axis_rules.as_tuple(axes)):
        if axis in over:
          shard = _all_gathered(shard, axis, dimension, mesh.shape[axis])
    return shard

  return jax.shard_map(
    on_device, mesh=mesh, in_specs=spec, out_specs=left, check_vma=False
  )(array)


def _writes_gathers_out(mesh: jax.sharding.AbstractMesh) -> bool:
  """Whether all-gathers must be written out: on slices of three axes."""
  if mesh.empty or mesh.abstract_device is None:
    return False
  chip = chips.of_device_kind(mesh.abstract_device.device_kind)
  return chip is not None and chip.torus_axes == 3


def _reduce_scattered(
  parts_of: Callable[[int, int], tuple[int, list[jax.Array]]],
  axis: str,
  dimension: int,
  size: int,
) -> jax.Array:
  """Sums over devices; device i keeps block i of a dimension.

  Args:
    parts_of: maps the dimension to scatter and a number of parts to the array
      of each device along a mesh axis, as `_parts` returns it.
    axis: the name of the mesh axis.
    dimension: the dimension to scatter, which `size` divides.
    size: the size of the mesh axis, above 1.
  """
  sizes = _phases.get().get(axis, (size,))
  along, parts = parts_of(dimension, len(sizes))
  reduced = []
  for first, part in enumerate(parts):
    order = [(first + place) % len(sizes) for place in range(len(sizes))]
    blocks = jnp.moveaxis(part, dimension, 0)
    rest = blocks.shape[1:]
    blocks = blocks.reshape(*sizes, -1, *rest)
    tail = range(len(sizes), blocks.ndim)
    blocks = _as_laid_out(blocks.transpose(*order, *tail))
    for physical in order:
      blocks = jax.lax.psum_scatter(
        blocks, axis, axis_index_groups=_groups(sizes, physical)
      )
    reduced.append(jnp.moveaxis(blocks, 0, dimension))
  return jnp.concatenate(reduced, axis=along)


def _all_gathered(
  array: jax.Array, axis: str, dimension: int, size: int
) -> jax.Array:
  """Joins the blocks of devices along a dimension: `_reduce_scattered` undone.

  Args:
    array: of each device along a mesh axis.
    axis: its name.
    dimension: of the array.
    size: of the mesh axis.
  """
  sizes = _phases.get().get(axis, (size,))
  if size == 1:
    return array
  along, parts = _parts(array, dimension, len(sizes))
  gathered = []
  for last, part in enumerate(parts):
    # The last phase sends most: along another axis for each part.
    order = [(last + place) % len(sizes) for place in range(len(sizes))]
    blocks = part
    for physical in reversed(order):
      blocks = jax.lax.all_gather(
        blocks,
        axis,
        axis=dimension,
        axis_index_groups=_groups(sizes, physical),
      )
    axes = list(range(blocks.ndim))
    axes[dimension : dimension + len(sizes)] = [
      dimension + order.index(physical) for physical in range(len(sizes))
    ]
    shape = list(part.shape)
    shape[dimension] *= size
    gathered.append(blocks.transpose(axes).reshape(shape))
  return jnp.concatenate(gathered, axis=along)


def _partial_sums(
  partial_sum: Callable[..., jax.Array],
  rows: Sequence[jax.Array],
  columns: Sequence[int | None],
  dimension: int,
  num_parts: int,
) -> tuple[int, list[jax.Array]]:
  """Computes the parts of a sum, each from its own columns if it is large.

  The whole sum of a large kernel and copies of its parts would be held at once.
  A small one is computed whole: it stays in VMEM, its arguments are read once,
  and the compiler has one matmul to generate code for instead of several.

  Args:
    partial_sum: see `row_sum`.
    rows: its arguments.
    columns: the dimension of the sum that the last axis of each argument is.
    dimension: see `_parts`.
    num_parts: see `_parts`.
  """
  whole = jax.eval_shape(partial_sum, *rows)
  along, ends = _division(whole.shape, dimension, num_parts)
  num_bytes = whole.size * whole.dtype.itemsize
  if along not in columns or num_bytes <= _MOST_WHOLE:
    return along, jnp.split(partial_sum(*rows), ends, axis=along)
  split = [
    jnp.split(array, ends, axis=-1)
    if place == along
    else [array] * (len(ends) + 1)
    for array, place in zip(rows, columns, strict=True)
  ]
  return along, [partial_sum(*part) for part in zip(*split, strict=True)]


def _parts(
  array: jax.Array, dimension: int, num_parts: int
) -> tuple[int, list[jax.Array]]:
  """Splits an array for the physical axes, along its longest other dimension.

  Returns:
    The dimension that was split, and one part for each axis, whole registers
    each; or the array alone, where it has too few columns.
  """
  along, ends = _division(array.shape, dimension, num_parts)
  return along, jnp.split(array, ends, axis=along)


def _division(
  shape: Sequence[int], dimension: int, num_parts: int
) -> tuple[int, list[int]]:
  """Returns the dimension along which `_parts` splits, and where."""
  others = [place for place in range(len(shape)) if place != dimension]
  along = max(others, key=lambda place: shape[place], default=dimension)
  columns, rest = divmod(shape[along], _LEAST_PART)
  if along == dimension or columns < num_parts or rest:
    return along, []
  return along, [
    columns * part // num_parts * _LEAST_PART for part in range(1, num_parts)
  ]


def _as_laid_out(array: jax.Array) -> jax.Array:
  """Keeps the TPU compiler from transposing by a change of layout.

  It replaces a reduce-scatter along a dimension that is not the slowest in
  memory by an all-reduce.
  """

  def tpu(array: jax.Array) -> jax.Array:
    order = layout.Layout(tuple(range(array.ndim)))
    return layout.with_layout_constraint(array, order)

  return jax.lax.platform_dependent(array, tpu=tpu, default=lambda array: array)


# Columns of a register, below which a part would be padded.
_LEAST_PART = 128
# Bytes of a sum that is computed whole: an eighth of a v5e's VMEM.
_MOST_WHOLE = 16 * 2**20


def _groups(sizes: tuple[int, ...], physical: int) -> list[list[int]]:
  """Returns the groups along a mesh axis that differ in one physical axis."""
  places = np.arange(math.prod(sizes)).reshape(sizes)
  return np.moveaxis(places, physical, -1).reshape(-1, sizes[physical]).tolist()


def _spec(
  axes: LogicalAxes, array: jax.Array | jax.ShapeDtypeStruct
) -> jax.sharding.PartitionSpec:
  spec = nn.logical_to_mesh_axes(axes)
  return jax.P() if spec is None else spec


def _divides(
  spec: jax.sharding.PartitionSpec, array: jax.Array | jax.ShapeDtypeStruct
) -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return all(
    size % math.prod(mesh.shape[axis] for axis in axis_rules.as_tuple(axes))
    == 0
    for size, axes in zip(array.shape, spec, strict=False)
  )
