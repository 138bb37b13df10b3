"""Columns hold what records hold, and errors are the same."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specialize_jax import errors
from specialize_jax.records import columnar, schema

LOG_PROBS = st.one_of(st.just(-math.inf), st.floats(-90, 0, allow_nan=False))
TOKENS = st.text(st.characters(codec=None), max_size=4)


@st.composite
def steps(draw):
  token = draw(TOKENS)
  top = draw(st.lists(st.tuples(TOKENS, LOG_PROBS), max_size=5))
  with_bytes = draw(st.booleans())
  return schema.TeacherStep(
    token=token,
    log_prob=draw(LOG_PROBS),
    top=tuple(top),
    token_bytes=token.encode("utf-8", "surrogatepass") if with_bytes else None,
    top_bytes=tuple(
      draw(st.one_of(st.none(), st.binary(max_size=3))) for _ in top
    )
    if with_bytes
    else None,
  )


def record(these=(), **changes):
  spelled = b"".join(step.spelling for step in these)
  return dataclasses.replace(
    schema.TeacherRecord(
      question_id="q",
      sample=0,
      question="Who?",
      gold_answer="5",
      text=spelled.decode("utf-8", "surrogatepass"),
      steps=tuple(these),
      finish_reason="stop",
      request={"model": "m"},
      verdicts={"fixed": True},
    ),
    **changes,
  )


def columns(*lines):
  collector = columnar.StepCollector()
  for line in lines:
    collector.add(columnar.parse(line))
  return collector.columns()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(steps(), max_size=4), min_size=1, max_size=3))
def test_columns_hold_what_the_records_hold(many):
  try:
    records = [record(these) for these in many]
  except UnicodeDecodeError:
    return  # surrogates that meet may spell no text
  lines = [columnar.to_line(one, "here") for one in records]
  got = columns(*lines)
  flat = [step for one in records for step in one.steps]
  assert got.counts.tolist() == [len(one.steps) for one in records]
  assert got.spellings == [step.spelling for step in flat]
  np.testing.assert_array_equal(got.log_probs, [s.log_prob for s in flat])
  assert got.top_counts.tolist() == [len(step.top) for step in flat]
  tops = [
    (
      token.encode("utf-8", "surrogatepass") if given_ is None else given_,
      log_prob,
    )
    for step in flat
    for (token, log_prob), given_ in zip(
      step.top, step.top_bytes or (None,) * len(step.top), strict=True
    )
  ]
  assert got.top_spellings == [spelling for spelling, _ in tops]
  np.testing.assert_array_equal(got.top_log_probs, [p for _, p in tops])


def test_a_head_is_all_but_the_steps():
  row = columnar.parse(columnar.to_line(record(), "here"))
  assert row.head == schema.head_from_json_line(row.line.text, "here")


STEP = schema.TeacherStep(token="5", log_prob=-0.5, top=(("5", -0.5),))
WHOLE = json.loads(schema.to_json_line(record([STEP])))


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"v": 2}, "schema version 2.*upgrade"),
    ({"text": "6"}, "spell '5' where the text has '6'"),
    ({"sample": "0"}, "'sample' is '0'"),
    ({"steps": None}, "'steps' is None"),
    ({"steps": [{"t": "5", "p": 0.5, "top": []}]}, "0.5 is above 0"),
    ({"steps": [{"t": "5", "p": "-1", "top": []}]}, "'-1' is not a number"),
    ({"steps": [{"t": "5", "p": True, "top": []}]}, "True is not a number"),
    ({"steps": [{"t": 5, "p": -1.0, "top": []}]}, "token 5 is not a string"),
    ({"steps": [{"t": "5", "top": []}]}, "KeyError: 'p'"),
    ({"steps": [{"t": "5", "p": -1, "top": [["5"]]}]}, "ValueError"),
    ({"steps": [{"t": "5", "p": -1, "top": [[5, -1]]}]}, "candidate 5"),
    (
      {"steps": [{"t": "5", "p": -1, "top": [], "top_b": ["NQ=="]}]},
      "differ in length",
    ),
    ({"steps": [{"t": "5", "p": math.nan, "top": []}]}, "nan is above 0"),
  ],
)
def test_errors_are_those_of_a_single_record(change, sentence):
  line = columnar.Line("records.jsonl, line 7", json.dumps({**WHOLE, **change}))
  with pytest.raises(errors.UserError, match=sentence) as one:
    schema.from_json_line(line.text, line.where)
  with pytest.raises(errors.UserError) as many:
    columns(line)
  assert str(many.value) == str(one.value)


@pytest.mark.parametrize("text", ["{", "[1]", "5", '{"v": 1}', "[" * 10_000])
def test_a_line_that_is_not_a_record_is_an_error(text):
  with pytest.raises(errors.UserError, match="line 7"):
    columnar.parse(columnar.Line("records.jsonl, line 7", text))
