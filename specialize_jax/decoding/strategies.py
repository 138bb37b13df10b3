"""Rules for the next token, which map logits to one token per row.

A rule is a frozen dataclass, so that it can be a static argument of a compiled
loop. Each row is sampled with a key of its own, so that its tokens do not
depend on the rest of the batch.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from specialize_jax import errors


class Strategy(Protocol):
  """A rule for the next token, called by `loop.decode` at every step."""

  def __call__(
    self, logits_BV: jax.Array, decode_rngs_B: jax.Array | None
  ) -> jax.Array:
    """Returns one int32 token per row, `[B]`, for float32 logits."""

  @property
  def needs_rng(self) -> bool:
    """Whether the rule uses random keys."""


_MIN_TEMPERATURE = 1e-30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
  """Chooses the most likely token, in a tie the one with the lowest id."""

  @property
  def needs_rng(self) -> bool:
    """False."""
    return False

  def __call__(
    self, logits_BV: jax.Array, decode_rngs_B: jax.Array | None = None
  ) -> jax.Array:
    """Returns the argmax of each row.

    Two plain reductions, because XLA's argmax takes a quarter of the time of
    the logits' matmul on a CPU.
    """
    last = logits_BV.shape[-1] - 1
    ids_1V = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)[None]
    is_most_BV = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_most_BV, ids_1V, last), axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """Samples with temperature, top-k and top-p (nucleus) truncation.

  The logits are divided by the temperature; then the `top_k` most likely tokens
  are kept; of these the fewest are kept whose renormalized probabilities sum to
  at least `top_p`.

  Attributes:
    temperature: positive; 1 leaves the distribution unchanged.
    top_k: number of tokens to keep; None keeps all.
    top_p: probability mass to keep, in (0, 1].
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0

  def __post_init__(self) -> None:
    """Validates the fields."""
    if not self.temperature > 0.0:
      raise errors.UserError(
        f"temperature is {self.temperature}, and must be above 0: decode"
        " greedily for the most likely token."
      )
    if self.temperature < _MIN_TEMPERATURE:
      raise errors.UserError(
        f"temperature is {self.temperature}, below {_MIN_TEMPERATURE:g}, which"
        " float32 cannot divide by: decode greedily for the most likely token."
      )
    if self.top_k is not None and self.top_k < 1:
      raise errors.UserError(
        f"top_k is {self.top_k}, and must be at least 1, or None to "
        "keep all tokens."
      )
    if not 0.0 < self.top_p <= 1.0:
      raise errors.UserError(
        f"top_p is {self.top_p}, and must be above 0 and at most 1: "
        "1 keeps all tokens."
      )

  @property
  def needs_rng(self) -> bool:
    """True: one key for each row and step."""
    return True

  def __call__(
    self, logits_BV: jax.Array, decode_rngs_B: jax.Array | None
  ) -> jax.Array:
    """Samples one token per row.

    Args:
      logits_BV: float32.
      decode_rngs_B: one typed key per row.

    Returns:
      int32 tokens, `[B]`.
    """
    # Relative to the greatest, which a tiny temperature would make infinite.
    logits_BV -= jnp.max(logits_BV, axis=-1, keepdims=True)
    logits_BV /= jnp.float32(self.temperature)
    vocab_size = logits_BV.shape[-1]
    top_k = min(self.top_k or vocab_size, vocab_size)
    if top_k == vocab_size and self.top_p == 1.0:
      drawn_B = jax.vmap(jax.random.categorical)(decode_rngs_B, logits_BV)
      return drawn_B.astype(jnp.int32)
    kept_BC, ids_BC = jax.lax.top_k(logits_BV, top_k)
    probs_BC = jax.nn.softmax(kept_BC, axis=-1)
    mass_before_BC = jnp.cumsum(probs_BC, axis=-1) - probs_BC
    kept_BC = jnp.where(
      mass_before_BC < jnp.float32(self.top_p), kept_BC, -jnp.inf
    )
    drawn_B = jax.vmap(jax.random.categorical)(decode_rngs_B, kept_BC)
    chosen_B1 = jnp.take_along_axis(ids_BC, drawn_B[:, None], axis=-1)
    return chosen_B1[:, 0].astype(jnp.int32)
