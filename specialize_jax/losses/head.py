"""The weighted loss of a batch, through the head as it is configured."""

from collections.abc import Mapping

import jax

from specialize_jax.losses import (
  distillation,
  normalization,
  target_chunks,
  vocab_chunks,
)


def weighted_loss(
  hidden_BTD: jax.Array,
  output_kernel_DV: jax.Array,
  batch: Mapping[str, jax.Array],
  *,
  config: distillation.LossConfig,
) -> tuple[jax.Array, distillation.LossOutput]:
  """Gives the sum of the weighted losses, and what it is made of.

  Args:
    hidden_BTD: the decoder's hidden states after its last norm, in the compute
      dtype, in which the head's matrix product runs; its sums are float32.
    output_kernel_DV: the head, `logits = hidden @ kernel`, float32.
    batch: `decoder_target_tokens` [B, T], `decoder_loss_weights` [B, T] and,
      for distribution matching, `decoder_teacher_top_ids` and
      `decoder_teacher_top_probs` [B, T, C], `decoder_teacher_top_mask` [B, T].
    config: which loss, and by which pieces.

  Returns:
    The sum, float32, which has the gradients, and the losses of all positions,
    which are to be read and not to be derived from.
  """
  arguments = (hidden_BTD, output_kernel_DV, batch)
  if config.chunk_axis == "targets":
    return target_chunks.weighted_loss(*arguments, config=config)
  output = vocab_chunks.distillation_loss(*arguments, config=config)
  total = normalization.weighted_sum(output.loss_BT, output.weights_BT)
  return total, output
