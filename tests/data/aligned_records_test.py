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
from specialize_jax.records import columnar, packed_rows, schema


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


def test_the_docstrings_numbers_are_true():
  outcome = doctest.testmod(aligned_records)
  assert outcome.attempted > 0
  assert outcome.failed == 0


def rows_of(*records):
  return [columnar.parse(columnar.to_line(one, "here")) for one in records]


def aligned_positions(records, mode):
  """Aligns records as `prepare` does; the tiny student's tokens."""
  aligner = aligned_records.RowAligner(trees.tiny_student(), mode=mode)
  _, batch = aligner.align(rows_of(*records))
  return aligned_records.to_positions(batch), batch


def positions_of(ids, top_ids, probs, *, log_probs=None):
  """Stores targets that are given."""
  if log_probs is None:
    with np.errstate(divide="ignore"):
      log_probs = np.log(np.array(probs, np.float64))
  count = len(ids)
  _, batch = aligned_positions([make_record()], "whitespace")
  given = dataclasses.replace(
    batch,
    offsets=np.array([0, count]),
    ids_P=np.array(ids, np.int32),
    top_ids_PC=np.array(top_ids, np.int32),
    top_log_probs_PC=log_probs,
    kinds_P=np.ones(count, np.uint8),
  )
  return aligned_records.to_positions(given)


@pytest.mark.parametrize("mode", ["paper", "whitespace", "chunk", "marginal"])
def test_a_record_becomes_positions(mode):
  row, _ = aligned_positions([make_record()], mode)
  expected = trees.tiny_student().encode("Ann has")[0]
  assert tuple(row.target_ids.tolist()) == expected
  length = len(row.target_ids)
  assert row.lengths.tolist() == [length]
  assert (row.target_ids.dtype, row.mask.dtype) == (np.int32, np.uint8)
  assert (row.top_ids.dtype, row.top_ids.shape) == (np.uint16, (length, 5))
  assert row.top_log_probs.dtype == np.float16
  assert row.top_log_probs.shape == (length, 5)
  for j in np.flatnonzero(row.mask == 0):
    assert row.top_ids[j].tolist() == [row.target_ids[j], 0, 0, 0, 0]
    assert row.top_log_probs[j].tolist() == [0.0] + [-math.inf] * 4


@pytest.mark.parametrize("mode", ["paper", "whitespace", "chunk", "marginal"])
def test_many_rows_are_aligned_as_each_record_alone(mode):
  records = [
    make_record(),
    make_record(finish_reason="length"),
    make_record(text="", steps=()),
    make_record(
      text="\ud83d",
      steps=(schema.TeacherStep(token="\ud83d", log_prob=-1.0, top=()),),
    ),
    make_record(sample=3),
  ]
  student = trees.tiny_student()
  _, batch = aligned_positions(records, mode)
  for record, result in zip(records, batch.results(), strict=True):
    alone = aligned_records.align_record(record, student, mode=mode)
    if isinstance(alone, targets.Rejected):
      assert result == alone
    else:
      np.testing.assert_array_equal(result.ids_T, alone.ids_T)
      np.testing.assert_array_equal(result.top_ids_TC, alone.top_ids_TC)
      np.testing.assert_allclose(
        result.top_log_probs_TC, alone.top_log_probs_TC, atol=1e-9
      )


def test_five_candidates_are_kept_the_targets_own_among_them():
  row = positions_of(
    [7], [[1, 2, 3, 4, 5, 6, 7]], [[0.1, 0.2, 0.3, 0.15, 0.05, 0.04, 0.01]]
  )
  assert row.top_ids.tolist() == [[7, 3, 2, 4, 1]]
  assert np.exp(row.top_log_probs[0].astype(np.float64)) == pytest.approx(
    [0.01, 0.3, 0.2, 0.15, 0.1], rel=3e-3
  )


def test_a_candidate_without_probability_leaves_its_slot_empty():
  row = positions_of([7], [[7, 9]], [[1.0, 0.0]])
  assert row.top_ids.tolist() == [[7, 0, 0, 0, 0]]
  assert row.top_log_probs.tolist() == [[0.0] + [-math.inf] * 4]


@pytest.mark.parametrize("own", [-1e5, -3.4028e38])
def test_a_target_of_next_to_no_probability_stays_the_target(own):
  row = positions_of([7], [[7, 9]], None, log_probs=np.array([[own, -0.5]]))
  assert row.top_ids.tolist() == [[7, 9, 0, 0, 0]]
  assert np.isfinite(row.top_log_probs[0, :2]).all()


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
  row = positions_of([7, 8], [[7, 9], [8, 9]], [[0.9, 0.3], [0.5, 0]])
  probs = np.exp(row.top_log_probs.astype(np.float64))
  assert probs[0, :2] == pytest.approx([0.75, 0.25], rel=2e-3)
  assert probs[1, :2] == pytest.approx([0.5, 0.0], rel=2e-3)
  assert probs.sum(axis=1).max() <= 1


def test_the_paper_rejects_a_sample_that_did_not_end_by_itself():
  cut = make_record(finish_reason="length")
  _, batch = aligned_positions([cut], "paper")
  (result,) = batch.results()
  assert "'length'" in result.reason
  for reason in ("eos_token", "STOP"):
    ended = make_record(finish_reason=reason)
    _, found = aligned_positions([ended], "paper")
    assert found.rejected == {}
  assert coverage.Coverage.of_batch(batch) == coverage.Coverage(
    samples=1, rejected={result.reason: 1}
  )
  untailed = make_record(request={"prompt_tail": []})
  rejected = aligned_records.align_record(
    untailed, trees.tiny_student(), mode="paper"
  )
  assert "tail" in rejected.reason


@pytest.mark.parametrize("mode", ["whitespace", "chunk", "marginal"])
def test_what_was_cut_off_is_aligned_only_where_it_is_asked_for(mode):
  student = trees.tiny_student()
  cut = make_record(finish_reason="content_filter")
  rejected = aligned_records.align_record(cut, student, mode=mode)
  assert rejected.reason == "not finished: it ended by 'content_filter'"
  kept = aligned_records.align_record(
    cut, student, mode=mode, keep_truncated=True
  )
  whole = aligned_records.align_record(make_record(), student, mode=mode)
  np.testing.assert_array_equal(kept.top_ids_TC, whole.top_ids_TC)


def test_tokens_and_candidates_are_taken_by_their_bytes():
  steps = (
    schema.TeacherStep(
      token="?",
      log_prob=math.log(0.5),
      top=(("?", math.log(0.25)),),
      token_bytes=b"In",
      top_bytes=(b"12",),
    ),
    schema.TeacherStep(
      token="?",
      log_prob=math.log(0.75),
      top=((" and", math.log(0.125)),),
      token_bytes=b" has",
      top_bytes=(None,),
    ),
  )
  record = make_record(text="In has", steps=steps)
  student = trees.tiny_student()
  ids = {word: student.encode_ids(word) for word in ("In", "12", "has", "and")}
  assert {len(found) for found in ids.values()} == {1}
  aligned = aligned_records.align_record(record, student, mode="marginal")
  assert aligned.top_ids_TC.tolist() == [
    [*ids["In"], *ids["12"]],
    [*ids["has"], *ids["and"]],
  ]
  np.testing.assert_allclose(
    np.exp(aligned.top_log_probs_TC), [[0.5, 0.25], [0.75, 0.125]]
  )
  positions, _ = aligned_positions([record], "marginal")
  assert positions.top_ids[:, :2].tolist() == aligned.top_ids_TC.tolist()
  np.testing.assert_allclose(
    np.exp(positions.top_log_probs[:, :2].astype(float)),
    [[0.5, 0.25], [0.75, 0.125]],
    rtol=2e-3,
  )


@pytest.mark.parametrize("mode", ["paper", "whitespace", "chunk", "marginal"])
def test_what_the_student_cannot_spell_is_stored_without_a_target(mode):
  steps = tuple(
    schema.TeacherStep(token=token, log_prob=-0.5, top=((" has", -1.0),))
    for token in ("Ann", " {", " has")
  )
  record = make_record(text="Ann { has", steps=steps)
  positions, batch = aligned_positions([record], mode)
  unknown = trees.tiny_student().unknown_id
  (at,) = np.flatnonzero(positions.target_ids == unknown)
  assert positions.mask[at] == 0
  assert positions.top_ids[at].tolist() == [0] * 5
  assert positions.top_log_probs[at].tolist() == [-math.inf] * 5
  assert unknown not in positions.top_ids
  assert coverage.Coverage.of_batch(batch).masked == 1
  (row,) = packed_rows.pack(positions, questions=[0], samples=[0])
  back = packed_rows.unpack([row.flags], [row.ids], [row.log_probs])
  for field in dataclasses.fields(positions):
    np.testing.assert_array_equal(
      getattr(back, field.name), getattr(positions, field.name)
    )


def test_a_record_that_misspells_its_text_is_named():
  with pytest.raises(errors.UserError, match="question 'q/1', sample 2"):
    aligned_records.align_record(
      make_record(text="Bob"), trees.tiny_student(), mode="whitespace"
    )


@pytest.mark.parametrize(
  ("text", "written"),
  [
    ("so 5\u00b2", "'2'"),
    ("2\u00bd", "'1\u20442'"),
    ("101\u2082", "'2'"),
    ("10\u207b\u00b3", "'\u22123'"),
    ("log\u20828", "'2'"),
    ("|x|\u00b2", "'2'"),
    ("\uff15\u00b2", "'2'"),
    ("48 m\u00b2", None),
    ("x\u2081 is H\u2082O", None),
    ("so \u00bd", None),
  ],
)
def test_a_number_that_the_student_reads_as_another_is_rejected(text, written):
  steps = tuple(
    schema.TeacherStep(token=token, log_prob=-1.0, top=((token, -1.0),))
    for token in text
  )
  record = make_record(text=text, steps=steps)
  student = trees.tiny_student()
  alone = aligned_records.align_record(record, student, mode="marginal")
  reason = getattr(alone, "reason", None)
  assert reason is None if written is None else reason.endswith(written)
  _, batch = aligned_positions([record], "marginal")
  (result,) = batch.results()
  assert getattr(result, "reason", None) == reason
