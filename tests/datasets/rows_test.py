"""What a row of a user's own data says, as its rule reads it."""

import math

import pytest

from specialize_jax.cot import answer_rules, formats
from specialize_jax.datasets import rows

DIGITS = answer_rules.AnswerRule(kind="regex", pattern=r"(?P<answer>-?\d+)")


def _read(answer, rule, *, wording=None, **row):
  return rows._parsed(
    {"question": "How many?", "answer": answer} | row,
    number=0,
    line=1,
    prefix="mine",
    rule=rule,
    wording=wording or formats.Wording(),
  )


@pytest.mark.parametrize("answer", ["1,200", "3.5", "1/2", "10:30", "10-5"])
def test_a_pattern_that_finds_a_part_of_a_number_is_told(answer):
  assert f"in the answer '{answer}': widen the pattern" in _read(answer, DIGITS)


@pytest.mark.parametrize(
  ("answer", "found"),
  [("72", "72"), ("72 clips", "72"), (2.0, "2"), (-5, "-5")],
)
def test_a_pattern_that_finds_a_number_is_not(answer, found):
  assert _read(answer, DIGITS).question.answer == found


def test_a_table_s_whole_numbers_are_whole():
  exact = answer_rules.AnswerRule(kind="exact")
  assert _read(1.0, exact).question.answer == "1"
  assert _read(1.5, exact).question.answer == "1.5"


@pytest.mark.parametrize("kind", ["exact", "contains", "number", "option"])
def test_several_answers_are_told_and_a_list_of_one_is_one(kind):
  rule = answer_rules.AnswerRule(kind=kind)
  several = ["7", "8"] if kind != "option" else ["A", "B"]
  assert "give one answer, as a text" in _read(several, rule)
  assert "give one answer" in _read({"value": several[0]}, rule)
  assert _read(several[:1], rule).question.answer == several[0]


def test_a_statement_on_a_line_of_its_own_is_not_said_twice():
  wording = formats.Wording(answer="The answer is {answer}.\n")
  row = _read(
    "2",
    answer_rules.NUMBER,
    wording=wording,
    rationale="We add. The answer is 2.",
  )
  assert row.question.rationale == "We add. The answer is 2."


@pytest.mark.parametrize(
  ("fields", "question_id"),
  [
    ({"question_id": None, "id": 7}, "7"),
    ({"question_id": math.nan}, "mine/0"),
    ({"id": 1.0, "rationale": math.nan}, "1"),
  ],
)
def test_an_id_that_a_table_lacks_is_none(fields, question_id):
  row = _read("2", answer_rules.NUMBER, **fields)
  assert row.question.question_id == question_id
  assert row.question.rationale in ("", "The answer is 2")
