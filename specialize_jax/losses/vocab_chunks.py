"""The distillation loss in pieces of the vocabulary, no `[B, T, V]` array kept.

Logits are the largest array of a T5 step: 16 x 256 positions of 32,128 float32
are 0.5 GiB, several times over with their softmax and gradient. Here all
target positions go through the head in pieces of the vocabulary; the forward
pass keeps only their scores (`[B, T, C + 3]`), the backward pass computes a
piece's logits again and turns them at once into the piece's part of the
kernel's gradient and into a term of the hidden states' gradient, summed in
float32: four products, where `target_chunks` takes three and holds the whole
head with its gradient.

Pieces cut the vocabulary, never the batch or the length, so a batch sharded
over devices stays where it is; of a kernel sharded along D one piece at a time
is gathered and one piece's gradient summed over devices; a kernel sharded
along V gives logits sharded along V, reduced there (see `student_scores`).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from specialize_jax.losses import distillation, student_scores


def distillation_loss(
  hidden_BTD: jax.Array,
  output_kernel_DV: jax.Array,
  batch: Mapping[str, jax.Array],
  *,
  config: distillation.LossConfig,
) -> distillation.LossOutput:
  """The loss of every position, unreduced; see `head.weighted_loss`.

  Each position's loss can be derived from by itself.
  """
  targets_BT = batch["decoder_target_tokens"]
  vocab_size = output_kernel_DV.shape[-1]
  ids_BTC = distillation.candidate_ids(batch, config, vocab_size)
  scores = measure_chunked(
    hidden_BTD,
    output_kernel_DV,
    ids_BTC,
    targets_BT,
    num_chunks=config.num_chunks,
  )
  return distillation.of_scores(scores, batch, config)


def measure_chunked(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  candidate_ids_BTC: jax.Array,
  targets_BT: jax.Array,
  *,
  num_chunks: int,
) -> student_scores.StudentScores:
  """`student_scores.measure` of `hidden @ kernel`, piece by piece.

  Args:
    hidden_BTD: hidden states, in the compute dtype.
    kernel_DV: the head.
    candidate_ids_BTC: int32 from `student_scores.slots`.
    targets_BT: int32.
    num_chunks: pieces of the vocabulary, see `distillation.LossConfig`.

  Returns:
    Scores in float32 (float64 for float64 hidden states).
  """
  return _measure_pieces(
    hidden_BTD,
    kernel_DV,
    candidate_ids_BTC,
    targets_BT,
    _pieces(kernel_DV.shape[1], num_chunks),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pieces:
  """How a vocabulary is cut: each of its blocks into as many pieces.

  Piece i is the i-th part of every block, so that of a vocabulary sharded by
  blocks each device has a share of every piece.

  Attributes:
    num_blocks: blocks, one after the other.
    num_pieces: parts of each.
    part: tokens of a part.
  """

  num_blocks: int
  num_pieces: int
  part: int

  def local_ids(self, ids: jax.Array, piece: jax.Array) -> jax.Array:
    """Columns of a piece's logits; of tokens elsewhere, one past the last."""
    block, within = jnp.divmod(ids, self.num_pieces * self.part)
    owner, column = jnp.divmod(within, self.part)
    inside = (owner == piece) & (block < self.num_blocks)
    size = self.num_blocks * self.part
    return jnp.where(inside, block * self.part + column, size)

  def cut(self, kernel_DV: jax.Array) -> jax.Array:
    """[D, V] -> [pieces, D, V / pieces]."""
    blocks = kernel_DV.reshape(-1, self.num_blocks, self.num_pieces, self.part)
    pieces = jnp.moveaxis(blocks, 2, 0).reshape(
      self.num_pieces, -1, self.num_blocks * self.part
    )
    return nn.with_logical_constraint(pieces, (None, "embed", "vocab"))

  def join(self, pieces: jax.Array) -> jax.Array:
    """`cut` undone."""
    parts = pieces.reshape(self.num_pieces, -1, self.num_blocks, self.part)
    kernel_DV = jnp.moveaxis(parts, 0, 2).reshape(pieces.shape[1], -1)
    return nn.with_logical_constraint(kernel_DV, ("embed", "vocab"))


# Shards of a vocabulary that pieces need not be moved for.
_MOST_SHARDS = 8


def _pieces(vocab_size: int, num_chunks: int) -> _Pieces:
  num_pieces = max(n for n in range(1, num_chunks + 1) if vocab_size % n == 0)
  num_blocks = math.gcd(vocab_size // num_pieces, _MOST_SHARDS)
  return _Pieces(
    num_blocks=num_blocks,
    num_pieces=num_pieces,
    part=vocab_size // num_pieces // num_blocks,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _measure_pieces(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  candidate_ids_BTC: jax.Array,
  targets_BT: jax.Array,
  pieces: _Pieces,
) -> student_scores.StudentScores:
  """Scores of all positions, joined over the pieces."""

  def add_piece(
    scores: student_scores.StudentScores, piece: tuple[jax.Array, jax.Array]
  ) -> tuple[student_scores.StudentScores, None]:
    index, kernel_DV = piece
    found = student_scores.reduce(
      logits(hidden_BTD, whole(kernel_DV)),
      pieces.local_ids(candidate_ids_BTC, index),
      pieces.local_ids(targets_BT, index),
    )
    return student_scores.joined(scores, found), None

  dtype = student_scores.accumulation_dtype(hidden_BTD.dtype)
  scores, _ = jax.lax.scan(
    add_piece,
    student_scores.nothing(candidate_ids_BTC.shape, dtype),
    _numbered(pieces, kernel_DV, hidden_BTD.dtype),
  )
  return scores


def _measure_pieces_forward(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  candidate_ids_BTC: jax.Array,
  targets_BT: jax.Array,
  pieces: _Pieces,
) -> tuple[student_scores.StudentScores, tuple]:
  arguments = (hidden_BTD, kernel_DV, candidate_ids_BTC, targets_BT)
  scores = _measure_pieces(*arguments, pieces)
  return scores, (*arguments, scores)


def _measure_pieces_backward(
  pieces: _Pieces, residuals: tuple, cotangents: student_scores.StudentScores
) -> tuple[jax.Array | None, ...]:
  """Computes each piece's logits again, then both gradients from them."""
  hidden_BTD, kernel_DV, candidate_ids_BTC, targets_BT, scores = residuals
  compute_dtype = hidden_BTD.dtype
  sum_dtype = student_scores.accumulation_dtype(compute_dtype)

  def one_piece(
    hidden_gradient_BTD: jax.Array, piece: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    index, kernel_DV = piece
    kernel_DV = whole(kernel_DV)
    gradient_BTV = student_scores.pull_back(
      logits(hidden_BTD, kernel_DV),
      pieces.local_ids(candidate_ids_BTC, index),
      pieces.local_ids(targets_BT, index),
      scores,
      cotangents,
    ).astype(compute_dtype)
    kernel_gradient_DV = jnp.einsum(
      "btd,btv->dv",
      hidden_BTD,
      gradient_BTV,
      preferred_element_type=sum_dtype,
    )
    hidden_gradient_BTD += jnp.einsum(
      "btv,dv->btd", gradient_BTV, kernel_DV, preferred_element_type=sum_dtype
    )
    # Summed over devices as the gradients of all other kernels are.
    return hidden_gradient_BTD, nn.with_logical_constraint(
      kernel_gradient_DV.astype(compute_dtype), ("embed", "vocab")
    )

  hidden_gradient_BTD, kernel_gradients = jax.lax.scan(
    one_piece,
    jnp.zeros(hidden_BTD.shape, sum_dtype),
    _numbered(pieces, kernel_DV, compute_dtype),
  )
  return (
    hidden_gradient_BTD.astype(compute_dtype),
    pieces.join(kernel_gradients).astype(kernel_DV.dtype),
    None,
    None,
  )


_measure_pieces.defvjp(_measure_pieces_forward, _measure_pieces_backward)


def _numbered(
  pieces: _Pieces, kernel_DV: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """What a scan over the pieces reads: numbers, and kernels in `dtype`."""
  return (
    jnp.arange(pieces.num_pieces, dtype=jnp.int32),
    pieces.cut(kernel_DV.astype(dtype)),
  )


def whole(kernel_DV: jax.Array) -> jax.Array:
  """A piece of the kernel, whole along D: the one gather of what is cut so."""
  return nn.with_logical_constraint(kernel_DV, (None, "vocab"))


def logits(hidden_BTD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
  """`hidden @ kernel`, float32 (float64 for float64), cut as its arguments."""
  logits_BTV = jnp.einsum(
    "btd,dv->btv",
    hidden_BTD,
    kernel_DV,
    preferred_element_type=student_scores.accumulation_dtype(hidden_BTD.dtype),
  )
  return nn.with_logical_constraint(logits_BTV, ("batch", "length", "vocab"))
