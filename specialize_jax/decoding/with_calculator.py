"""Decoding with a calculator: after `48 / 2 =` the result is forced.

Whenever the model itself takes a token that ends with `=`, the text so far is
read back, `cot.calculator` computes what stands before the sign, and the
result's tokens are forced, after which the model goes on.

Cost: the loop is the compiled one of `loop.resume`, which pauses when some
row has just written a sign. Rows stay in lock step and what was decoded stays
in the cache, so nothing is computed twice and nothing is compiled for a
pause; a pause is one round to the host, a few kilobytes of tokens down and as
many back (about a millisecond on a CPU; what the link takes on an
accelerator). There is at most one pause a position however many rows write a
sign there, and none where no row does. The compiled program is another than
plain decoding's, once for each shape.

Law: where no row writes a sign the output is that of plain decoding, and
forced text appears exactly as `calculator.result_of` gives it. A result that
the vocabulary cannot spell exactly after what was written is not forced.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from specialize_jax.cot import calculator
from specialize_jax.decoding import bucketing, loop, strategies
from specialize_jax.decoding import vocabulary as vocabularies
from specialize_jax.t5 import network

# So many tokens hold an expression of the calculator's length: a token spells
# at least one character, or the start of a word.
_TAIL_TOKENS = 2 * calculator.MAX_CHARACTERS

_NOTHING_FORCED = -1


class Calculator:
  """Computes on token ids what `cot.calculator` computes on text.

  Attributes:
    pauses_V: bool, the tokens whose spelling ends with `=`.
  """

  def __init__(
    self, vocabulary: vocabularies.Vocabulary, vocab_size: int
  ) -> None:
    """Finds the tokens that end with the sign.

    Args:
      vocabulary: spells the ids.
      vocab_size: rows of the model's embedding (V).
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
    """Gives the ids to force after what a row has written.

    Args:
      written: the row's ids so far, without padding.

    Returns:
      The ids; none if there is no result, or no ids that spell just it.
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
    """Encodes the result behind a sign, as the student's own text has it.

    `= 24` is encoded and not `24`, which would begin a word of its own.
    """
    ids = self._vocabulary.encode(f"={result}")
    spelled = result.replace(" ", vocabularies.WORD_START)
    for start in range(len(ids)):
      if "".join(map(self._vocabulary.piece, ids[start:])) == spelled:
        return ids[start:]
    return []

  def _letter_by_letter(self, result: str) -> list[int]:
    """Spells the result by single characters, where no piece ends at `=`."""
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
  """Gives continuations of each row in which sums have their results.

  Args:
    model: the network; scanned layers are unrolled at every pause, so a
      caller with many batches does it once (`network.unrolled`).
    params: its parameters.
    encoder_input_tokens_BS: int32, 0 where padding.
    calculate: of the model's vocabulary.
    max_new_tokens: T, EOS and forced tokens included.
    strategy: the rule for what is not forced.
    decode_rng: as `loop.decode` takes it.
    row_ids_BN: likewise; every row has N continuations.

  Returns:
    Tokens and log-probabilities `[B, N, T]`; a forced token has what the
    model gave it.

  Raises:
    UserError: as `loop.decode` does.
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
  """Gives what is forced from now on; None if that has not changed."""
  step = int(state.step)
  tokens_BNT = bucketing.to_host(state.tokens_BNT)
  last_BN = tokens_BNT[..., step - 1]
  forced_BNT = bucketing.to_host(state.forced_BNT).copy()
  # A sign that was forced itself (there is none today) computes nothing.
  chosen_BN = forced_BNT[..., step - 1] == _NOTHING_FORCED
  rows = np.argwhere(calculate.pauses_V[last_BN] & chosen_BN)
  changed = False
  for b, n in rows:
    ids = calculate.result_ids(tokens_BNT[b, n, :step].tolist())
    room = ids[: forced_BNT.shape[-1] - step]
    forced_BNT[b, n, step : step + len(room)] = room
    changed |= bool(room)
  return forced_BNT if changed else None
