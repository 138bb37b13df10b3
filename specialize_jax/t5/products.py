"""Matrix products in the order in which XLA computes them fast.

A product is fast on XLA's CPU where its left side is summed along its last
axis; with the left side turned it misses the fast path, and takes up to twice
as long. So gradients turn the smaller side by hand and multiply in the good
order, and turn the result, which is smaller still. XLA undoes that: it makes
`(a @ b).T` a product of `b` and `a`, with its left side turned after all,
unless what it is given is `as_written`.
"""

import jax
import jax.numpy as jnp


def product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
  """An einsum that sums in float32."""
  return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def as_written(array: jax.Array) -> jax.Array:
  """Keeps XLA's CPU from rewriting what is on the two sides of `array`.

  A TPU lays arrays out as its products want them, and is left alone.
  """
  return jax.lax.platform_dependent(
    array, cpu=jax.lax.optimization_barrier, default=lambda array: array
  )
