"""Distillation losses from a teacher's top-k probabilities, in nats.

Example:
  >>> import jax.numpy as jnp
  >>> from specialize_jax import losses
  >>> logits = jnp.zeros((2, 3, 4))  # [..., V]: any leading dimensions
  >>> teacher_ids = jnp.broadcast_to(jnp.array([2, 1]), (2, 3, 2))
  >>> teacher_probs = jnp.broadcast_to(jnp.array([0.5, 0.25]), (2, 3, 2))
  >>> kl = losses.sparse_kl(logits, teacher_ids, teacher_probs)
  >>> kl.shape, round(float(kl[0, 0]), 4)
  ((2, 3), 0.1733)

  The same loss without materializing `[..., V]` logits, from the decoder's
  hidden states and the kernel of the output head:

  >>> hidden, output_kernel = jnp.ones((2, 3, 8)), jnp.zeros((8, 4))
  >>> kl = losses.sparse_kl_from_hidden(
  ...   hidden, output_kernel, teacher_ids, teacher_probs, num_chunks=2
  ... )
  >>> round(float(kl[0, 0]), 4)
  0.1733

Convention. A teacher distribution is a pair of arrays of the same shape
`[..., C]`: int ids in `[0, V)`, distinct within a position, and
*probabilities* in `[0, 1]`, not log-probabilities, that sum to at most one. A
slot of probability zero is unused, whatever its id. These are also the batch
keys `decoder_teacher_top_ids` and `decoder_teacher_top_probs`.

Concrete arrays that break the convention raise a `UserError`. The values of
traced arrays, as under `jit`, cannot be read, so there
  - a negative or nan probability (a log-probability passed by mistake) makes
    the loss of its position nan;
  - a teacher id outside the vocabulary is masked: its probability counts as
    mass outside the top k;
  - a target id outside the vocabulary makes the loss of its position nan.

All losses are pure functions and unreduced, but for `weighted_loss`, which
returns a sum. Logits, softmax and losses are float32 (float64 for float64
inputs). Finite logits have finite losses and gradients. Positions of weight
zero contribute to neither. The vocabulary axis may be sharded; it is reduced
shard by shard and never all-gathered.
"""

from specialize_jax.losses.distillation import (
  LossConfig,
  LossOutput,
  loss_from_logits,
)
from specialize_jax.losses.divergence import (
  MissingMass,
  sparse_kl,
  sparse_kl_from_hidden,
)
from specialize_jax.losses.head import weighted_loss
from specialize_jax.losses.sample_matching import (
  cross_entropy,
  cross_entropy_from_hidden,
)

__all__ = [
  "LossConfig",
  "LossOutput",
  "MissingMass",
  "cross_entropy",
  "cross_entropy_from_hidden",
  "loss_from_logits",
  "sparse_kl",
  "sparse_kl_from_hidden",
  "weighted_loss",
]
