"""Small programs compiled by the TPU compiler, for tests that count them."""

import functools

import jax
import pytest

from specialize_jax.parallel import mesh as meshes
from specialize_jax.tpu import hlo_cost, hlo_text, topology

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")


@functools.cache
def slice_of(name="v5e:2x2"):
  """The topology, loaded once."""
  return topology.load(name)


@functools.cache
def mesh(**sizes):
  """A mesh over four v5e chips."""
  return meshes.make_mesh(**sizes, devices=slice_of().devices)


def compiled(function, *arguments, **sizes):
  """Compiles a function of abstract arguments for four chips."""
  with jax.set_mesh(mesh(**sizes)):
    return jax.jit(function).lower(*arguments).compile()


def cost(function, *arguments, **sizes):
  """Returns the cost of the compiled function on one of the four chips."""
  text = compiled(function, *arguments, **sizes).as_text()
  return hlo_cost.cost(hlo_text.parse(text), num_devices=4)


def array(shape, dtype, *axes, **sizes):
  """An abstract array, placed by the mesh axes of its dimensions."""
  sharding = jax.sharding.NamedSharding(
    mesh(**sizes), jax.sharding.PartitionSpec(*axes)
  )
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
