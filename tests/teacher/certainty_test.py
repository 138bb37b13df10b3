"""How certain a teacher is: worked numbers, and the paper's own records."""

import math

import pytest
from testdata import real_files

from specialize_jax import errors
from specialize_jax.records import released, schema
from specialize_jax.teacher import certainty


def record(*steps, text="", gold=""):
  return schema.TeacherRecord(
    question_id=0,
    sample=0,
    question="",
    gold_answer=gold,
    text=text,
    steps=tuple(
      schema.TeacherStep(
        token="a",
        log_prob=math.log(probs[0]) if probs[0] else -math.inf,
        top=tuple((str(i), math.log(p)) for i, p in enumerate(probs) if p),
      )
      for probs in steps
    ),
    finish_reason="stop",
    request={},
    verdicts={},
  )


def test_each_figure_is_a_mean_over_steps():
  found = certainty.measure(
    [record((0.5, 0.25), (0.95, 0.01)), record((0.2, 0.6), (0.995,))]
  )
  assert (found.num_records, found.num_steps) == (2, 4)
  assert found.none_above_90 == pytest.approx(0.5)
  assert found.none_above_99 == pytest.approx(0.75)
  assert found.top_mass == pytest.approx((0.75 + 0.96 + 0.8 + 0.995) / 4)
  assert found.cost == pytest.approx(-math.log(0.5 * 0.95 * 0.2 * 0.995) / 4)
  probs = (0.5, 0.25, 0.95, 0.01, 0.2, 0.6, 0.995)
  assert found.entropy == pytest.approx(
    -sum(p * math.log(p) for p in probs) / 4
  )
  assert found.right is None


def test_samples_are_graded_where_they_have_a_gold_answer():
  found = certainty.measure(
    [
      record((0.5,), text="The answer is 7.", gold="7"),
      record((0.5,), text="The answer is 8.", gold="7"),
      record((0.5,), text="The answer is 9.", gold="9"),
      record((0.5,), text="The answer is 9."),
    ]
  )
  assert found.right == pytest.approx(2 / 3)


def test_a_probability_that_was_rounded_to_zero_costs_less_than_infinitely():
  found = certainty.measure([record((0.0, 0.9))])
  assert found.cost == pytest.approx(-math.log(5e-5))


def test_ratios_leave_out_what_one_teacher_does_not_have():
  one = certainty.measure([record((0.5, 0.25))])
  other = certainty.measure(
    [record((0.25, 0.25), text="The answer is 1.", gold="1")]
  )
  shares = certainty.ratios(one, other)
  assert shares["top_mass"] == pytest.approx(1.5)
  assert shares["cost"] == pytest.approx(0.5)
  assert "right" not in shares


def test_records_without_tokens_are_refused():
  with pytest.raises(errors.UserError, match="2 teacher records have no token"):
    certainty.measure([record(), record()])


def test_the_papers_teacher_is_as_certain_as_its_released_records():
  path = real_files.find("codex", "gsm8k_train_0.json")
  found = certainty.measure(released.read(path))
  known = certainty.CODE_DAVINCI_002
  assert (found.num_records, found.num_steps) == (
    known.num_records,
    known.num_steps,
  )
  for name in ("none_above_90", "none_above_99", "top_mass", "entropy", "cost"):
    assert getattr(found, name) == pytest.approx(getattr(known, name), abs=6e-4)
