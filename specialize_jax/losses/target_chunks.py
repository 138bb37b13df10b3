"""The distillation loss and its gradients in one pass over target positions.

The gradient of a sum of weighted losses is known, up to the sum's cotangent, as
soon as the logits are. So each chunk of the target positions passes through the
whole output head once: logits, losses, the gradient with respect to the logits
and, from it, the hidden states' gradient and a term of the kernel's. The
backward pass only multiplies by the cotangent. Three matmuls are the fewest
possible (Liger Kernel's fused linear cross-entropy, arXiv 2410.10989, takes as
many); `vocab_chunks` takes a fourth, as it computes the logits twice.

The cost is memory: every device holds the head all-gathered along D, and its
gradient in float32, where `vocab_chunks` holds one chunk of each. On a mesh,
each shard of the batch accumulates a kernel gradient of its own, and these are
summed once, after the last chunk. A kernel sharded along V yields logits and
gradients sharded along V.
"""

import functools
import math
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from specialize_jax import errors
from specialize_jax.losses import (
  distillation,
  normalization,
  student_scores,
  vocab_chunks,
)
from specialize_jax.parallel import row_sums

Batch = Mapping[str, jax.Array]
Arrays = TypeVar("Arrays")

_BATCH_KEYS = (
  "decoder_target_tokens",
  "decoder_loss_weights",
  "decoder_teacher_top_ids",
  "decoder_teacher_top_probs",
  "decoder_teacher_top_mask",
)


def weighted_loss(
  hidden_BTD: jax.Array,
  output_kernel_DV: jax.Array,
  batch: Batch,
  *,
  config: distillation.LossConfig,
) -> tuple[jax.Array, distillation.LossOutput]:
  """Computes `head.weighted_loss`, which documents arguments and results."""
  batch = {name: batch[name] for name in _BATCH_KEYS if name in batch}
  return _weighted_loss(hidden_BTD, output_kernel_DV, batch, config)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _weighted_loss(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  batch: Batch,
  config: distillation.LossConfig,
) -> tuple[jax.Array, distillation.LossOutput]:
  """Computes the loss without gradients."""
  gathered_DV = vocab_chunks.gather_embed(kernel_DV.astype(hidden_BTD.dtype))

  def chunk_loss(
    hidden_BtD: jax.Array, batch: Batch
  ) -> distillation.LossOutput:
    logits_BtV = vocab_chunks.head_logits(hidden_BtD, gathered_DV)
    scores = student_scores.reduce(
      logits_BtV, *_candidates_and_targets(logits_BtV, batch, config)
    )
    return distillation.loss_from_scores(
      scores, batch, config, vocab_size=logits_BtV.shape[-1]
    )

  outputs = jax.lax.map(
    lambda chunk: chunk_loss(*chunk), _split((hidden_BTD, batch), config)
  )
  return _with_total(_join(outputs, hidden_BTD.shape[1]))


def _forward(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  batch: Batch,
  config: distillation.LossConfig,
) -> tuple[tuple[jax.Array, distillation.LossOutput], tuple]:
  """Computes the loss; the residuals are both gradients of its sum."""
  gathered_DV = vocab_chunks.gather_embed(kernel_DV.astype(hidden_BTD.dtype))
  num_shards = row_sums.num_shards("batch")

  def add_chunk(
    kernel_gradients_NDV: jax.Array, chunk: tuple[jax.Array, Batch]
  ) -> tuple[jax.Array, tuple]:
    hidden_BtD, batch = chunk
    logits_BtV = vocab_chunks.head_logits(hidden_BtD, gathered_DV)
    output, gradient_BtV = _loss_and_logits_gradient(logits_BtV, batch, config)
    gradient_BtV = gradient_BtV.astype(hidden_BtD.dtype)
    kernel_gradients_NDV += _einsum(
      "nbtd,nbtv->ndv",
      _by_shard(hidden_BtD, num_shards),
      _by_shard(gradient_BtV, num_shards),
    )
    hidden_gradient_BtD = _einsum("btv,dv->btd", gradient_BtV, gathered_DV)
    return _keep_unreduced(kernel_gradients_NDV), (
      output,
      hidden_gradient_BtD.astype(hidden_BtD.dtype),
    )

  dtype = student_scores.accumulation_dtype(hidden_BTD.dtype)
  kernel_gradients_NDV, (outputs, hidden_gradients) = jax.lax.scan(
    add_chunk,
    _keep_unreduced(jnp.zeros((num_shards, *kernel_DV.shape), dtype)),
    _split((hidden_BTD, batch), config),
  )
  kernel_gradient_DV = nn.with_logical_constraint(
    kernel_gradients_NDV.sum(0).astype(kernel_DV.dtype), ("embed", "vocab")
  )
  length = hidden_BTD.shape[1]
  gradients = (_join(hidden_gradients, length), kernel_gradient_DV)
  return _with_total(_join(outputs, length)), gradients


def _backward(
  config: distillation.LossConfig,
  gradients: tuple[jax.Array, jax.Array],
  cotangents: tuple[jax.Array, distillation.LossOutput],
) -> tuple[jax.Array | None, ...]:
  """Scales the gradients by the sum's cotangent; ignores the output's."""
  del config
  factor, _ = cotangents
  return *(g * factor.astype(g.dtype) for g in gradients), None


_weighted_loss.defvjp(_forward, _backward)


def _loss_and_logits_gradient(
  logits_BtV: jax.Array, batch: Batch, config: distillation.LossConfig
) -> tuple[distillation.LossOutput, jax.Array]:
  """Computes a chunk's losses and the logits' gradient, `[B, t, V]`."""
  ids = _candidates_and_targets(logits_BtV, batch, config)
  scores = student_scores.reduce(logits_BtV, *ids)

  def total_loss(
    scores: student_scores.StudentScores,
  ) -> tuple[jax.Array, distillation.LossOutput]:
    output = distillation.loss_from_scores(
      scores, batch, config, vocab_size=logits_BtV.shape[-1]
    )
    return _with_total(output)

  cotangents, output = jax.grad(total_loss, has_aux=True)(scores)
  gradient_BtV = student_scores.logits_gradient(
    logits_BtV, *ids, scores, cotangents
  )
  return output, gradient_BtV


def _with_total(
  output: distillation.LossOutput,
) -> tuple[jax.Array, distillation.LossOutput]:
  total = normalization.weighted_sum(output.loss_BT, output.weights_BT)
  return total, output


def _candidates_and_targets(
  logits_BtV: jax.Array, batch: Batch, config: distillation.LossConfig
) -> tuple[jax.Array, jax.Array]:
  ids_BtC, _ = distillation.teacher_candidates(
    batch, config, logits_BtV.shape[-1]
  )
  return ids_BtC, batch["decoder_target_tokens"]


def _split(arrays: Arrays, config: distillation.LossConfig) -> Arrays:
  """Reshapes `[B, T, ..]` to `[chunks, B, t, ..]`, padding T with zeros."""

  def split(array: jax.Array) -> jax.Array:
    length = array.shape[1]
    size = max(1, math.ceil(length / config.num_chunks))
    num_chunks = max(1, math.ceil(length / size))
    widths = [(0, 0)] * array.ndim
    widths[1] = (0, num_chunks * size - length)
    chunks = jnp.pad(array, widths).reshape(
      array.shape[0], num_chunks, size, *array.shape[2:]
    )
    return jnp.moveaxis(chunks, 1, 0)

  return jax.tree.map(split, arrays)


def _join(chunks: Arrays, length: int) -> Arrays:
  """Reverses `_split`."""

  def join(chunks: jax.Array) -> jax.Array:
    rows = jnp.moveaxis(chunks, 0, 1)
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])[:, :length]

  return jax.tree.map(join, chunks)


def _by_shard(array: jax.Array, num_shards: int) -> jax.Array:
  if array.shape[0] % num_shards:
    raise errors.UserError(
      f"a microbatch of {array.shape[0]} rows cannot be sharded over"
      f" {num_shards} devices: BATCH_SIZE / NUM_MICROBATCHES must be a multiple"
      " of the mesh's data x fsdp"
    )
  return array.reshape(num_shards, -1, *array.shape[1:])


def _keep_unreduced(kernel_gradients_NDV: jax.Array) -> jax.Array:
  """Keeps the gradient of each batch shard on the devices of that shard."""
  return nn.with_logical_constraint(
    kernel_gradients_NDV, ("batch", None, "vocab")
  )


def _einsum(spec: str, one: jax.Array, other: jax.Array) -> jax.Array:
  """Computes an einsum accumulated in float32 (float64 for float64)."""
  dtype = student_scores.accumulation_dtype(one.dtype)
  return jnp.einsum(spec, one, other, preferred_element_type=dtype)
