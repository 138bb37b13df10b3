import os

import numpy as np
import pytest

from specialize_jax import errors
from specialize_jax.records import schema, tfds_builder


def aligned_row(question, sample, length):
  rng = np.random.default_rng(100 * sample + length)
  top_log_probs = rng.normal(-3, 1, (length, 5)).astype(np.float16)
  top_log_probs[:, 4] = -np.inf
  top_ids = rng.integers(1, 32_000, (length, 5)).astype(np.uint16)
  top_ids[:, 4] = 0
  return schema.AlignedRow(
    question_id=question,
    sample=sample,
    question=f"What is {question}?",
    answer="72",
    rationale="Line one.\nThe answer is 72 — ü.",
    target_ids=rng.integers(1, 40_000, length).astype(np.int32),
    top_ids=top_ids,
    top_log_probs=top_log_probs,
    mask=rng.integers(0, 2, length).astype(np.uint8),
  )


ROWS = [
  aligned_row("a", 0, 3),
  aligned_row("b", 4, 1),
  aligned_row("a", 1, 7),
  aligned_row("b", 2, 2),
]


def read(path, split):
  builder = tfds_builder.open_dataset(
    os.path.dirname(os.path.dirname(path)), "rows"
  )
  decode = builder.info.features.deserialize_example
  return [
    {name: value.numpy() for name, value in decode(one).items()}
    for one in tfds_builder.read_serialized(builder, split)
  ]


def write(directory, rows, **options):
  return tfds_builder.write(
    rows, data_dir=directory, name="rows", metadata={}, **options
  )


def test_rows_come_back_exactly_and_in_order(tmp_path):
  path = write(tmp_path, iter(ROWS))
  back = read(path, "train")
  assert len(back) == len(ROWS)
  for row, one in zip(ROWS, back, strict=True):
    assert one["question_id"].decode() == row.question_id
    assert one["sample"] == row.sample
    assert one["rationale"].decode() == row.rationale
    assert one["answer"].decode() == row.answer
    np.testing.assert_array_equal(one["target_ids"], row.target_ids)
    for name in ("top_ids", "top_log_probs", "mask"):
      np.testing.assert_array_equal(one[name], getattr(row, name))
      assert one[name].dtype == getattr(row, name).dtype


def test_the_questions_split_has_each_question_once(tmp_path):
  path = write(tmp_path, ROWS)
  back = read(path, "questions")
  pairs = [(one["question_id"].decode(), one["sample"]) for one in back]
  assert pairs == [("a", 0), ("b", 4)]


def test_many_rows_cross_batches_and_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds_builder, "_WRITTEN_TOGETHER", 2)
  monkeypatch.setattr(tfds_builder, "_SHARD_EXAMPLES", 3)
  rows = [aligned_row(f"q{i}", 0, 1 + i % 4) for i in range(11)]
  path = write(tmp_path, rows)
  assert [one["question_id"].decode() for one in read(path, "train")] == [
    row.question_id for row in rows
  ]


def test_metadata_is_kept(tmp_path):
  tfds_builder.write(
    ROWS, data_dir=tmp_path, name="rows", metadata={"mode": "whitespace"}
  )
  builder = tfds_builder.open_dataset(tmp_path, "rows")
  assert builder.info.metadata["mode"] == "whitespace"
  assert builder.info.splits["train"].num_examples == 4


def test_an_error_among_the_rows_leaves_what_was_there(tmp_path):
  write(tmp_path, ROWS[:1])

  def breaking():
    yield ROWS[1]
    raise errors.UserError("the third record is broken")

  with pytest.raises(errors.UserError, match="broken"):
    write(tmp_path, breaking())
  assert os.listdir(tmp_path) == ["rows"]
  path = str(tmp_path / "rows" / "1.0.0")
  assert len(read(path, "train")) == 1
  path = write(tmp_path, ROWS)
  assert os.listdir(tmp_path) == ["rows"]
  assert len(read(path, "train")) == 4


def test_no_row_at_all_is_an_error_and_writes_nothing(tmp_path):
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
