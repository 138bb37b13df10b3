"""Question rows are text, or refused by row and field."""

import json

import pytest

from specialize_jax import errors
from specialize_jax.data import questions

ROW = {"question_id": 3, "question": "3 + 4?", "rationale": "", "answer": 7}


def written(tmp_path, *rows):
  path = tmp_path / "questions.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_numbers_in_question_rows_are_read_as_text(tmp_path):
  (question,) = questions.read_questions(written(tmp_path, ROW))
  assert (question.question_id, question.answer) == ("3", "7")


@pytest.mark.parametrize(
  ("value", "said"),
  [
    (None, "'question' is null"),
    (True, "'question' is true"),
    (["3 + 4?"], "'question' is \\["),
    ("3 \ud83d?", "'question' holds half of a surrogate pair"),
  ],
)
def test_a_question_that_is_no_text_is_named_by_its_row(tmp_path, value, said):
  path = written(tmp_path, ROW, ROW | {"question": value})
  with pytest.raises(errors.UserError, match=f"row 2: {said}"):
    questions.read_questions(path)
