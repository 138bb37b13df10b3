"""Text-level decoding in one object: requests in, results out.

`Generator` is what `specialize generate` and evaluation decode through. It
lays requests out in length buckets (`bucketing`), runs one compiled program a
shape, and gives what came out by the place of the request.

Promises: a request's result depends on its ids, its number, the settings and
the parameters, and not on the batch or the order it is decoded in (but for
the last bits of floating point, by which two nearly equal logits may change
places). Draws are made by (seed, request's number, sample's number).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import jax
import numpy as np

from specialize_jax import errors
from specialize_jax.decoding import (
  beam,
  bucketing,
  loop,
  requests,
  scoring,
  self_consistency,
  with_calculator,
)
from specialize_jax.decoding import vocabulary as vocabularies
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network


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
  ) -> None:
    """Checks what can be checked without a device.

    Args:
      model: the network.
      settings: how.
      vocabulary: the model's; needed for texts, votes and the calculator.
      batch_size: requests decoded together, each with all its samples.
      input_limit: the greatest length of an input; no batch is longer.

    Raises:
      UserError: the settings need a vocabulary, or the batch size is not one.
    """
    if batch_size < 1:
      raise errors.UserError(
        f"batch_size is {batch_size}, and must be at least 1."
      )
    for name in ("self_consistency", "calculator"):
      if getattr(settings, name) and vocabulary is None:
        raise errors.UserError(
          f"{name} reads texts, and no vocabulary is known: give the model's, "
          "such as --vocabulary=spiece.model."
        )
    self._model = model
    self._settings = settings
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
    """Decodes requests, a batch at a time.

    Args:
      params: on one device, or on the mesh that is entered.
      asked: in any order; those of like length are decoded together.
      ahead: how many more batches the device may be given before the first
        is read: then it never waits for the host, and a stop loses them.
      done: places that an earlier run has given. Batches are made up as if
        there were none, and only those that hold no other place are passed
        over, so that the results are bitwise those of an unbroken run.

    Yields:
      The results of one batch by place in `asked`; each place once,
      and none that is done.

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
    """Gives places and inputs of batches that are all of one kind."""
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
    """Starts one batch; gives arrays that are read later."""
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
    """Starts a batch of requests that carry a target."""
    targets = [request.target_ids for request in batch]
    # A model can say padding: it is the lengths that say what was said.
    lengths = np.array([len(target) for target in targets], np.int32)
    log_probs_BT = scoring.score(
      self._model,
      params,
      inputs_BS,
      bucketing.place(bucketing.padded(targets), sharding),
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
    """Waits for a batch; a row that fills it up is read once."""
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
    """Makes one request's result of its rows of the device's arrays."""
    # A beam gives scores between the tokens and their log-probabilities.
    *given, log_probs_NT = rest
    sequences = []
    for n, tokens_T in enumerate(tokens_NT):
      length = _length(tokens_T)
      log_probs = log_probs_NT[n, :length]
      ids = tokens_T[:length]
      sequences.append(
        requests.Output(
          ids=ids,
          log_probs=log_probs,
          score=float(given[0][n]) if given else float(log_probs.sum()),
          text=self._vocabulary.decode(ids) if self._vocabulary else None,
        )
      )
    if not self._settings.self_consistency:
      return requests.Result(sequences=sequences)
    vote = self_consistency.vote(
      [sequence.text for sequence in sequences],
      [sequence.score for sequence in sequences],
    )
    return requests.Result(sequences=sequences, best=vote.index, vote=vote)


def _row_ids(numbers: Sequence[int], num_samples: int) -> np.ndarray:
  """Numbers draws by request and sample, whatever the number of samples.

  Beyond four million requests the numbers begin anew, which only makes two
  far requests draw alike.
  """
  rows_B1 = np.array(numbers, np.uint64)[:, None] * np.uint64(
    requests.MAX_SAMPLES
  )
  rows_BN = rows_B1 + np.arange(num_samples, dtype=np.uint64)
  return rows_BN.astype(np.uint32).view(np.int32)


def _length(tokens_T: np.ndarray) -> int:
  """Gives how many tokens there are up to and with EOS."""
  ends = np.flatnonzero(tokens_T == t5_config.EOS_ID)
  return int(ends[0]) + 1 if ends.size else len(tokens_T)
