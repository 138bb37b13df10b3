"""Many samples at once are aligned as the oracle aligns each, in every mode."""

import math
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from testdata import alignment_oracle as oracle
from testdata import real_files, trees

from specialize_jax import align
from specialize_jax.align import aligner as aligner_lib
from specialize_jax.align import dynamic_program, targets

SETTINGS = settings(
  deadline=None,
  max_examples=60,
  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check_equal(found, expected):
  """Compares a batch's result with the oracle's, all of it."""
  assert type(found) is type(expected), (found, expected)
  if isinstance(expected, targets.Rejected):
    assert found == expected
    return
  assert found.ids_T.tolist() == expected.ids_T.tolist()
  assert found.pieces == expected.pieces
  assert found.top_ids_TC.tolist() == expected.top_ids_TC.tolist()
  np.testing.assert_allclose(
    found.top_log_probs_TC, expected.top_log_probs_TC, rtol=1e-9, atol=1e-9
  )
  for name in ("mask_T", "kinds_T", "classes_T"):
    mine, theirs = getattr(found, name), getattr(expected, name)
    assert (mine.dtype, mine.tolist()) == (theirs.dtype, theirs.tolist()), name
  assert found.groups == expected.groups
  assert found.characters_lost == expected.characters_lost
  assert found.mass_offered == pytest.approx(expected.mass_offered)
  assert found.mass_kept == pytest.approx(expected.mass_kept)


def check_batch(aligner, many):
  batch = aligner.align([(tokens, text) for text, tokens in many])
  results = list(batch.results())
  assert len(results) == len(many)
  for (text, tokens), found in zip(many, results, strict=True):
    expected = oracle.align(tokens, text, aligner.student, aligner.mode)
    check_equal(found, expected)


@pytest.fixture(scope="module", params=align.MODES)
def mode(request):
  return request.param


@pytest.fixture(scope="module")
def tiny(mode):
  return align.Aligner(trees.tiny_student(), mode=mode)


@pytest.fixture(scope="module")
def t5(mode):
  return align.Aligner(real_files.t5(), mode=mode)


@SETTINGS
@given(st.lists(trees.samples(), max_size=4))
def test_a_batch_equals_its_samples_for_a_tiny_student(tiny, many):
  check_batch(tiny, many)


# A token of a space and a part of a character, after a space.
_PARTS = ("    \u00e9t", [b" ", b" ", b" ", b" \xc3", b"\xa9t"])


@SETTINGS
@example(
  [
    (
      _PARTS[0],
      [
        targets.TeacherToken(spelling=one, log_prob=math.log(0.5), top=())
        for one in _PARTS[1]
      ],
    )
  ]
)
@given(st.lists(trees.samples(), max_size=4))
def test_a_batch_equals_its_samples_for_t5(t5, many):
  check_batch(t5, many)


def test_of_thousands_of_candidates_the_most_probable_are_read_at_once(tiny):
  """A stranger's record may list a whole vocabulary at a step."""
  likely = [(f" {n}".encode(), math.log(0.004)) for n in range(100)]
  unlikely = [(f" x{n}".encode(), -20.0) for n in range(20_000)]

  def tokens(top):
    return [
      targets.TeacherToken(spelling=b"Ann", log_prob=-0.1, top=()),
      targets.TeacherToken(spelling=b" has", log_prob=-0.7, top=tuple(top)),
    ]

  start = time.process_time()
  many = tiny.align([(tokens([*unlikely, *likely]), "Ann has")])
  assert time.process_time() - start < 3
  few = tiny.align([(tokens(likely), "Ann has")])
  for found, expected in zip(many.results(), few.results(), strict=True):
    check_equal(found, expected)


@pytest.mark.parametrize(
  ("module", "limit"),
  [(aligner_lib, "_MAX_STRINGS"), (dynamic_program, "_MAX_PAIRS")],
)
def test_clearing_full_caches_does_not_change_targets(
  mode, monkeypatch, module, limit
):
  many = [
    (trees.plain_tokens([b"Ann", b" has", b" 1", b"2"]), "Ann has 12"),
    (trees.plain_tokens([b"12 cl", b"ips"]), "12 clips"),
  ]
  aligner = align.Aligner(trees.tiny_student(), mode=mode)
  expected = list(aligner.align(many).results())
  monkeypatch.setattr(module, limit, 0)
  for _ in range(2):
    words, distances = aligner.words, aligner._distances
    found = list(aligner.align(many).results())
    for one, other in zip(found, expected, strict=True):
      check_equal(one, other)
    if module is aligner_lib:
      assert aligner.words is not words
    elif mode == "paper":  # the others have no distances
      assert aligner._distances is not distances
