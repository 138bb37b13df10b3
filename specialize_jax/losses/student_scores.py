"""What a loss needs of the student's logits: a few numbers a position.

`measure` reduces `[B, T, V]` logits to the logits of the teacher's candidates,
of the target token, and the log-sum-exp of all *other* tokens. Every loss of
this room is a function of these, so its backward pass is one formula,
`pull_back`, and the logits themselves are needed nowhere else.

The vocabulary axis may be sharded: what a candidate reads or writes is read or
written where its shard lies, and the reductions exchange `[B, T, C]`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from specialize_jax.losses import single_logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentScores:
  """The student's logits at a position, reduced to what the losses need.

  Attributes:
    candidate_logits_BTC: logit of each candidate, `-inf` in unused slots.
    target_logits_BT: logit of the target token.
    log_rest_BT: log-sum-exp over the tokens that are no candidate.
    max_logits_BT: the largest logit of all; carries no gradient.
  """

  candidate_logits_BTC: jax.Array
  target_logits_BT: jax.Array
  log_rest_BT: jax.Array
  max_logits_BT: jax.Array


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """Float64 for float64, float32 for every narrower type."""
  return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def slots(
  teacher_ids_BTC: jax.Array, used_BTC: jax.Array, vocab_size: int
) -> jax.Array:
  """Candidate ids with unused slots moved out of the vocabulary.

  An unused slot usually holds the padding id, 0, whose student mass belongs
  to the rest: out of range it is neither read nor excluded from the rest.
  """
  return jnp.where(used_BTC, teacher_ids_BTC, vocab_size)


def log_normalizer(scores: StudentScores) -> jax.Array:
  """The log-sum-exp of all logits of a position, `[B, T]`."""
  parts_BTC = jnp.concatenate(
    [scores.candidate_logits_BTC, scores.log_rest_BT[..., None]], axis=-1
  )
  return jax.nn.logsumexp(parts_BTC, axis=-1)


def nothing(shape_BTC: tuple[int, ...], dtype: jnp.dtype) -> StudentScores:
  """The scores of no tokens at all."""
  empty = functools.partial(jnp.full, fill_value=-jnp.inf, dtype=dtype)
  return StudentScores(
    candidate_logits_BTC=empty(shape_BTC),
    target_logits_BT=empty(shape_BTC[:-1]),
    log_rest_BT=empty(shape_BTC[:-1]),
    max_logits_BT=empty(shape_BTC[:-1]),
  )


def joined(one: StudentScores, other: StudentScores) -> StudentScores:
  """The scores over two parts of the vocabulary, from those over each.

  A candidate or target of the other part is `-inf` in the scores of this one.
  """
  return StudentScores(
    candidate_logits_BTC=jnp.maximum(
      one.candidate_logits_BTC, other.candidate_logits_BTC
    ),
    target_logits_BT=jnp.maximum(one.target_logits_BT, other.target_logits_BT),
    log_rest_BT=jnp.logaddexp(one.log_rest_BT, other.log_rest_BT),
    max_logits_BT=jnp.maximum(one.max_logits_BT, other.max_logits_BT),
  )


def reduce(
  logits_BTV: jax.Array, candidate_ids_BTC: jax.Array, targets_BT: jax.Array
) -> StudentScores:
  """`measure` without its backward pass."""
  candidates_BTC = single_logits.read(logits_BTV, candidate_ids_BTC)
  targets_logits_BT = single_logits.read(logits_BTV, targets_BT[..., None])[
    ..., 0
  ]
  rest_BTV = single_logits.without(logits_BTV, candidate_ids_BTC)
  max_rest_BT = jnp.max(rest_BTV, axis=-1)
  # A vocabulary that is all candidates has no rest: log 0, not nan.
  shift_BT = jnp.where(jnp.isneginf(max_rest_BT), 0.0, max_rest_BT)
  sum_rest_BT = jnp.sum(jnp.exp(rest_BTV - shift_BT[..., None]), axis=-1)
  return StudentScores(
    candidate_logits_BTC=candidates_BTC,
    target_logits_BT=targets_logits_BT,
    log_rest_BT=jnp.log(sum_rest_BT) + shift_BT,
    max_logits_BT=jnp.maximum(
      max_rest_BT,
      jnp.max(candidates_BTC, axis=-1, initial=-jnp.inf),
    ),
  )


def pull_back(
  logits_BTV: jax.Array,
  candidate_ids_BTC: jax.Array,
  targets_BT: jax.Array,
  scores: StudentScores,
  cotangents: StudentScores,
) -> jax.Array:
  """The gradient with respect to the logits, `[B, T, V]`.

  The rest's log-sum-exp gives `softmax` over the rest, which is at most one
  however little mass the rest holds; a candidate is no part of it and gets its
  own cotangent instead. The exponent is capped at zero, which no token of the
  rest exceeds, so that what is taken back at the candidates is finite.
  """

  def share(logits: jax.Array, log_rest: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(logits - log_rest, 0.0))

  log_rest_BT1 = scores.log_rest_BT[..., None]
  rest_BT1 = cotangents.log_rest_BT[..., None]
  gradient_BTV = share(logits_BTV, log_rest_BT1) * rest_BT1
  at_candidates_BTC = cotangents.candidate_logits_BTC - (
    share(scores.candidate_logits_BTC, log_rest_BT1) * rest_BT1
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
  """Reduces logits to the scores of candidates, target and rest.

  Args:
    logits_BTV: float32 or float64.
    candidate_ids_BTC: int32 from `slots`; V marks an unused slot.
    targets_BT: int32 token whose logit is wanted.

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
  return pull_back(*residuals, cotangents), None, None


measure.defvjp(_measure_forward, _measure_backward)
