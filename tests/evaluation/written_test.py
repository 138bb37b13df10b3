"""What is written is whole or absent, and reads back as it was."""

import pytest

from specialize_jax import errors
from specialize_jax.evaluation import written


def test_rows_read_back_as_written(tmp_path):
  rows = [
    {"prediction": "a\nb\u2028c £", "target": "1", "correct": True},
    {"prediction": "", "target": "2", "correct": False},
  ]
  path = tmp_path / "deep" / "rows.jsonl"
  written.write_rows(path, rows)
  assert written.read_rows(path) == rows


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / "rows.jsonl"
  written.write_rows(path, [{"a": 1}])

  def rows():
    yield {"a": 2}
    raise RuntimeError("killed")

  with pytest.raises(RuntimeError):
    written.write_rows(path, rows())
  assert written.read_rows(path) == [{"a": 1}]
  assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_line_that_is_no_row_is_named(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"a": 1}\n\n{"a": \n')
  with pytest.raises(errors.UserError, match="rows.jsonl, line 3 is not JSON"):
    written.read_rows(path)
  path.write_text("[1]\n")
  with pytest.raises(errors.UserError, match="line 1 is not a JSON object"):
    written.read_rows(path)
  with pytest.raises(errors.UserError, match="there is no .*absent.jsonl"):
    written.read_rows(tmp_path / "absent.jsonl")
