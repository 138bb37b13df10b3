"""Scores of the student in chunks of the vocabulary, without whole logits.

Logits are the largest array of a T5 step: 16 x 256 positions of 32,128 float32
are 0.5 GiB, several times over with their softmax and gradient. Here the output
head is applied to all target positions one chunk of the vocabulary at a time.
The residuals of the forward pass are the scores (`[B, T, C + 3]`); the backward
pass recomputes the logits of each chunk and contracts their gradient into the
chunk's part of the kernel's gradient and into the hidden states' gradient,
accumulated in float32. That takes four matmuls, where `target_chunks` takes
three but holds the whole head and its gradient.

Only the vocabulary is split, never batch or length, so a batch that is sharded
over devices is not moved. Of a kernel sharded along D, one chunk at a time is
all-gathered and one chunk's gradient is reduced over devices; a kernel sharded
along V yields logits sharded along V, which are reduced in place (see
`student_scores`).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from specialize_jax.losses import student_scores
from specialize_jax.parallel import row_sums


def measure_chunked(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  candidate_ids_BTC: jax.Array,
  targets_BT: jax.Array,
  *,
  num_chunks: int,
) -> student_scores.StudentScores:
  """Computes `student_scores.measure` of the logits `hidden @ kernel`.

  Args:
    hidden_BTD: hidden states, in the compute dtype.
    kernel_DV: the output head.
    candidate_ids_BTC: int32 ids from `inputs.mask_teacher`.
    targets_BT: int32 target ids.
    num_chunks: number of chunks of the vocabulary, see
      `distillation.LossConfig`.

  Returns:
    Scores in float32 (float64 for float64 hidden states).
  """
  return _measure_chunked(
    hidden_BTD,
    kernel_DV,
    candidate_ids_BTC,
    targets_BT,
    _chunks(kernel_DV.shape[1], num_chunks),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chunks:
  """A division of the vocabulary into blocks, and of each block into parts.

  Chunk i consists of part i of every block. If the vocabulary is sharded by
  blocks, each device therefore holds a share of every chunk.

  Attributes:
    num_blocks: number of consecutive blocks.
    num_chunks: number of parts of each block.
    part_size: number of tokens of a part.
  """

  num_blocks: int
  num_chunks: int
  part_size: int

  def local_ids(self, ids: jax.Array, chunk: jax.Array) -> jax.Array:
    """Maps ids to columns of a chunk's logits; one past the end if elsewhere.

    Args:
      ids: int32 ids of the whole vocabulary.
      chunk: int32 scalar, the chunk's index.

    Returns:
      int32 columns, of the shape of `ids`.
    """
    block, within = jnp.divmod(ids, self.num_chunks * self.part_size)
    owner, column = jnp.divmod(within, self.part_size)
    inside = (owner == chunk) & (block >= 0) & (block < self.num_blocks)
    size = self.num_blocks * self.part_size
    return jnp.where(inside, block * self.part_size + column, size)

  def split(self, kernel_DV: jax.Array) -> jax.Array:
    """Reshapes [D, V] to [chunks, D, V / chunks]."""
    blocks = kernel_DV.reshape(
      -1, self.num_blocks, self.num_chunks, self.part_size
    )
    chunks = jnp.moveaxis(blocks, 2, 0).reshape(
      self.num_chunks, -1, self.num_blocks * self.part_size
    )
    return nn.with_logical_constraint(chunks, (None, "embed", "vocab"))

  def join(self, chunks: jax.Array) -> jax.Array:
    """Reverses `split`."""
    parts = chunks.reshape(self.num_chunks, -1, self.num_blocks, self.part_size)
    kernel_DV = jnp.moveaxis(parts, 0, 2).reshape(chunks.shape[1], -1)
    return nn.with_logical_constraint(kernel_DV, ("embed", "vocab"))


# A vocabulary sharded over up to this many devices is chunked without
# communication.
_MAX_SHARDS = 8


def _chunks(vocab_size: int, num_chunks: int) -> _Chunks:
  most = min(num_chunks, vocab_size)
  num_chunks = max(n for n in range(1, most + 1) if vocab_size % n == 0)
  num_blocks = math.gcd(vocab_size // num_chunks, _MAX_SHARDS)
  return _Chunks(
    num_blocks=num_blocks,
    num_chunks=num_chunks,
    part_size=vocab_size // num_chunks // num_blocks,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _measure_chunked(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  candidate_ids_BTC: jax.Array,
  targets_BT: jax.Array,
  chunks: _Chunks,
) -> student_scores.StudentScores:
  """Merges the scores of all chunks."""

  def add_chunk(
    scores: student_scores.StudentScores, chunk: tuple[jax.Array, jax.Array]
  ) -> tuple[student_scores.StudentScores, None]:
    index, kernel_DV = chunk
    chunk_scores = student_scores.reduce(
      head_logits(hidden_BTD, gather_embed(kernel_DV)),
      chunks.local_ids(candidate_ids_BTC, index),
      chunks.local_ids(targets_BT, index),
    )
    return student_scores.merge(scores, chunk_scores), None

  dtype = student_scores.accumulation_dtype(hidden_BTD.dtype)
  scores, _ = jax.lax.scan(
    add_chunk,
    student_scores.empty(candidate_ids_BTC.shape, dtype),
    _indexed_chunks(chunks, kernel_DV, hidden_BTD.dtype),
  )
  return scores


def _measure_chunked_forward(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  candidate_ids_BTC: jax.Array,
  targets_BT: jax.Array,
  chunks: _Chunks,
) -> tuple[student_scores.StudentScores, tuple]:
  arguments = (hidden_BTD, kernel_DV, candidate_ids_BTC, targets_BT)
  scores = _measure_chunked(*arguments, chunks)
  return scores, (*arguments, scores)


def _measure_chunked_backward(
  chunks: _Chunks, residuals: tuple, cotangents: student_scores.StudentScores
) -> tuple[jax.Array | None, ...]:
  """Recomputes the logits of each chunk, and both gradients from them."""
  hidden_BTD, kernel_DV, candidate_ids_BTC, targets_BT, scores = residuals
  compute_dtype = hidden_BTD.dtype
  sum_dtype = student_scores.accumulation_dtype(compute_dtype)

  def add_chunk(
    hidden_gradient_BTD: jax.Array, chunk: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    index, kernel_DV = chunk
    kernel_DV = gather_embed(kernel_DV)
    gradient_BTV = student_scores.logits_gradient(
      head_logits(hidden_BTD, kernel_DV),
      chunks.local_ids(candidate_ids_BTC, index),
      chunks.local_ids(targets_BT, index),
      scores,
      cotangents,
    ).astype(compute_dtype)
    kernel_gradient_DV = row_sums.row_sum(
      lambda hidden_BTD, gradient_BTV: jnp.einsum(
        "btd,btv->dv",
        hidden_BTD,
        gradient_BTV,
        preferred_element_type=sum_dtype,
      ),
      (hidden_BTD, gradient_BTV),
      logical_axes=[("batch", None, "embed"), ("batch", None, "vocab")],
      result_axes=("embed", "vocab"),
    )
    hidden_gradient_BTD += jnp.einsum(
      "btv,dv->btd", gradient_BTV, kernel_DV, preferred_element_type=sum_dtype
    )
    return hidden_gradient_BTD, kernel_gradient_DV

  hidden_gradient_BTD, kernel_gradients = jax.lax.scan(
    add_chunk,
    jnp.zeros(hidden_BTD.shape, sum_dtype),
    _indexed_chunks(chunks, kernel_DV, compute_dtype),
  )
  return (
    hidden_gradient_BTD.astype(compute_dtype),
    chunks.join(kernel_gradients).astype(kernel_DV.dtype),
    None,
    None,
  )


_measure_chunked.defvjp(_measure_chunked_forward, _measure_chunked_backward)


def _indexed_chunks(
  chunks: _Chunks, kernel_DV: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """Returns the inputs of a scan over chunks: indices, kernels in `dtype`."""
  return (
    jnp.arange(chunks.num_chunks, dtype=jnp.int32),
    chunks.split(kernel_DV.astype(dtype)),
  )


def gather_embed(kernel_DV: jax.Array) -> jax.Array:
  """All-gathers a kernel along D if it is sharded along D."""
  gathered_DV = row_sums.gathered(kernel_DV, ("embed", "vocab"))
  return nn.with_logical_constraint(gathered_DV, (None, "vocab"))


def head_logits(hidden_BTD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
  """Computes `hidden @ kernel`, accumulated and returned in float32.

  Args:
    hidden_BTD: hidden states.
    kernel_DV: the output head or a chunk of it, in the same dtype.

  Returns:
    The logits, float32 (float64 for float64), sharded like the arguments.
  """
  logits_BTV = jnp.einsum(
    "btd,dv->btv",
    hidden_BTD,
    kernel_DV,
    preferred_element_type=student_scores.accumulation_dtype(hidden_BTD.dtype),
  )
  return nn.with_logical_constraint(logits_BTV, ("batch", "length", "vocab"))
