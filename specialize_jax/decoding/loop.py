"""The decoding loop: encode once, then one token per row until all are done.

`decode` runs the whole loop. `start` and `resume` are its two halves, for
callers that intervene in between, such as a calculator or a forced prefix.

Each half is one function, compiled once for each model, strategy and shape. The
keys and values of cross-attention are computed once for each input, and read
once per step for all continuations of the input. Each step updates the
self-attention cache in place. The loop ends when the last row has ended.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specialize_jax import errors
from specialize_jax.decoding import strategies
from specialize_jax.t5 import network


class DecodeOutput(NamedTuple):
  """Decoded tokens and their log-probabilities.

  Attributes:
    tokens: int32 `[B, T]`, or `[B, N, T]` with N continuations per input,
      without the start token; padding follows after EOS.
    log_probs: float32, of the same shape, the model's log-probability of each
      token in nats, without temperature and truncation; 0 at padding.
  """

  tokens: jax.Array
  log_probs: jax.Array


class DecodeState(flax.struct.PyTreeNode):
  """The state of a decoding with N continuations per input.

  Attributes:
    step: int32 scalar, number of tokens decoded so far.
    last_BN: int32, the last token of each row, the next input.
    done_BN: bool, whether a row has ended.
    paused: bool scalar, whether `resume` returned because of a token in
      `pause_V`.
    tokens_BNT: int32, padding from `step` on.
    log_probs_BNT: float32, see `DecodeOutput`; 0 from `step` on.
    forced_BNT: int32, the token that is forced at a position, or -1 where the
      strategy chooses.
    cache: the network's cache.
  """

  step: jax.Array
  last_BN: jax.Array
  done_BN: jax.Array
  paused: jax.Array
  tokens_BNT: jax.Array
  log_probs_BNT: jax.Array
  forced_BNT: jax.Array
  cache: network.DecodeCache

  @property
  def finished(self) -> jax.Array:
    """Whether all rows have ended or are full, a bool scalar."""
    no_room = self.step >= self.tokens_BNT.shape[-1]
    return no_room | jnp.all(self.done_BN)

  def forcing(self, forced_BNT: np.ndarray | jax.Array) -> "DecodeState":
    """Returns the state with other forced tokens.

    Args:
      forced_BNT: int32, of the shape of `tokens_BNT`. Positions before `step`
        are ignored, and rows that have ended remain ended.

    Returns:
      The new state.

    Raises:
      UserError: the shape differs.
    """
    if np.shape(forced_BNT) != self.tokens_BNT.shape:
      raise errors.UserError(
        f"forced_BNT has shape {np.shape(forced_BNT)}, and must have the "
        f"tokens' {self.tokens_BNT.shape}: -1 where nothing is forced."
      )
    # Keeps the sharding, and stays uncommitted if it was: otherwise the
    # signature would change, and `resume` would be compiled once more.
    forced_BNT = np.asarray(forced_BNT, np.int32)
    if self.forced_BNT.committed:
      forced_BNT = jax.device_put(forced_BNT, self.forced_BNT.sharding)
    return self.replace(forced_BNT=jnp.asarray(forced_BNT))


def decode(
  model: network.EncoderDecoder,
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  *,
  max_new_tokens: int,
  strategy: strategies.Strategy,
  decode_rng: jax.Array | None = None,
  row_ids_B: jax.Array | None = None,
  eos_ids: tuple[int, ...] | None = None,
) -> DecodeOutput:
  """Decodes a continuation of each row by a strategy.

  Args:
    model: the network; scanned layers are unrolled first.
    params: its parameters.
    encoder_input_tokens_BS: int32, `T5Config.pad_id` at padding.
    max_new_tokens: T, including EOS.
    strategy: the rule for the next token.
    decode_rng: the random key; required if the strategy samples.
    row_ids_B: int32, folded into the key of each row, `arange(B)` if None. The
      tokens of a row depend on its number, the key and its input, not on the
      batch. With numbers `[B, N]`, each input has N continuations.
    eos_ids: the tokens that end a row, the model's if None; with none, `()`,
      `max_new_tokens` tokens are always decoded.

  Returns:
    Tokens and log-probabilities.

  Raises:
    UserError: the strategy samples and there is no key, or `max_new_tokens` is
      not positive.
  """
  one_each = row_ids_B is None or np.ndim(row_ids_B) == 1
  _check(max_new_tokens, strategy, decode_rng)
  state = start(
    model,
    params,
    encoder_input_tokens_BS,
    max_new_tokens=max_new_tokens,
    num_continuations=1 if one_each else np.shape(row_ids_B)[1],
  )
  if row_ids_B is not None and one_each:
    row_ids_B = row_ids_B[:, None]
  state = resume(
    model,
    params,
    state,
    strategy=strategy,
    decode_rng=decode_rng,
    row_ids_BN=row_ids_B,
    eos_ids=eos_ids,
  )
  if one_each:
    return DecodeOutput(state.tokens_BNT[:, 0], state.log_probs_BNT[:, 0])
  return DecodeOutput(state.tokens_BNT, state.log_probs_BNT)


def start(
  model: network.EncoderDecoder,
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  *,
  max_new_tokens: int,
  num_continuations: int = 1,
) -> DecodeState:
  """Encodes the inputs and returns the state before the first token.

  Args:
    model: the network.
    params: its parameters.
    encoder_input_tokens_BS: int32, `T5Config.pad_id` at padding.
    max_new_tokens: T, including EOS.
    num_continuations: N, the number of continuations per input.

  Returns:
    The state.

  Raises:
    UserError: `max_new_tokens` is not positive.
  """
  _check(max_new_tokens)
  return _start(
    params,
    encoder_input_tokens_BS,
    model=model,
    max_new_tokens=max_new_tokens,
    num_continuations=num_continuations,
  )


def resume(
  model: network.EncoderDecoder,
  params: network.Params,
  state: DecodeState,
  *,
  strategy: strategies.Strategy,
  decode_rng: jax.Array | None = None,
  row_ids_BN: jax.Array | None = None,
  eos_ids: tuple[int, ...] | None = None,
  pause_V: jax.Array | None = None,
) -> DecodeState:
  """Decodes until all rows have ended or are full, or until a pause.

  Args:
    model: the network. Scanned layers are unrolled at every call; callers with
      many calls unroll them once, with `network.unrolled`.
    params: its parameters.
    state: from `start` or the previous call; donated.
    strategy: the rule for the next token.
    decode_rng: the random key; required if the strategy samples.
    row_ids_BN: int32, folded into the key of each row; if None, rows are
      numbered consecutively.
    eos_ids: the tokens that end a row, the model's if None.
    pause_V: bool, true for tokens after which to return as soon as the strategy
      has chosen one for any row. Forced tokens do not pause.

  Returns:
    The next state.

  Raises:
    UserError: the strategy samples and there is no key.
  """
  _check(state.tokens_BNT.shape[-1], strategy, decode_rng)
  if row_ids_BN is None:
    shape = state.done_BN.shape
    row_ids_BN = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
  return _resume(
    params,
    state,
    decode_rng,
    row_ids_BN,
    pause_V,
    model=model,
    strategy=strategy,
    eos_ids=model.config.eos_ids if eos_ids is None else tuple(eos_ids),
  )


def _check(
  max_new_tokens: int,
  strategy: strategies.Strategy | None = None,
  decode_rng: jax.Array | None = None,
) -> None:
  if max_new_tokens < 1:
    raise errors.UserError(
      f"max_new_tokens is {max_new_tokens}, and must be at least 1."
    )
  if strategy is not None and strategy.needs_rng and decode_rng is None:
    raise errors.UserError(
      f"decode_rng is None, and {type(strategy).__name__} samples tokens: pass "
      "jax.random.key(seed)."
    )


def encode(
  model: network.EncoderDecoder,
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  *,
  max_length: int,
  num_continuations: int = 1,
  num_beams: int = 1,
) -> tuple[network.EncoderDecoder, network.Params, network.DecodeCache]:
  """Encodes the inputs, and starts the cache of decoding.

  Args:
    model: The network.
    params: Its parameters.
    encoder_input_tokens_BS: The inputs.
    max_length: The maximum number of positions to decode.
    num_continuations: See `EncoderDecoder.start_cache`.
    num_beams: See `EncoderDecoder.start_cache`.

  Returns:
    The network with unrolled layers, its parameters, and the cache.
  """
  encoded_BSD = model.apply(
    {"params": params},
    encoder_input_tokens_BS,
    deterministic=True,
    method="encode",
  )
  model, params = network.unrolled(model, params)
  cache = model.apply(
    {"params": params},
    encoded_BSD,
    encoder_input_tokens_BS,
    max_length=max_length,
    num_continuations=num_continuations,
    num_beams=num_beams,
    method="start_cache",
  )
  return model, params, cache


@functools.partial(
  jax.jit, static_argnames=("model", "max_new_tokens", "num_continuations")
)
def _start(
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  *,
  model: network.EncoderDecoder,
  max_new_tokens: int,
  num_continuations: int,
) -> DecodeState:
  model, params, cache = encode(
    model,
    params,
    encoder_input_tokens_BS,
    max_length=max_new_tokens,
    num_continuations=num_continuations,
  )
  rows = (encoder_input_tokens_BS.shape[0], num_continuations)
  shape = (*rows, max_new_tokens)
  state = DecodeState(
    step=jnp.zeros((), jnp.int32),
    last_BN=jnp.full(rows, model.config.decoder_start_id, jnp.int32),
    done_BN=jnp.zeros(rows, bool),
    paused=jnp.zeros((), bool),
    tokens_BNT=jnp.full(shape, model.config.pad_id, jnp.int32),
    log_probs_BNT=jnp.zeros(shape, jnp.float32),
    forced_BNT=jnp.full(shape, -1, jnp.int32),
    cache=cache,
  )
  return _sharded_over_batch(state)


def _sharded_over_batch(state: DecodeState) -> DecodeState:
  """Shards the rows over the current mesh, if any.

  The states that `start` and `resume` return then have the same shardings, so
  that `resume` is compiled only once.
  """

  def sharded(name: str) -> jax.Array:
    array = getattr(state, name)
    axes = ("batch", *[None] * (array.ndim - 1))
    return nn.with_logical_constraint(array, axes)

  names = ("last_BN", "done_BN", "tokens_BNT", "log_probs_BNT", "forced_BNT")
  return state.replace(**{name: sharded(name) for name in names})


@functools.partial(
  jax.jit,
  static_argnames=("model", "strategy", "eos_ids"),
  donate_argnames="state",
)
def _resume(
  params: network.Params,
  state: DecodeState,
  decode_rng: jax.Array | None,
  row_ids_BN: jax.Array,
  pause_V: jax.Array | None,
  *,
  model: network.EncoderDecoder,
  strategy: strategies.Strategy,
  eos_ids: tuple[int, ...],
) -> DecodeState:
  model, params = network.unrolled(model, params)
  variables = {"params": params}
  row_ids_R = row_ids_BN.reshape(-1)

  def should_continue(state: DecodeState) -> jax.Array:
    return ~(state.finished | state.paused)

  def advance(state: DecodeState) -> DecodeState:
    hidden_R1D, cache = model.apply(
      variables, state.cache, state.last_BN.reshape(-1, 1), method="extend"
    )
    logits_R1V = model.apply(variables, hidden_R1D, method="logits")
    rngs_R = _row_keys(decode_rng, row_ids_R, state.step)
    chosen_R = strategy(logits_R1V[:, 0], rngs_R)
    state = state.replace(cache=cache)
    return _append(
      state,
      logits_R1V[:, 0],
      chosen_R,
      pad_id=model.config.pad_id,
      eos_ids=eos_ids,
      pause_V=pause_V,
    )

  state = state.replace(paused=jnp.zeros((), bool))
  return _sharded_over_batch(
    jax.lax.while_loop(should_continue, advance, state)
  )


def _row_keys(
  decode_rng: jax.Array | None, row_ids_R: jax.Array, step: jax.Array
) -> jax.Array | None:
  """Returns the key of each row for this step."""
  if decode_rng is None:
    return None
  step_rng = jax.random.fold_in(decode_rng, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_rng, row_ids_R)


def _append(
  state: DecodeState,
  logits_RV: jax.Array,
  chosen_R: jax.Array,
  *,
  pad_id: int,
  eos_ids: tuple[int, ...],
  pause_V: jax.Array | None,
) -> DecodeState:
  """Appends a token to each row, padding to rows that have ended."""
  shape = state.done_BN.shape
  forced_BN = jax.lax.dynamic_index_in_dim(
    state.forced_BNT, state.step, axis=2, keepdims=False
  )
  is_forced_BN = forced_BN >= 0
  chosen_BN = jnp.where(is_forced_BN, forced_BN, chosen_R.reshape(shape))
  log_probs_BN = token_log_probs(logits_RV, chosen_BN.reshape(-1))
  chosen_BN = jnp.where(state.done_BN, pad_id, chosen_BN)
  log_probs_BN = jnp.where(
    state.done_BN, jnp.float32(0), log_probs_BN.reshape(shape)
  )
  paused = state.paused
  if pause_V is not None:
    pauses_BN = pause_V[chosen_BN] & ~is_forced_BN & ~state.done_BN
    paused = jnp.any(pauses_BN)
  done_BN = state.done_BN | ends(chosen_BN, eos_ids)
  return state.replace(
    step=state.step + 1,
    last_BN=chosen_BN,
    done_BN=done_BN,
    paused=paused,
    tokens_BNT=state.tokens_BNT.at[:, :, state.step].set(chosen_BN),
    log_probs_BNT=state.log_probs_BNT.at[:, :, state.step].set(log_probs_BN),
  )


def ends(tokens: jax.Array, eos_ids: tuple[int, ...]) -> jax.Array:
  """Returns a bool array: which tokens are among those that end a sequence."""
  return jnp.isin(tokens, jnp.array(eos_ids, jnp.int32))


def token_log_probs(logits_RV: jax.Array, tokens_R: jax.Array) -> jax.Array:
  """Computes the log-probability of one token per row, `[R]`, in nats."""
  token_logits_R1 = jnp.take_along_axis(logits_RV, tokens_R[:, None], axis=-1)
  return token_logits_R1[:, 0] - jax.nn.logsumexp(logits_RV, axis=-1)
