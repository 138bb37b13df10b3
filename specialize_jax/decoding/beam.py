"""Beam search: the W likeliest beginnings of each row, one token further.

The search is that of `transformers`' `generate(num_beams=W)` with
`early_stopping=False`, step by step, so that a model gives the same sequences
here and there. Of the 2 W likeliest extensions of all beams those that end
compete for W places among the finished, by score, and the W likeliest others
go on. A row ends when its best beam, as long as it is now, would not displace
the worst of W finished ones.

A beam keeps its past where it was computed, in the cache of its row: only
`ancestors`, which beam of each step it comes from, is reordered.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from specialize_jax import errors
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

# The score of a beam that is not there. Finite as in `transformers`, so that
# sums of it stay numbers; far below any sum of log-probabilities.
_NONE = -1e9


class BeamOutput(NamedTuple):
  """The R best sequences of each row, best first.

  Attributes:
    tokens: int32 `[B, R, T]`, without the start token; EOS is kept, padding
      follows.
    scores: float32 `[B, R]`, the sum of the log-probabilities divided by
      `length ** length_penalty`, where the length counts EOS.
    log_probs: float32 `[B, R, T]`, each token's; 0 where padding.
  """

  tokens: jax.Array
  scores: jax.Array
  log_probs: jax.Array


class _Beams(flax.struct.PyTreeNode):
  """Some sequences of each row, W of them or candidates for it.

  Attributes:
    scores_BW: float32: of what runs the sum of its log-probabilities; of what
      has finished that sum by its length.
    tokens_BWT: int32, padding after the sequence.
    log_probs_BWT: float32, 0 after the sequence.
  """

  scores_BW: jax.Array
  tokens_BWT: jax.Array
  log_probs_BWT: jax.Array

  @classmethod
  def none(cls, batch_size: int, num_beams: int, length: int) -> "_Beams":
    """Gives beams that are not there."""
    shape = (batch_size, num_beams)
    return cls(
      scores_BW=jnp.full(shape, _NONE, jnp.float32),
      tokens_BWT=jnp.full((*shape, length), t5_config.PAD_ID, jnp.int32),
      log_probs_BWT=jnp.zeros((*shape, length), jnp.float32),
    )


class _State(flax.struct.PyTreeNode):
  """What the loop carries.

  Attributes:
    step: int32 scalar, how many tokens running beams have.
    running: the beams that go on.
    ancestors_BWT: int32, which beam of each step they come from.
    finished: the best that have ended, by score; those that are not there
      last.
    is_there_BW: bool, which of the finished are there.
    open_B: bool, whether a row's running beams may still displace finished
      ones.
    cache: the network's.
  """

  step: jax.Array
  running: _Beams
  ancestors_BWT: jax.Array
  finished: _Beams
  is_there_BW: jax.Array
  open_B: jax.Array
  cache: network.DecodeCache


def decode(
  model: network.EncoderDecoder,
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  *,
  max_new_tokens: int,
  num_beams: int,
  num_return_sequences: int = 1,
  length_penalty: float = 1.0,
  eos_id: int | None = t5_config.EOS_ID,
) -> BeamOutput:
  """Gives the best sequences that a beam search finds for each row.

  Args:
    model: the network; scanned layers are unrolled first.
    params: its parameters.
    encoder_input_tokens_BS: int32, 0 where padding.
    max_new_tokens: T, EOS included. What has not ended by then competes as
      it is.
    num_beams: W, at most half the vocabulary.
    num_return_sequences: R, at most W.
    length_penalty: the exponent of a sequence's length, which its sum of
      log-probabilities is divided by; above 0 favours longer sequences.
    eos_id: the token that ends a sequence; None decodes `max_new_tokens`
      always.

  Raises:
    UserError: there is nothing to decode, or one of the numbers of sequences
      is out of range.
  """
  if max_new_tokens < 1:
    raise errors.UserError(
      f"max_new_tokens is {max_new_tokens}, and must be at least 1."
    )
  most = model.config.vocab_size // 2
  if not 1 <= num_beams <= most:
    raise errors.UserError(
      f"num_beams is {num_beams}, and must be from 1 to {most}, half the "
      "vocabulary."
    )
  if not 1 <= num_return_sequences <= num_beams:
    raise errors.UserError(
      f"num_return_sequences is {num_return_sequences}, and must be from 1 to "
      f"num_beams={num_beams}: ask for fewer, or search with more beams."
    )
  return _decode(
    params,
    encoder_input_tokens_BS,
    model=model,
    max_new_tokens=max_new_tokens,
    num_beams=num_beams,
    num_return_sequences=num_return_sequences,
    length_penalty=length_penalty,
    eos_id=eos_id,
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    "model",
    "max_new_tokens",
    "num_beams",
    "num_return_sequences",
    "length_penalty",
    "eos_id",
  ),
)
def _decode(
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  *,
  model: network.EncoderDecoder,
  max_new_tokens: int,
  num_beams: int,
  num_return_sequences: int,
  length_penalty: float,
  eos_id: int | None,
) -> BeamOutput:
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
    max_length=max_new_tokens,
    num_beams=num_beams,
    method="start_cache",
  )

  def goes_on(state: _State) -> jax.Array:
    return (state.step < max_new_tokens) & jnp.any(state.open_B)

  def advance(state: _State) -> _State:
    state, log_probs_BWV = _next_log_probs(model, params, state)
    extended, parents_BC, ends_BC = _extensions(state, log_probs_BWV, eos_id)
    ends_BC = ends_BC | (state.step + 1 == max_new_tokens)
    state = _go_on(state, extended, parents_BC, ends_BC)
    return _finish(state, extended, ends_BC, length_penalty)

  batch_size = encoder_input_tokens_BS.shape[0]
  none = _Beams.none(batch_size, num_beams, max_new_tokens)
  state = _State(
    step=jnp.zeros((), jnp.int32),
    # One beam to begin with: W equal ones would stay equal.
    running=none.replace(scores_BW=none.scores_BW.at[:, 0].set(0.0)),
    ancestors_BWT=jnp.zeros(none.tokens_BWT.shape, jnp.int32),
    finished=none,
    is_there_BW=jnp.zeros((batch_size, num_beams), bool),
    open_B=jnp.ones((batch_size,), bool),
    cache=cache,
  )
  finished = jax.lax.while_loop(goes_on, advance, state).finished
  best = jax.tree.map(lambda leaf: leaf[:, :num_return_sequences], finished)
  return BeamOutput(best.tokens_BWT, best.scores_BW, best.log_probs_BWT)


def _next_log_probs(
  model: network.EncoderDecoder, params: network.Params, state: _State
) -> tuple[_State, jax.Array]:
  """Runs the network one position further; gives float32 `[B, W, V]`."""
  batch_size, num_beams = state.running.scores_BW.shape
  last_BW = jnp.where(
    state.step == 0,
    t5_config.PAD_ID,
    jax.lax.dynamic_index_in_dim(
      state.running.tokens_BWT,
      jnp.maximum(state.step - 1, 0),
      axis=2,
      keepdims=False,
    ),
  )
  own_BW = jnp.broadcast_to(
    jnp.arange(num_beams, dtype=jnp.int32)[None], (batch_size, num_beams)
  )
  ancestors_BWT = state.ancestors_BWT.at[:, :, state.step].set(own_BW)
  variables = {"params": params}
  hidden_BWD, cache = model.apply(
    variables, state.cache, last_BW, ancestors_BWT, method="extend_beams"
  )
  logits_BWV = model.apply(variables, hidden_BWD, method="logits")
  state = state.replace(cache=cache, ancestors_BWT=ancestors_BWT)
  return state, jax.nn.log_softmax(logits_BWV, axis=-1)


def _extensions(
  state: _State, log_probs_BWV: jax.Array, eos_id: int | None
) -> tuple[_Beams, jax.Array, jax.Array]:
  """Gives the 2 W best extensions, best first.

  Twice as many as beams, so that W are left if W of them end.

  Returns:
    The sequences; int32, the beam that each extends; bool, which of them end.
  """
  batch_size, num_beams, vocab_size = log_probs_BWV.shape
  sums_BWV = log_probs_BWV + state.running.scores_BW[..., None]
  # First in each beam: no extension is among the 2 W best of all without
  # being among those of its beam, and a sort of W V columns would be long.
  num_kept = min(2 * num_beams, vocab_size)
  sums_BWC, tokens_BWC = jax.lax.top_k(sums_BWV, num_kept)
  scores_BC, places_BC = jax.lax.top_k(
    sums_BWC.reshape(batch_size, -1), 2 * num_beams
  )
  parents_BC = places_BC // num_kept
  tokens_BC = _take(tokens_BWC.reshape(batch_size, -1), places_BC)
  log_probs_BC = _take(
    jnp.take_along_axis(log_probs_BWV, tokens_BWC, axis=-1).reshape(
      batch_size, -1
    ),
    places_BC,
  )
  running = state.running
  extended = _Beams(
    scores_BW=scores_BC,
    tokens_BWT=_take(running.tokens_BWT, parents_BC)
    .at[:, :, state.step]
    .set(tokens_BC),
    log_probs_BWT=_take(running.log_probs_BWT, parents_BC)
    .at[:, :, state.step]
    .set(log_probs_BC),
  )
  if eos_id is None:
    return extended, parents_BC, jnp.zeros(tokens_BC.shape, bool)
  return extended, parents_BC, tokens_BC == eos_id


def _go_on(
  state: _State, extended: _Beams, parents_BC: jax.Array, ends_BC: jax.Array
) -> _State:
  """Keeps running the W best extensions that do not end."""
  num_beams = state.running.scores_BW.shape[1]
  scores_BC = extended.scores_BW + jnp.where(ends_BC, _NONE, 0.0)
  scores_BW, places_BW = jax.lax.top_k(scores_BC, num_beams)
  kept = jax.tree.map(lambda leaf: _take(leaf, places_BW), extended)
  return state.replace(
    step=state.step + 1,
    running=kept.replace(scores_BW=scores_BW),
    ancestors_BWT=_take(state.ancestors_BWT, _take(parents_BC, places_BW)),
  )


def _finish(
  state: _State, extended: _Beams, ends_BC: jax.Array, length_penalty: float
) -> _State:
  """Puts what has ended among the finished, and says which rows go on.

  Only an extension among the W best may finish; the others are there to
  replace those.
  """
  num_beams = state.running.scores_BW.shape[1]
  is_best_1C = (jnp.arange(2 * num_beams) < num_beams)[None]
  enters_BC = ends_BC & is_best_1C & state.open_B[:, None]
  penalty = state.step.astype(jnp.float32) ** length_penalty
  entering = extended.replace(
    scores_BW=jnp.where(enters_BC, extended.scores_BW / penalty, _NONE)
  )
  merged = jax.tree.map(
    lambda old, new: jnp.concatenate([old, new], axis=1),
    (state.finished, state.is_there_BW),
    (entering, enters_BC),
  )
  _, places_BW = jax.lax.top_k(merged[0].scores_BW, num_beams)
  finished, is_there_BW = jax.tree.map(
    lambda leaf: _take(leaf, places_BW), merged
  )
  hoped_B = state.running.scores_BW[:, 0] / penalty
  worst_B = jnp.min(finished.scores_BW, axis=1)
  may_improve_B = ~jnp.all(is_there_BW, axis=1) | (hoped_B > worst_B)
  return state.replace(
    finished=finished,
    is_there_BW=is_there_BW,
    open_B=state.open_B & may_improve_B,
  )


def _take(values: jax.Array, places_BC: jax.Array) -> jax.Array:
  """Gives the entries of axis 1 at each row's places."""
  places = places_BC.reshape(places_BC.shape + (1,) * (values.ndim - 2))
  return jnp.take_along_axis(values, places, axis=1)
