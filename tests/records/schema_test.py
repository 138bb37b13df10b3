"""A record survives its line; a bad line is named."""

import dataclasses
import doctest
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specialize_jax import errors
from specialize_jax.records import schema

LOG_PROBS = st.one_of(
  st.just(-math.inf), st.floats(min_value=-100.0, max_value=0.0)
)
CANDIDATES = st.lists(st.tuples(st.text(), LOG_PROBS), max_size=5)


@st.composite
def teacher_steps(draw):
  token = draw(st.text(min_size=1, max_size=6))
  top = tuple(draw(CANDIDATES))
  given_bytes = draw(st.booleans())
  return schema.TeacherStep(
    token=token,
    log_prob=draw(LOG_PROBS),
    top=top,
    token_bytes=token.encode() if given_bytes else None,
    top_bytes=tuple(t.encode() for t, _ in top) if given_bytes else None,
  )


def make_record(steps, **changes):
  fields = {
    "question_id": "mini_gsm/train/7",
    "sample": 3,
    "question": "How many?",
    "gold_answer": "7",
    "text": "".join(step.token for step in steps),
    "steps": tuple(steps),
    "finish_reason": "stop",
    "request": {"temperature": 0.5},
    "verdicts": {"fixed": True},
  }
  return schema.TeacherRecord(**(fields | changes))


STEP = schema.TeacherStep(token="7", log_prob=-0.5, top=(("7", -0.5),))


def test_the_docstrings_numbers_are_true():
  outcome = doctest.testmod(schema)
  assert outcome.attempted > 0
  assert outcome.failed == 0


@settings(
  deadline=None,
  max_examples=50,
  suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(teacher_steps(), max_size=3))
def test_a_record_survives_its_line_exactly(steps):
  record = make_record(steps)
  line = schema.to_json_line(record)
  assert "\n" not in line
  assert schema.from_json_line(line, "line 1") == record


def test_a_question_keeps_the_type_of_its_id():
  record = make_record([STEP], question_id=0)
  back = schema.from_json_line(schema.to_json_line(record), "line 1")
  assert back.question_id == 0
  assert isinstance(back.question_id, int)


def test_tokens_that_split_a_character_are_spelled_by_their_bytes():
  steps = (
    schema.TeacherStep(
      token="\ufffd", log_prob=-0.1, top=(), token_bytes=b"\xe2\x82"
    ),
    schema.TeacherStep(
      token="\ufffd", log_prob=-0.1, top=(), token_bytes=b"\xac"
    ),
  )
  schema.check_spelling(make_record(steps, text="\u20ac"))
  bare = tuple(dataclasses.replace(s, token_bytes=None) for s in steps)
  with pytest.raises(errors.UserError, match="spell"):
    schema.check_spelling(make_record(bare, text="\u20ac"))


def test_tokens_that_do_not_spell_the_text_name_question_and_sample():
  record = make_record([STEP], text="8")
  with pytest.raises(
    errors.UserError, match=r"question 'mini_gsm/train/7', sample 3: .*'7'.*'8'"
  ):
    schema.check_spelling(record)
  with pytest.raises(errors.UserError, match="nothing"):
    schema.check_spelling(make_record([STEP], text="77"))
  with pytest.raises(errors.UserError, match="sample 3"):
    schema.from_json_line(schema.to_json_line(record), "line 1")


def _changed(**changes):
  return json.dumps(
    json.loads(schema.to_json_line(make_record([STEP]))) | changes
  )


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", r"line 9 is not JSON"),
    ("[]", r"line 9 is not a teacher record"),
    ("{}", r"line 9 is not a teacher record"),
    (_changed(v=2), r"line 9 has schema version 2.*upgrade"),
    (_changed(steps=[{"t": "7"}]), r"line 9 is not a whole .*'p'"),
    (_changed(steps=[{"t": "7", "p": 0.5, "top": []}]), r"is above 0"),
    (_changed(steps=[{"t": "7", "p": "x", "top": []}]), r"is not a number"),
    (_changed(sample="0"), r"'sample' is '0'"),
    (_changed(question=None), r"'question' is None"),
  ],
)
def test_a_bad_line_is_named(line, message):
  with pytest.raises(errors.UserError, match=message):
    schema.from_json_line(line, "line 9")


@pytest.mark.parametrize(
  ("request_", "is_cut"),
  [
    ({"max_tokens": 2}, True),
    ({"max_tokens": 3}, False),
    ({"body": {"max_tokens": 2}}, True),
    ({"body": {"generationConfig": {"maxOutputTokens": 2}}}, True),
    ({"options": {"num_predict": 2}}, True),
    ({"max_tokens": 2, "extra": {"max_tokens": None}}, False),
  ],
)
def test_a_sample_of_as_many_tokens_as_it_may_have_is_cut(request_, is_cut):
  record = make_record(
    [STEP, STEP], finish_reason=schema.UNKNOWN_FINISH, request=request_
  )
  assert bool(schema.why_unfinished(record, 2)) is is_cut
