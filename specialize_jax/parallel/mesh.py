"""Builds the device mesh with the axes `data`, `fsdp` and `model`."""

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
    model: number of shards of heads, mlp and vocabulary; neighboring devices.
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
  one_axis = max(shape) == len(devices)
  if one_axis and all(hasattr(device, "coords") for device in devices):
    # In row-major order, which `row_sums` requires for collectives along one
    # physical axis after the other. JAX would order 4 x 4 chips as a ring.
    devices = sorted(
      devices, key=lambda device: (*device.coords, device.core_on_chip)
    )
    return np.array(devices).reshape(shape)
  # On a 4 x 4 slice, model=2 is half of a physical axis.
  return mesh_utils.create_device_mesh(
    shape, devices, allow_split_physical_axes=True
  )
