"""Decodes and scores requests; used by `specialize generate` and evaluation.

`Generator` batches requests by length (`bucketing`), runs one compiled program
for each shape, and returns results by the index of the request.

The result of a request depends on its ids, its number, the settings and the
parameters, and not on the other requests of its batch or their order, except
that rounding may swap two nearly equal logits. Sampling keys are derived from
(seed, request number, sample number).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import jax
import numpy as np

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.decoding import (
  beam,
  bucketing,
  loop,
  requests,
  scoring,
  self_consistency,
  with_calculator,
)
from specialize_jax.decoding import rows as rows_lib
from specialize_jax.decoding import vocabulary as vocabularies
from specialize_jax.t5 import network


def generate(
  model: network.EncoderDecoder,
  params: network.Params,
  texts: Sequence[str],
  *,
  vocabulary: vocabularies.Vocabulary,
  settings: requests.Settings | None = None,
  batch_size: int = 32,
  input_limit: int = 1024,
) -> list[str]:
  """Decodes texts to texts, one output for each.

  `Generator` returns more: ids, log-probabilities, all samples and beams.

  Args:
    model: the network.
    params: its parameters.
    texts: the inputs, as the model was trained on them.
    vocabulary: the model's vocabulary.
    settings: the settings of decoding, greedy by default.
    batch_size: number of texts decoded together.
    input_limit: maximum length of an input in tokens.

  Returns:
    The outputs in the order of `texts`.

  Raises:
    UserError: a text is longer than `input_limit`, or `batch_size` is not
      positive.
  """
  if isinstance(texts, str):
    raise errors.UserError(
      f"texts={texts[:40]!r} is one text: expected a list of texts"
    )
  for place, text in enumerate(texts):
    if not isinstance(text, str):
      raise errors.UserError(
        f"texts[{place}] is {text!r:.40}: expected a string"
      )
  reader = rows_lib.Reader(
    where="texts",
    model=model.config,
    vocabulary=vocabulary,
    input_limit=input_limit,
  )
  asked, _ = reader.read(list(enumerate([{"text": text} for text in texts])))
  generator = Generator(
    model,
    settings or requests.Settings(),
    vocabulary=vocabulary,
    batch_size=batch_size,
    input_limit=input_limit,
  )
  results = {}
  for batch in generator.run(params, asked):
    results |= batch
  return [results[place].output.text for place in range(len(texts))]


class Generator:
  """Decodes and scores requests with one model."""

  def __init__(
    self,
    model: network.EncoderDecoder,
    settings: requests.Settings,
    *,
    vocabulary: vocabularies.Vocabulary | None = None,
    batch_size: int = 32,
    input_limit: int = 1024,
    rule: answer_rules.AnswerRule = answer_rules.NUMBER,
  ) -> None:
    """Validates the arguments; computes nothing yet.

    Args:
      model: the network.
      settings: the settings of decoding.
      vocabulary: the model's vocabulary; required for texts, votes and the
        calculator.
      batch_size: number of requests decoded together, each with all its
        samples.
      input_limit: maximum length of an input, and of a batch.
      rule: the rule that extracts answers from samples, which then vote.

    Raises:
      UserError: the settings require a vocabulary, the batch size is not
        positive, or samples cannot vote by the rule.
    """
    if batch_size < 1:
      raise errors.UserError(
        f"batch_size is {batch_size}, and must be at least 1."
      )
    for name in ("self_consistency", "calculator"):
      if getattr(settings, name) and vocabulary is None:
        raise errors.UserError(
          f"{name} reads texts, which needs a vocabulary: give the model's, "
          "such as --vocabulary=spiece.model."
        )
    if settings.self_consistency:
      rule.check_votes()
    self._model = model
    self._settings = settings
    self._answer = rule
    self._vocabulary = vocabulary
    self._batch_size = batch_size
    self._input_limit = input_limit
    self._rule = settings.rule()
    self._calculate = None
    if settings.calculator:
      self._calculate = with_calculator.Calculator(
        vocabulary, model.config.vocab_size
      )

  def run(
    self,
    params: network.Params,
    asked: Sequence[requests.Request],
    *,
    ahead: int = 0,
    done: Collection[int] = (),
  ) -> Iterator[Mapping[int, requests.Result]]:
    """Decodes requests batch by batch.

    Args:
      params: the parameters, on one device or on the current mesh.
      asked: the requests, in any order; similar lengths are batched together.
      ahead: number of batches to dispatch before the results of the first are
        read, so that the device does not wait for the host. An interruption
        loses these batches.
      done: indices of requests that an earlier run has completed. Batches are
        formed as if there were none, and are skipped only if all their requests
        are done, so results are bitwise those of an uninterrupted run.

    Yields:
      The results of one batch by index in `asked`. Each index occurs once, and
      none that is done.

    Raises:
      UserError: the mesh of `params` does not divide the batch size.
    """
    sharding = bucketing.batch_sharding(params, self._batch_size)
    waiting = []
    for places, batch in self._batches(asked):
      if all(place in done for place in places):
        continue
      arrays = self._dispatch(params, batch, asked, places, sharding)
      waiting.append((places, arrays))
      if len(waiting) > ahead:
        yield self._read(asked, *waiting.pop(0), done)
    for places, arrays in waiting:
      yield self._read(asked, places, arrays, done)

  def _batches(
    self, asked: Sequence[requests.Request]
  ) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yields indices and inputs of batches, either all scored or none.

    Raises:
      UserError: an input is longer than the limit.
    """
    for place, request in enumerate(asked):
      if len(request.input_ids) > self._input_limit:
        raise errors.UserError(
          f"request {place} has {len(request.input_ids):,} tokens, more than"
          f" input_limit={self._input_limit:,}"
        )
    for scored in (False, True):
      places = [
        place
        for place, request in enumerate(asked)
        if (request.target_ids is not None) == scored
      ]
      for chosen, inputs in bucketing.batches(
        [asked[place].input_ids for place in places],
        batch_size=self._batch_size,
        limit=self._input_limit,
        pad_id=self._model.config.pad_id,
      ):
        yield [places[i] for i in chosen], inputs

  def _dispatch(
    self,
    params: network.Params,
    inputs: np.ndarray,
    asked: Sequence[requests.Request],
    places: Sequence[int],
    sharding: jax.sharding.Sharding | None,
  ) -> tuple[jax.Array, ...]:
    """Dispatches a batch; returns arrays that are read later."""
    settings = self._settings
    batch = [asked[place] for place in places]
    inputs_BS = bucketing.place(inputs, sharding)
    if batch[0].target_ids is not None:
      return self._score(params, inputs_BS, batch, sharding)
    if settings.strategy == "beam":
      return tuple(
        beam.decode(
          self._model,
          params,
          inputs_BS,
          max_new_tokens=settings.max_new_tokens,
          num_beams=settings.num_beams,
          num_return_sequences=settings.num_return_sequences,
          length_penalty=settings.length_penalty,
        )
      )
    numbers = [request.number for request in batch]
    arguments = {
      "max_new_tokens": settings.max_new_tokens,
      "strategy": self._rule,
      "decode_rng": jax.random.key(settings.seed)
      if self._rule.needs_rng
      else None,
    }
    rows_BN = _row_ids(numbers, settings.num_samples)
    rows_BN = bucketing.place(rows_BN, sharding)
    if self._calculate is None:
      return tuple(
        loop.decode(
          self._model, params, inputs_BS, row_ids_B=rows_BN, **arguments
        )
      )
    return tuple(
      with_calculator.decode(
        self._model,
        params,
        inputs_BS,
        calculate=self._calculate,
        row_ids_BN=rows_BN,
        **arguments,
      )
    )

  def _score(
    self,
    params: network.Params,
    inputs_BS: jax.Array | np.ndarray,
    batch: Sequence[requests.Request],
    sharding: jax.sharding.Sharding | None,
  ) -> tuple[jax.Array, ...]:
    """Dispatches a batch of requests with targets."""
    targets = [request.target_ids for request in batch]
    # Lengths, because a target may contain the padding id.
    lengths = np.array([len(target) for target in targets], np.int32)
    log_probs_BT = scoring.score(
      self._model,
      params,
      inputs_BS,
      bucketing.place(
        bucketing.padded(targets, pad_id=self._model.config.pad_id), sharding
      ),
      bucketing.place(lengths, sharding),
    )
    return (log_probs_BT,)

  def _read(
    self,
    asked: Sequence[requests.Request],
    places: Sequence[int],
    arrays: tuple[jax.Array, ...],
    done: Collection[int],
  ) -> dict[int, requests.Result]:
    """Waits for the results of a batch, ignoring rows that only fill it."""
    arrays = tuple(bucketing.to_host(array) for array in arrays)
    results = {}
    for row, place in enumerate(places):
      if place in results or place in done:
        continue
      target_ids = asked[place].target_ids
      if target_ids is not None:
        log_probs = arrays[0][row, : len(target_ids)]
        results[place] = requests.Result(target_log_probs=log_probs)
      else:
        results[place] = self._result(*(array[row] for array in arrays))
    return results

  def _result(
    self, tokens_NT: np.ndarray, *rest: np.ndarray
  ) -> requests.Result:
    """Builds the result of a request from its rows of the arrays."""
    # Beam search returns scores between tokens and log-probabilities.
    *scores, log_probs_NT = rest
    sequences = []
    for n, tokens_T in enumerate(tokens_NT):
      length = _length(tokens_T, self._model.config.eos_ids)
      log_probs = log_probs_NT[n, :length]
      ids = tokens_T[:length]
      sequences.append(
        requests.Output(
          ids=ids,
          log_probs=log_probs,
          score=float(scores[0][n]) if scores else float(log_probs.sum()),
          text=self._vocabulary.decode(ids) if self._vocabulary else None,
        )
      )
    if not self._settings.self_consistency:
      return requests.Result(sequences=sequences)
    vote = self_consistency.vote(
      [sequence.text for sequence in sequences],
      [sequence.score for sequence in sequences],
      rule=self._answer,
    )
    return requests.Result(sequences=sequences, best=vote.index, vote=vote)


def _row_ids(numbers: Sequence[int], num_samples: int) -> np.ndarray:
  """Numbers samples by request and sample, whatever the number of samples.

  The numbers wrap around after four million requests, so that two requests that
  far apart share their random keys.
  """
  rows_B1 = np.array(numbers, np.uint64)[:, None] * np.uint64(
    requests.MAX_SAMPLES
  )
  rows_BN = rows_B1 + np.arange(num_samples, dtype=np.uint64)
  return rows_BN.astype(np.uint32).view(np.int32)


def _length(tokens_T: np.ndarray, eos_ids: tuple[int, ...]) -> int:
  """Returns the number of tokens up to and including EOS."""
  ends = np.flatnonzero(np.isin(tokens_T, eos_ids))
  return int(ends[0]) + 1 if ends.size else len(tokens_T)
