"""KL(teacher || student) from the teacher's k most likely tokens.

An API returns the probabilities q of the teacher's top C tokens, not how the
remaining mass 1 - sum(q), the tail, is distributed. `missing_mass` chooses how
the tail is treated (Fu et al. 2023, section 3, take it as zero):

  tail         one bucket for all other tokens, on both sides:
               sum_c q_c log(q_c / p_c) + q_r log(q_r / p_r), where
               q_r = 1 - sum(q) and p_r is the student's mass outside the
               candidates. The KL divergence of the coarsened distributions:
               never negative, zero iff all buckets agree.
  renormalize  q / sum(q), as if the top C were all. Never negative.
  zero         sum_c q_c log(q_c / p_c) with q as it is, as the paper's code
               does: q does not sum to one, and the value is negative where the
               student's mass on the candidates exceeds the teacher's by enough.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from specialize_jax import errors
from specialize_jax.losses import inputs, student_scores, vocab_chunks

MissingMass = Literal["tail", "renormalize", "zero"]


def sparse_kl(
  logits: jax.Array,
  teacher_ids: jax.Array,
  teacher_probs: jax.Array,
  *,
  missing_mass: MissingMass = "tail",
) -> jax.Array:
  """Computes the KL divergence of the student from the teacher's top k.

  Example: V = 4, all logits zero (p = 1/4 each), teacher ids (2, 1), probs
  (0.5, 0.25). With `tail`: 0.5 log 2 + 0.25 log 1 + 0.25 log(0.25 / 0.5)
  = 0.1733; with `zero`: 0.5 log 2 = 0.3466; with `renormalize`:
  2/3 log(8/3) + 1/3 log(4/3) = 0.7498.

  Args:
    logits: the student's logits, `[..., V]`, any float dtype.
    teacher_ids: integer candidate ids, `[..., C]`, distinct where used.
    teacher_probs: their probabilities (not log-probabilities), `[..., C]`;
      zero marks an unused slot. A sum above one by rounding is scaled back to
      one, except with `zero`.
    missing_mass: "tail", "renormalize" or "zero".

  Returns:
    The divergence in nats, `[...]`, float32 (float64 for float64 logits); zero
    where no slot is used. For traced arrays, nan where a probability is
    negative or nan; an id outside the vocabulary counts as an unused slot.

  Raises:
    UserError: `missing_mass` is unknown, the shapes do not match or, for
      concrete arrays, ids and probabilities are not teacher distributions over
      the vocabulary (see the package's convention).
  """
  vocab_size = logits.shape[-1]
  leading = logits.shape[:-1]
  check_missing_mass(missing_mass)
  ids_BTC, probs_BTC = _checked(
    teacher_ids, teacher_probs, leading, vocab_size, of="logits"
  )
  dtype = student_scores.accumulation_dtype(logits.dtype)
  scores = student_scores.measure(
    inputs.with_two_leading_dimensions(logits.astype(dtype), 1),
    ids_BTC,
    jnp.zeros(ids_BTC.shape[:-1], jnp.int32),
  )
  return from_scores(scores, probs_BTC, missing_mass=missing_mass).reshape(
    leading
  )


def sparse_kl_from_hidden(
  hidden: jax.Array,
  output_kernel: jax.Array,
  teacher_ids: jax.Array,
  teacher_probs: jax.Array,
  *,
  missing_mass: MissingMass = "tail",
  num_chunks: int = 8,
) -> jax.Array:
  """Computes `sparse_kl` of the logits `hidden @ output_kernel` in chunks.

  The vocabulary is processed in chunks, and `[..., V]` logits are never
  materialized, neither in the forward nor in the backward pass. The result is
  differentiable with respect to `hidden` and `output_kernel`.

  Args:
    hidden: hidden states, `[..., D]`, in the compute dtype.
    output_kernel: the output head, `[D, V]`.
    teacher_ids: see `sparse_kl`.
    teacher_probs: see `sparse_kl`.
    missing_mass: "tail", "renormalize" or "zero".
    num_chunks: number of chunks of the vocabulary, as in `LossConfig`.

  Returns:
    See `sparse_kl`.

  Raises:
    UserError: see `sparse_kl`.
  """
  inputs.check_num_chunks(num_chunks)
  inputs.check_output_kernel(hidden, output_kernel)
  vocab_size = output_kernel.shape[-1]
  leading = hidden.shape[:-1]
  check_missing_mass(missing_mass)
  ids_BTC, probs_BTC = _checked(
    teacher_ids, teacher_probs, leading, vocab_size, of="hidden"
  )
  scores = vocab_chunks.measure_chunked(
    inputs.with_two_leading_dimensions(hidden, 1),
    output_kernel,
    ids_BTC,
    jnp.zeros(ids_BTC.shape[:-1], jnp.int32),
    num_chunks=num_chunks,
  )
  return from_scores(scores, probs_BTC, missing_mass=missing_mass).reshape(
    leading
  )


def from_scores(
  scores: student_scores.StudentScores,
  teacher_probs_BTC: jax.Array,
  *,
  missing_mass: MissingMass = "tail",
) -> jax.Array:
  """Computes `sparse_kl` from the student's scores of the candidates.

  Args:
    scores: scores of the ids that `inputs.mask_teacher` returns.
    teacher_probs_BTC: the probabilities that it returns.
    missing_mass: "tail", "renormalize" or "zero".

  Returns:
    The divergence, `[B, T]`, in the dtype of the scores.
  """
  dtype = scores.log_tail_BT.dtype
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
  if missing_mass == "tail":
    # If all tokens are candidates, a tail that is left by rounding has no
    # bucket.
    tail_BT = jnp.where(
      jnp.isneginf(scores.log_tail_BT),
      0.0,
      jnp.maximum(1.0 - jnp.sum(probs_BTC, axis=-1), 0.0),
    )
    kl_BT += _relative_entropy(tail_BT, scores.log_tail_BT - log_normalizer_BT)
  is_valid_BT = jnp.all(teacher_probs_BTC >= 0, axis=-1)
  return jnp.where(is_valid_BT, kl_BT, jnp.nan)


def check_missing_mass(missing_mass: str) -> None:
  """Raises UserError unless the name is one of the three."""
  if missing_mass not in get_args(MissingMass):
    raise errors.UserError(
      f"missing_mass={missing_mass!r} is unknown: "
      f"expected one of {', '.join(get_args(MissingMass))}."
    )


def _checked(
  teacher_ids: jax.Array,
  teacher_probs: jax.Array,
  leading: tuple[int, ...],
  vocab_size: int,
  *,
  of: str,
) -> tuple[jax.Array, jax.Array]:
  """Checks a public function's candidates; returns them masked, `[B, T, C]`."""
  for name, array in (
    ("teacher_ids", teacher_ids),
    ("teacher_probs", teacher_probs),
  ):
    inputs.check_leading_dimensions(array, leading, 1, name, of)
  inputs.check_teacher(teacher_ids, teacher_probs, vocab_size)
  ids, probs = inputs.mask_teacher(
    jnp.asarray(teacher_ids), jnp.asarray(teacher_probs), vocab_size
  )
  return (
    inputs.with_two_leading_dimensions(ids, 1),
    inputs.with_two_leading_dimensions(probs, 1),
  )


def _relative_entropy(probs: jax.Array, log_probs: jax.Array) -> jax.Array:
  """Computes q log(q / p); 0 log 0 = 0, with zero gradient where q is zero."""
  positive = probs > 0
  log_teacher = jnp.log(jnp.where(positive, probs, 1.0))
  log_student = jnp.where(positive, log_probs, 0.0)
  return jnp.where(positive, probs * (log_teacher - log_student), 0.0)
