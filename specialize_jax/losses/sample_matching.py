"""The likelihood of the teacher's text: one-hot cross-entropy."""

import jax
import jax.numpy as jnp

from specialize_jax.losses import student_scores


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
  """Gives `-log p(target)` at every position.

  Example: V = 4, logits all zero: log 4 = 1.3863 for any target.

  Args:
    logits_BTV: the student's logits, any float dtype.
    targets_BT: int32 target tokens.

  Returns:
    Float32 nats, `[B, T]` (float64 for float64 logits).
  """
  dtype = student_scores.accumulation_dtype(logits_BTV.dtype)
  scores = student_scores.measure(
    logits_BTV.astype(dtype),
    jnp.zeros((*targets_BT.shape, 0), jnp.int32),
    targets_BT,
  )
  return negative_log_likelihood(scores)


def negative_log_likelihood(
  scores: student_scores.StudentScores,
) -> jax.Array:
  """`cross_entropy` from scores."""
  return student_scores.log_normalizer(scores) - scores.target_logits_BT
