"""An object altered after it was written is refused by every reader."""

import json
import random

import pytest
from testdata import tiny_world

from specialize_jax import errors
from specialize_jax.decoding import resumable
from specialize_jax.evaluation import history
from specialize_jax.files import reading, seals, writing
from specialize_jax.records import store
from specialize_jax.training import run_log

ROW = {"step": 7, "group": "evaluation", "values": {"a/accuracy": 0.75}}


def _flip_a_digit(path, rng=None):
  """Changes one digit of a file: what is left is JSON still."""
  content = bytearray(path.read_bytes())
  end = (
    content.rfind(seals.FIELD.encode())
    if seals.FIELD.encode() in content
    else len(content)
  )
  places = [i for i in range(end) if chr(content[i]).isdigit()]
  place = (rng or random.Random(0)).choice(places)
  content[place] = ord(str((int(chr(content[place])) + 1) % 10))
  path.write_bytes(bytes(content))


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_of_any_layout_is_sealed_and_read_without_its_seal(
  tmp_path, indent
):
  text = seals.sealed(json.dumps(ROW, indent=indent))
  seals.check(text, "here")
  (tmp_path / "value.json").write_text(text + "\n")
  assert reading.read_json(tmp_path / "value.json") == ROW
  assert json.loads(text) == {**ROW, seals.FIELD: json.loads(text)[seals.FIELD]}


def test_every_altered_byte_of_a_row_is_noticed():
  text = seals.sealed(json.dumps(ROW))
  for place in range(len(text)):
    altered = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
    try:
      row = json.loads(altered)
    except ValueError:
      continue
    try:
      seals.check(altered, "here")
    except errors.UserError:
      continue
    # But for the name of the checksum itself, which then is one no more.
    assert {name: row[name] for name in ROW} == ROW


def test_rows_and_values_that_commands_go_by_are_refused_once_altered(tmp_path):
  rows, value = tmp_path / "rows.jsonl", tmp_path / "value.json"
  writing.write_rows(rows, [ROW, ROW], sealed=True)
  writing.write_json(value, ROW, sealed=True)
  assert reading.read_rows(rows) == [ROW, ROW]
  assert history.read(rows) == {7: {"a/accuracy": 0.75}}
  for path, read in (
    (rows, reading.read_rows),
    (rows, history.read),
    (value, reading.read_json),
  ):
    whole = path.read_bytes()
    _flip_a_digit(path)
    with pytest.raises(errors.UserError, match="was altered after it was"):
      read(path)
    path.write_bytes(whole)


def test_a_record_whose_log_prob_was_altered_is_refused(tmp_path):
  world = tiny_world.build(tmp_path / "world")
  with store.RecordWriter(tmp_path / "records") as writer:
    for record in tiny_world.teacher_records(world, 2):
      writer.append(record)
  assert len(list(store.read_records(tmp_path / "records"))) == 6
  file = tmp_path / "records" / store.FILE_NAME
  file.write_text(file.read_text().replace("-0.2231", "-0.2232", 1))
  for read in (store.read_records, store.read_heads, store.read_lines):
    with pytest.raises(errors.UserError, match="line 1 was altered after it"):
      list(read(tmp_path / "records"))


def test_a_log_that_was_altered_is_not_gone_on_from(tmp_path):
  log = run_log.RunLog(tmp_path)
  log.start_after(None)
  log.write(1, "train", {"loss": 2.5})
  log.close()
  _flip_a_digit(tmp_path / "metrics.jsonl")
  with pytest.raises(errors.UserError, match="metrics.jsonl, line 1 was alter"):
    run_log.RunLog(tmp_path).start_after(1)


def test_a_log_of_nonsense_is_named_and_kept(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("{}\n")
  with pytest.raises(errors.UserError, match="line 1 is not a row of this run"):
    run_log.RunLog(tmp_path).start_after(1)
  assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.progress"])
def test_rows_that_were_altered_are_not_gone_on_from(tmp_path, name):
  path = tmp_path / "out.jsonl"
  arguments = {"made_of": {"--a": 1}, "num_rows": 9}
  with resumable.ResumableRows(path, **arguments) as rows:
    rows.add({0: {"x": 10}, 1: {"x": 11}, 5: {"x": 15}})
  file = tmp_path / name
  content = file.read_text()
  file.write_text(content.replace("15" if "progress" in name else "11", "71"))
  with pytest.raises(errors.UserError, match="damaged|not those that were"):
    resumable.ResumableRows(path, **arguments)
  file.write_text(content)
  assert resumable.ResumableRows(path, **arguments).done() == {0, 1, 5}
