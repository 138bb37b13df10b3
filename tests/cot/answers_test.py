"""Answers are read as people write them, or as the paper's code reads them."""

import doctest
import time
from typing import get_args

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
    ("The answer is 1 3/4 cups", "7/4"),
    ("The answer is - 5", "-5"),
    ("so 5 - 10 = - 5", "-5"),
    ("10 - 5", "5"),
    ("The answer is **18**.", "18"),
    (r"The answer is $\boxed{1{,}234}$.", "1234"),
    (r"The answer is \$18.", "18"),
    (r"The answer is \frac{3}{4}", "3/4"),
    ("The answer is 1.5e3", "1.5e3"),
    ("Final answer: 18", "18"),
    ("The correct answer is 18, not 81.", "18"),
    ("The answer is:\n18", "18"),
    ("The answer is \u20ac20", "20"),
    ("The answer is 5:30", "5"),
    ("The answer isn't 5, it must be 6", "6"),
    ("The answer is 6.\n\nQ: Why?\nA: Well. The answer is 7.", "6"),
    ("The answer is 6.\nQuestion: 1+1?\nAnswer: 2", "6"),
    ("The answer is 3/4/5", "3"),
    ("Plan A: $50 a month. Plan B: $60. He saves $10.", "10"),
    ("So she has 26. A: 26", "26"),
    ("Tickets: 4\nA: 26 dollars in 2 weeks", "26"),
    ("\\boxed{18} dollars in 2 weeks", "18"),
    ("The answer is 18 eggs (16 - 3 = 13 are left).", "18"),
    ("The answer is 18, because 9 * 2 = 18 and 3 + 4 = 7", "18"),
    ("The answer is 2 * (3 + 4) = 14", "14"),
    ("The answer is (18)", "18"),
    ("The answer would be 18 in 2 weeks", "18"),
    ("**Answer**: 18 in 2 weeks", "18"),
    ("The answer is 2\u00bd cups", "5/2"),
    ("The answer is \u20135 degrees", "-5"),
    ("It takes 3\u20135 days", "5"),
  ],
)
def test_a_number_is_read_as_people_write_it(text, number):
  assert answers.extract_number(text) == number


def test_a_loop_is_no_answer_unless_one_was_given_before():
  loop = "So Rosa has 14 + 6 = 20 Tom" + " has 20 Tom" * 12
  assert not answers.grade(loop, "20").correct
  assert not answers.grade("So 7 + 7 = 14. " + "14 " * 30, "14").correct
  assert answers.grade("The answer is 20. " * 12, "20").correct
  assert answers.grade("It is 3 + 4 = 7 and 7 + 7 = 14, so 14", "14").correct
  assert answers.grade("There are 1000000000000", "1000000000000").correct


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


# How models say that they are done, around the answer.
_SAID = ("{}", "{}.", "So the answer is {}.", "The answer is: {}", "A: {}")
_SAID += ("First (C) and 3 and yes.\nSo the answer is {}.", "Answer: **{}**")
_GOES_ON = ("", "\n\nQ: And then?\nA: So the answer is 99.", "\nQuestion: 7?")
_BY_KIND = {
  "numeral": st.integers(-9999, 9999).map(str),
  "option": st.sampled_from("ABCDEFG").map("({})".format),
  "choice": st.sampled_from(["Yes", "No", "True", "valid", "invalid"]),
  "words": st.lists(
    st.text("abcdefghij", min_size=2, max_size=6), min_size=1, max_size=9
  ).map(" ".join),
  "brackets": st.lists(st.sampled_from("()[]{}<>"), min_size=1).map(" ".join),
}


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from(sorted(_BY_KIND)))
def test_an_answer_counts_however_it_is_said_and_no_other_does(data, kind):
  target, other = (data.draw(_BY_KIND[kind]) for _ in range(2))
  said, goes_on = (data.draw(st.sampled_from(x)) for x in (_SAID, _GOES_ON))
  verdict = answers.grade(said.format(target) + goes_on, target, kind=kind)
  assert verdict.correct, verdict
  verdict = answers.grade(said.format(other) + goes_on, target, kind=kind)
  assert verdict.correct is (other == target), verdict


@settings(deadline=None)
@given(
  st.fractions(0, 1000, max_denominator=99),
  st.sampled_from(["The answer is {}", "#### {}", "x + y = {}", "${}"]),
)
def test_a_fraction_equals_its_decimals(value, said):
  written = f"{value.numerator}/{value.denominator}"
  decimals = f"{float(value):.9f}"
  assert answers.grade(said.format(written), decimals).correct
  assert answers.grade(said.format(decimals), written).correct
  assert not answers.grade(said.format(written), str(value + 1)).correct


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
  ("kind", "prediction", "target", "correct"),
  [
    ("option", "So the answer is (B).", "(B)", True),
    ("option", "B", "(B)", True),
    ("option", "A: (B)", "(B)", True),
    ("option", "The answer is b.", "B", True),
    ("option", "So the answer is option (B)", "(B)", True),
    ("option", "So the answer is (B) 12/25/1937.", "(B)", True),
    ("option", "The answer is B: the lion.", "(B)", True),
    ("option", "B) the lion", "(B)", True),
    ("option", "The answer is B. the lion, not (A)", "(B)", False),
    ("option", "The answer is $\\boxed{\\text{(B)}}$.", "(B)", True),
    ("option", "The correct answer should be (B).", "(B)", True),
    ("option", "So the answer is (A) or (B).", "(B)", False),
    ("option", "So the answer is (A) and (B).", "(A)", False),
    ("option", "So the answer is not (B).", "(B)", False),
    ("option", "So the answer is (None of the above).", "(B)", False),
    ("option", "(A) or (B). So the answer is (B).\n\nQ: (C)", "(B)", True),
    ("option", "The answer is Monsters, Inc.", "Monsters, Inc", True),
    ("choice", "So the answer is Yes.", "yes", True),
    ("choice", "No, since Elias plays hockey.", "no", True),
    ("choice", "So the answer is not valid.", "valid", False),
    ("choice", "So the answer is invalid.", "valid", False),
    ("choice", "True and False = False", "True", False),
    ("choice", "yes or no", "yes", False),
    ("choice", "Nothing", "no", False),
    ("choice", "", "no", False),
    ("words", "the answer is apple, cat, and dog.", "apple cat dog", True),
    ("words", '["apple", "cat", "dog"]', "apple cat dog", True),
    ("words", "apple; cat; dog", "apple cat dog", True),
    ("words", "apple dog cat", "apple cat dog", False),
    ("words", "apple cat", "apple cat dog", False),
    ("words", "catdog", "cat dog", False),
    ("brackets", "So the answer is ] ) >.", "] ) >", True),
    ("brackets", "])>", "] ) >", True),
    ("brackets", "] ) > ]", "] ) >", False),
    ("brackets", "the answer is ) and >", ") >", False),
    ("numeral", "So the answer is 8.", "8", True),
    ("numeral", "So the answer is 18.", "8", False),
  ],
)
def test_an_answer_is_read_by_its_kind(kind, prediction, target, correct):
  verdict = answers.grade(prediction, target, kind=kind)
  assert verdict.correct is correct


@settings(deadline=None)
@given(st.text(max_size=200), st.sampled_from(get_args(answers.Kind)))
def test_grading_never_fails_and_a_text_is_its_own_answer(text, kind):
  for grader in get_args(answers.Grader):
    verdict = answers.grade(text, text, kind=kind, grader=grader)
    if grader == "fixed" and verdict.extracted and kind != "number":
      again = answers.grade(verdict.extracted, text, kind=kind)
      assert again.extracted is not None


@pytest.mark.parametrize(
  "text",
  ["1" * 10**5, "1," * 10**5, "(" * 10**5, "a b " * 10**5, "answer is " * 10**4]
  + ["1/" * 10**5, "-" * 10**5, "\n" * 10**5, "1e99 " * 10**4, "1 " * 10**5]
  + [" " * 10**5 + "x", "1 " + " " * 10**5, "9" * 10**4 + " 1/3", "$" * 10**5]
  + ["answer" + " " * 10**5, ",1" * 10**5, "111,1" * 10**4, "(a" * 10**5],
)
@pytest.mark.parametrize("kind", get_args(answers.Kind))
def test_endless_outputs_are_wrong_at_once(text, kind):
  start = time.process_time()
  for grader in get_args(answers.Grader):
    assert not answers.grade(text, "7", kind=kind, grader=grader).correct
  assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
  ("prediction", "chain_of_thought", "correct"),
  [
    ("(A) or (B)", None, True),
    ("(A) or (B)", False, True),
    ("(A) or (B)", True, False),
    ("(B) fits. So the answer is (A).", False, True),
    ("(B) fits. So the answer is (A).", True, False),
  ],
)
def test_the_papers_word_rule_depends_on_the_prompt(
  prediction, chain_of_thought, correct
):
  verdict = answers.grade(
    prediction,
    "(B)",
    kind="option",
    grader="paper_code",
    chain_of_thought=chain_of_thought,
  )
  assert verdict.correct is correct


def test_the_paper_searches_the_numbers_of_big_bench_hard_as_words():
  kinds = {"number": False, "numeral": True}
  for kind, correct in kinds.items():
    verdict = answers.grade(
      "the answer is 18", "8", kind=kind, grader="paper_code"
    )
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
  with pytest.raises(errors.UserError, match="number or numeral or ex"):
    answers.grade("1", "1", kind="colour")
