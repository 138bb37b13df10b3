"""The distillation loss from hidden states, without a `[B, T, V]` array kept.

Logits are the largest array of a T5 step: 16 x 256 positions of 32,128 float32
are 0.5 GiB, several times over with their softmax and gradient. Here the
target positions go through the head in chunks; the forward pass keeps of each
only its scores (`[B, T, C + 3]`), the backward pass computes the chunk's logits
again and turns them at once into the gradients of the hidden states and of the
kernel, the latter summed in float32.

Chunks cut the length, never the batch, so a batch sharded over devices stays
where it is; a kernel sharded along V gives logits sharded along V, reduced
there (see `student_scores`).
"""

import dataclasses
import functools
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
    num_chunks: pieces that the target length is cut into; memory falls with
      it, and small matrix products slow down. 1 for a small vocabulary.
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
  weights_BT = batch["decoder_loss_weights"].astype(jnp.float32)
  matching = config.objective == "distribution_matching"
  if matching:
    has_teacher_BT = batch["decoder_teacher_top_mask"] > 0
    probs_BTC = jnp.where(
      has_teacher_BT[..., None], batch["decoder_teacher_top_probs"], 0.0
    )
    ids_BTC = student_scores.slots(
      batch["decoder_teacher_top_ids"],
      probs_BTC > 0,
      output_kernel_DV.shape[-1],
    )
  else:
    has_teacher_BT = jnp.zeros(targets_BT.shape, bool)
    ids_BTC = jnp.zeros((*targets_BT.shape, 0), jnp.int32)
  scores = measure_chunked(
    hidden_BTD,
    output_kernel_DV,
    ids_BTC,
    targets_BT,
    num_chunks=config.num_chunks,
  )
  nll_BT = one_hot_BT = sample_matching.negative_log_likelihood(scores)
  kl_BT = jnp.zeros_like(one_hot_BT)
  if matching:
    kl_BT = sparse_kl.divergence(
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


def measure_chunked(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  candidate_ids_BTC: jax.Array,
  targets_BT: jax.Array,
  *,
  num_chunks: int,
) -> student_scores.StudentScores:
  """`student_scores.measure` of `hidden @ kernel`, chunk by chunk.

  Args:
    hidden_BTD: hidden states, in the compute dtype.
    kernel_DV: the head.
    candidate_ids_BTC: int32 from `student_scores.slots`.
    targets_BT: int32.
    num_chunks: pieces of the length; it is padded to a multiple.

  Returns:
    Scores in float32 (float64 for float64 hidden states).
  """
  length = targets_BT.shape[1]
  num_chunks = min(num_chunks, length)
  cut = functools.partial(_cut, num_chunks=num_chunks)
  scores = _measure_chunks(
    cut(hidden_BTD), kernel_DV, cut(candidate_ids_BTC), cut(targets_BT)
  )
  return jax.tree.map(lambda x: _join(x, length), scores)


@jax.custom_vjp
def _measure_chunks(
  hidden_chunks: jax.Array,
  kernel_DV: jax.Array,
  candidate_id_chunks: jax.Array,
  target_chunks: jax.Array,
) -> student_scores.StudentScores:
  """Scores of `[chunks, B, T / chunks, ..]` arrays."""
  kernel_DV = _ready(kernel_DV, hidden_chunks.dtype)

  def one_chunk(chunk: tuple[jax.Array, ...]) -> student_scores.StudentScores:
    hidden_BTD, ids_BTC, targets_BT = chunk
    return student_scores.reduce(
      _logits(hidden_BTD, kernel_DV), ids_BTC, targets_BT
    )

  return jax.lax.map(
    one_chunk, (hidden_chunks, candidate_id_chunks, target_chunks)
  )


def _measure_chunks_forward(
  *arguments: jax.Array,
) -> tuple[student_scores.StudentScores, tuple]:
  scores = _measure_chunks(*arguments)
  return scores, (*arguments, scores)


def _measure_chunks_backward(
  residuals: tuple, cotangents: student_scores.StudentScores
) -> tuple[jax.Array | None, ...]:
  """Computes each chunk's logits again, then both gradients from them."""
  hidden_chunks, kernel_DV, ids_chunks, target_chunks, scores = residuals
  compute_dtype = hidden_chunks.dtype
  sum_dtype = student_scores.accumulation_dtype(compute_dtype)
  ready_kernel_DV = _ready(kernel_DV, compute_dtype)

  def one_chunk(
    kernel_gradient_DV: jax.Array, chunk: tuple
  ) -> tuple[jax.Array, jax.Array]:
    hidden_BTD, ids_BTC, targets_BT, scores, cotangents = chunk
    gradient_BTV = student_scores.pull_back(
      _logits(hidden_BTD, ready_kernel_DV),
      ids_BTC,
      targets_BT,
      scores,
      cotangents,
    ).astype(compute_dtype)
    kernel_gradient_DV += jnp.einsum(
      "btd,btv->dv",
      hidden_BTD,
      gradient_BTV,
      preferred_element_type=sum_dtype,
    )
    hidden_gradient_BTD = jnp.einsum(
      "btv,dv->btd",
      gradient_BTV,
      ready_kernel_DV,
      preferred_element_type=sum_dtype,
    )
    return kernel_gradient_DV, hidden_gradient_BTD.astype(compute_dtype)

  kernel_gradient_DV, hidden_gradients = jax.lax.scan(
    one_chunk,
    jnp.zeros(kernel_DV.shape, sum_dtype),
    (hidden_chunks, ids_chunks, target_chunks, scores, cotangents),
  )
  return (
    hidden_gradients,
    kernel_gradient_DV.astype(kernel_DV.dtype),
    None,
    None,
  )


_measure_chunks.defvjp(_measure_chunks_forward, _measure_chunks_backward)


def _ready(kernel_DV: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """The kernel as all chunks use it, made once and not once a chunk.

  In the compute dtype, and whole along D: where parameters are cut along
  `embed`, this is the one all-gather of them.
  """
  return nn.with_logical_constraint(kernel_DV.astype(dtype), (None, "vocab"))


def _logits(hidden_BTD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
  logits_BTV = jnp.einsum(
    "btd,dv->btv",
    hidden_BTD,
    kernel_DV,
    preferred_element_type=student_scores.accumulation_dtype(hidden_BTD.dtype),
  )
  return nn.with_logical_constraint(logits_BTV, ("batch", "length", "vocab"))


def _cut(array: jax.Array, *, num_chunks: int) -> jax.Array:
  """[B, T, ..] -> [num_chunks, B, ceil(T / num_chunks), ..], zero-padded."""
  batch_size, length, *rest = array.shape
  chunk_length = -(-length // num_chunks)
  padding = [(0, 0)] * array.ndim
  padding[1] = (0, chunk_length * num_chunks - length)
  pieces = jnp.pad(array, padding).reshape(
    batch_size, num_chunks, chunk_length, *rest
  )
  return jnp.moveaxis(pieces, 1, 0)


def _join(chunks: jax.Array, length: int) -> jax.Array:
  """`_cut` undone."""
  num_chunks, batch_size, chunk_length, *rest = chunks.shape
  whole = jnp.moveaxis(chunks, 0, 1).reshape(
    batch_size, num_chunks * chunk_length, *rest
  )
  return whole[:, :length]
