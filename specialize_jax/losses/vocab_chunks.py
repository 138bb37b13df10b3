"""The distillation loss from hidden states, without a `[B, T, V]` array kept.

Logits are the largest array of a T5 step: 16 x 256 positions of 32,128 float32
are 0.5 GiB, several times over with their softmax and gradient. Here all
target positions go through the head in pieces of the vocabulary; the forward
pass keeps only their scores (`[B, T, C + 3]`), the backward pass computes a
piece's logits again and turns them at once into the piece's part of the
kernel's gradient and into a term of the hidden states' gradient, summed in
float32.

Pieces cut the vocabulary, never the batch or the length, so a batch sharded
over devices stays where it is; of a kernel sharded along D one piece at a time
is gathered and one piece's gradient summed over devices; a kernel sharded
along V gives logits sharded along V, reduced there (see `student_scores`).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

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
    num_chunks: pieces that the vocabulary is cut into, or the next smaller
      number that divides it; memory falls with it, and small matrix products
      slow down. 1 for a small vocabulary.
    z_loss: weight of the squared log-normalizer (1e-4 in T5X's pre-training,
      zero in the paper), which keeps logits near zero.
  """

  objective: Literal["distribution_matching", "sample_matching"] = (
    "distribution_matching"
  )
  missing_mass: sparse_kl.MissingMass = "tail"
  masked_out: Literal["one_hot", "ignore"] = "one_hot"
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


def distillation_loss(
  hidden_BTD: jax.Array,
  output_kernel_DV: jax.Array,
  batch: Mapping[str, jax.Array],
  *,
  config: LossConfig,
) -> LossOutput:
  """Gives the loss of every target position.

  Args:
    hidden_BTD: the decoder's hidden states after its last norm, in the compute
      dtype, in which the head's matrix product runs; its sums are float32.
    output_kernel_DV: the head, `logits = hidden @ kernel`, float32.
    batch: `decoder_target_tokens` [B, T], `decoder_loss_weights` [B, T] and,
      for distribution matching, `decoder_teacher_top_ids` and
      `decoder_teacher_top_probs` [B, T, C], `decoder_teacher_top_mask` [B, T].
    config: which loss.

  Returns:
    The unreduced loss and its parts, float32.
  """
  targets_BT = batch["decoder_target_tokens"]
  ids_BTC = _candidate_ids(batch, config, output_kernel_DV.shape[-1])
  scores = measure_chunked(
    hidden_BTD,
    output_kernel_DV,
    ids_BTC,
    targets_BT,
    num_chunks=config.num_chunks,
  )
  return _loss_of_scores(scores, batch, config)


def distillation_loss_of_logits(
  logits_BTV: jax.Array, batch: Mapping[str, jax.Array], *, config: LossConfig
) -> LossOutput:
  """`distillation_loss` of whole logits: `num_chunks` is not read."""
  dtype = student_scores.accumulation_dtype(logits_BTV.dtype)
  scores = student_scores.measure(
    logits_BTV.astype(dtype),
    _candidate_ids(batch, config, logits_BTV.shape[-1]),
    batch["decoder_target_tokens"],
  )
  return _loss_of_scores(scores, batch, config)


def _candidate_ids(
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


def _loss_of_scores(
  scores: student_scores.StudentScores,
  batch: Mapping[str, jax.Array],
  config: LossConfig,
) -> LossOutput:
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
    num_chunks: pieces of the vocabulary, see `LossConfig`.

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
      _logits(hidden_BTD, _whole(kernel_DV)),
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
    kernel_DV = _whole(kernel_DV)
    gradient_BTV = student_scores.pull_back(
      _logits(hidden_BTD, kernel_DV),
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


def _whole(kernel_DV: jax.Array) -> jax.Array:
  """A piece of the kernel, whole along D: the one gather of what is cut so."""
  return nn.with_logical_constraint(kernel_DV, (None, "vocab"))


def _logits(hidden_BTD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
  logits_BTV = jnp.einsum(
    "btd,dv->btv",
    hidden_BTD,
    kernel_DV,
    preferred_element_type=student_scores.accumulation_dtype(hidden_BTD.dtype),
  )
  return nn.with_logical_constraint(logits_BTV, ("batch", "length", "vocab"))
