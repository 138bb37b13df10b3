"""The distillation loss and its gradients in one pass over target positions.

A sum of weighted losses has a gradient that is known, but for one factor, as
soon as the logits are. So each piece of the positions goes through the whole
head once: logits, losses, the gradient of the logits and, from it, the hidden
states' gradient and a term of the kernel's. The backward pass only multiplies.
These are the three products that the gradients take at the least (Liger
Kernel's fused linear cross-entropy, arXiv 2410.10989, does the same), where
`vocab_chunks` computes the logits twice.

The price: the whole head lies on every device along D, beside its gradient in
float32, where `vocab_chunks` has a piece of each. On a mesh each share of the
batch sums a gradient of its own, and they are added once, after the last
piece; a kernel sharded along V gives logits and gradients sharded along V.
"""

import functools
import math
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from specialize_jax.losses import (
  distillation,
  normalization,
  student_scores,
  vocab_chunks,
)

Batch = Mapping[str, jax.Array]
Pieces = TypeVar("Pieces")

_READ = (
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
  """See `head.weighted_loss`, whose arguments and values these are."""
  read = {name: batch[name] for name in _READ if name in batch}
  return _weighted_loss(hidden_BTD, output_kernel_DV, read, config)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _weighted_loss(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  batch: Batch,
  config: distillation.LossConfig,
) -> tuple[jax.Array, distillation.LossOutput]:
  """The loss alone, piece by piece."""
  whole_DV = vocab_chunks.whole(kernel_DV.astype(hidden_BTD.dtype))

  def one_piece(hidden_BtD: jax.Array, batch: Batch) -> distillation.LossOutput:
    logits_BtV = vocab_chunks.logits(hidden_BtD, whole_DV)
    scores = student_scores.reduce(logits_BtV, *_ids(logits_BtV, batch, config))
    return distillation.of_scores(scores, batch, config)

  outputs = jax.lax.map(
    lambda piece: one_piece(*piece), _cut((hidden_BTD, batch), config)
  )
  return _total(_join(outputs, hidden_BTD.shape[1]))


def _forward(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  batch: Batch,
  config: distillation.LossConfig,
) -> tuple[tuple[jax.Array, distillation.LossOutput], tuple]:
  """The loss, and both gradients of its sum for the backward pass."""
  whole_DV = vocab_chunks.whole(kernel_DV.astype(hidden_BTD.dtype))
  num_shares = _num_batch_shares()

  def one_piece(
    kernel_gradients_NDV: jax.Array, piece: tuple[jax.Array, Batch]
  ) -> tuple[jax.Array, tuple]:
    hidden_BtD, batch = piece
    logits_BtV = vocab_chunks.logits(hidden_BtD, whole_DV)
    output, gradient_BtV = _pulled_back(logits_BtV, batch, config)
    gradient_BtV = gradient_BtV.astype(hidden_BtD.dtype)
    kernel_gradients_NDV += _product(
      "nbtd,nbtv->ndv",
      _shares(hidden_BtD, num_shares),
      _shares(gradient_BtV, num_shares),
    )
    hidden_gradient_BtD = _product("btv,dv->btd", gradient_BtV, whole_DV)
    return _each_its_own(kernel_gradients_NDV), (
      output,
      hidden_gradient_BtD.astype(hidden_BtD.dtype),
    )

  dtype = student_scores.accumulation_dtype(hidden_BTD.dtype)
  kernel_gradients_NDV, (outputs, hidden_gradients) = jax.lax.scan(
    one_piece,
    _each_its_own(jnp.zeros((num_shares, *kernel_DV.shape), dtype)),
    _cut((hidden_BTD, batch), config),
  )
  kernel_gradient_DV = nn.with_logical_constraint(
    kernel_gradients_NDV.sum(0).astype(kernel_DV.dtype), ("embed", "vocab")
  )
  length = hidden_BTD.shape[1]
  gradients = (_join(hidden_gradients, length), kernel_gradient_DV)
  return _total(_join(outputs, length)), gradients


def _backward(
  config: distillation.LossConfig,
  gradients: tuple[jax.Array, jax.Array],
  cotangents: tuple[jax.Array, distillation.LossOutput],
) -> tuple[jax.Array | None, ...]:
  """The sum's cotangent times its gradients; that of the parts is not read."""
  del config
  factor, _ = cotangents
  return *(g * factor.astype(g.dtype) for g in gradients), None


_weighted_loss.defvjp(_forward, _backward)


def _pulled_back(
  logits_BtV: jax.Array, batch: Batch, config: distillation.LossConfig
) -> tuple[distillation.LossOutput, jax.Array]:
  """A piece's losses, and the gradient of their sum, `[B, t, V]`."""
  ids = _ids(logits_BtV, batch, config)
  scores = student_scores.reduce(logits_BtV, *ids)

  def summed(
    scores: student_scores.StudentScores,
  ) -> tuple[jax.Array, distillation.LossOutput]:
    return _total(distillation.of_scores(scores, batch, config))

  cotangents, output = jax.grad(summed, has_aux=True)(scores)
  gradient_BtV = student_scores.pull_back(logits_BtV, *ids, scores, cotangents)
  return output, gradient_BtV


def _total(
  output: distillation.LossOutput,
) -> tuple[jax.Array, distillation.LossOutput]:
  total = normalization.weighted_sum(output.loss_BT, output.weights_BT)
  return total, output


def _ids(
  logits_BtV: jax.Array, batch: Batch, config: distillation.LossConfig
) -> tuple[jax.Array, jax.Array]:
  vocab_size = logits_BtV.shape[-1]
  return (
    distillation.candidate_ids(batch, config, vocab_size),
    batch["decoder_target_tokens"],
  )


def _cut(arrays: Pieces, config: distillation.LossConfig) -> Pieces:
  """`[B, T, ..]` -> `[pieces, B, t, ..]`, T filled up with weight zero."""

  def cut(array: jax.Array) -> jax.Array:
    length = array.shape[1]
    size = math.ceil(length / config.num_chunks)
    number = math.ceil(length / size)
    widths = [(0, 0)] * array.ndim
    widths[1] = (0, number * size - length)
    pieces = jnp.pad(array, widths).reshape(
      array.shape[0], number, size, *array.shape[2:]
    )
    return jnp.moveaxis(pieces, 1, 0)

  return jax.tree.map(cut, arrays)


def _join(pieces: Pieces, length: int) -> Pieces:
  """`_cut` undone."""

  def join(pieces: jax.Array) -> jax.Array:
    rows = jnp.moveaxis(pieces, 0, 1)
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])[:, :length]

  return jax.tree.map(join, pieces)


def _num_batch_shares() -> int:
  """Shares that the entered mesh cuts a batch into; one without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  (axes,) = nn.logical_to_mesh_axes(("batch",))
  if mesh.empty or axes is None:
    return 1
  names = (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape[name] for name in names)


def _shares(array: jax.Array, number: int) -> jax.Array:
  return array.reshape(number, -1, *array.shape[1:])


def _each_its_own(kernel_gradients_NDV: jax.Array) -> jax.Array:
  """Leaves each share's sum where its rows are."""
  return nn.with_logical_constraint(
    kernel_gradients_NDV, ("batch", None, "vocab")
  )


def _product(spec: str, one: jax.Array, other: jax.Array) -> jax.Array:
  """An einsum summed in float32 (float64 for float64)."""
  dtype = student_scores.accumulation_dtype(one.dtype)
  return jnp.einsum(spec, one, other, preferred_element_type=dtype)
