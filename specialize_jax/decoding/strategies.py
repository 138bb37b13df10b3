"""Rules for the next token: from logits to one token a row.

A rule is a frozen dataclass, so that a compiled loop can be kept for each,
and draws row by row with a key of the row's own, so that what a row gets does
not depend on the batch it sits in.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from specialize_jax import errors


class Strategy(Protocol):
  """What `loop.decode` asks for at every step."""

  def __call__(
    self, logits_BV: jax.Array, decode_rngs_B: jax.Array | None
  ) -> jax.Array:
    """Gives one int32 token a row, `[B]`, from float32 logits."""

  @property
  def needs_rng(self) -> bool:
    """Whether the rule draws random numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
  """Takes the most likely token; of equals the one of lowest id."""

  @property
  def needs_rng(self) -> bool:
    """Nothing is drawn."""
    return False

  def __call__(
    self, logits_BV: jax.Array, decode_rngs_B: jax.Array | None = None
  ) -> jax.Array:
    """Gives the argument of each row's maximum.

    In two passes, each a plain reduction: XLA's own argmax takes a CPU a
    quarter of the time of the logits themselves.
    """
    last = logits_BV.shape[-1] - 1
    ids_1V = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)[None]
    is_most_BV = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_most_BV, ids_1V, last), axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """Draws from the model's distribution, sharpened and cut.

  First the logits are divided by the temperature, then only the `top_k` most
  likely tokens are kept, then of these the fewest whose probabilities,
  renormalised, sum to `top_p` at least.

  Attributes:
    temperature: above 0; 1 leaves the distribution as it is.
    top_k: how many tokens are kept; None keeps all.
    top_p: the mass that is kept, above 0 and at most 1.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0

  def __post_init__(self) -> None:
    """Raises UserError for a value out of range."""
    if not self.temperature > 0.0:
      raise errors.UserError(
        f"Sampling.temperature is {self.temperature}, and must be above 0: "
        "use Greedy for the most likely token."
      )
    if self.top_k is not None and self.top_k < 1:
      raise errors.UserError(
        f"Sampling.top_k is {self.top_k}, and must be at least 1, or None to "
        "keep all tokens."
      )
    if not 0.0 < self.top_p <= 1.0:
      raise errors.UserError(
        f"Sampling.top_p is {self.top_p}, and must be above 0 and at most 1: "
        "1 keeps all tokens."
      )

  @property
  def needs_rng(self) -> bool:
    """One key a row and step."""
    return True

  def __call__(
    self, logits_BV: jax.Array, decode_rngs_B: jax.Array | None
  ) -> jax.Array:
    """Gives one drawn token a row.

    Args:
      logits_BV: float32.
      decode_rngs_B: one typed key a row.
    """
    logits_BV = logits_BV / jnp.float32(self.temperature)
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
