"""Decoding with a calculator, which forces the result after `48 / 2 =`.

Whenever the model itself generates a token that ends with `=`, the text so far
is decoded, `cot.calculator` evaluates the expression before the sign, and the
tokens of the result are forced; then the model continues.

The loop is the compiled one of `loop.resume`, which pauses when a row has just
generated a sign. All rows advance together and the cache is kept, so a pause
recomputes and recompiles nothing. It costs one round trip to the host, with a
few kilobytes of tokens in each direction (about a millisecond on a CPU). There
is at most one pause per position, however many rows generate a sign there. The
program is compiled separately from that of plain decoding, once for each shape.

If no row generates a sign, the output is that of plain decoding. Forced text is
exactly what `calculator.result_of` returns; a result that the vocabulary cannot
spell exactly after the text so far is not forced.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from specialize_jax.cot import calculator
from specialize_jax.decoding import bucketing, loop, strategies
from specialize_jax.decoding import vocabulary as vocabularies
from specialize_jax.t5 import network

# Enough tokens for an expression of the calculator's maximum length: a token
# spells at least one character, or the start of a word.
_TAIL_TOKENS = 2 * calculator.MAX_CHARACTERS

_NOTHING_FORCED = -1


class Calculator:
  """Applies `cot.calculator` to token ids.

  Attributes:
    pauses_V: bool, the tokens whose spelling ends with `=`.
  """

  def __init__(
    self, vocabulary: vocabularies.Vocabulary, vocab_size: int
  ) -> None:
    """Finds the tokens that end with `=`.

    Args:
      vocabulary: the model's vocabulary.
      vocab_size: number of rows of the model's embedding (V).
    """
    self._vocabulary = vocabulary
    signs = [
      vocabulary.piece(i).rstrip(vocabularies.WORD_START).endswith("=")
      for i in range(min(vocabulary.num_pieces, vocab_size))
    ]
    self.pauses_V = np.pad(np.array(signs, bool), (0, vocab_size - len(signs)))
    self._ids_of = {
      vocabulary.piece(i): i
      for i in reversed(range(min(vocabulary.num_pieces, vocab_size)))
    }

  def result_ids(self, written: Sequence[int]) -> list[int]:
    """Returns the ids to force after a row's ids.

    Args:
      written: the row's ids so far, without padding.

    Returns:
      The ids of the result; empty if there is no result, or no ids spell it
      exactly.
    """
    tail = list(written[-_TAIL_TOKENS:])
    text = self._vocabulary.decode(tail)
    result = calculator.result_of(text)
    if result is None:
      return []
    for ids in (self._as_encoded(result), self._letter_by_letter(result)):
      if ids and self._vocabulary.decode(tail + ids) == text + result:
        return ids
    return []

  def _as_encoded(self, result: str) -> list[int]:
    """Encodes the result after a sign, as in the student's own text.

    It encodes `= 24` rather than `24`, which would start a new word.
    """
    ids = self._vocabulary.encode(f"={result}")
    spelled = result.replace(" ", vocabularies.WORD_START)
    for start in range(len(ids)):
      if "".join(map(self._vocabulary.piece, ids[start:])) == spelled:
        return ids[start:]
    return []

  def _letter_by_letter(self, result: str) -> list[int]:
    """Spells the result by single characters, if no piece ends at `=`."""
    letters = result.replace(" ", vocabularies.WORD_START)
    ids = [self._ids_of.get(letter) for letter in letters]
    return [] if None in ids else ids


def decode(
  model: network.EncoderDecoder,
  params: network.Params,
  encoder_input_tokens_BS: jax.Array,
  *,
  calculate: Calculator,
  max_new_tokens: int,
  strategy: strategies.Strategy,
  decode_rng: jax.Array | None = None,
  row_ids_BN: jax.Array,
) -> loop.DecodeOutput:
  """Decodes continuations of each row, forcing the results of calculations.

  Args:
    model: the network; scanned layers are unrolled at every pause, so callers
      with many batches unroll them once (`network.unrolled`).
    params: its parameters.
    encoder_input_tokens_BS: int32, `T5Config.pad_id` at padding.
    calculate: the calculator for the model's vocabulary.
    max_new_tokens: T, including EOS and forced tokens.
    strategy: the rule for tokens that are not forced.
    decode_rng: see `loop.decode`.
    row_ids_BN: see `loop.decode`; each row has N continuations.

  Returns:
    Tokens and log-probabilities `[B, N, T]`; those of forced tokens are the
    model's too.

  Raises:
    UserError: see `loop.decode`.
  """
  state = loop.start(
    model,
    params,
    encoder_input_tokens_BS,
    max_new_tokens=max_new_tokens,
    num_continuations=row_ids_BN.shape[1],
  )
  resume = functools.partial(
    loop.resume,
    model,
    params,
    strategy=strategy,
    decode_rng=decode_rng,
    row_ids_BN=row_ids_BN,
    pause_V=calculate.pauses_V,
  )
  while not state.finished:
    state = resume(state)
    forced_BNT = _forced(state, calculate)
    if forced_BNT is not None:
      state = state.forcing(forced_BNT)
  return loop.DecodeOutput(state.tokens_BNT, state.log_probs_BNT)


def _forced(
  state: loop.DecodeState, calculate: Calculator
) -> np.ndarray | None:
  """Returns the new forced tokens, or None if they have not changed."""
  step = int(state.step)
  tokens_BNT = bucketing.to_host(state.tokens_BNT)
  last_BN = tokens_BNT[..., step - 1]
  forced_BNT = bucketing.to_host(state.forced_BNT).copy()
  # A sign that is itself forced (none is today) is not evaluated.
  chosen_BN = forced_BNT[..., step - 1] == _NOTHING_FORCED
  rows = np.argwhere(calculate.pauses_V[last_BN] & chosen_BN)
  changed = False
  for b, n in rows:
    ids = calculate.result_ids(tokens_BNT[b, n, :step].tolist())
    room = ids[: forced_BNT.shape[-1] - step]
    forced_BNT[b, n, step : step + len(room)] = room
    changed |= bool(room)
  return forced_BNT if changed else None
