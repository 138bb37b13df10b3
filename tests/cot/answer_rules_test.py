import sys
import time

import pytest

from specialize_jax import errors
from specialize_jax.cot import answer_rules, answers, spelling

REGEX = answer_rules.AnswerRule(
  kind="regex", pattern=r"[Qq]ueue: (?P<answer>[a-z ]+)"
)
KOREAN = answer_rules.AnswerRule(kind="json", field="정답")


@pytest.mark.parametrize(
  ("rule", "text", "gold", "correct"),
  [
    (REGEX, "queue: a b. No, Queue: late parcel", "Late  parcel", True),
    (REGEX, "Queue: late parcels", "late parcel", False),
    (REGEX, "It is a late parcel.", "late parcel", False),
    (KOREAN, '배송 문제이므로 {"정답": "나"}', "나", True),
    (KOREAN, '{"정답": "가"} 다시 {"정답": "나"}', '{"정답": "나"}', True),
    (KOREAN, '{"정답": "나", "이유": {', "나", False),
    (KOREAN, '{"정답": null}', "나", False),
    (KOREAN, '{"정답": "(나)"}', "나", True),
    (KOREAN, '{"정답": "나"}', "［나］", True),
    (KOREAN, '{"정답": "(나) 둘"}', "나", False),
    (KOREAN, '{"정답": "가) (나"}', "가", False),
    (KOREAN, "{" * 20_000, "나", False),
  ],
)
def test_an_answer_is_found_where_the_data_say_it_stands(
  rule, text, gold, correct
):
  assert rule.grade(text, gold).correct == correct


def test_a_field_may_be_within_another_and_no_string():
  rule = answer_rules.AnswerRule(
    kind="json", field="result.count", compare="number"
  )
  assert rule.grade('so {"result": {"count": 1200}}', "1,200").correct
  assert rule.bare('{"result": {"count": 3}}') == "3"
  assert not rule.grade('{"result": [3]}', "3").correct
  assert rule.read('{"result.count": 4}') == "4"


FIELDS = answer_rules.AnswerRule(kind="json", fields=("name", "pay.sum"))


@pytest.mark.parametrize(
  ("text", "correct"),
  [
    ('{"name": "ann", "pay": {"sum": 3}}', True),
    ('so {"pay": {"sum": 3.0, "by": "card"}, "name": " Ann."} and {}', True),
    ('{"name": "Ann", "pay": {"sum": "3"}}', True),
    ('{"name": "Ann", "pay": {"sum": 4}}', False),
    ('{"name": "Bob", "pay": {"sum": 3}}', False),
    ('{"name": "Ann"} {"pay": {"sum": 3}}', False),
    ('{"name": "Ann", "pay": {"sum": null}}', False),
    ('{"name": "Ann", "pay": {"sum": true}}', False),
  ],
)
def test_several_fields_are_right_if_each_of_one_object_is(text, correct):
  gold = '{"name": "Ann", "pay": {"sum": 3}}'
  assert FIELDS.grade(text, gold).correct == correct
  assert FIELDS.grade(text, FIELDS.bare(gold)).correct == correct
  read = FIELDS.read(text)
  assert read is None or FIELDS.read(read) == read


@pytest.mark.parametrize(
  ("said", "gold", "correct"),
  [("", "", True), (" ", "", True), ("", "Ann", False), ("Ann", "", False)],
)
def test_an_empty_field_equals_only_another_empty_field(said, gold, correct):
  texts = [f'{{"name": "{one}", "pay": {{"sum": 3}}}}' for one in (said, gold)]
  assert FIELDS.grade(*texts).correct == correct


def test_a_list_is_the_same_bare_and_in_its_field():
  rule = answer_rules.AnswerRule(kind="json", field="labels")
  said = 'So {"labels": ["late", "lost"]}'
  for gold in ('["late", "lost"]', '{"labels": ["late", "lost"]}'):
    assert rule.bare(gold) == "late, lost"
    assert rule.grade(said, gold).correct
  assert rule.bare("[late]") == "[late]"


def test_a_number_of_json_has_its_point_before_the_decimals():
  rule = answer_rules.AnswerRule(
    kind="json", field="kg", compare="decimal_comma"
  )
  assert rule.read('{"kg": 1.234}') == "1,234"
  assert rule.grade('{"kg": 1.234}', "1,234").correct
  assert not rule.grade('{"kg": 1234}', "1,234").correct
  assert rule.grade('{"kg": "1.234"}', "1234").correct
  fields = answer_rules.AnswerRule(
    kind="json", fields=("kg",), compare="decimal_comma"
  )
  assert fields.grade('{"kg": 1.234}', '{"kg": "1,234"}').correct
  assert fields.grade('{"kg": 1.234}', '{"kg": 1.2340}').correct


def test_an_object_s_fields_have_no_order():
  rule = answer_rules.AnswerRule(kind="json", field="place")
  gold = rule.bare('{"place": {"town": "Ulm", "at": [1, null]}}')
  same = '{"place": {"at": [1.0, null], "town": "ulm"}}'
  assert rule.grade(same, gold).correct
  assert not rule.grade('{"place": {"at": [null, 1]}}', gold).correct


@pytest.mark.parametrize(
  ("text", "gold", "found", "correct"),
  [
    ("Das macht 1.234,56 Euro.", "1234,56", "1234,56", True),
    ("Das macht 1.234 Euro.", "1234", "1234", True),
    ("Es sind 1,500 kg.", "1,5", "1,500", True),
    ("Es sind 3,14159.", "3,14159", "3,14159", True),
    ("Es sind -0,5 Grad.", "-0,50", "-0,5", True),
    ("Es sind 1,500 kg.", "1500", "1,500", False),
    ("Es sind viele.", "3", None, False),
  ],
)
def test_a_decimal_comma_is_read_as_germans_write_it(
  text, gold, found, correct
):
  rule = answer_rules.AnswerRule(kind="decimal_comma")
  verdict = rule.grade(text, gold)
  assert (verdict.extracted, verdict.correct) == (found, correct)
  assert rule.read(text) == found
  if found:  # of samples that vote
    assert rule.same(found, rule.read(f"Also {found}."))
    assert rule.same(found, gold) == correct
  amount = answer_rules.AnswerRule(
    kind="regex", pattern="(?P<answer>[-\\d,.]*\\d)", compare="decimal_comma"
  )
  assert amount.grade(text, gold).correct == correct


@pytest.mark.parametrize("kind", ["exact", "contains", "regex"])
@pytest.mark.parametrize(
  ("said", "gold", "correct"),
  [
    ("HAYIR", "hayır", True),
    ("İYİ", "iyi", True),
    ("Iğdır", "ığdır", True),
    ("kir", "kır", False),
    ("ISI", "ısı", True),
  ],
)
def test_capitals_of_turkish_are_those_of_its_letters(
  kind, said, gold, correct
):
  rule = answer_rules.AnswerRule(kind=kind, pattern=r"(?P<answer>\w+)")
  assert rule.grade(said, gold).correct == correct
  assert rule.grade(gold, said).correct == correct


@pytest.mark.parametrize(
  ("text", "gold", "correct"),
  [
    ("정답은 배송입니다", "배송", True),
    ("It is NOT a parcel", "not", True),
    ("It is nothing", "no", False),
    ("a late\nparcel!", "late parcel", True),
    ("anything", "", False),
    ("C++ (of course)", "c++", True),
  ],
)
def test_contained_means_as_whole_words(text, gold, correct):
  rule = answer_rules.AnswerRule(kind="contains")
  assert rule.grade(text, gold).correct == correct


def test_what_contains_an_answer_is_read_whole():
  rule = answer_rules.AnswerRule(kind="contains")
  assert rule.read("  It is late.\n") == "It is late."
  assert rule.read(" \n") is None


def test_an_answer_longer_than_what_is_searched_is_contained_in_nothing():
  rule = answer_rules.AnswerRule(kind="contains")
  assert rule.grade("late " * 20_000, "late " * 19_999).correct
  assert not rule.grade("late " * 30_000, "late " * 20_001).correct


def test_width_case_and_a_final_period_do_not_matter():
  rule = answer_rules.AnswerRule(kind="regex", pattern="=(?P<x>.*)")
  assert rule.grade("=Ａ１。", "a1").correct


def test_the_kinds_of_the_graders_judge_as_they_do():
  for kind, text, gold in (
    ("number", "The answer is 1,200.", "1200"),
    ("option", "The answer is B.", "(B)"),
  ):
    rule = answer_rules.AnswerRule(kind=kind)
    assert rule.grade(text, gold) == answers.grade(text, gold, kind=kind)
    assert rule.graders == ("fixed", "paper_code")
  assert REGEX.graders == ("fixed",)


def test_a_function_of_one_s_own_reads_and_compares(tmp_path, monkeypatch):
  (tmp_path / "own_rules.py").write_text(
    "def read(text):\n"
    "  return {'none': None, 'wrong': 3}.get(text, text[::-1])\n"
    "def same(said, gold):\n"
    "  return said == gold or 1 / len(gold) < 0\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  rule = answer_rules.AnswerRule(
    kind="python", function="own_rules.read", compare="python:own_rules.same"
  )
  assert answer_rules.why_not(rule) is None
  assert rule.grade("abc", "cba").correct
  assert not rule.grade("none", "x").correct
  with pytest.raises(errors.UserError, match="returned 3 for 'wrong'"):
    rule.read("wrong")
  with pytest.raises(errors.UserError, match="failed on 'cba', ''.*ZeroDiv"):
    rule.grade("abc", "")
  del sys.modules["own_rules"]


def test_an_attribute_that_is_not_a_function_is_an_error(tmp_path, monkeypatch):
  (tmp_path / "own_values.py").write_text("answer = 3\n")
  monkeypatch.syspath_prepend(tmp_path)
  rule = answer_rules.AnswerRule(kind="python", function="own_values.answer")
  message = "python:own_values.answer is not a function"
  assert answer_rules.why_not(rule) == message
  assert answer_rules.why_not(rule, imports=False) is None
  with pytest.raises(errors.UserError) as caught:
    rule.read("7")
  assert str(caught.value) == message
  del sys.modules["own_values"]


def test_a_text_too_long_to_fold_is_compared_as_it_is(tmp_path, monkeypatch):
  (tmp_path / "own_lengths.py").write_text(
    "def read(text):\n  return text[0] * int(text[1:])\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  rule = answer_rules.AnswerRule(kind="python", function="own_lengths.read")
  assert rule.grade("A100000", "a" * 100_000).correct
  assert not rule.grade("A100001", "a" * 100_001).correct
  assert rule.grade("a100001", "a" * 100_001).correct
  del sys.modules["own_lengths"]


@pytest.mark.parametrize(
  ("rule", "words"),
  [
    ({"kind": "numbr"}, "'numbr' is unknown"),
    ({"kind": "regex", "pattern": "("}, "is not a regular expression"),
    ({"kind": "regex", "pattern": "x"}, "has 0 named groups"),
    ({"kind": "python", "function": "no.such"}, "cannot be imported"),
    ({"kind": "python", "function": "read"}, "expected python:module.function"),
    ({"kind": "json", "field": "a", "compare": "fuzzy"}, "'fuzzy' is unknown"),
  ],
)
def test_a_rule_that_cannot_be_used_is_told(rule, words):
  assert words in answer_rules.why_not(answer_rules.AnswerRule(**rule))


def test_a_letter_under_half_a_million_marks_is_read_at_once():
  """Python sorts the marks of one letter in quadratic time."""
  rule = answer_rules.AnswerRule(kind="contains")
  start = time.process_time()
  spelling.nfkc("a" + "\u0300\u0327" * 500_000)
  rule.grade("So it is a" + "\u0300\u0327" * 500_000, "7")
  assert time.process_time() - start < 1.0
  assert spelling.nfkc("e\u0301\u2460") == "\u00e91"


def test_the_contained_answer_begins_and_ends_as_a_word():
  rule = answer_rules.AnswerRule(kind="contains")
  for text, answer, correct in (
    ("no way", "no", True),
    ("It is not so", "no", False),
    ("an x-y plot", "x-y", True),
    ("an ax-y plot", "x-y", False),
    ("10%", "10%", True),
    ("110%", "10%", False),
    ("\u4f60\u597d\u5417", "\u597d", True),
    ("", "no", False),
    ("no", "", False),
  ):
    assert rule.grade(text, answer).correct is correct, (text, answer)


@pytest.mark.parametrize(
  ("text", "label"),
  [
    ('{"label": "A", "alternatives": [{"label": "B"}]}', "A"),
    ('{"label": "A"} No: {"label": "B", "of": {"label": "C"}}', "B"),
    ('{"result": {"label": "A"}}', "A"),
    ('{"label": "A"}<|im_end|>\n<|im_start|>user\n{"label": "B"}', "A"),
    ('<think>{"label": "B"}</think>\n{"label": "A"}', "A"),
    (
      '{"label": "A"}<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n'
      '<|im_start|>assistant\n{"label": "B"}',
      "A",
    ),
    ('{"label": "A"} [INST] next [/INST] {"label": "B"}', "A"),
    ('{"label": "A", "why": "uses <s>old</s> price"}', "A"),
    ('{"text": "a <|endoftext|> token", "label": "A"}', "A"),
    ('{"label": "</s>"}', "</s>"),
    ('{"why": "one\nline", "label": "A"}', "A"),
  ],
)
def test_the_outermost_object_of_the_own_turn_is_read(text, label):
  rule = answer_rules.AnswerRule(kind="json", field="label")
  assert rule.read(text) == label
