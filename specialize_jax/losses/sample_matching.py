"""Sample matching: the cross-entropy of the teacher's sampled text."""

import jax
import jax.numpy as jnp

from specialize_jax.losses import inputs, student_scores, vocab_chunks


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Computes `-log p(target)` at every position.

  Example: V = 4 and all logits zero: log 4 = 1.3863 for any target.

  Args:
    logits: the student's logits, `[..., V]`, any float dtype.
    targets: integer target ids, `[...]`.

  Returns:
    The loss in nats, `[...]`, float32 (float64 for float64 logits). Where
    `targets` is traced, nan at ids outside the vocabulary.

  Raises:
    UserError: the shapes do not match, or a concrete target lies outside the
      vocabulary.
  """
  vocab_size = logits.shape[-1]
  targets = _checked(targets, logits.shape[:-1], vocab_size, "logits")
  dtype = student_scores.accumulation_dtype(logits.dtype)
  logits_BTV = inputs.with_two_leading_dimensions(logits.astype(dtype), 1)
  targets_BT = inputs.with_two_leading_dimensions(targets, 0)
  scores = student_scores.measure(
    logits_BTV, _no_candidates(targets_BT), targets_BT
  )
  return negative_log_likelihood(scores, targets_BT, vocab_size).reshape(
    targets.shape
  )


def cross_entropy_from_hidden(
  hidden: jax.Array,
  output_kernel: jax.Array,
  targets: jax.Array,
  *,
  num_chunks: int = 8,
) -> jax.Array:
  """Computes `cross_entropy(hidden @ output_kernel, targets)` in chunks.

  The vocabulary is processed in chunks, and `[..., V]` logits are never
  materialized, neither in the forward nor in the backward pass.

  Args:
    hidden: hidden states, `[..., D]`, in the compute dtype.
    output_kernel: the output head, `[D, V]`.
    targets: integer target ids, `[...]`.
    num_chunks: number of chunks of the vocabulary, as in `LossConfig`.

  Returns:
    See `cross_entropy`.

  Raises:
    UserError: see `cross_entropy`.
  """
  inputs.check_num_chunks(num_chunks)
  inputs.check_output_kernel(hidden, output_kernel)
  vocab_size = output_kernel.shape[-1]
  targets = _checked(targets, hidden.shape[:-1], vocab_size, "hidden")
  targets_BT = inputs.with_two_leading_dimensions(targets, 0)
  scores = vocab_chunks.measure_chunked(
    inputs.with_two_leading_dimensions(hidden, 1),
    output_kernel,
    _no_candidates(targets_BT),
    targets_BT,
    num_chunks=num_chunks,
  )
  return negative_log_likelihood(scores, targets_BT, vocab_size).reshape(
    targets.shape
  )


def negative_log_likelihood(
  scores: student_scores.StudentScores, targets_BT: jax.Array, vocab_size: int
) -> jax.Array:
  """Computes `cross_entropy` from the scores of `targets_BT`."""
  nll_BT = student_scores.log_normalizer(scores) - scores.target_logits_BT
  return inputs.nan_outside(nll_BT, targets_BT, vocab_size)


def _checked(
  targets: jax.Array, leading: tuple[int, ...], vocab_size: int, of: str
) -> jax.Array:
  """Checks the targets of logits or hidden states; returns them as int32."""
  inputs.check_leading_dimensions(targets, leading, 0, "targets", of)
  inputs.check_targets(targets, vocab_size)
  return jnp.asarray(targets).astype(jnp.int32)


def _no_candidates(targets_BT: jax.Array) -> jax.Array:
  return jnp.zeros((*targets_BT.shape, 0), jnp.int32)
