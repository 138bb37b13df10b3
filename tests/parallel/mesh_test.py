"""A mesh uses all devices or is refused with the reason."""

import jax
import pytest

from specialize_jax import errors
from specialize_jax.parallel import mesh


@pytest.mark.parametrize(
  ("axes", "shape"),
  [
    ({}, (8, 1, 1)),
    ({"data": 2, "fsdp": 2, "model": 2}, (2, 2, 2)),
    ({"fsdp": 2, "model": 2}, (2, 2, 2)),
    ({"data": 1, "fsdp": -1}, (1, 8, 1)),
  ],
)
def test_an_axis_of_minus_one_takes_the_remaining_devices(axes, shape):
  built = mesh.make_mesh(**axes)
  assert built.devices.shape == shape
  assert built.axis_names == ("data", "fsdp", "model")
  assert set(built.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_mesh_over_some_devices():
  built = mesh.make_mesh(model=2, devices=jax.devices()[:2])
  assert built.devices.shape == (1, 1, 2)


@pytest.mark.parametrize(
  ("axes", "message"),
  [
    ({"data": 3}, "data=3, fsdp=1, model=1 does not fit 8 devices"),
    ({"fsdp": 3}, "data=-1, fsdp=3, model=1 does not fit 8 devices"),
    ({"data": 16}, "does not fit 8 devices"),
    ({"fsdp": -1}, "at most one of -1"),
    ({"model": 0}, "axes of 1 or more"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(axes, message):
  with pytest.raises(errors.UserError, match=message):
    mesh.make_mesh(**axes)
