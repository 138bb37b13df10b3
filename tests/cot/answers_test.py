"""Answers are read as people write them, or as the paper's code reads them."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specialize_jax import errors
from specialize_jax.cot import answers


def test_the_docstrings_numbers_are_true():
  outcome = doctest.testmod(answers)
  assert outcome.attempted > 0
  assert outcome.failed == 0


@pytest.mark.parametrize(
  ("text", "number"),
  [
    ("The answer is 72", "72"),
    ("The answer is 72.", "72"),
    ("The answer is: 72 clips.", "72"),
    ("The answer is $1,000", "1000"),
    ("The answer is -$5.25.", "-5.25"),
    ("The answer is $-5", "-5"),
    ("The answer is \u22125 degrees", "-5"),
    ("The answer is .5", "0.5"),
    ("The answer is 50%.", "50"),
    ("The answer is 3/4 of a cup", "3/4"),
    ("The answer is 109,200,000", "109200000"),
    ("the answer is 5. So the answer is 6.", "6"),
    ("The answer is 6. There are 3 left.", "6"),
    ("The answer is 6\n\nQ: What is 7?", "6"),
    ("48/2 = 24\n#### 24", "24"),
    ("Q: 3 + 4?\nA: 7", "7"),
    ("He has 3 and gets 4, so 7", "7"),
    ("She has 7. The answer is unknown.", "7"),
    ("The answer is 48+24=72", "72"),
    ("5-3", "3"),
    ("5 - 3", "3"),
    ("(5)-3", "3"),
    ("= -3", "-3"),
    ("", None),
    ("The answer is yes.", None),
  ],
)
def test_a_number_is_read_as_people_write_it(text, number):
  assert answers.extract_number(text) == number


@settings(deadline=None)
@given(
  st.integers(-(10**9), 10**9),
  st.sampled_from(["{}", "${}", "{} apples", "{}.", "{}%", "{}, or so"]),
)
def test_any_whole_number_survives_commas_and_units(value, unit):
  text = f"First 3 + 4 = 7. The answer is {unit.format(f'{value:,}')}"
  assert answers.numbers_equal(answers.extract_number(text), str(value))
  assert answers.grade(text, str(value)).correct
  assert not answers.grade(text, str(value + 1)).correct


@pytest.mark.parametrize(
  ("left", "right", "equal"),
  [
    ("72", "72.00", True),
    ("1/3", "0.3333333", True),
    ("0.33", "1/3", False),
    ("1000", "2000", False),
    ("5", "-5", False),
    ("1/0", "1/0", False),
    ("x", "x", False),
    ("0", "-0", True),
  ],
)
def test_numbers_are_compared_by_value(left, right, equal):
  assert answers.numbers_equal(left, right) is equal


def test_a_gold_answer_is_read_before_its_unit():
  assert answers.grade("The answer is 9", "9 (bags of 2)").correct
  assert not answers.grade("The answer is 2", "9 (bags of 2)").correct
  assert answers.grade("The answer is 72", "48 + 24 = 72\n#### 72").correct


@pytest.mark.parametrize(
  ("prediction", "target"),
  [("1,000", "2,000"), ("-5", "5"), ("The answer is 7", "7.0")],
)
def test_the_papers_number_rule_is_kept_with_its_faults(prediction, target):
  assert answers.grade(prediction, target, grader="paper_code").correct
  differs = prediction != "The answer is 7"
  assert answers.grade(prediction, target).correct is not differs


def test_the_papers_number_rule_takes_the_last_match():
  verdict = answers.grade(
    "The answer is 72. She had 3.", "72", grader="paper_code"
  )
  assert verdict == answers.Verdict(extracted="3", correct=False)
  assert answers.grade("none", "5", grader="paper_code").extracted is None
  assert not answers.grade("5", "none", grader="paper_code").correct


@pytest.mark.parametrize(
  ("prediction", "target", "correct"),
  [
    ("So the answer is (B).", "(B)", True),
    ("So the answer is (A) or (B).", "(B)", False),
    ("the answer is invalid.", "valid", False),
    ("The answer is TRUE", "True", True),
    ("(B)", "(B)", True),
    ("The answer is 'apple cat'.", "apple cat", True),
    ("The answer is apple\u00a0 cat\n\nQ: next", "apple cat", True),
    ("the answer is No. So the answer is Yes.", "Yes", True),
    ("the answer is ] ) ].", "] ) ]", True),
    ("The answer is", "", False),
  ],
)
def test_words_are_compared_exactly(prediction, target, correct):
  verdict = answers.grade(prediction, target, kind="exact")
  assert verdict.correct is correct


@pytest.mark.parametrize(
  ("prediction", "target", "correct"),
  [
    ("So the answer is (A) or (B).", "(B)", True),
    ("the answer is invalid.", "valid", True),
    ("(B) fits. So the answer is (A).", "(B)", False),
    ("the answer is (A). Or the answer is (B).", "(B)", False),
    ("invalid", "valid", True),
    ("the answer is true", "True", False),
  ],
)
def test_the_papers_word_rule_is_kept_with_its_faults(
  prediction, target, correct
):
  verdict = answers.grade(prediction, target, kind="exact", grader="paper_code")
  assert verdict.correct is correct


def test_an_unknown_grader_or_kind_is_named():
  with pytest.raises(errors.UserError, match="fixed or paper_code"):
    answers.grade("1", "1", grader="strict")
  with pytest.raises(errors.UserError, match="number or exact"):
    answers.grade("1", "1", kind="words")
