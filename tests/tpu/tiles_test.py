"""Chips that share rows are compact tiles of a slice."""

import itertools

import pytest

from specialize_jax.parallel import mesh as meshes
from specialize_jax.parallel import row_sums
from specialize_jax.tpu import topology

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")


@pytest.mark.parametrize(
  ("slice_name", "sizes", "sides", "phases"),
  [
    ("v5e:8x8", {"data": 1, "fsdp": 16, "model": 4}, (2, 2), (4, 4)),
    ("v5e:8x8", {"data": 4, "fsdp": 4, "model": 4}, (2, 2), (2, 2)),
    ("v5e:8x8", {"data": 1, "fsdp": 8, "model": 8}, (4, 2), (2, 4)),
    ("v5e:8x8", {"data": 1, "fsdp": 32, "model": 2}, (2, 1), (4, 8)),
    ("v5p:4x4x4", {"data": 2, "fsdp": 4, "model": 8}, (2, 2, 2), (2, 2)),
  ],
)
def test_the_chips_of_a_model_axis_are_a_tile(slice_name, sizes, sides, phases):
  devices = topology.load(slice_name).devices
  mesh = meshes.make_mesh(**sizes, devices=devices)
  assert mesh.devices.shape == tuple(sizes.values())
  assert {*mesh.devices.flat} == {*devices}
  for tile in mesh.devices.reshape(-1, sizes["model"]):
    places = {tuple(chip.coords[: len(sides)]) for chip in tile}
    corner = [
      min(place[axis] for place in places) for axis in range(len(sides))
    ]
    assert places == {
      *itertools.product(
        *(range(c, c + side) for c, side in zip(corner, sides, strict=True))
      )
    }
  # The collectives of parameters still follow the physical axes.
  assert row_sums.phases(mesh, "fsdp") == phases
