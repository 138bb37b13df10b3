"""Softmax attention with a backward pass of its own.

What differentiation makes of attention is slow on a CPU: products whose left
side lies transposed miss the fast path (a third of the speed), the bias's
gradient sums over rows one number at a time, and softmax is differentiated
with two passes over `[B, H, T, S]` more than it needs. Here each pass is as
few as it can be, and less is kept for it: the exponentials in the compute
dtype and one float32 number a query, where it was the float32 weights too.

With m the largest score of a query, e = exp(score - m) and l = sum(e):

  output = e V / l
  g = d output / l,  d score = e * (g V^T - sum(g * output))
  dQ = d score K,  dK = d score^T Q,  dV = e^T g
"""

import jax
import jax.numpy as jnp

from specialize_jax.t5 import products

# Finite, and so far below the lowest score that its exponential is 0 beside
# any: a query that may look at nothing has `LOWEST_SCORE` for a maximum.
MASKED_SCORE = -1e30
LOWEST_SCORE = -1e20
# Such a query has no weights, and its sum is not divided by 0.
LEAST_SUM = 1e-30


@jax.custom_vjp
def attend(
  queries_BHTK: jax.Array,
  keys_BHSK: jax.Array,
  values_BHSK: jax.Array,
  bias_HTS: jax.Array | None,
  mask: jax.Array,
) -> jax.Array:
  """Gives what each query gathers from the values it may look at.

  Scores and their softmax are float32; products run in the arguments' dtype.

  Args:
    queries_BHTK: not to be divided by `sqrt(K)`, see `attention`.
    keys_BHSK: one a position that can be looked at.
    values_BHSK: of the same positions.
    bias_HTS: float32, added to the scores; None for none.
    mask: bool, broadcasts to `[B, H, T, S]`, true where query t may look at
      key s. A query that may look at nothing gets zeros, and gradients of
      zero.

  Returns:
    `[B, H, T, K]` in the values' dtype.
  """
  output_BHTK, _ = _attend_forward(
    queries_BHTK, keys_BHSK, values_BHSK, bias_HTS, mask
  )
  return output_BHTK


def _attend_forward(
  queries_BHTK: jax.Array,
  keys_BHSK: jax.Array,
  values_BHSK: jax.Array,
  bias_HTS: jax.Array | None,
  mask: jax.Array,
) -> tuple[jax.Array, tuple]:
  dtype = values_BHSK.dtype
  scores_BHTS = products.product("BHTK,BHSK->BHTS", queries_BHTK, keys_BHSK)
  if bias_HTS is not None:
    scores_BHTS += bias_HTS[None]
  exps_BHTS, sums_BHT1 = exponentials(scores_BHTS, mask)
  exps_BHTS = exps_BHTS.astype(dtype)
  gathered_BHTK = products.product("BHTS,BHSK->BHTK", exps_BHTS, values_BHSK)
  output_BHTK = (gathered_BHTK / sums_BHT1).astype(dtype)
  residuals = (
    queries_BHTK,
    keys_BHSK,
    values_BHSK,
    # Only whether there is a bias is read of it.
    None if bias_HTS is None else (),
    mask,
    exps_BHTS,
    sums_BHT1,
    output_BHTK,
  )
  return output_BHTK, residuals


def exponentials(
  scores_BHTS: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the numerators of a softmax and their sum over keys.

  Args:
    scores_BHTS: float32.
    mask: bool, broadcasts to `[B, H, T, S]`.

  Returns:
    `exp(score - m)` with m the query's largest score, 0 where masked; and its
    sum `[B, H, T, 1]`, tiny where all of a query's are 0, to divide by.
  """
  scores_BHTS = jnp.where(mask, scores_BHTS, jnp.float32(MASKED_SCORE))
  largest_BHT1 = jnp.maximum(
    scores_BHTS.max(axis=-1, keepdims=True), jnp.float32(LOWEST_SCORE)
  )
  exps_BHTS = jnp.exp(scores_BHTS - largest_BHT1)
  sums_BHT1 = exps_BHTS.sum(axis=-1, keepdims=True)
  return exps_BHTS, jnp.maximum(sums_BHT1, jnp.float32(LEAST_SUM))


def _attend_backward(
  residuals: tuple, gradient_BHTK: jax.Array
) -> tuple[jax.Array | None, ...]:
  queries, keys, values, biased, mask, exps_BHTS, sums_BHT1, output = residuals
  dtype = values.dtype
  gradient_BHTK = gradient_BHTK.astype(jnp.float32) / sums_BHT1
  centre_BHT1 = jnp.sum(
    gradient_BHTK * output.astype(jnp.float32), axis=-1, keepdims=True
  )
  gradient_BHTK = gradient_BHTK.astype(dtype)
  # Rounded, as differentiation would: in float32 it would be the largest array
  # of a layer, beside the float32 scores' gradient.
  weights_gradient_BHTS = products.product(
    "BHTK,BHSK->BHTS", gradient_BHTK, values
  ).astype(dtype)
  scores_gradient_BHTS = exps_BHTS.astype(jnp.float32) * (
    weights_gradient_BHTS.astype(jnp.float32) - centre_BHT1
  )
  scores_gradient_BHTS = jnp.where(mask, scores_gradient_BHTS, 0.0)
  scores_gradient_BHTS = scores_gradient_BHTS.astype(dtype)
  bias_gradient_HTS = (
    None if biased is None else _sum_rows(scores_gradient_BHTS)
  )
  return (
    products.product("BHTS,BHSK->BHTK", scores_gradient_BHTS, keys).astype(
      dtype
    ),
    gathered_by_keys(queries, scores_gradient_BHTS)
    .swapaxes(-1, -2)
    .astype(dtype),
    gathered_by_keys(gradient_BHTK, exps_BHTS).swapaxes(-1, -2).astype(dtype),
    bias_gradient_HTS,
    None,
  )


attend.defvjp(_attend_forward, _attend_backward)


def gathered_by_keys(
  queries_BHTK: jax.Array, weights_BHTS: jax.Array
) -> jax.Array:
  """Sums over queries: `weights^T queries`, turned, `[..., H, K, S]`, float32.

  It is the small array that is turned, and not `[B, H, T, S]`.
  """
  turned_BHKT = products.as_written(queries_BHTK.swapaxes(-1, -2))
  return products.as_written(
    products.product("...KT,...TS->...KS", turned_BHKT, weights_BHTS)
  )


def _sum_rows(rows_BHTS: jax.Array) -> jax.Array:
  """Sums over the batch, in float32.

  XLA's CPU reduces the first axis forty times slower than it multiplies; its
  TPU would turn the whole array for that product.
  """

  def multiplied(rows_BHTS: jax.Array) -> jax.Array:
    ones_B = jnp.ones(len(rows_BHTS), rows_BHTS.dtype)
    return products.product("B,BHTS->HTS", ones_B, rows_BHTS)

  return jax.lax.platform_dependent(
    rows_BHTS,
    cpu=multiplied,
    default=lambda rows_BHTS: rows_BHTS.sum(axis=0, dtype=jnp.float32),
  )
