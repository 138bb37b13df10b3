"""Records become rows of five candidates that never weigh more than one."""

import dataclasses
import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testdata import trees

from specialize_jax import errors
from specialize_jax.align import coverage, targets
from specialize_jax.data import aligned_records
from specialize_jax.records import schema


def make_record(**changes):
  steps = (
    schema.TeacherStep(
      token="Ann",
      log_prob=math.log(0.5),
      top=(("Bob", math.log(0.25)), ("Ann", math.log(0.5))),
    ),
    schema.TeacherStep(
      token=" has", log_prob=math.log(0.75), top=((".", math.log(0.25)),)
    ),
  )
  record = schema.TeacherRecord(
    question_id="q/1",
    sample=2,
    question="Who?",
    gold_answer="Ann",
    text="Ann has",
    steps=steps,
    finish_reason="stop",
    request={},
    verdicts={},
  )
  return dataclasses.replace(record, **changes)


def make_aligned(ids, top_ids, probs):
  with np.errstate(divide="ignore"):
    log_probs = np.log(np.array(probs, np.float64))
  count = len(ids)
  return targets.AlignedTargets(
    ids_T=np.array(ids, np.int32),
    pieces=("x",) * count,
    top_ids_TC=np.array(top_ids, np.int32),
    top_log_probs_TC=log_probs,
    mask_T=np.ones(count, np.uint8),
    kinds_T=np.ones(count, np.uint8),
    classes_T=np.zeros(count, np.uint8),
    groups=(),
    characters_lost=0,
    mass_offered=1.0,
    mass_kept=1.0,
  )


def test_the_docstrings_numbers_are_true():
  outcome = doctest.testmod(aligned_records)
  assert outcome.attempted > 0
  assert outcome.failed == 0


@pytest.mark.parametrize("mode", ["paper", "whitespace", "chunk", "marginal"])
def test_a_record_becomes_a_row(mode):
  student = trees.tiny_student()
  record = make_record()
  (row,) = aligned_records.align_records([record], student, mode=mode)
  assert (row.question_id, row.sample) == ("q/1", 2)
  assert (row.question, row.answer) == ("Who?", "Ann")
  assert row.rationale == "Ann has"
  assert tuple(row.target_ids.tolist()) == student.encode("Ann has")[0]
  length = len(row.target_ids)
  assert (row.target_ids.dtype, row.mask.dtype) == (np.int32, np.uint8)
  assert (row.top_ids.dtype, row.top_ids.shape) == (np.uint16, (length, 5))
  assert row.top_log_probs.dtype == np.float16
  assert row.top_log_probs.shape == (length, 5)
  for j in np.flatnonzero(row.mask == 0):
    assert row.top_ids[j].tolist() == [row.target_ids[j], 0, 0, 0, 0]
    assert row.top_log_probs[j].tolist() == [0.0] + [-math.inf] * 4


def test_five_candidates_are_kept_the_targets_own_among_them():
  row = aligned_records.to_row(
    make_record(),
    make_aligned(
      [7], [[1, 2, 3, 4, 5, 6, 7]], [[0.1, 0.2, 0.3, 0.15, 0.05, 0.04, 0.01]]
    ),
  )
  assert row.top_ids.tolist() == [[7, 3, 2, 4, 1]]
  assert np.exp(row.top_log_probs[0].astype(np.float64)) == pytest.approx(
    [0.01, 0.3, 0.2, 0.15, 0.1], rel=3e-3
  )


def test_a_candidate_without_probability_leaves_its_slot_empty():
  row = aligned_records.to_row(
    make_record(), make_aligned([7], [[7, 9]], [[1.0, 0.0]])
  )
  assert row.top_ids.tolist() == [[7, 0, 0, 0, 0]]
  assert row.top_log_probs.tolist() == [[0.0] + [-math.inf] * 4]


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=5))
def test_half_precision_never_lifts_the_mass_above_one(parts):
  probs = np.array(parts) / sum(parts)
  rounded = aligned_records.round_down(np.log(probs))
  assert rounded.dtype == np.float16
  back = np.exp(rounded.astype(np.float64))
  assert back.sum() <= 1 + 1e-12
  assert back == pytest.approx(probs, rel=2e-2)


def test_mass_above_one_is_scaled():
  row = aligned_records.to_row(
    make_record(),
    make_aligned([7, 8], [[7, 9], [8, 9]], [[0.9, 0.3], [0.5, 0]]),
  )
  probs = np.exp(row.top_log_probs.astype(np.float64))
  assert probs[0, :2] == pytest.approx([0.75, 0.25], rel=2e-3)
  assert probs[1, :2] == pytest.approx([0.5, 0.0], rel=2e-3)
  assert probs.sum(axis=1).max() <= 1


def test_an_id_beyond_16_bits_is_refused():
  with pytest.raises(errors.UserError, match="id 70000"):
    aligned_records.to_row(
      make_record(), make_aligned([70000], [[70000]], [[1.0]])
    )


def test_the_paper_rejects_a_sample_that_did_not_end_by_itself():
  counted = []
  cut = make_record(finish_reason="length")
  student = trees.tiny_student()
  (rejection,) = aligned_records.align_records(
    [cut], student, mode="paper", coverage_fn=counted.append
  )
  assert isinstance(rejection, aligned_records.Rejection)
  assert (rejection.question_id, rejection.sample) == ("q/1", 2)
  assert "'length'" in rejection.reason
  assert counted == [
    coverage.Coverage(samples=1, rejected={rejection.reason: 1})
  ]
  untailed = make_record(request={"prompt_tail": []})
  rejected = aligned_records.align_record(untailed, student, mode="paper")
  assert "tail" in rejected.reason
  (row,) = aligned_records.align_records([cut], student, mode="whitespace")
  assert isinstance(row, schema.AlignedRow)


def test_tokens_and_candidates_are_taken_by_their_bytes():
  steps = (
    schema.TeacherStep(
      token="?",
      log_prob=-0.1,
      top=(("?", -0.1),),
      token_bytes=b"\xe2\x82",
      top_bytes=(b"\xe2\x82",),
    ),
    schema.TeacherStep(
      token="?",
      log_prob=-0.2,
      top=(("b", -2.0),),
      token_bytes=b"\xac",
      top_bytes=(None,),
    ),
  )
  record = make_record(text="\u20ac", steps=steps)
  aligned = aligned_records.align_record(
    record, trees.tiny_student(), mode="chunk"
  )
  assert aligned.mask_T.all()


def test_a_record_that_misspells_its_text_is_named():
  with pytest.raises(errors.UserError, match="question 'q/1', sample 2"):
    aligned_records.align_record(
      make_record(text="Bob"), trees.tiny_student(), mode="whitespace"
    )
