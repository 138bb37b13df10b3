"""Sums over sharded rows, and all-gathers, written out along physical axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize_jax.parallel import mesh as meshes
from specialize_jax.parallel import placement, row_sums

_ROWS = np.random.default_rng(0).normal(size=(16, 3, 32)).astype(np.float32)
_OTHERS = np.random.default_rng(1).normal(size=(16, 3, 512)).astype(np.float32)


def _gradient(left, right):
  return jnp.einsum("btk,btn->kn", left, right)


def _summed(sizes, axes, arrays, divided=None):
  """Compiles a sum over rows; returns it, its sharding and the program."""
  place = placement.Placement(mesh=meshes.make_mesh(**{"data": 1, **sizes}))
  rows = place.rules.batch_sharding(place.mesh)

  def summed(*arrays):
    return row_sums.row_sum(
      _gradient,
      arrays,
      logical_axes=[("batch", None, axis) for axis in axes],
      result_axes=axes,
    )

  with place.entered():
    token = row_sums._phases.set(divided or row_sums._phases.get())
    try:
      program = jax.jit(summed, in_shardings=(rows, rows)).lower(*arrays)
      program = program.compile()
      result = program(*(jax.device_put(array, rows) for array in arrays))
    finally:
      row_sums._phases.reset(token)
  expected = jax.NamedSharding(place.mesh, place.rules.partition_spec(axes))
  assert result.sharding.is_equivalent_to(expected, 2)
  return result, program.as_text()


@pytest.mark.parametrize(
  ("sizes", "divided"),
  [
    ({"fsdp": 8}, {}),
    ({"fsdp": 8}, {"fsdp": (2, 4)}),
    ({"fsdp": 8}, {"fsdp": (2, 2, 2)}),
    ({"fsdp": 4, "model": 2}, {"fsdp": (2, 2)}),
    ({"data": 2, "fsdp": 4}, {"fsdp": (2, 2)}),
    ({"data": 8}, {}),
  ],
)
@pytest.mark.parametrize("narrow_first", [True, False])
@pytest.mark.parametrize("most_whole", [0, row_sums._MOST_WHOLE])
def test_a_sum_over_sharded_rows_is_the_sum(
  sizes, divided, narrow_first, most_whole, monkeypatch
):
  monkeypatch.setattr(row_sums, "_MOST_WHOLE", most_whole)
  axes, arrays = ("embed", "mlp"), (_ROWS, _OTHERS)
  if not narrow_first:
    axes, arrays = axes[::-1], arrays[::-1]
  result, _ = _summed(sizes, axes, arrays, divided)
  np.testing.assert_allclose(result, _gradient(*arrays), atol=2e-5)


@pytest.mark.parametrize("is_large", [True, False])
def test_the_parts_of_a_large_sum_alone_have_matmuls_of_their_own(
  is_large, monkeypatch
):
  num_bytes = _gradient(_ROWS, _OTHERS).nbytes
  monkeypatch.setattr(row_sums, "_MOST_WHOLE", num_bytes - is_large)
  arrays, divided = (_ROWS, _OTHERS), {"fsdp": (2, 4)}
  _, text = _summed({"fsdp": 8}, ("embed", "mlp"), arrays, divided)
  assert text.count(" dot(") == (2 if is_large else 1)


def test_no_device_receives_the_whole_sum():
  _, text = _summed({"fsdp": 8}, ("embed", "mlp"), (_ROWS, _OTHERS))
  assert " reduce-scatter(" in text
  assert "f32[32,512]{1,0} all-reduce(" not in text


def test_what_the_mesh_does_not_divide_is_left_to_the_partitioner():
  arrays = (_ROWS[..., :30], _OTHERS)
  place = placement.Placement(mesh=meshes.make_mesh(data=1, fsdp=8))
  with place.entered():
    result = jax.jit(
      lambda *arrays: row_sums.row_sum(
        _gradient,
        arrays,
        logical_axes=[("batch", None, "embed"), ("batch", None, "mlp")],
        result_axes=(None, "mlp"),
      )
    )(*arrays)
  np.testing.assert_allclose(result, _gradient(*arrays), atol=2e-5)


@pytest.mark.parametrize(
  ("sizes", "divided"),
  [
    ({"fsdp": 8}, {}),
    ({"fsdp": 8}, {"fsdp": (2, 4)}),
    ({"fsdp": 8}, {"fsdp": (2, 2, 2)}),
    ({"fsdp": 4, "model": 2}, {"fsdp": (2, 2)}),
    ({"data": 2, "fsdp": 4}, {"fsdp": (2, 2)}),
  ],
)
@pytest.mark.parametrize("axes", [("embed", "mlp"), ("mlp", "embed")])
@pytest.mark.parametrize("columns", [24, 640])
def test_a_gathered_parameter_is_the_parameter(
  monkeypatch, sizes, divided, axes, columns
):
  monkeypatch.setattr(row_sums, "_writes_gathers_out", lambda _: True)
  place = placement.Placement(mesh=meshes.make_mesh(**{"data": 1, **sizes}))
  shape = (32, columns) if axes[0] == "embed" else (columns, 32)
  kernel = np.arange(32 * columns, dtype=np.float32).reshape(shape)
  sharding = jax.NamedSharding(place.mesh, place.rules.partition_spec(axes))
  with place.entered():
    token = row_sums._phases.set(divided)
    try:
      result = jax.jit(lambda kernel: row_sums.gathered(kernel, axes))(
        jax.device_put(kernel, sharding)
      )
    finally:
      row_sums._phases.reset(token)
  np.testing.assert_array_equal(result, kernel)
  whole = jax.P(*("model" if axis == "mlp" else None for axis in axes))
  whole = jax.NamedSharding(place.mesh, whole)
  assert result.sharding.is_equivalent_to(whole, 2)


def test_without_a_mesh_a_sum_is_computed_as_it_is_given():
  result = row_sums.row_sum(
    _gradient,
    (_ROWS, _OTHERS),
    logical_axes=[("batch", None, "embed"), ("batch", None, "mlp")],
    result_axes=("embed", "mlp"),
  )
  np.testing.assert_allclose(result, _gradient(_ROWS, _OTHERS), atol=2e-5)


class _Chip:
  """A device at a place of a slice."""

  def __init__(self, *coords):
    self.coords = coords


@pytest.mark.parametrize(
  ("places", "sizes"),
  [
    ([(x, y, 0) for x in range(4) for y in range(2)], (4, 2)),
    ([(x, y, 0) for y in range(2) for x in range(4)], (2, 4)),
    ([(x, y, z) for x in range(2) for y in range(2) for z in range(2)], None),
    ([(x, 3, 0) for x in range(8)], (8,)),
    # A ring through two rows is no grid.
    (
      [*((x, 0, 0) for x in range(4)), *((3 - x, 1, 0) for x in range(4))],
      (8,),
    ),
  ],
)
def test_a_mesh_axis_divides_into_the_axes_of_its_slice(places, sizes):
  class _Mesh:
    axis_names = ("fsdp",)
    shape = {"fsdp": 8}  # noqa: RUF012
    devices = np.array([_Chip(*place) for place in places], dtype=object)

  assert row_sums.phases(_Mesh, "fsdp") == (sizes or (2, 2, 2))


def test_devices_without_coordinates_are_one_phase():
  mesh = meshes.make_mesh(data=1, fsdp=8)
  assert row_sums.phases(mesh, "fsdp") == (8,)
