"""A program that is too large is a result that says how large."""

import jax
import jax.numpy as jnp
import pytest

from specialize_jax.tpu import programs
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
