"""What is minimised at a position, from the student's scores there.

`LossConfig` says it, `LossOutput` holds it and what it is made of. How the
scores come about, from whole logits or in pieces that are never whole, is the
business of `vocab_chunks` and `target_chunks`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from specialize_jax import errors
from specialize_jax.losses import sample_matching, sparse_kl, student_scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
  """What is minimised.

  Attributes:
    objective: "distribution_matching" (sparse KL where the batch has a teacher
      distribution) or "sample_matching" (cross-entropy of the teacher's text
      everywhere).
    missing_mass: what becomes of the teacher's unseen mass, see `sparse_kl`.
    masked_out: what a position without a teacher distribution takes under
      distribution matching: "one_hot" cross-entropy, or "ignore", nothing: it
      loses its weight. Mind that the end-of-sequence token has no teacher
      distribution, so that "ignore" never teaches the student to stop.
    chunk_axis: what the head is applied to pieces of. "vocabulary" computes
      each piece's logits twice, and holds a piece of the kernel's gradient at
      a time: see `vocab_chunks`. "targets" takes loss and gradients in one
      pass over the target positions, and holds the whole head and its float32
      gradient meanwhile: see `target_chunks`. Faster on a CPU, whose gin file
      takes it; compiled for 16 v5e chips, FlanT5-base's step moves 58 GB of
      HBM with it and 49 without.
    num_chunks: pieces of that axis; memory falls with it, and small matrix
      products slow down. Of the vocabulary the next smaller number that
      divides it is taken. 1 for a small vocabulary.
    z_loss: weight of the squared log-normalizer (1e-4 in T5X's pre-training,
      zero in the paper), which keeps logits near zero.
  """

  objective: Literal["distribution_matching", "sample_matching"] = (
    "distribution_matching"
  )
  missing_mass: sparse_kl.MissingMass = "tail"
  masked_out: Literal["one_hot", "ignore"] = "one_hot"
  chunk_axis: Literal["vocabulary", "targets"] = "vocabulary"
  num_chunks: int = 8
  z_loss: float = 0.0

  def __post_init__(self) -> None:
    """Refuses a setting that names no loss."""
    sparse_kl.check_missing_mass(self.missing_mass)
    if self.objective not in ("distribution_matching", "sample_matching"):
      raise errors.UserError(
        f"objective={self.objective!r} is unknown: expected "
        "distribution_matching or sample_matching."
      )
    if self.masked_out not in ("one_hot", "ignore"):
      raise errors.UserError(
        f"masked_out={self.masked_out!r} is unknown: expected one_hot or "
        "ignore."
      )
    if self.chunk_axis not in ("vocabulary", "targets"):
      raise errors.UserError(
        f"chunk_axis={self.chunk_axis!r} is unknown: expected vocabulary or "
        "targets."
      )
    if self.num_chunks < 1:
      raise errors.UserError(
        f"num_chunks={self.num_chunks} is not possible: expected 1 or more."
      )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOutput:
  """Unreduced losses and what they are made of, each `[B, T]`.

  Attributes:
    loss_BT: what is minimised: the sum of the three parts.
    weights_BT: weight of each position; zero at padding and at what
      `masked_out="ignore"` leaves out.
    kl_BT: sparse KL where the position has a teacher distribution, else 0.
    one_hot_BT: cross-entropy where it takes the one-hot target, else 0.
    z_loss_BT: the weighted squared log-normalizer.
    nll_BT: cross-entropy of the target token everywhere, whatever is
      minimised: what losses of different objectives are compared by.
    has_teacher_BT: bool, where the sparse KL applies.
    correct_BT: bool, where no token has a larger logit than the target.
  """

  loss_BT: jax.Array
  weights_BT: jax.Array
  kl_BT: jax.Array
  one_hot_BT: jax.Array
  z_loss_BT: jax.Array
  nll_BT: jax.Array
  has_teacher_BT: jax.Array
  correct_BT: jax.Array


def of_logits(
  logits_BTV: jax.Array, batch: Mapping[str, jax.Array], *, config: LossConfig
) -> LossOutput:
  """The loss of whole logits; `num_chunks` is not read."""
  dtype = student_scores.accumulation_dtype(logits_BTV.dtype)
  scores = student_scores.measure(
    logits_BTV.astype(dtype),
    candidate_ids(batch, config, logits_BTV.shape[-1]),
    batch["decoder_target_tokens"],
  )
  return of_scores(scores, batch, config)


def candidate_ids(
  batch: Mapping[str, jax.Array], config: LossConfig, vocab_size: int
) -> jax.Array:
  """The teacher's candidates that the loss reads, `[B, T, C]`; maybe none."""
  targets_BT = batch["decoder_target_tokens"]
  if config.objective != "distribution_matching":
    return jnp.zeros((*targets_BT.shape, 0), jnp.int32)
  used_BTC = _teacher_probs(batch) > 0
  return student_scores.slots(
    batch["decoder_teacher_top_ids"], used_BTC, vocab_size
  )


def _teacher_probs(batch: Mapping[str, jax.Array]) -> jax.Array:
  """The candidates' probabilities, `[B, T, C]`, 0 where the mask is."""
  has_teacher_BT1 = batch["decoder_teacher_top_mask"][..., None] > 0
  return jnp.where(has_teacher_BT1, batch["decoder_teacher_top_probs"], 0.0)


def of_scores(
  scores: student_scores.StudentScores,
  batch: Mapping[str, jax.Array],
  config: LossConfig,
) -> LossOutput:
  """The loss of scores that `candidate_ids` were given to measure."""
  weights_BT = batch["decoder_loss_weights"].astype(jnp.float32)
  has_teacher_BT = jnp.zeros(weights_BT.shape, bool)
  if config.objective == "distribution_matching":
    has_teacher_BT = batch["decoder_teacher_top_mask"] > 0
  nll_BT = one_hot_BT = sample_matching.negative_log_likelihood(scores)
  kl_BT = jnp.zeros_like(one_hot_BT)
  if config.objective == "distribution_matching":
    kl_BT = sparse_kl.divergence(
      scores, _teacher_probs(batch), missing_mass=config.missing_mass
    )
    one_hot_BT = jnp.where(has_teacher_BT, 0.0, one_hot_BT)
    if config.masked_out == "ignore":
      one_hot_BT = jnp.zeros_like(one_hot_BT)
      weights_BT = jnp.where(has_teacher_BT, weights_BT, 0.0)
  z_loss_BT = config.z_loss * student_scores.log_normalizer(scores) ** 2
  return LossOutput(
    loss_BT=kl_BT + one_hot_BT + z_loss_BT,
    weights_BT=weights_BT,
    kl_BT=kl_BT,
    one_hot_BT=one_hot_BT,
    z_loss_BT=z_loss_BT,
    nll_BT=nll_BT,
    has_teacher_BT=has_teacher_BT,
    correct_BT=scores.target_logits_BT >= scores.max_logits_BT,
  )
