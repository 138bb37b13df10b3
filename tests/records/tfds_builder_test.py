import os
import pathlib

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from specialize_jax import errors
from specialize_jax.records import packed_rows, tfds_builder


def row(question, sample, size=3):
  return packed_rows.PackedRow(
    question=question,
    sample=sample,
    flags=bytes(range(size)),
    ids=os.urandom(2 * size),
    log_probs=b"",
  )


def question(number):
  return tfds_builder.QuestionRow(
    question=number,
    question_id=f"q/{number}",
    text="Line one.\nWhat? — ü.",
    answer=str(number),
  )


QUESTIONS = {number: question(number) for number in range(12)}
ROWS = [row(3, 0), row(9, 4, 0), row(3, 1, 7), row(9, 2)]


def write(directory, rows, **metadata):
  return tfds_builder.write(
    rows, QUESTIONS, data_dir=directory, name="rows", metadata=metadata
  )


def read(directory, config=tfds_builder.ROWS):
  builder = tfds_builder.open_dataset(directory, "rows", config)
  columns = tfds_builder.parse(
    tfds_builder.read_serialized(builder), builder.info.features
  )
  return {name: one.numpy().tolist() for name, one in columns.items()}


def test_rows_come_back_exactly_and_in_order(tmp_path):
  write(tmp_path, iter(ROWS))
  back = read(tmp_path)
  assert back == {
    name: [getattr(one, name) for one in ROWS] for name in vars(ROWS[0])
  }


def test_each_question_occurs_once(tmp_path):
  write(tmp_path, ROWS)
  back = read(tmp_path, tfds_builder.QUESTIONS)
  assert back["question"] == [3, 9]
  assert back["question_id"] == [b"q/3", b"q/9"]
  assert back["text"][0].decode() == "Line one.\nWhat? — ü."
  assert back["answer"] == [b"3", b"9"]


def test_tfds_itself_reads_it(tmp_path):
  write(tmp_path, ROWS)
  dataset = tfds.load("rows/rows", data_dir=tmp_path, split="train")
  back = list(tfds.as_numpy(dataset))
  assert sorted(one["flags"] for one in back) == sorted(o.flags for o in ROWS)


def test_equal_rows_are_equal_bytes_in_any_process(tmp_path):
  write(tmp_path, ROWS)
  for config in (tfds_builder.ROWS, tfds_builder.QUESTIONS):
    builder = tfds_builder.open_dataset(tmp_path, "rows", config)
    for written in tfds_builder.read_serialized(builder).numpy():
      example = tf.train.Example.FromString(written)
      assert written == example.SerializeToString(deterministic=True)


def test_many_rows_cross_batches_and_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds_builder, "_WRITTEN_TOGETHER", 2)
  monkeypatch.setattr(tfds_builder, "_SHARD_EXAMPLES", 3)
  rows = [row(i, 0, 1 + i % 4) for i in range(11)]
  write(tmp_path, rows)
  assert read(tmp_path)["question"] == list(range(11))


def test_metadata_is_kept(tmp_path):
  write(tmp_path, ROWS, mode="whitespace")
  builder = tfds_builder.open_dataset(tmp_path, "rows")
  assert builder.info.metadata["mode"] == "whitespace"
  assert builder.info.splits["train"].num_examples == 4


def test_an_error_among_the_rows_keeps_the_existing_dataset(tmp_path):
  write(tmp_path, ROWS[:1])

  def breaking():
    yield ROWS[1]
    raise errors.UserError("the third record is broken")

  with pytest.raises(errors.UserError, match="broken"):
    write(tmp_path, breaking())
  assert os.listdir(tmp_path) == ["rows"]
  assert len(read(tmp_path)["sample"]) == 1
  write(tmp_path, ROWS)
  assert os.listdir(tmp_path) == ["rows"]
  assert len(read(tmp_path)["sample"]) == 4


def test_no_rows_are_an_error_and_write_nothing(tmp_path):
  with pytest.raises(errors.UserError, match="'rows' would be empty"):
    write(tmp_path / "new", [])
  assert os.listdir(tmp_path / "new") == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match="--data_dir=.*file"):
    write(tmp_path / "file", ROWS)


def test_a_missing_dataset_is_an_error_with_the_command(tmp_path):
  with pytest.raises(errors.UserError, match="specialize prepare"):
    tfds_builder.open_dataset(tmp_path, "rows")


def test_a_dataset_of_another_version_must_be_prepared_again(tmp_path):
  write(tmp_path, ROWS)
  folder = pathlib.Path(tmp_path) / "rows" / "rows"
  (folder / tfds_builder.VERSION).rename(folder / "9.0.0")
  with pytest.raises(errors.UserError, match="version 9.0.0.*prepare"):
    tfds_builder.open_dataset(tmp_path, "rows")


def _flipped(content):
  middle = len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
  ("pattern", "harm"),
  [
    ("*.tfrecord*", _flipped),
    ("*.tfrecord*", lambda content: content[: len(content) // 2]),
    ("*.tfrecord*", lambda content: b""),
    ("dataset_info.json", lambda content: content[:40]),
    ("dataset_info.json", lambda content: content.replace(b'"4"', b'"3"')),
  ],
)
def test_a_dataset_that_was_altered_is_refused(tmp_path, pattern, harm):
  write(tmp_path, ROWS)
  (file,) = (tmp_path / "rows" / tfds_builder.ROWS).rglob(pattern)
  whole = file.read_bytes()
  file.write_bytes(harm(whole))
  assert file.read_bytes() != whole
  with pytest.raises(errors.UserError, match="is damaged .*prepare` again"):
    tfds_builder.read_serialized(tfds_builder.open_dataset(tmp_path, "rows"))


def test_what_a_killed_writer_left_is_removed_and_what_it_moved_restored(
  tmp_path,
):
  write(tmp_path, ROWS[:1])
  killed = tmp_path / f".rows.{'a' * 32}"
  killed.mkdir()
  (tmp_path / "rows").rename(killed / "old")
  with (
    pytest.raises(KeyError),
    tfds_builder.replaced_when_done(epath.Path(tmp_path), "rows"),
  ):
    raise KeyError
  assert [place.name for place in tmp_path.iterdir()] == ["rows"]
  assert read(tmp_path)["question"] == [3]
