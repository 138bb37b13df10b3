"""Compiled programs are read; one that is too large says how large."""

import jax
import jax.numpy as jnp
import pytest

from specialize_jax.parallel import mesh as meshes
from specialize_jax.tpu import hlo_cost, hlo_text, programs, topology
from tests.tpu import programs_for_v5e as v5e


def _held(size):
  """Lowers a program that holds `size` MiB on each chip, as its arguments."""
  rows = v5e.array((4 * size, 2**18), jnp.float32, "data", data=4)
  with jax.set_mesh(v5e.mesh(data=4)):
    return jax.jit(lambda rows: rows + 1).lower(rows)


def _temporary(size):
  """Lowers one whose temporaries are a `size`-squared matrix on each chip."""
  row = v5e.array((size,), jnp.float32, data=4)

  def squares(row):
    outer = jnp.outer(row, row)
    return jnp.sort(outer, axis=0)[0] + jnp.sort(outer, axis=1)[:, 0]

  with jax.set_mesh(v5e.mesh(data=4)):
    return jax.jit(squares).lower(row)


@pytest.mark.parametrize(
  ("lowered", "gib"), [(_held(12_000), 23), (_temporary(60_000), 13)]
)
def test_a_program_too_large_says_by_how_much(lowered, gib):
  program = programs.compiled(lowered)
  assert program.text == ""
  assert programs.gib(program.limit_bytes) == pytest.approx(15.75, abs=0.01)
  assert programs.gib(program.peak_bytes) >= max(gib, 15.75)


def test_a_program_for_sparse_cores_is_read():
  """An embedding's rows, which a v5p gathers beside its other work.

  `as_text` cannot read such a program (jaxlib 0.10.2, libtpu 0.0.52).
  """
  mesh = meshes.make_mesh(data=4, devices=topology.load("v5p:2x2x1").devices)
  whole, cut = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    for axes in ((), ("data",))
  )
  num_rows, width = 3072, 768
  with jax.set_mesh(mesh):
    lowered = jax.jit(
      lambda table, ids: 2 * jnp.take(table, ids, axis=0, mode="fill")
    ).lower(
      jax.ShapeDtypeStruct((32128, width), jnp.bfloat16, sharding=whole),
      jax.ShapeDtypeStruct((4 * num_rows,), jnp.int32, sharding=cut),
    )
  text = programs.compiled(lowered).text
  assert 'async_execution_thread="sparsecore"' in text
  cost = hlo_cost.cost(hlo_text.parse(text), num_devices=4)
  assert cost.hbm_bytes >= 2 * num_rows * width * 2  # read once, written once
  assert cost.unknown_loops == 0
