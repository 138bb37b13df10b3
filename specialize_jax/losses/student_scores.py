"""Sufficient statistics of the student's logits for every loss.

`measure` reduces `[B, T, V]` logits to the logits of the teacher's candidates,
the logit of the target token, and the log-sum-exp of all *other* tokens, the
tail. Every loss of this package is a function of these scores, so one formula,
`logits_gradient`, is the backward pass of them all.

The vocabulary axis may be sharded: each shard reads and writes the candidates
that it holds, and the reductions communicate `[B, T, C]`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from specialize_jax.losses import single_logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentScores:
  """The student's logits at each position, reduced to what the losses need.

  Attributes:
    candidate_logits_BTC: logit of each candidate, `-inf` in unused slots.
    target_logits_BT: logit of the target token.
    log_tail_BT: log-sum-exp over all tokens that are not candidates.
    max_logits_BT: the largest of all logits; has no gradient.
  """

  candidate_logits_BTC: jax.Array
  target_logits_BT: jax.Array
  log_tail_BT: jax.Array
  max_logits_BT: jax.Array


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """Returns float64 for float64, and float32 for every narrower type."""
  return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def log_normalizer(scores: StudentScores) -> jax.Array:
  """Computes the log-sum-exp of all logits of each position, `[B, T]`."""
  parts_BTC = jnp.concatenate(
    [scores.candidate_logits_BTC, scores.log_tail_BT[..., None]], axis=-1
  )
  return jax.nn.logsumexp(parts_BTC, axis=-1)


def empty(shape_BTC: tuple[int, ...], dtype: jnp.dtype) -> StudentScores:
  """Returns the scores over an empty vocabulary, the identity of `merge`."""
  minus_infinity = functools.partial(jnp.full, fill_value=-jnp.inf, dtype=dtype)
  return StudentScores(
    candidate_logits_BTC=minus_infinity(shape_BTC),
    target_logits_BT=minus_infinity(shape_BTC[:-1]),
    log_tail_BT=minus_infinity(shape_BTC[:-1]),
    max_logits_BT=minus_infinity(shape_BTC[:-1]),
  )


def merge(one: StudentScores, other: StudentScores) -> StudentScores:
  """Merges the scores over two disjoint parts of the vocabulary.

  A candidate or target in the other part has logit `-inf` in each one's scores.
  """
  return StudentScores(
    candidate_logits_BTC=jnp.maximum(
      one.candidate_logits_BTC, other.candidate_logits_BTC
    ),
    target_logits_BT=jnp.maximum(one.target_logits_BT, other.target_logits_BT),
    log_tail_BT=jnp.logaddexp(one.log_tail_BT, other.log_tail_BT),
    max_logits_BT=jnp.maximum(one.max_logits_BT, other.max_logits_BT),
  )


def reduce(
  logits_BTV: jax.Array, candidate_ids_BTC: jax.Array, targets_BT: jax.Array
) -> StudentScores:
  """Computes `measure`, differentiated by JAX rather than by formula."""
  candidates_BTC = single_logits.read(logits_BTV, candidate_ids_BTC)
  target_logits_BT1 = single_logits.read(logits_BTV, targets_BT[..., None])
  tail_BTV = single_logits.without(logits_BTV, candidate_ids_BTC)
  max_tail_BT = jnp.max(tail_BTV, axis=-1)
  # If all tokens are candidates, the tail is empty: log 0, not nan.
  shift_BT = jnp.where(jnp.isneginf(max_tail_BT), 0.0, max_tail_BT)
  sum_tail_BT = jnp.sum(jnp.exp(tail_BTV - shift_BT[..., None]), axis=-1)
  return StudentScores(
    candidate_logits_BTC=candidates_BTC,
    target_logits_BT=target_logits_BT1[..., 0],
    log_tail_BT=jnp.log(sum_tail_BT) + shift_BT,
    max_logits_BT=jnp.maximum(
      max_tail_BT,
      jnp.max(candidates_BTC, axis=-1, initial=-jnp.inf),
    ),
  )


def logits_gradient(
  logits_BTV: jax.Array,
  candidate_ids_BTC: jax.Array,
  targets_BT: jax.Array,
  scores: StudentScores,
  cotangents: StudentScores,
) -> jax.Array:
  """Computes the gradient with respect to the logits, `[B, T, V]`.

  The gradient of the tail's log-sum-exp is the softmax over the tail, which is
  at most one however little mass the tail has. It is added at every token and
  then replaced at each candidate by the candidate's own cotangent. The exponent
  is capped at zero, which no token of the tail exceeds, so that what is
  subtracted at a candidate is finite.

  Args:
    logits_BTV: the logits that were reduced.
    candidate_ids_BTC: as given to `measure`.
    targets_BT: likewise.
    scores: the scores over the whole vocabulary.
    cotangents: the gradients with respect to `scores`.

  Returns:
    The gradient, in the logits' dtype.
  """

  def softmax(logits: jax.Array, log_tail: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(logits - log_tail, 0.0))

  log_tail_BT1 = scores.log_tail_BT[..., None]
  tail_BT1 = cotangents.log_tail_BT[..., None]
  gradient_BTV = softmax(logits_BTV, log_tail_BT1) * tail_BT1
  at_candidates_BTC = cotangents.candidate_logits_BTC - (
    softmax(scores.candidate_logits_BTC, log_tail_BT1) * tail_BT1
  )
  ids_BTC = jnp.concatenate([candidate_ids_BTC, targets_BT[..., None]], -1)
  corrections_BTC = jnp.concatenate(
    [at_candidates_BTC, cotangents.target_logits_BT[..., None]], axis=-1
  )
  return single_logits.add(gradient_BTV, ids_BTC, corrections_BTC)


@jax.custom_vjp
def measure(
  logits_BTV: jax.Array, candidate_ids_BTC: jax.Array, targets_BT: jax.Array
) -> StudentScores:
  """Reduces logits to the scores of candidates, target and tail.

  Args:
    logits_BTV: float32 or float64.
    candidate_ids_BTC: int32 ids from `inputs.mask_teacher`; V marks an unused
      slot.
    targets_BT: int32 target ids.

  Returns:
    The scores, in the logits' dtype.
  """
  return reduce(logits_BTV, candidate_ids_BTC, targets_BT)


def _measure_forward(
  logits_BTV: jax.Array, candidate_ids_BTC: jax.Array, targets_BT: jax.Array
) -> tuple[StudentScores, tuple]:
  scores = reduce(logits_BTV, candidate_ids_BTC, targets_BT)
  return scores, (logits_BTV, candidate_ids_BTC, targets_BT, scores)


def _measure_backward(
  residuals: tuple, cotangents: StudentScores
) -> tuple[jax.Array, None, None]:
  return logits_gradient(*residuals, cotangents), None, None


measure.defvjp(_measure_forward, _measure_backward)
