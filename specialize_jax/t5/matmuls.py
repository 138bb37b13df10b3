"""Matmuls in the order in which XLA's CPU backend computes them fast.

A matmul is fast if its left operand is contracted along its last axis; with a
transposed left operand it is up to twice as slow. Gradients therefore transpose
the smaller operand explicitly, multiply in the fast order, and transpose the
result, which is smaller still. XLA would undo this, rewriting `(a @ b).T` as a
matmul of `b` and `a` with a transposed left operand, unless the operands are
`as_written`.
"""

import jax
import jax.numpy as jnp


def einsum(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
  """Computes an einsum that accumulates in float32, and returns float32."""
  return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def as_written(array: jax.Array) -> jax.Array:
  """Prevents XLA's CPU backend from rewriting operations across `array`.

  On a TPU, where the compiler chooses layouts, this has no effect.
  """
  return jax.lax.platform_dependent(
    array, cpu=jax.lax.optimization_barrier, default=lambda array: array
  )
