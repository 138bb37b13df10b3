"""KL(teacher || student) from the teacher's few most likely tokens.

A teacher behind an API tells the probabilities q of its top C tokens and not
where the remaining mass 1 - sum(q) lies. `missing_mass` says what is made of
it (Fu et al. 2023, section 3, take it as zero):

  tail         one bucket for all other tokens, on both sides:
               sum_c q_c log(q_c / p_c) + q_r log(q_r / p_r), where
               q_r = 1 - sum(q) and p_r is the student's mass outside the
               candidates. The divergence of the coarser distributions: never
               negative, zero where the student agrees on every bucket.
  renormalize  q / sum(q), as if the top C were all. Never negative.
  zero         sum_c q_c log(q_c / p_c) with q as it is, the paper's code: q is
               no distribution, and the value is negative wherever the student
               is surer of the candidates than their mass allows.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from specialize_jax import errors
from specialize_jax.losses import student_scores

MissingMass = Literal["tail", "renormalize", "zero"]


def sparse_kl(
  logits_BTV: jax.Array,
  teacher_ids_BTC: jax.Array,
  teacher_probs_BTC: jax.Array,
  *,
  missing_mass: MissingMass = "tail",
) -> jax.Array:
  """Gives the divergence of the student from the teacher at every position.

  Example: V = 4, logits all zero (p = 1/4 each), teacher ids (2, 1), probs
  (0.5, 0.25). With `tail`: 0.5 log 2 + 0.25 log 1 + 0.25 log(0.25 / 0.5)
  = 0.1733; with `zero`: 0.5 log 2 = 0.3466; with `renormalize`:
  2/3 log(8/3) + 1/3 log(4/3) = 0.7498.

  Args:
    logits_BTV: the student's logits, any float dtype.
    teacher_ids_BTC: int32 candidate tokens, distinct where used.
    teacher_probs_BTC: their probabilities; zero marks an unused slot. A sum
      above one by rounding is scaled back to one, except with `zero`.
    missing_mass: "tail", "renormalize" or "zero".

  Returns:
    Float32 nats, `[B, T]` (float64 for float64 logits); zero where no slot is
    used.

  Raises:
    UserError: `missing_mass` is none of the three.
  """
  dtype = student_scores.accumulation_dtype(logits_BTV.dtype)
  scores = student_scores.measure(
    logits_BTV.astype(dtype),
    student_scores.slots(
      teacher_ids_BTC, teacher_probs_BTC > 0, logits_BTV.shape[-1]
    ),
    jnp.zeros(logits_BTV.shape[:-1], jnp.int32),
  )
  return divergence(scores, teacher_probs_BTC, missing_mass=missing_mass)


def divergence(
  scores: student_scores.StudentScores,
  teacher_probs_BTC: jax.Array,
  *,
  missing_mass: MissingMass = "tail",
) -> jax.Array:
  """`sparse_kl` from scores measured at the teacher's candidates."""
  check_missing_mass(missing_mass)
  dtype = scores.log_rest_BT.dtype
  used_BTC = teacher_probs_BTC > 0
  probs_BTC = jnp.where(used_BTC, teacher_probs_BTC.astype(dtype), 0.0)
  sum_BT = jnp.sum(probs_BTC, axis=-1)
  if missing_mass == "renormalize":
    probs_BTC /= jnp.where(sum_BT > 0, sum_BT, 1.0)[..., None]
  elif missing_mass == "tail":
    probs_BTC /= jnp.maximum(sum_BT, 1.0)[..., None]
  log_normalizer_BT = student_scores.log_normalizer(scores)
  log_probs_BTC = scores.candidate_logits_BTC - log_normalizer_BT[..., None]
  terms_BTC = _relative_entropy(probs_BTC, log_probs_BTC)
  kl_BT = jnp.sum(terms_BTC, axis=-1)
  if missing_mass != "tail":
    return kl_BT
  # Where all tokens are candidates, a rest of rounding has no bucket.
  rest_BT = jnp.where(
    jnp.isneginf(scores.log_rest_BT),
    0.0,
    jnp.maximum(1.0 - jnp.sum(probs_BTC, axis=-1), 0.0),
  )
  return kl_BT + _relative_entropy(
    rest_BT, scores.log_rest_BT - log_normalizer_BT
  )


def check_missing_mass(missing_mass: str) -> None:
  """Raises UserError unless the name is one of the three."""
  if missing_mass not in get_args(MissingMass):
    raise errors.UserError(
      f"missing_mass={missing_mass!r} is unknown: "
      f"expected one of {', '.join(get_args(MissingMass))}."
    )


def _relative_entropy(probs: jax.Array, log_probs: jax.Array) -> jax.Array:
  """Gives q log(q / p), with 0 log 0 = 0 and no gradient where q is zero."""
  positive = probs > 0
  log_teacher = jnp.log(jnp.where(positive, probs, 1.0))
  log_student = jnp.where(positive, log_probs, 0.0)
  return jnp.where(positive, probs * (log_teacher - log_student), 0.0)
