"""Results are forced exactly, and nothing else changes."""

import contextlib

import jax
import numpy as np
import pytest
from testdata import chain_model, real_files, tiny_vocabulary

from specialize_jax.cot import calculator
from specialize_jax.decoding import loop, strategies, with_calculator
from specialize_jax.decoding import vocabulary as vocabularies
from specialize_jax.parallel import mesh, placement

LENGTH = 24
VOCABULARY = tiny_vocabulary.load()

# Sums of random lengths with a wrong result, as a small student writes them.
_NUMBER = {"/": 2, "+": 3, "=": 4}
SUMS = {
  "": {"\u258112": 1, "\u25812": 2, "a": 1},
  "a": {"a": 1, "\u258112": 1},
  "\u258112": _NUMBER,
  "\u25812": _NUMBER,
  "4": _NUMBER,
  "8": _NUMBER,
  "/": {"4": 3, "8": 1},
  "+": {"8": 1, "4": 1},
  "=": {"7": 3, "9": 2},
  "7": {"\u25812": 1, "a": 1, "</s>": 2},
  "9": {"\u258112": 1, "</s>": 1},
  **{p: {"a": 1, "\u25812": 1, "</s>": 1} for p in "0123567.,"},
}
NO_SIGN = {p: {q: w for q, w in n.items() if q != "="} for p, n in SUMS.items()}


def decode(
  follows, *, calculate=True, strategy=None, num_rows=6, num_samples=3
):
  model, params = chain_model.make(VOCABULARY, follows)
  row_ids = np.arange(num_rows * num_samples, dtype=np.int32)
  arguments = {
    "max_new_tokens": LENGTH,
    "strategy": strategy or strategies.Sampling(),
    "decode_rng": jax.random.key(0),
  }
  inputs = np.full((num_rows, 4), 5, np.int32)
  row_ids = row_ids.reshape(num_rows, num_samples)
  if not calculate:
    return loop.decode(model, params, inputs, row_ids_B=row_ids, **arguments)
  return with_calculator.decode(
    model,
    params,
    inputs,
    calculate=with_calculator.Calculator(VOCABULARY, 64),
    row_ids_BN=row_ids,
    **arguments,
  )


def rows(output):
  return np.asarray(output.tokens).reshape(-1, LENGTH).tolist()


def wrong_and_right(output):
  """Counts results that are not, and that are, what they ought to be."""
  counts = [0, 0]
  for row in rows(output):
    text = VOCABULARY.decode(row)
    for place, letter in enumerate(text):
      result = calculator.result_of(text[: place + 1])
      if letter == "=" and result is not None:
        rest = text[place + 1 :]
        if len(rest) < len(result) and row[-1] != 0:
          continue  # there was no room
        counts[rest.startswith(result)] += 1
  return counts


def test_every_calculation_has_its_result_in_every_row_and_position():
  wrong, right = wrong_and_right(decode(SUMS))
  assert wrong == 0
  assert right > 10
  wrong, right = wrong_and_right(decode(SUMS, calculate=False))
  assert wrong > 10, "the model alone is wrong, so the test can fail"


@pytest.mark.parametrize("sharded", [False, True])
def test_many_pauses_are_one_program(sharded):
  model, params = chain_model.make(VOCABULARY, SUMS)
  inputs = np.full((4, 4), 5, np.int32)
  row_ids = np.arange(4, dtype=np.int32)[:, None]
  entered = contextlib.nullcontext()
  if sharded:
    four = mesh.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    placed = placement.Placement(mesh=four)
    params = jax.device_put(params, placed.tree_shardings(params))
    rows = placed.rules.batch_sharding(placed.mesh)
    inputs, row_ids = jax.device_put((inputs, row_ids), rows)
    entered = placed.entered()
  before = loop._resume._cache_size()
  with entered:
    for seed in range(2):
      with_calculator.decode(
        model,
        params,
        inputs,
        calculate=with_calculator.Calculator(VOCABULARY, 64),
        max_new_tokens=40,  # a shape of its own
        strategy=strategies.Sampling(),
        decode_rng=jax.random.key(seed),
        row_ids_BN=row_ids,
      )
  assert loop._resume._cache_size() == before + 1


def test_up_to_the_first_sign_rows_are_those_of_plain_decoding():
  plain, computed = rows(decode(SUMS, calculate=False)), rows(decode(SUMS))
  sign = VOCABULARY.encode("=")[-1]
  stops = set()
  for one, other in zip(plain, computed, strict=True):
    end = one.index(sign) + 1 if sign in one else LENGTH
    assert one[:end] == other[:end]
    stops.add(end)
  assert len(stops) > 4
  assert plain != computed


def test_without_a_sign_it_is_plain_decoding():
  for strategy in (None, strategies.Greedy()):
    plain = decode(NO_SIGN, calculate=False, strategy=strategy)
    computed = decode(NO_SIGN, strategy=strategy)
    np.testing.assert_array_equal(plain.tokens, computed.tokens)
    np.testing.assert_array_equal(plain.log_probs, computed.log_probs)


GREEDY_SUM = {**SUMS, "\u25812": {"+": 5}, "+": {"8": 5}, "8": {"=": 5}}


def test_greedy_decoding_computes_too():
  greedy = {"strategy": strategies.Greedy(), "num_samples": 1}
  plain = decode(GREEDY_SUM, calculate=False, **greedy)
  computed = decode(GREEDY_SUM, **greedy)
  assert VOCABULARY.decode(rows(plain)[0]).startswith("2+8=7")
  assert VOCABULARY.decode(rows(computed)[0]).startswith("2+8=10")


def test_a_forced_token_has_the_models_own_log_probability():
  output = decode(GREEDY_SUM, strategy=strategies.Greedy(), num_samples=1)
  log_probs = np.asarray(output.log_probs)[0, 0]
  # The chain gives "1" after "=" a logit of -30, beside 7 and 9 with 3 and 2.
  np.testing.assert_allclose(log_probs[4], -30 - np.log(5), atol=1e-3)


def calculate(path):
  vocabulary = vocabularies.from_file(path)
  return with_calculator.Calculator(vocabulary, 32_128), vocabulary


@pytest.mark.parametrize(
  ("text", "pieces"),
  [
    ("She has 48 / 2 =", ["\u258124"]),
    ("She has 48/2=", ["24"]),
    ("$1,200 * 3 =", ["\u2581$3", ",", "600"]),
    ("10 / 3 =", ["\u25813.", "33"]),
    ("2 - 7=", ["-5"]),
  ],
)
def test_with_t5s_pieces_a_result_is_spelled_as_t5_spells_it(text, pieces):
  path = real_files.find("tokenizers", "t5_spiece.model")
  calculate_, vocabulary = calculate(path)
  written = vocabulary.encode(text)
  ids = calculate_.result_ids(written)
  result = calculator.result_of(text)
  assert vocabulary.decode(written + ids) == text + result
  assert [vocabulary.piece(i) for i in ids] == pieces
  assert calculate_.pauses_V[written[-1]]
  assert calculate_.pauses_V.shape == (32_128,)


def test_what_the_pieces_cannot_spell_is_not_forced():
  calculate_ = with_calculator.Calculator(VOCABULARY, 64)
  assert calculate_.result_ids(VOCABULARY.encode("12 - 3=")) == []
  assert calculate_.result_ids(VOCABULARY.encode("12 + 3")) == []
  assert VOCABULARY.decode(
    calculate_.result_ids(VOCABULARY.encode("12 x 8="))
  ) == ("96")
