"""Rows are written in order, and an interruption loses none of them."""

import json
import os

import pytest

from specialize_jax import errors
from specialize_jax.decoding import resumable

MADE_OF = {"--seed": 0, "--inputs": "a" * 64}


def opened(path, num_rows=5, **changes):
  arguments = {"made_of": MADE_OF, "num_rows": num_rows, **changes}
  return resumable.ResumableRows(path, **arguments)


def read(path):
  return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def row(n):
  return {"n": n, "text": "a\u2028b £"}


@pytest.fixture
def path(tmp_path):
  return tmp_path / "deep" / "out.jsonl"


def test_a_row_is_written_as_soon_as_order_allows(path):
  with opened(path) as rows:
    rows.add({2: row(2), 1: row(1)})
    assert read(path) == []
    assert rows.done() == {1, 2}
    rows.add({0: row(0)})
    assert read(path) == [0, 1, 2]
    rows.add({4: row(4), 3: row(3)})
  assert read(path) == [0, 1, 2, 3, 4]
  assert json.loads(path.read_text().splitlines()[3]) == row(3)


def test_waiting_rows_survive_an_interruption(path):
  with opened(path) as rows:
    rows.add({0: row(0)})
    rows.add({3: row(3), 2: row(2)})
  with opened(path) as rows:
    assert rows.done() == {0, 2, 3}
    rows.add({1: row(1)})
    assert read(path) == [0, 1, 2, 3]
    rows.add({4: row(4)})
  with opened(path) as rows:
    assert rows.done() == {0, 1, 2, 3, 4}
  assert read(path) == [0, 1, 2, 3, 4]


def test_rows_of_a_copy_by_hard_links_are_its_own(path, tmp_path):
  with opened(path) as rows:
    rows.add({0: row(0)})
  for name in (path.name, f"{path.name}.progress"):
    os.link(path.with_name(name), tmp_path / name)
  with opened(tmp_path / path.name) as rows:
    rows.add({1: row(1)})
    with opened(path) as others:
      others.add({1: row(7)})
  assert read(tmp_path / path.name) == [0, 1]
  assert read(path) == [0, 7]


def test_a_file_is_gone_on_with_under_another_of_its_names(path, tmp_path):
  (tmp_path / "link.jsonl").symlink_to(path)
  with opened(path) as rows:
    rows.add({0: row(0)})
  with opened(tmp_path / "link.jsonl") as rows:
    assert rows.done() == {0}
    rows.add({1: row(1)})
  with opened(tmp_path / "link.jsonl", overwrite=True) as rows:
    rows.add({0: row(0)})
  assert (tmp_path / "link.jsonl").is_symlink()
  assert read(path) == [0]


@pytest.mark.parametrize("end", ['{"n": 2', '{"n": 2}', "\0\0\0\n", "\n"])
def test_an_incomplete_last_line_is_removed(path, end):
  with opened(path) as rows:
    rows.add({0: row(0), 1: row(1)})
  with path.open("a") as stream:
    stream.write(end)
  with opened(path) as rows:
    assert rows.done() == {0, 1}
    rows.add({2: row(2), 3: row(3), 4: row(4)})
  assert read(path) == [0, 1, 2, 3, 4]


def test_an_incomplete_waiting_line_is_repeated(path):
  with opened(path) as rows:
    rows.add({1: row(1)})
    rows.add({2: row(2)})
  progress = path.with_name("out.jsonl.progress")
  content = progress.read_bytes()
  checksum = content[:-1].rpartition(b"\n")[2]
  progress.write_bytes(content[: -len(checksum) - 6])
  with opened(path) as rows:
    assert rows.done() == {1}
    rows.add({0: row(0), 2: row(2), 3: row(3), 4: row(4)})
  assert read(path) == [0, 1, 2, 3, 4]


def test_many_waiting_rows_are_dropped_once_they_are_written(path, monkeypatch):
  monkeypatch.setattr(resumable, "_MAX_WAITING_LINES", 3)
  with opened(path, num_rows=100) as rows:
    for n in range(0, 100, 2):
      rows.add({n + 1: row(n + 1)})
      rows.add({n: row(n)})
  assert read(path) == list(range(100))
  progress = path.with_name("out.jsonl.progress")
  assert len(progress.read_text().splitlines()) <= 4


def test_a_field_that_is_not_text_is_escaped(path):
  with opened(path, num_rows=1) as rows:
    rows.add({0: {"n": 0, "bad": "\ud800"}})
  assert json.loads(path.read_text())["bad"] == "\ud800"


def test_another_run_is_refused_and_changes_nothing(path):
  with opened(path) as rows:
    rows.add({0: row(0)})
  before = path.read_bytes()
  with pytest.raises(
    errors.UserError, match="begun with --seed=0, and now it is 1: .*overwrite"
  ):
    opened(path, made_of={**MADE_OF, "--seed": 1})
  with pytest.raises(errors.UserError, match="--top_k=unset, and now it is 5"):
    opened(path, made_of={**MADE_OF, "--top_k": 5})
  with pytest.raises(errors.UserError, match=r"--inputs=aaaaaaaaaaaa\.\.\."):
    opened(path, made_of={**MADE_OF, "--inputs": "b" * 64})
  assert path.read_bytes() == before


@pytest.mark.parametrize("where", ["in order", "waiting"])
def test_a_row_of_another_input_is_refused(path, where):
  def belongs(number, row):
    return row["n"] == number

  shift = 0 if where == "in order" else 1
  with opened(path, belongs=belongs) as rows:
    rows.add({shift: row(shift), 1 + shift: row(0)})
  before = path.read_bytes()
  with pytest.raises(errors.UserError, match=f"row {2 + shift} was not made"):
    opened(path, belongs=belongs)
  assert path.read_bytes() == before
  opened(path, belongs=belongs, overwrite=True)


def test_a_file_of_unknown_origin_is_refused(path):
  path.parent.mkdir()
  path.write_text('{"n": 0}\n')
  with pytest.raises(errors.UserError, match="was not written by this command"):
    opened(path)
  progress = path.with_name("out.jsonl.progress")
  progress.write_text("else\n")
  with pytest.raises(errors.UserError, match="was not written by this comm"):
    opened(path)
  with opened(path, overwrite=True) as rows:
    assert rows.done() == set()


def test_a_damaged_file_is_refused(path):
  with opened(path) as rows:
    rows.add({0: row(0), 1: row(1)})
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("half\n" + lines[1])
  with pytest.raises(errors.UserError, match="line 1 is not a JSON object"):
    opened(path)
  path.write_text("".join(lines * 3))
  with pytest.raises(errors.UserError, match="has 6 rows, and there are 5"):
    opened(path)


def test_a_directory_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="is a directory"):
    opened(tmp_path)
