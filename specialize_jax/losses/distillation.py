"""The objectives, as functions of the student's scores at each position.

`LossConfig` chooses the objective and `LossOutput` holds its terms. The scores
come from whole logits, or from chunks that are never assembled: see
`vocab_chunks` and `target_chunks`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from specialize_jax import errors
from specialize_jax.losses import (
  divergence,
  inputs,
  sample_matching,
  student_scores,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
  """The objective, and how its computation is chunked.

  Attributes:
    objective: "distribution_matching" (sparse KL where the batch has a teacher
      distribution) or "sample_matching" (cross-entropy of the teacher's text
      everywhere).
    missing_mass: how the teacher's mass outside its top k is treated, see
      `divergence`.
    masked_out: the loss, under distribution matching, of positions without a
      teacher distribution: "one_hot" cross-entropy, or "ignore", which sets
      their weight to zero. The end-of-sequence token has no teacher
      distribution, so with "ignore" the student never learns to stop.
    chunk_axis: the axis along which the output head is applied in chunks.
      "vocabulary" computes the logits of each chunk twice and holds one chunk
      of the kernel's gradient at a time: see `vocab_chunks`. "targets"
      computes loss and gradients in one pass over chunks of the target
      positions, and holds the whole head and its float32 gradient meanwhile:
      see `target_chunks`. "targets" is faster on CPUs, whose gin file chooses
      it; compiled for 16 v5e chips, FlanT5-base's step moves 58 GB of HBM with
      it and 49 GB without.
    num_chunks: number of chunks along that axis. More chunks use less memory
      and make the matmuls smaller and slower. Along the vocabulary, the
      largest divisor of its size that is at most `num_chunks` is used. 1 for a
      small vocabulary.
    z_loss: weight of the squared log-normalizer, which keeps logits near zero
      (1e-4 in T5X's pre-training, zero in the paper).
  """

  objective: Literal["distribution_matching", "sample_matching"] = (
    "distribution_matching"
  )
  missing_mass: divergence.MissingMass = "tail"
  masked_out: Literal["one_hot", "ignore"] = "one_hot"
  chunk_axis: Literal["vocabulary", "targets"] = "vocabulary"
  num_chunks: int = 8
  z_loss: float = 0.0

  def __post_init__(self) -> None:
    """Validates the fields."""
    divergence.check_missing_mass(self.missing_mass)
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
    inputs.check_num_chunks(self.num_chunks)
    errors.require_range(
      "LossConfig.z_loss", self.z_loss, at_least=0.0, below=math.inf
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOutput:
  """The unreduced loss and its terms, each `[B, T]`.

  Attributes:
    loss_BT: the loss, `kl_BT + one_hot_BT + z_loss_BT`.
    weights_BT: weight of each position; zero at padding and where
      `masked_out="ignore"` applies.
    kl_BT: sparse KL where the position has a teacher distribution, else 0.
    one_hot_BT: cross-entropy where the target is one-hot, else 0.
    z_loss_BT: the squared log-normalizer times `z_loss`.
    nll_BT: cross-entropy of the target token at every position, whatever the
      objective, so that runs with different objectives can be compared.
    has_teacher_BT: bool, whether the sparse KL applies.
    correct_BT: bool, whether no token has a larger logit than the target.
  """

  loss_BT: jax.Array
  weights_BT: jax.Array
  kl_BT: jax.Array
  one_hot_BT: jax.Array
  z_loss_BT: jax.Array
  nll_BT: jax.Array
  has_teacher_BT: jax.Array
  correct_BT: jax.Array


def loss_from_logits(
  logits_BTV: jax.Array, batch: Mapping[str, jax.Array], *, config: LossConfig
) -> LossOutput:
  """Computes the unreduced loss from whole logits; ignores `num_chunks`.

  Args:
    logits_BTV: the student's logits, any float dtype.
    batch: see `head.weighted_loss`.
    config: the objective.

  Returns:
    The loss of every position and its terms; all are differentiable.

  Raises:
    UserError: concrete ids or probabilities are invalid; see the package's
      convention.
  """
  vocab_size = logits_BTV.shape[-1]
  check_batch(batch, config, vocab_size)
  dtype = student_scores.accumulation_dtype(logits_BTV.dtype)
  ids_BTC, _ = teacher_candidates(batch, config, vocab_size)
  scores = student_scores.measure(
    logits_BTV.astype(dtype), ids_BTC, batch["decoder_target_tokens"]
  )
  return loss_from_scores(scores, batch, config, vocab_size=vocab_size)


def check_batch(
  batch: Mapping[str, jax.Array], config: LossConfig, vocab_size: int
) -> None:
  """Raises UserError if concrete targets or candidates are invalid."""
  inputs.check_targets(
    batch["decoder_target_tokens"],
    vocab_size,
    weights=batch["decoder_loss_weights"],
    name="decoder_target_tokens",
  )
  if config.objective == "distribution_matching":
    inputs.check_teacher(
      batch["decoder_teacher_top_ids"],
      _teacher_probs(batch),
      vocab_size,
      ids_name="decoder_teacher_top_ids",
      probs_name="decoder_teacher_top_probs",
    )


def teacher_candidates(
  batch: Mapping[str, jax.Array], config: LossConfig, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the ids and probabilities of the teacher's candidates.

  Args:
    batch: see `head.weighted_loss`.
    config: the objective.
    vocab_size: number of the student's tokens.

  Returns:
    Ids and probabilities, `[B, T, C]`, masked as by `inputs.mask_teacher`;
    C = 0 for sample matching.
  """
  shape_BT = batch["decoder_target_tokens"].shape
  if config.objective != "distribution_matching":
    return jnp.zeros((*shape_BT, 0), jnp.int32), jnp.zeros((*shape_BT, 0))
  return inputs.mask_teacher(
    jnp.asarray(batch["decoder_teacher_top_ids"]),
    _teacher_probs(batch),
    vocab_size,
  )


def _teacher_probs(batch: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the candidates' probabilities, `[B, T, C]`, zero where masked."""
  has_teacher_BT1 = batch["decoder_teacher_top_mask"][..., None] > 0
  return jnp.where(has_teacher_BT1, batch["decoder_teacher_top_probs"], 0.0)


def loss_from_scores(
  scores: student_scores.StudentScores,
  batch: Mapping[str, jax.Array],
  config: LossConfig,
  *,
  vocab_size: int,
) -> LossOutput:
  """Computes the unreduced loss from the scores of `teacher_candidates`."""
  weights_BT = batch["decoder_loss_weights"].astype(jnp.float32)
  has_teacher_BT = jnp.zeros(weights_BT.shape, bool)
  nll_BT = one_hot_BT = sample_matching.negative_log_likelihood(
    scores, batch["decoder_target_tokens"], vocab_size
  )
  kl_BT = jnp.zeros_like(one_hot_BT)
  if config.objective == "distribution_matching":
    has_teacher_BT = batch["decoder_teacher_top_mask"] > 0
    _, probs_BTC = teacher_candidates(batch, config, vocab_size)
    kl_BT = divergence.from_scores(
      scores, probs_BTC, missing_mass=config.missing_mass
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
