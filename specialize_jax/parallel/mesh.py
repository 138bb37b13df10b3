"""Builds the device mesh with the axes `data`, `fsdp` and `model`."""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from specialize_jax import errors

AXES = ("data", "fsdp", "model")


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  model: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """Builds a mesh of all devices; an axis of -1 takes the remaining devices.

  Example: on 8 devices, `data=-1, fsdp=2, model=2` is a 2 x 2 x 2 mesh.

  The axis types are `Auto`: the compiler chooses shardings that the rules leave
  open. (Since JAX 0.10 `jax.make_mesh` defaults to explicit sharding, under
  which ordinary matmuls of sharded arrays are errors.) Enter the mesh with
  `jax.set_mesh`: under the legacy `with mesh:`, Flax silently drops logical
  sharding constraints.

  Args:
    data: number of replicas of the model.
    fsdp: number of shards of the parameters' embed axis.
    model: number of shards of heads, mlp and vocabulary; on a TPU slice a
      compact tile of chips.
    devices: the devices, by default those of all processes.

  Returns:
    The mesh.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = {"data": data, "fsdp": fsdp, "model": model}
  written = ", ".join(f"{name}={size}" for name, size in sizes.items())
  open_axes = [name for name, size in sizes.items() if size == -1]
  if len(open_axes) > 1 or any(
    size < 1 and size != -1 for size in sizes.values()
  ):
    raise errors.UserError(
      f"The mesh {written} is not possible: expected axes of 1 or more, and "
      "at most one of -1, which takes the remaining devices."
    )
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if open_axes:
    sizes[open_axes[0]] = len(devices) // fixed
  if math.prod(sizes.values()) != len(devices):
    raise errors.UserError(
      f"The mesh {written} does not fit {len(devices)} devices: expected "
      f"axes whose product is {len(devices)}; set one of them to -1 to take "
      "the remaining devices."
    )
  shape = tuple(sizes.values())
  return jax.sharding.Mesh(
    _arranged(shape, devices),
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
  )


def _arranged(
  shape: tuple[int, ...], devices: Sequence[jax.Device]
) -> np.ndarray:
  """Arranges devices so that mesh axes follow the axes of a TPU slice."""
  if all(hasattr(device, "coords") for device in devices):
    if max(shape) == len(devices):
      # In row-major order, which `row_sums` requires for collectives along one
      # physical axis after the other. JAX would order 4 x 4 chips as a ring.
      devices = sorted(
        devices, key=lambda device: (*device.coords, device.core_on_chip)
      )
      return np.array(devices).reshape(shape)
    if shape[AXES.index("model")] > 1:
      tiled = _tiled(shape, devices)
      if tiled is not None:
        return tiled
  # On a 4 x 4 slice, model=2 is half of a physical axis.
  return mesh_utils.create_device_mesh(
    shape, devices, allow_split_physical_axes=True
  )


def _tiled(
  shape: tuple[int, ...], devices: Sequence[jax.Device]
) -> np.ndarray | None:
  """Arranges a slice in tiles of chips, as square as possible.

  The chips of `model=4` are 2 x 2 neighbors, which reduce activations over the
  links of two axes; a line of 4 has those of one.

  Args:
    shape: size of each mesh axis, the last one's devices being neighbors.
    devices: the devices of a slice.

  Returns:
    The devices in that shape; None if they are not all chips of a box of one
    core each, or a mesh axis does not divide it.
  """
  coordinates = np.array([device.coords for device in devices])
  coordinates -= coordinates.min(0)
  lengths = coordinates.max(0) + 1
  num_places = len(np.unique(coordinates, axis=0))
  if not num_places == math.prod(lengths) == len(devices):
    return None
  grid = np.empty(lengths, object)
  for place, device in zip(coordinates, devices, strict=True):
    grid[tuple(place)] = device
  left, tiles = lengths.tolist(), []
  for size in reversed(shape):
    tile = _tile(size, left)
    if tile is None:
      return None
    left = [length // side for length, side in zip(left, tile, strict=True)]
    tiles.insert(0, tile)
  # Each physical axis is divided among the mesh axes, then those are joined.
  split = grid.reshape(
    [tile[axis] for axis in range(grid.ndim) for tile in tiles]
  )
  order = np.arange(split.ndim).reshape(grid.ndim, len(shape)).T
  return split.transpose(order.ravel()).reshape(shape)


def _tile(size: int, lengths: Sequence[int]) -> tuple[int, ...] | None:
  """Returns the sides of the most compact box of so many chips, or None.

  Example:
    >>> _tile(4, (8, 8))
    (2, 2)
    >>> _tile(8, (8, 8))
    (4, 2)
  """
  sides = itertools.product(
    *(
      [side for side in range(1, length + 1) if length % side == 0]
      for length in lengths
    )
  )
  possible = [tile for tile in sides if math.prod(tile) == size]
  return min(
    possible,
    key=lambda tile: (max(tile), [-side for side in tile]),
    default=None,
  )
