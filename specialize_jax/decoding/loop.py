"""The decoding loop: encode once, then one token a row until all are done.

Everything runs in one compiled function, kept for each model, strategy and
shape. Cross-attention's keys and values are computed once; each step writes
its own into the self-attention cache in place; the loop ends when the last
row has ended.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specialize_jax import errors
from specialize_jax.decoding import strategies
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network


class DecodeOutput(NamedTuple):
  """What was decoded.

  Attributes:
    tokens: int32 `[B, T]`, without the start token; EOS is kept, padding
      follows.
    log_probs: float32 `[B, T]`, the natural log-probability that the model
      gave each token, before any temperature or cut; 0 where padding.
  """

  tokens: jax.Array
  log_probs: jax.Array


class _State(flax.struct.PyTreeNode):
  """What the loop carries.

  Attributes:
    step: int32 scalar.
    last_B: int32, each row's last token, the next step's input.
    done_B: bool, whether a row has ended.
    tokens_BT: as in DecodeOutput, padding from `step` on.
    log_probs_BT: likewise.
    cache: the network's.
  """

  step: jax.Array
  last_B: jax.Array
  done_B: jax.Array
  tokens_BT: jax.Array
  log_probs_BT: jax.Array
  cache: network.DecodeCache


def decode(
  model: network.EncoderDecoder,
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  *,
  max_new_tokens: int,
  strategy: strategies.Strategy,
  decode_rng: jax.Array | None = None,
  row_ids_B: jax.Array | None = None,
  eos_id: int | None = t5_config.EOS_ID,
) -> DecodeOutput:
  """Gives the continuation of each row that the strategy chooses.

  Args:
    model: the network; scanned layers are unrolled first.
    params: its parameters.
    encoder_input_tokens_BS: int32, 0 where padding.
    max_new_tokens: T, EOS included.
    strategy: the rule for the next token.
    decode_rng: key of all draws; needed if the strategy draws.
    row_ids_B: int32 number that each row's draws are made by, `arange(B)` if
      None. A row with the same number, key and input gets the same tokens in
      every batch.
    eos_id: the token that ends a row; None decodes `max_new_tokens` always.

  Raises:
    UserError: if the strategy draws and there is no key, or there is nothing
      to decode.
  """
  if max_new_tokens < 1:
    raise errors.UserError(
      f"max_new_tokens is {max_new_tokens}, and must be at least 1."
    )
  if strategy.needs_rng and decode_rng is None:
    raise errors.UserError(
      f"decode_rng is None, and {type(strategy).__name__} draws tokens: pass "
      "jax.random.key(seed)."
    )
  if row_ids_B is None:
    row_ids_B = np.arange(encoder_input_tokens_BS.shape[0], dtype=np.int32)
  return _decode(
    params,
    encoder_input_tokens_BS,
    decode_rng,
    row_ids_B,
    model=model,
    max_new_tokens=max_new_tokens,
    strategy=strategy,
    eos_id=eos_id,
  )


@functools.partial(
  jax.jit, static_argnames=("model", "max_new_tokens", "strategy", "eos_id")
)
def _decode(
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  decode_rng: jax.Array | None,
  row_ids_B: jax.Array,
  *,
  model: network.EncoderDecoder,
  max_new_tokens: int,
  strategy: strategies.Strategy,
  eos_id: int | None,
) -> DecodeOutput:
  variables = {"params": params}
  encoded_BSD = model.apply(
    variables, encoder_input_tokens_BS, deterministic=True, method="encode"
  )
  model, params = network.unrolled(model, params)
  variables = {"params": params}
  cache = model.apply(
    variables,
    encoded_BSD,
    encoder_input_tokens_BS,
    max_length=max_new_tokens,
    method="start_cache",
  )

  def unfinished(state: _State) -> jax.Array:
    return (state.step < max_new_tokens) & ~jnp.all(state.done_B)

  def advance(state: _State) -> _State:
    hidden_B1D, cache = model.apply(
      variables, state.cache, state.last_B[:, None], method="extend"
    )
    logits_B1V = model.apply(variables, hidden_B1D, method="logits")
    rngs_B = _row_keys(decode_rng, row_ids_B, state.step)
    chosen_B = strategy(logits_B1V[:, 0], rngs_B)
    return _append(state, cache, logits_B1V[:, 0], chosen_B, eos_id)

  batch_size = encoder_input_tokens_BS.shape[0]
  shape = (batch_size, max_new_tokens)
  state = _State(
    step=jnp.zeros((), jnp.int32),
    last_B=jnp.full((batch_size,), t5_config.PAD_ID, jnp.int32),
    done_B=jnp.zeros((batch_size,), bool),
    tokens_BT=jnp.full(shape, t5_config.PAD_ID, jnp.int32),
    log_probs_BT=jnp.zeros(shape, jnp.float32),
    cache=cache,
  )
  state = jax.lax.while_loop(unfinished, advance, state)
  return DecodeOutput(state.tokens_BT, state.log_probs_BT)


def _row_keys(
  decode_rng: jax.Array | None, row_ids_B: jax.Array, step: jax.Array
) -> jax.Array | None:
  """Gives each row's key for this step, whatever its batch."""
  if decode_rng is None:
    return None
  step_rng = jax.random.fold_in(decode_rng, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_rng, row_ids_B)


def _append(
  state: _State,
  cache: network.DecodeCache,
  logits_BV: jax.Array,
  chosen_B: jax.Array,
  eos_id: int | None,
) -> _State:
  """Gives the state one token further; rows that are done get padding."""
  log_norm_B = jax.nn.logsumexp(logits_BV, axis=-1)
  chosen_logit_B1 = jnp.take_along_axis(logits_BV, chosen_B[:, None], axis=-1)
  log_probs_B = chosen_logit_B1[:, 0] - log_norm_B
  chosen_B = jnp.where(state.done_B, t5_config.PAD_ID, chosen_B)
  log_probs_B = jnp.where(state.done_B, jnp.float32(0), log_probs_B)
  done_B = state.done_B
  if eos_id is not None:
    done_B = done_B | (chosen_B == eos_id)
  return state.replace(
    step=state.step + 1,
    last_B=chosen_B,
    done_B=done_B,
    tokens_BT=state.tokens_BT.at[:, state.step].set(chosen_B),
    log_probs_BT=state.log_probs_BT.at[:, state.step].set(log_probs_B),
    cache=cache,
  )
