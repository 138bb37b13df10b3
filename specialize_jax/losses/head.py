"""The weighted loss of a batch, from hidden states through the output head."""

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
  """Computes the sum of the weighted losses, without whole logits.

  Args:
    hidden_BTD: the decoder's hidden states after its last norm, in the compute
      dtype, which is also that of the head's matmul; it accumulates in float32.
    output_kernel_DV: the head, `logits = hidden @ kernel`, float32.
    batch: `decoder_target_tokens` [B, T], `decoder_loss_weights` [B, T] and,
      for distribution matching, `decoder_teacher_top_ids` and
      `decoder_teacher_top_probs` [B, T, C], `decoder_teacher_top_mask` [B, T].
    config: the objective, and how the computation is chunked.

  Returns:
    The sum, float32, and the losses of all positions. Differentiate the sum;
    the losses of positions are metrics, without gradients in one of the
    chunked forms.

  Raises:
    UserError: concrete ids or probabilities are invalid; see the package's
      convention.
  """
  vocab_size = output_kernel_DV.shape[-1]
  distillation.check_batch(batch, config, vocab_size)
  if config.chunk_axis == "targets":
    return target_chunks.weighted_loss(
      hidden_BTD, output_kernel_DV, batch, config=config
    )
  output = chunked_loss(hidden_BTD, output_kernel_DV, batch, config=config)
  total = normalization.weighted_sum(output.loss_BT, output.weights_BT)
  return total, output


def chunked_loss(
  hidden_BTD: jax.Array,
  output_kernel_DV: jax.Array,
  batch: Mapping[str, jax.Array],
  *,
  config: distillation.LossConfig,
) -> distillation.LossOutput:
  """Computes the unreduced loss in chunks of the vocabulary.

  The loss of each position is differentiable. See `weighted_loss` for the
  arguments.
  """
  vocab_size = output_kernel_DV.shape[-1]
  ids_BTC, _ = distillation.teacher_candidates(batch, config, vocab_size)
  scores = vocab_chunks.measure_chunked(
    hidden_BTD,
    output_kernel_DV,
    ids_BTC,
    batch["decoder_target_tokens"],
    num_chunks=config.num_chunks,
  )
  return distillation.loss_from_scores(
    scores, batch, config, vocab_size=vocab_size
  )
