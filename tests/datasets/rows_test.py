"""What a row of a user's own data says, as its rule reads it."""

import math

import pytest

from specialize_jax import errors
from specialize_jax.cot import answer_rules, formats
from specialize_jax.datasets import mistakes, rows

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


def _mistakes_of(path, rule=answer_rules.NUMBER):
  """Returns the lines of the error for a file without one good row."""
  found = mistakes.Mistakes()
  read = rows.read(
    str(path),
    prefix="mine",
    rule=rule,
    wording=formats.Wording(),
    mistakes=found,
  )
  assert read == []
  with pytest.raises(errors.ReportError) as caught:
    found.raise_any("--dataset=mine.yaml")
  return list(caught.value.lines)


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


def test_a_solution_of_several_lines_is_the_rationale():
  """Only the last of several lines may hold more than the answer."""
  assert "'72' in the answer '72km': widen the pattern" in _read("72km", DIGITS)
  solution = "There are 24 km to go.\nSo the whole way is 48km + 24km = 72km"
  row = _read(solution, DIGITS)
  assert row.question.answer == "72"
  assert row.question.rationale == solution


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", ": holds no row: expected at least one question"),
    (b"\n \n", ": holds no row: expected at least one question"),
    (
      b'{}\n{"question": "caf\xe9"}\n',
      ":2: is not UTF-8: byte 0xe9 at byte 18 of the line; save the file as"
      " UTF-8",
    ),
    (
      b"PAR1\x15\x04",
      ": is Parquet: expected UTF-8 text; unpack it, or save it as JSON lines",
    ),
  ],
)
def test_a_file_that_holds_no_rows_is_named(tmp_path, content, message):
  path = tmp_path / "train.jsonl"
  path.write_bytes(content)
  assert _mistakes_of(path) == [f"{path}{message}"]


def test_a_file_of_rows_that_may_not_be_read_is_named(forbidden, as_nobody):
  path = forbidden / "secret"
  with as_nobody():
    assert _mistakes_of(path) == [f"{path}: cannot be read: Permission denied"]


def test_a_function_of_one_s_own_that_fails_is_told_of_its_row(
  tmp_path, monkeypatch
):
  (tmp_path / "fails_on_rows.py").write_text(
    "def last(text):\n  return text.split()[9]\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  rule = answer_rules.AnswerRule(kind="python", function="fails_on_rows.last")
  path = tmp_path / "train.jsonl"
  path.write_text('\n{"question": "How many?", "answer": "7"}\n')
  assert _mistakes_of(path, rule) == [
    f"{path}:2: python:fails_on_rows.last failed on 'The answer is 7'"
    " (IndexError: list index out of range)"
  ]


@pytest.mark.parametrize(
  ("given", "shown"),
  [(True, "True"), (["a"], "['a']"), (1.5, "1.5"), ({"n": 1}, "{'n': 1}")],
)
def test_an_id_is_a_string_or_a_whole_number(given, shown):
  assert _read("2", answer_rules.NUMBER, question_id=given) == (
    f"question_id is {shown}: expected a string or a whole number"
  )


def test_a_zero_byte_is_no_text():
  message = _read("2", answer_rules.NUMBER, question="How\0 many?")
  assert message == "'question' holds a zero byte, which is not text"


@pytest.mark.parametrize("answer", ["", "  ", "3 + 4 = 7 ####", [], {}])
def test_an_answer_that_says_nothing_is_empty(answer):
  assert _read(answer, answer_rules.NUMBER) == "'answer' is empty"


@pytest.mark.parametrize(
  ("rule", "fields"),
  [({"field": "label"}, "'label'"), ({"fields": ("a", "b")}, "'a' or 'b'")],
)
def test_an_object_without_the_rule_s_field_is_told(rule, fields):
  rule = answer_rules.AnswerRule(kind="json", **rule)
  assert _read({"lable": "late"}, rule) == (
    f"'answer' lacks the field {fields}: '{{\"lable\": \"late\"}}'"
  )


def test_a_comparison_that_calls_the_row_s_own_answer_wrong_is_told():
  rule = answer_rules.AnswerRule(
    kind="regex", pattern="queue: (?P<answer>[a-z]+)", compare="number"
  )
  wording = formats.Wording(answer="queue: {answer}")
  assert _read("late", rule, wording=wording) == (
    "the answer rule finds the answer 'late' in 'queue: late', but `compare:"
    " number` calls it wrong"
  )
