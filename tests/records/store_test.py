"""A store loses no record, and incomplete records are never read."""

import errno
import json
import math
import os
import pathlib

import pytest

from specialize_jax import errors
from specialize_jax.files import reading
from specialize_jax.records import schema, store


def make_record(sample):
  step = schema.TeacherStep(token="7", log_prob=-0.5, top=(("7", -0.5),))
  return schema.TeacherRecord(
    question_id="q",
    sample=sample,
    question="3 + 4?",
    gold_answer="7",
    text="7",
    steps=(step,),
    finish_reason="stop",
    request={},
    verdicts={},
  )


def write(directory, samples):
  with store.RecordWriter(directory) as writer:
    for sample in samples:
      writer.append(make_record(sample))


def samples_of(path):
  return [record.sample for record in store.read_records(path)]


def released(**changes):
  steps = [
    [[" step", 1.0], [" step", 1.0]],
    [["\n", 0.98], ["\n", 0.98]],
    [["If", 0.1009], ["If", 0.1009], ["She", 0.0]],
    [["\n", 0.95], ["\n", 0.95]],
    [["\n", 0.97], ["\n", 0.97]],
  ]
  return {"question_id": 0, "sample": 4, "steps": steps} | changes


def write_released(path, *entries):
  path.write_text(json.dumps(list(entries)))
  return path


def test_what_was_appended_is_read_in_order(tmp_path):
  write(tmp_path, range(3))
  write(tmp_path, range(3, 5))
  assert list(store.read_records(tmp_path)) == [
    make_record(sample) for sample in range(5)
  ]
  assert samples_of(tmp_path / store.FILE_NAME) == [0, 1, 2, 3, 4]


def test_a_copy_by_hard_links_grows_alone(tmp_path):
  (tmp_path / "copy").mkdir()
  write(tmp_path / "store", [0])
  os.link(
    tmp_path / "store" / store.FILE_NAME, tmp_path / "copy" / store.FILE_NAME
  )
  with store.RecordWriter(tmp_path / "store") as writer:
    write(tmp_path / "copy", [1])
    writer.append(make_record(2))
  assert samples_of(tmp_path / "store") == [0, 2]
  assert samples_of(tmp_path / "copy") == [0, 1]


def test_a_flushed_record_is_on_disk_while_the_writer_is_open(tmp_path):
  with store.RecordWriter(tmp_path) as writer:
    writer.append(make_record(0))
    writer.flush()
    assert samples_of(tmp_path) == [0]


def test_readers_refuse_an_incomplete_last_line(tmp_path):
  write(tmp_path, range(2))
  file = tmp_path / store.FILE_NAME
  whole = file.read_bytes()
  for cut in (2, len(whole) // 3, len(whole) // 2 - 2):
    file.write_bytes(whole[:-cut])
    with pytest.raises(errors.UserError, match="line 2, the last, is cut"):
      samples_of(tmp_path)


def test_a_writer_removes_an_incomplete_last_line_and_resumes(tmp_path):
  write(tmp_path, range(2))
  file = tmp_path / store.FILE_NAME
  whole = file.read_bytes()
  file.write_bytes(whole[:-2])
  with pytest.warns(UserWarning, match="removed an unfinished last line"):
    write(tmp_path, [7])
  assert samples_of(tmp_path) == [0, 7]


def test_a_writer_keeps_a_complete_last_line_without_newline(tmp_path):
  write(tmp_path, range(2))
  file = tmp_path / store.FILE_NAME
  file.write_bytes(file.read_bytes()[:-1])
  assert samples_of(tmp_path) == [0, 1]
  write(tmp_path, [7])
  assert samples_of(tmp_path) == [0, 1, 7]


def test_the_last_line_is_found_across_blocks(tmp_path):
  file = tmp_path / "long"
  for content, start in (
    (b"a\n" + b"b" * 200_000, 2),
    (b"a\n" + b"b" * 200_000 + b"\n", 2),
    (b"b" * 70_000, 0),
    (b"\n", 0),
  ):
    file.write_bytes(content)
    with file.open("rb") as stream:
      assert store._last_line_start(stream) == start


def test_a_record_that_misspells_its_text_is_never_stored(tmp_path):
  step = schema.TeacherStep(token="8", log_prob=-0.5, top=())
  bad = schema.TeacherRecord(**(vars(make_record(0)) | {"steps": (step,)}))
  with (
    store.RecordWriter(tmp_path) as writer,
    pytest.raises(errors.UserError, match="spell"),
  ):
    writer.append(bad)
  assert samples_of(tmp_path) == []


def test_a_released_sample_loses_its_prompt_tail_and_its_stop(tmp_path):
  path = write_released(tmp_path / "released.json", released())
  (record,) = store.read_records(path)
  assert record.text == "If"
  assert record.question_id == 0
  assert record.sample == 4
  assert record.finish_reason == "stop"
  (step,) = record.steps
  assert math.exp(step.log_prob) == pytest.approx(0.1009)
  assert step.top[1] == ("She", -math.inf)
  assert schema.from_json_line(schema.to_json_line(record), "") == record


def test_a_released_sample_without_a_stop_ended_nobody_knows_why(tmp_path):
  steps = released()["steps"][:-1]
  path = write_released(tmp_path / "a.json", released(steps=steps))
  (record,) = store.read_records(path)
  assert record.finish_reason == schema.UNKNOWN_FINISH
  assert record.text == "If\n"
  path = write_released(tmp_path / "b.json", released(steps=steps[2:]))
  (record,) = store.read_records(path)
  assert record.request["prompt_tail"] == []


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("[{}]", "entry 0 is not one of the paper's"),
    ('["a"]', "entry 0 is not one of the paper's"),
    ("[{", "line 1 is not JSON"),
    ("hello\n", "line 1 is not JSON"),
    ('{"question": "q"}\n', "line 1 is not a teacher record"),
  ],
)
def test_a_foreign_file_is_named(tmp_path, content, message):
  path = tmp_path / "foreign.json"
  path.write_text(content)
  with pytest.raises(errors.UserError, match=message):
    samples_of(path)


def test_a_probability_above_one_is_refused(tmp_path):
  steps = released()["steps"]
  steps[2] = [["If", 1.5]]
  path = write_released(tmp_path / "a.json", released(steps=steps))
  with pytest.raises(errors.UserError, match=r"1\.5 is not between"):
    samples_of(path)


def test_a_missing_store_is_named(tmp_path):
  with pytest.raises(errors.UserError, match="does not exist"):
    samples_of(tmp_path / "nowhere")
  with pytest.raises(errors.UserError, match="it has no records.jsonl"):
    samples_of(tmp_path)


def test_a_pipe_is_no_store_since_it_could_be_read_once_only(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(errors.UserError) as caught:
    samples_of(tmp_path / "pipe")
  assert str(caught.value) == (
    f"{tmp_path}/pipe is a pipe or device, and records are read more than once:"
    " write them to a file first"
  )


def test_released_samples_may_follow_a_megabyte_of_blanks(tmp_path):
  path = write_released(tmp_path / "released.json", released())
  path.write_text(" \n" * (1 << 19) + path.read_text())
  assert samples_of(path) == [4]


def test_a_line_without_an_end_is_not_read_into_memory_whole(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(reading, "MAX_ROW_SIZE", 1 << 20)
  write(tmp_path, [0])
  file = tmp_path / store.FILE_NAME
  with file.open("ab") as stream:
    stream.write(b"x" * (5 << 20))
  with file.open("rb") as stream:
    lengths = [len(line) for line in store._stored_lines(stream)][1:]
  assert max(lengths) <= 2 << 20
  assert sum(lengths) == 5 << 20
  with pytest.raises(errors.UserError) as caught:
    samples_of(tmp_path)
  assert str(caught.value) == (
    f"{file}, line 2 has more than 1,048,576 characters: expected a row of one"
    " example; split or remove the line."
  )


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (
      b"{}\xff\n",
      " is not UTF-8: 'utf-8' codec can't decode byte 0xff in position 2:"
      " invalid start byte",
    ),
    (
      b"\0" * 40 + b"\n",
      " is damaged: it contains zero bytes, which a machine that fails while"
      " writing may leave; delete that line, and run the command that wrote the"
      " store again to replace the sample",
    ),
  ],
)
def test_a_line_that_nobody_wrote_is_named(tmp_path, line, message):
  write(tmp_path, [0])
  file = tmp_path / store.FILE_NAME
  with file.open("ab") as stream:
    stream.write(line)
  with pytest.raises(errors.UserError) as caught:
    samples_of(tmp_path)
  assert str(caught.value) == f"{file}, line 2{message}"


def test_a_record_that_could_not_be_read_again_is_not_stored(
  tmp_path, monkeypatch
):
  write(tmp_path, [0])
  size = (tmp_path / store.FILE_NAME).stat().st_size
  monkeypatch.setattr(reading, "MAX_ROW_SIZE", size - 1)
  with (
    store.RecordWriter(tmp_path) as writer,
    pytest.raises(errors.UserError) as caught,
  ):
    writer.append(make_record(1))
  assert str(caught.value) == (
    f"question 'q', sample 1: the record has {size:,} bytes, and a store's"
    f" lines at most {size - 1:,}; ask for fewer tokens or alternatives"
  )
  monkeypatch.undo()
  assert samples_of(tmp_path) == [0]


def test_many_records_are_durable_before_anyone_flushes(tmp_path, monkeypatch):
  monkeypatch.setattr(store, "_MAX_PENDING_BYTES", 700)
  with store.RecordWriter(tmp_path) as writer:
    assert writer.is_empty
    for sample in range(10):
      writer.append(make_record(sample))
    assert not writer.is_empty
    assert writer.num_durable >= 4
    assert samples_of(tmp_path) == list(range(writer.num_durable))
  assert samples_of(tmp_path) == list(range(10))


@pytest.mark.parametrize(
  ("number", "kind", "message"),
  [
    (
      errno.ENOSPC,
      errors.UserError,
      "record store {} cannot grow (No space left on device): every record"
      " counted so far is kept; free some space and run the same command again,"
      " which resumes where this one stopped",
    ),
    (errno.EIO, OSError, "[Errno 5] Input/output error"),
  ],
)
def test_a_disk_that_fails_keeps_what_was_counted_and_takes_no_more(
  tmp_path, monkeypatch, number, kind, message
):
  def failing(descriptor):
    raise OSError(number, os.strerror(number))

  with store.RecordWriter(tmp_path) as writer:
    writer.append(make_record(0))
    writer.flush()
    writer.append(make_record(1))
    monkeypatch.setattr(os, "fsync", failing)
    for _ in range(2):
      with pytest.raises(kind) as caught:
        writer.flush()
      assert str(caught.value) == message.format(tmp_path)
      monkeypatch.undo()  # nor is it tried again, where there is room by now
    assert writer.num_durable == 1
  assert samples_of(tmp_path) == [0]


def data_file(*parts):
  """A file of the real data, or a skip that says where it was looked for."""
  here = pathlib.Path(__file__).resolve().parents[2]
  root = os.environ.get("SPECIALIZE_DATA", here.parent / "shared" / "data")
  path = pathlib.Path(root, *parts)
  if not path.exists():
    pytest.skip(f"no {path}; set SPECIALIZE_DATA")
  return path


def test_the_real_samples_are_read_completely():
  records = list(store.read_records(data_file("codex", "gsm8k_train_0.json")))
  assert [record.sample for record in records] == list(range(40))
  assert {record.finish_reason for record in records} == {"stop"}
  for record in records:
    schema.check_spelling(record)
    assert record.text.endswith("The answer is 72")
    assert not record.text.startswith("\n")
