"""What is written appears whole under its name, or not at all."""

import os

import pytest

from specialize_jax import errors
from specialize_jax.records import whole_file


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / "deep" / "page.html"
  whole_file.write_text(path, "old £")
  with pytest.raises(UnicodeEncodeError):
    whole_file.write_text(path, "\ud800")
  with pytest.raises(RuntimeError), whole_file.opened(path) as stream:
    stream.write("half")
    raise RuntimeError("killed")
  assert path.read_text(encoding="utf-8") == "old £"
  assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_a_file_has_the_rights_that_any_new_file_has(tmp_path):
  whole_file.write_text(tmp_path / "ours", "")
  (tmp_path / "plain").write_text("")
  assert os.stat(tmp_path / "ours").st_mode == (
    os.stat(tmp_path / "plain").st_mode
  )


def test_a_directory_is_no_file(tmp_path):
  with pytest.raises(errors.UserError, match="is a directory"):
    whole_file.write_text(tmp_path, "")
