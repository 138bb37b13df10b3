"""What a step reports: sums over positions, then shares of them."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from specialize_jax.cot import formats
from specialize_jax.losses import distillation, normalization

# A divergence of float32 rounding below zero is not a negative one.
_ROUNDING = 1e-5
# Where a batch says of which format each position is; see `data.packing`.
_FORMATS = "decoder_data_formats"


def position_sums(
  output: distillation.LossOutput, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Sums of a (micro)batch, float32 scalars that add up over microbatches."""

  def total(values_BT: jax.Array) -> jax.Array:
    return normalization.weighted_sum(
      values_BT.astype(jnp.float32), output.weights_BT
    )

  def count(where: jax.Array) -> jax.Array:
    return jnp.sum(where, dtype=jnp.float32)

  weighted_BT = output.weights_BT > 0
  sources_BS = batch["encoder_input_tokens"] > 0
  targets_BT = batch["decoder_target_tokens"] > 0
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


def _format_sums(
  output: distillation.LossOutput, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """The sparse KL and its weight in each format, where the batch tells."""
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
  """The metrics of a whole batch.

  Returns:
    loss: mean weighted loss, nats a target token; the sum of the next three.
    loss_kl: the sparse KL's part.
    loss_one_hot: the one-hot cross-entropy's part.
    loss_z: the squared log-normalizer's part.
    nll: mean weighted cross-entropy of the target token, whatever is
      minimised, so that runs of different objectives can be compared.
    token_accuracy: weighted share of targets that no other token outscores.
    teacher_share: share of positions with weight that have a teacher.
    negative_kl_rate: share of those whose KL is negative.
    padding_share: share of encoder and decoder slots that hold padding.
    num_tokens: encoder and decoder tokens that are not padding.
    num_target_tokens: positions with weight.
    num_rows: rows of the batch, each one or several examples.
    kl/FORMAT, where the batch tells formats: mean sparse KL of the positions
      with a teacher in examples of that format; nan where there are none.
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


def known(values: Mapping[str, float]) -> dict[str, float]:
  """Without the formats that the batch has no teacher for."""
  return {
    name: value
    for name, value in values.items()
    if not (name.startswith("kl/") and math.isnan(value))
  }
