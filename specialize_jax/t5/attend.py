"""Softmax attention with a backward pass of its own.

JAX's own gradient of attention is slow on a CPU: matmuls with a transposed left
operand are not on XLA's fast path (a third of the speed), the bias's gradient
is summed over rows one number at a time, and softmax needs two more passes over
`[B, H, T, S]` than necessary. This implementation avoids them, and has smaller
residuals: the exponentials in the compute dtype and one float32 number per
query, instead of the float32 weights as well.

With m the largest score of a query, e = exp(score - m) and l = sum(e):

  output = e V / l
  g = d output / l,  d score = e * (g V^T - sum(g * output))
  dQ = d score K,  dK = d score^T Q,  dV = e^T g
"""

import jax
import jax.numpy as jnp

from specialize_jax.t5 import matmuls

# Finite, and so low that its exponential is 0 relative to any score. It is the
# maximum of a query without visible keys.
MASKED_SCORE = -1e30
LOWEST_SCORE = -1e20
# Avoids a division by 0 for such a query, whose weights are all 0.
LEAST_SUM = 1e-30


@jax.custom_vjp
def attend(
  queries_BHTK: jax.Array,
  keys_BHSK: jax.Array,
  values_BHSK: jax.Array,
  bias_HTS: jax.Array | None,
  mask: jax.Array,
) -> jax.Array:
  """Computes attention: the weighted sum of values for each query.

  Scores and softmax are float32; matmuls are in the arguments' dtype.

  Args:
    queries_BHTK: Scores are not divided by `sqrt(K)`, see `attention`.
    keys_BHSK: The keys.
    values_BHSK: The values.
    bias_HTS: float32, added to the scores; None for no bias.
    mask: bool, broadcasts to `[B, H, T, S]`, true where query t attends to
      key s. A query without visible keys gets zeros, and gradients of zero.

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
  scores_BHTS = matmuls.einsum("BHTK,BHSK->BHTS", queries_BHTK, keys_BHSK)
  if bias_HTS is not None:
    scores_BHTS += bias_HTS[None]
  exps_BHTS, sums_BHT1 = exponentials(scores_BHTS, mask)
  exps_BHTS = exps_BHTS.astype(dtype)
  weighted_BHTK = matmuls.einsum("BHTS,BHSK->BHTK", exps_BHTS, values_BHSK)
  output_BHTK = (weighted_BHTK / sums_BHT1).astype(dtype)
  residuals = (
    queries_BHTK,
    keys_BHSK,
    values_BHSK,
    # The backward pass only checks whether there is a bias.
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
    sum over keys `[B, H, T, 1]`, a tiny number instead of 0.
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
  # Rounded, like the gradient that JAX computes: in float32 it would be the
  # largest array of a layer, next to the gradient of the float32 scores.
  weights_gradient_BHTS = matmuls.einsum(
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
    matmuls.einsum("BHTS,BHSK->BHTK", scores_gradient_BHTS, keys).astype(dtype),
    transposed_sum_over_queries(queries, scores_gradient_BHTS)
    .swapaxes(-1, -2)
    .astype(dtype),
    transposed_sum_over_queries(gradient_BHTK, exps_BHTS)
    .swapaxes(-1, -2)
    .astype(dtype),
    bias_gradient_HTS,
    None,
  )


attend.defvjp(_attend_forward, _attend_backward)


def transposed_sum_over_queries(
  queries_BHTK: jax.Array, weights_BHTS: jax.Array
) -> jax.Array:
  """Computes `(weights^T queries)^T`, float32 `[..., H, K, S]`.

  This transposes the smaller array instead of `[B, H, T, S]`.
  """
  transposed_BHKT = matmuls.as_written(queries_BHTK.swapaxes(-1, -2))
  return matmuls.as_written(
    matmuls.einsum("...KT,...TS->...KS", transposed_BHKT, weights_BHTS)
  )


def _sum_rows(rows_BHTS: jax.Array) -> jax.Array:
  """Sums over the batch, in float32.

  On a CPU, XLA's reduction of the first axis is forty times slower than a
  matmul; on a TPU, that matmul would transpose the whole array.
  """

  def multiplied(rows_BHTS: jax.Array) -> jax.Array:
    ones_B = jnp.ones(len(rows_BHTS), rows_BHTS.dtype)
    return matmuls.einsum("B,BHTS->HTS", ones_B, rows_BHTS)

  return jax.lax.platform_dependent(
    rows_BHTS,
    cpu=multiplied,
    default=lambda rows_BHTS: rows_BHTS.sum(axis=0, dtype=jnp.float32),
  )
