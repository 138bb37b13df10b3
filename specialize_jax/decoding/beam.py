"""Beam search with W beams per row.

The algorithm is that of `generate(num_beams=W, early_stopping=False)` of
`transformers`, step by step, and returns the same sequences. Of the 2 W most
likely extensions of all beams, those that end compete by score for W places
among the finished beams, and the W most likely others continue. A row ends when
its best running beam, scored at its current length, would not displace the
worst of W finished beams.

The cache is not reordered. Keys and values of a beam stay where they were
computed, and only `ancestors`, the beam of each step that a beam descends from,
is reordered.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from specialize_jax import errors
from specialize_jax.decoding import loop
from specialize_jax.t5 import network

# The score of absent beams: far below any sum of log-probabilities, but finite
# as in `transformers`, so that sums of it are not nan.
_ABSENT = -1e9


class BeamOutput(NamedTuple):
  """The R best sequences of each row, best first.

  Attributes:
    tokens: int32 `[B, R, T]`, without the start token; padding follows after
      EOS.
    scores: float32 `[B, R]`, the sum of the log-probabilities divided by
      `length ** length_penalty`, where the length includes EOS.
    log_probs: float32 `[B, R, T]`, of each token; 0 at padding.
  """

  tokens: jax.Array
  scores: jax.Array
  log_probs: jax.Array


class _Beams(flax.struct.PyTreeNode):
  """W sequences of each row, or candidates for them.

  Attributes:
    scores_BW: float32; of running beams the sum of log-probabilities, of
      finished ones that sum divided by the length penalty.
    tokens_BWT: int32, padding after the sequence.
    log_probs_BWT: float32, 0 after the sequence.
  """

  scores_BW: jax.Array
  tokens_BWT: jax.Array
  log_probs_BWT: jax.Array

  @classmethod
  def absent(
    cls, batch_size: int, num_beams: int, length: int, *, pad_id: int
  ) -> "_Beams":
    """Returns absent beams."""
    shape = (batch_size, num_beams)
    return cls(
      scores_BW=jnp.full(shape, _ABSENT, jnp.float32),
      tokens_BWT=jnp.full((*shape, length), pad_id, jnp.int32),
      log_probs_BWT=jnp.zeros((*shape, length), jnp.float32),
    )


class _State(flax.struct.PyTreeNode):
  """The carry of the loop.

  Attributes:
    step: int32 scalar, number of tokens of the running beams.
    running: the running beams.
    ancestors_BWT: int32, the beam of each step that a beam descends from.
    finished: the best finished beams, by score; absent ones last.
    is_present_BW: bool, which of the finished beams are present.
    open_B: bool, whether running beams of a row may still displace finished
      ones.
    cache: the network's cache.
  """

  step: jax.Array
  running: _Beams
  ancestors_BWT: jax.Array
  finished: _Beams
  is_present_BW: jax.Array
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
  eos_ids: tuple[int, ...] | None = None,
) -> BeamOutput:
  """Returns the best sequences of each row by beam search.

  Args:
    model: the network; scanned layers are unrolled first.
    params: its parameters.
    encoder_input_tokens_BS: int32, `T5Config.pad_id` at padding.
    max_new_tokens: T, including EOS. Beams that have not ended by then count as
      finished.
    num_beams: W, at most half the vocabulary, or 1 / (K + 1) of it with K > 1
      tokens that end a sequence.
    num_return_sequences: R, at most W.
    length_penalty: the sum of log-probabilities is divided by the length to
      this power; positive values favor longer sequences.
    eos_ids: the tokens that end a sequence, the model's if None; with none,
      `()`, `max_new_tokens` tokens are always decoded.

  Returns:
    The R best sequences of each row.

  Raises:
    UserError: `max_new_tokens` is not positive, or `num_beams` or
      `num_return_sequences` is out of range.
  """
  if max_new_tokens < 1:
    raise errors.UserError(
      f"max_new_tokens is {max_new_tokens}, and must be at least 1."
    )
  eos_ids = model.config.eos_ids if eos_ids is None else tuple(eos_ids)
  share = _candidates_per_beam(eos_ids)
  most = model.config.vocab_size // share
  if not 1 <= num_beams <= most:
    raise errors.UserError(
      f"num_beams is {num_beams}, and must be from 1 to {most}, the "
      f"vocabulary divided by {share}."
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
    eos_ids=eos_ids,
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    "model",
    "max_new_tokens",
    "num_beams",
    "num_return_sequences",
    "length_penalty",
    "eos_ids",
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
  eos_ids: tuple[int, ...],
) -> BeamOutput:
  model, params, cache = loop.encode(
    model,
    params,
    encoder_input_tokens_BS,
    max_length=max_new_tokens,
    num_beams=num_beams,
  )

  def should_continue(state: _State) -> jax.Array:
    return (state.step < max_new_tokens) & jnp.any(state.open_B)

  def advance(state: _State) -> _State:
    state, log_probs_BWV = _next_log_probs(model, params, state)
    extended, parents_BC, ends_BC = _extensions(state, log_probs_BWV, eos_ids)
    ends_BC = ends_BC | (state.step + 1 == max_new_tokens)
    state = _continue(state, extended, parents_BC, ends_BC)
    return _finish(state, extended, ends_BC, length_penalty)

  batch_size = encoder_input_tokens_BS.shape[0]
  absent = _Beams.absent(
    batch_size, num_beams, max_new_tokens, pad_id=model.config.pad_id
  )
  state = _State(
    step=jnp.zeros((), jnp.int32),
    # A single beam at first: W equal beams would remain equal.
    running=absent.replace(scores_BW=absent.scores_BW.at[:, 0].set(0.0)),
    ancestors_BWT=jnp.zeros(absent.tokens_BWT.shape, jnp.int32),
    finished=absent,
    is_present_BW=jnp.zeros((batch_size, num_beams), bool),
    open_B=jnp.ones((batch_size,), bool),
    cache=cache,
  )
  finished = jax.lax.while_loop(should_continue, advance, state).finished
  best = jax.tree.map(lambda leaf: leaf[:, :num_return_sequences], finished)
  return BeamOutput(best.tokens_BWT, best.scores_BW, best.log_probs_BWT)


def _next_log_probs(
  model: network.EncoderDecoder, params: network.Params, state: _State
) -> tuple[_State, jax.Array]:
  """Runs the network on the last tokens; returns float32 `[B, W, V]`."""
  batch_size, num_beams = state.running.scores_BW.shape
  last_BW = jnp.where(
    state.step == 0,
    model.config.decoder_start_id,
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
  state: _State, log_probs_BWV: jax.Array, eos_ids: tuple[int, ...]
) -> tuple[_Beams, jax.Array, jax.Array]:
  """Returns the C best extensions, best first.

  Twice as many as beams, so that W remain if W of them end; K + 1 times as
  many with K > 1 tokens that end a sequence.

  Returns:
    The sequences; int32, the beam that each extends; bool, which of them end.
  """
  batch_size, num_beams, vocab_size = log_probs_BWV.shape
  sums_BWV = log_probs_BWV + state.running.scores_BW[..., None]
  # First the top k of each beam, which contain the top k of all beams: sorting
  # all W V columns at once would be slower.
  num_candidates = _candidates_per_beam(eos_ids) * num_beams
  num_kept = min(num_candidates, vocab_size)
  sums_BWC, tokens_BWC = jax.lax.top_k(sums_BWV, num_kept)
  scores_BC, places_BC = jax.lax.top_k(
    sums_BWC.reshape(batch_size, -1), num_candidates
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
  return extended, parents_BC, loop.ends(tokens_BC, eos_ids)


def _candidates_per_beam(eos_ids: tuple[int, ...]) -> int:
  return max(2, 1 + len(eos_ids))


def _continue(
  state: _State, extended: _Beams, parents_BC: jax.Array, ends_BC: jax.Array
) -> _State:
  """Replaces the running beams by the W best extensions that do not end."""
  num_beams = state.running.scores_BW.shape[1]
  scores_BC = extended.scores_BW + jnp.where(ends_BC, _ABSENT, 0.0)
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
  """Merges extensions that end into the finished beams, and closes rows.

  Only extensions among the W best may finish; the other W are candidates for
  the running beams.
  """
  num_beams = state.running.scores_BW.shape[1]
  is_best_1C = (jnp.arange(ends_BC.shape[1]) < num_beams)[None]
  enters_BC = ends_BC & is_best_1C & state.open_B[:, None]
  penalty = state.step.astype(jnp.float32) ** length_penalty
  entering = extended.replace(
    scores_BW=jnp.where(enters_BC, extended.scores_BW / penalty, _ABSENT)
  )
  merged = jax.tree.map(
    lambda old, new: jnp.concatenate([old, new], axis=1),
    (state.finished, state.is_present_BW),
    (entering, enters_BC),
  )
  _, places_BW = jax.lax.top_k(merged[0].scores_BW, num_beams)
  finished, is_present_BW = jax.tree.map(
    lambda leaf: _take(leaf, places_BW), merged
  )
  best_running_B = state.running.scores_BW[:, 0] / penalty
  worst_finished_B = jnp.min(finished.scores_BW, axis=1)
  may_improve_B = ~jnp.all(is_present_BW, axis=1) | (
    best_running_B > worst_finished_B
  )
  return state.replace(
    finished=finished,
    is_present_BW=is_present_BW,
    open_B=state.open_B & may_improve_B,
  )


def _take(values: jax.Array, places_BC: jax.Array) -> jax.Array:
  """Gathers entries along axis 1, at each row's indices."""
  places = places_BC.reshape(places_BC.shape + (1,) * (values.ndim - 2))
  return jnp.take_along_axis(values, places, axis=1)
