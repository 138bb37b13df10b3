"""Metrics of a train step: sums over positions, and ratios of these sums."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from specialize_jax.cot import formats
from specialize_jax.losses import distillation, normalization

# A KL this little below zero is rounding error, not a negative divergence.
_ROUNDING = 1e-5
# Batch key of the data format of each position; see `data.packing`.
_FORMATS = "decoder_data_formats"


def position_sums(
  output: distillation.LossOutput, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Computes sums over a (micro)batch, float32 scalars that are additive."""

  def total(values_BT: jax.Array) -> jax.Array:
    return normalization.weighted_sum(
      values_BT.astype(jnp.float32), output.weights_BT
    )

  def count(where: jax.Array) -> jax.Array:
    return jnp.sum(where, dtype=jnp.float32)

  weighted_BT = output.weights_BT > 0
  # A batch without segment ids is not packed: token id 0 is its padding.
  sources_BS = _first(batch, "encoder_segment_ids", "encoder_input_tokens") > 0
  targets_BT = _first(batch, "decoder_segment_ids", "decoder_target_tokens") > 0
  return {
    "weight": jnp.sum(output.weights_BT),
    "loss": total(output.loss_BT),
    "kl": total(output.kl_BT),
    "one_hot": total(output.one_hot_BT),
    "z_loss": total(output.z_loss_BT),
    "nll": total(output.nll_BT),
    "correct": total(output.correct_BT),
    "positions": count(weighted_BT),
    "teacher": count(weighted_BT & output.has_teacher_BT),
    "negative_kl": count(weighted_BT & (output.kl_BT < -_ROUNDING)),
    "tokens": count(sources_BS) + count(targets_BT),
    "rows": jnp.float32(len(sources_BS)),
    "slots": jnp.float32(sources_BS.size + targets_BT.size),
  } | _format_sums(output, batch)


def _first(batch: Mapping[str, jax.Array], *names: str) -> jax.Array:
  return next(batch[name] for name in names if name in batch)


def _format_sums(
  output: distillation.LossOutput, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Computes sums of the sparse KL by data format, if the batch has formats."""
  if _FORMATS not in batch:
    return {}
  sums = {}
  for number, one in enumerate(formats.FORMATS, start=1):
    weights_BT = jnp.where(
      (batch[_FORMATS] == number) & output.has_teacher_BT,
      output.weights_BT,
      0.0,
    )
    sums[f"kl/{one.name}"] = normalization.weighted_sum(
      output.kl_BT.astype(jnp.float32), weights_BT
    )
    sums[f"kl_weight/{one.name}"] = jnp.sum(weights_BT)
  return sums


def shares(sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Computes the metrics of a batch from its sums.

  Args:
    sums: from `position_sums`, added over microbatches.

  Returns:
    loss: mean weighted loss in nats per target token, loss_kl + loss_one_hot +
      loss_z.
    loss_kl: the term of the sparse KL.
    loss_one_hot: the term of the one-hot cross-entropy.
    loss_z: the term of the squared log-normalizer.
    nll: mean weighted cross-entropy of the target tokens, whatever the
      objective, so that runs with different objectives can be compared.
    token_accuracy: weighted share of targets that no other token outscores.
    teacher_share: share of weighted positions that have a teacher distribution.
    negative_kl_rate: share of these whose KL is negative.
    padding_share: share of encoder and decoder positions that are padding.
    num_tokens: encoder and decoder tokens that are not padding.
    num_target_tokens: number of weighted positions.
    num_rows: rows of the batch, each of one or several examples.
    kl/FORMAT: only if the batch has data formats: mean sparse KL over the
      positions with a teacher in examples of that format; nan if there are
      none.
  """

  def share(part: str, whole: str) -> jax.Array:
    return normalization.divide(sums[part], sums[whole])

  return {
    "loss": share("loss", "weight"),
    "loss_kl": share("kl", "weight"),
    "loss_one_hot": share("one_hot", "weight"),
    "loss_z": share("z_loss", "weight"),
    "nll": share("nll", "weight"),
    "token_accuracy": share("correct", "weight"),
    "teacher_share": share("teacher", "positions"),
    "negative_kl_rate": share("negative_kl", "teacher"),
    "padding_share": 1.0 - share("tokens", "slots"),
    "num_tokens": sums["tokens"],
    "num_target_tokens": sums["positions"],
    "num_rows": sums["rows"],
  } | {
    name: jnp.where(
      sums[f"kl_weight/{name[3:]}"] > 0,
      share(name, f"kl_weight/{name[3:]}"),
      jnp.nan,
    )
    for name in sums
    if name.startswith("kl/")
  }


def without_absent_formats(values: Mapping[str, float]) -> dict[str, float]:
  """Drops kl/FORMAT where no position of the format has a teacher."""
  return {
    name: value
    for name, value in values.items()
    if not (name.startswith("kl/") and math.isnan(value))
  }
