"""The prediction and the target of a row are found, whoever wrote it."""

import doctest
import math

import pytest

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.evaluation import row_fields


def test_the_docstrings_rows_are_true():
  outcome = doctest.testmod(row_fields)
  assert outcome.attempted > 0
  assert outcome.failed == 0


@pytest.mark.parametrize(
  ("row", "prediction"),
  [
    ({"prediction": "So 7."}, "So 7."),
    ({"prediction": None}, ""),
    ({"prediction": math.nan}, ""),
    ({"prediction": 7}, "7"),
    ({"output": "So 7.", "output_ids": [3, 1]}, "So 7."),
    ({"prediction": "So 7.", "output": "So 7."}, "So 7."),
    ({"resps": [["So 7."]], "filtered_resps": ["7"]}, "So 7."),
    ({"resps": ["So 7."]}, "So 7."),
    ({"filtered_resps": ["7"]}, "7"),
    # A vote of several responses.
    ({"resps": [["7", "8", "7"]], "filtered_resps": ["7"]}, "7"),
    ({"prediction": "So 7.", "resps": [["8"]]}, "So 7."),
  ],
)
def test_a_prediction_is_found(row, prediction):
  assert row_fields.prediction_of(row, "row 1") == prediction


@pytest.mark.parametrize(
  ("row", "target"),
  [
    ({"target": "7"}, "7"),
    ({"target": 7.5}, "7.5"),
    ({"target": 7.0}, "7"),
    ({"target": "", "answer": "7"}, "7"),
    ({"target": ""}, ""),
    ({"target": ["7"]}, "7"),
    ({"target": "7", "answer": "8"}, "7"),
    ({"answer": "7"}, "7"),
    ({"answer": "", "gold": "7"}, "7"),
    ({"target": "7", "reference": "So 7."}, "7"),
    ({"doc": {"answer": "#### 7"}}, "#### 7"),
    ({"answer": "7", "doc": {"answer": "#### 8"}}, "7"),
    ({"inputs": {"targets_pretokenized": "7"}}, "7"),
    ({"answer": {"day": 3, "name": "Ü"}}, '{"day": 3, "name": "Ü"}'),
    ({"answer": ["a", "b"]}, '["a", "b"]'),
    ({"answer": True}, "true"),
    ({"target": 10**400}, f"1{'0' * 400}"),
  ],
)
def test_a_target_is_found(row, target):
  assert row_fields.target_of(row, "row 1") == target


def test_a_number_is_written_as_the_answers_are():
  comma = answer_rules.AnswerRule(kind="decimal_comma")
  for name in ("target", "answer"):
    row = {name: 2.125}
    assert row_fields.target_of(row, "row 1", comma.written) == "2,125"
    assert row_fields.target_of({name: 2}, "row 1", comma.written) == "2"


@pytest.mark.parametrize(
  ("row", "sentence"),
  [
    ({"prediction": "7", "output": "8"}, "two predictions that differ"),
    ({"text": "7"}, "its fields: 'text'"),
    ({}, "its fields: none"),
    ({"output_ids": [3, 1]}, "with --vocabulary"),
    ({"target_log_probs": [0.0]}, "was scored and not decoded"),
    ({"resps": [["7", "8"]]}, "not one text but several"),
    ({"resps": [[["-1.5", "False"]]]}, "log-likelihoods"),
    ({"prediction": {"text": "7"}}, "no text under 'prediction'"),
    ({"prediction": True}, "no text under 'prediction'"),
  ],
)
def test_a_row_without_one_prediction_is_refused(row, sentence):
  with pytest.raises(errors.UserError, match="row 1") as error:
    row_fields.prediction_of(row, "row 1")
  assert sentence in str(error.value)


@pytest.mark.parametrize(
  ("row", "target"),
  [
    ({"target": None, "answer": "7"}, "7"),
    ({"target": float("nan"), "answer": "7"}, "7"),
    ({"answer": float("nan"), "gold": "7"}, "7"),
    ({"target": True}, "true"),
  ],
)
def test_a_target_is_read_as_tables_write_it(row, target):
  assert row_fields.target_of(row, "row 1") == target


@pytest.mark.parametrize(
  ("row", "sentence"),
  [
    ({"prediction": "7"}, "no text under 'target'"),
    ({"target": None}, "no text under 'target'"),
    ({"answer": "7", "gold": "8"}, "call the one that is the gold answer"),
    ({"target": {"value": 7}}, "no text under 'target'"),
    ({"target": ["7", "8"]}, "no text under 'target'"),
    ({"doc": "7"}, "no text under 'target'"),
    ({"target": math.nan}, "no text under 'target' (got nan)"),
    ({"answer": -math.inf}, "no text under 'answer' (got -inf)"),
  ],
)
def test_a_row_without_one_target_is_refused(row, sentence):
  with pytest.raises(errors.UserError, match="row 1") as error:
    row_fields.target_of(row, "row 1")
  assert sentence in str(error.value)
