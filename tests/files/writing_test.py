"""Files are written atomically."""

import contextlib
import errno
import io
import json
import math
import os
import stat
import sys

import hypothesis
import pytest
from hypothesis import strategies

from specialize_jax import errors
from specialize_jax.files import reading, writing


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / "deep" / "page.html"
  writing.write_text(path, "old £")
  with pytest.raises(RuntimeError), writing.opened(path) as stream:
    stream.write("half")
    raise RuntimeError("killed")
  assert path.read_text(encoding="utf-8") == "old £"
  assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_a_directory_that_another_makes_meanwhile_is_left_and_named(tmp_path):
  place = tmp_path / "store"
  message = "store was made by another process meanwhile"
  with (
    pytest.raises(errors.UserError, match=message),
    writing.new_directory(place),
  ):
    place.mkdir()
    (place / "theirs").write_text("kept")
  assert [file.name for file in tmp_path.iterdir()] == ["store"]
  assert (place / "theirs").read_text() == "kept"


def test_rows_that_fail_leave_the_old_ones(tmp_path):
  path = tmp_path / "rows.jsonl"
  writing.write_rows(path, [{"a": 1}])

  def rows():
    yield {"a": 2}
    raise RuntimeError("killed")

  with pytest.raises(RuntimeError):
    writing.write_rows(path, rows())
  assert reading.read_rows(path) == [{"a": 1}]
  assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_file_has_the_rights_that_any_new_file_has(tmp_path):
  writing.write_text(tmp_path / "ours", "")
  (tmp_path / "plain").write_text("")
  assert os.stat(tmp_path / "ours").st_mode == (
    os.stat(tmp_path / "plain").st_mode
  )


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
  link, target = tmp_path / "link", tmp_path / "disk" / "rows.jsonl"
  link.symlink_to(target)
  for text in ("one", "two"):
    writing.write_text(link, text)
    assert link.is_symlink()
    assert target.read_text() == text
  folder = tmp_path / "folder"
  folder.symlink_to(tmp_path / "disk" / "new")
  with writing.new_directory(folder) as unfinished:
    (unfinished / "file").write_text("three")
  assert folder.is_symlink()
  assert (tmp_path / "disk" / "new" / "file").read_text() == "three"


def test_a_pipe_or_device_is_written_to_and_stays_one(tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
  try:
    writing.write_text(pipe, "rows")
    assert os.read(reader, 10) == b"rows"
  finally:
    os.close(reader)
  assert stat.S_ISFIFO(pipe.stat().st_mode)
  writing.write_text(os.devnull, "rows")
  assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
  assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_standard_output_is_added_to_and_not_truncated(tmp_path):
  out = tmp_path / "out"
  with open(out, "wb") as stream:
    stream.write(b"before\n")
    stream.flush()
    writing.write_text(f"/dev/fd/{stream.fileno()}", "rows\n")
    stream.write(b"after\n")
  assert out.read_text() == "before\nrows\nafter\n"
  with pytest.raises(errors.UserError, match="/dev/fd/999 is not open"):
    writing.write_text("/dev/fd/999", "rows")
  with open(out, "rb") as stream:
    path = f"/dev/fd/{stream.fileno()}"  # of what is read
    with pytest.raises(errors.UserError) as caught:
      writing.write_text(path, "rows")
  assert str(caught.value) == f"{path} is not open: Bad file descriptor"


def test_a_directory_is_no_file(tmp_path):
  with pytest.raises(errors.UserError, match="is a directory"):
    writing.write_text(tmp_path, "")


@pytest.mark.parametrize("letter", ["a", "é", "数"])
def test_a_name_may_have_all_the_bytes_that_a_name_can(tmp_path, letter):
  name = letter * (255 // len(letter.encode()))
  writing.write_text(tmp_path / name, "whole")
  assert [p.name for p in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_text() == "whole"


@hypothesis.given(
  strategies.text(strategies.characters(codec=None, exclude_categories=()))
)
def test_any_string_survives_a_text_for_people(tmp_path_factory, text):
  path = tmp_path_factory.getbasetemp() / "any.txt"
  writing.write_text(path, text)
  assert path.read_bytes().decode() == writing.printable(text)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_string_survives_a_terminal(monkeypatch, encoding):
  held = io.BytesIO()
  stream = io.TextIOWrapper(held, encoding=encoding)
  monkeypatch.setattr(sys, "stdout", stream)
  writing.survive_any_text()
  with contextlib.redirect_stdout(stream):
    print("half \ud83d, whole 😀, £")
  stream.flush()
  assert b"half \\ud83d, whole " in held.getvalue()


def test_a_number_that_json_has_not_is_null():
  row = {"a": [math.nan, 1.5], "b": {"c": -math.inf}, "d": (math.inf, "NaN")}
  written = json.loads(writing.to_json(row), parse_constant=pytest.fail)
  assert written == {"a": [None, 1.5], "b": {"c": None}, "d": [None, "NaN"]}


def test_a_directory_that_cannot_take_its_place_leaves_nothing(tmp_path):
  with (
    pytest.raises(OSError, match="File name too long"),
    writing.new_directory(tmp_path / ("n" * 256)) as unfinished,
  ):
    (unfinished / "file").write_text("text")
  assert not list(tmp_path.iterdir())


def test_what_killed_writers_have_left_is_removed_by_the_next(tmp_path):
  folder = tmp_path / ".killed.store.unfinished"
  folder.mkdir()
  (folder / "half").write_text("half")
  (tmp_path / ".killed.rows.unfinished").write_text("half")
  with writing.new_directory(tmp_path / "store") as unfinished:
    (unfinished / "file").write_text("whole")
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    ".killed.rows.unfinished",
    "store",
  ]
  writing.write_text(tmp_path / "rows", "whole")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["rows", "store"]


def test_what_a_running_writer_has_not_finished_is_kept(tmp_path):
  path = tmp_path / "page.html"
  with writing.opened(path) as one:
    one.write("one")
    writing.write_text(path, "two")
    assert path.read_text() == "two"
  assert path.read_text() == "one"


def test_a_full_disk_names_the_file_that_was_written(tmp_path):
  path = tmp_path / "rows.jsonl"
  with pytest.raises(OSError) as caught, writing.opened(path):  # noqa: PT011
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert str(caught.value) == (f"[Errno 28] No space left on device: '{path}'")
  assert not list(tmp_path.iterdir())


def test_bytes_that_are_no_text_are_not_spelled_as_if_they_were(monkeypatch):
  for name in ("stdout", "stderr"):
    monkeypatch.setattr(sys, name, io.StringIO())
  writing.survive_any_text()
  with pytest.raises(UnicodeDecodeError, match="can't decode byte 0xff"):
    b"\xff".decode("ascii", errors=writing._SPELLED)
