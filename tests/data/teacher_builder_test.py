"""Aligning in Beam gives what aligning in one process gives."""

import functools
import importlib.util
import json
import pathlib

import pytest
from testdata import tiny_world

from specialize_jax import errors
from specialize_jax.cli import main
from specialize_jax.data import preparation, questions, teacher_builder
from specialize_jax.files import reading, seals
from specialize_jax.records import store, tfds_builder

needs_beam = pytest.mark.skipif(
  importlib.util.find_spec("apache_beam") is None,
  reason="apache-beam is not installed; see data/teacher_builder.py",
)


def wanted(world, records, data_dir):
  return preparation.Preparation(
    records=str(records),
    vocabulary=f"{world}/mini/student.model",
    mode="whitespace",
    data_dir=str(data_dir),
    dataset_name="mini_gsm_teacher",
    read_questions=functools.partial(
      preparation.questions_of_files, f"{world}/mini/mini_gsm/train.jsonl"
    ),
  )


def examples(data_dir, config, name="mini_gsm_teacher"):
  builder = tfds_builder.open_dataset(data_dir, name, config)
  columns = tfds_builder.parse(
    tfds_builder.read_serialized(builder), builder.info.features
  )
  rows = zip(*(one.numpy().tolist() for one in columns.values()), strict=True)
  return sorted(map(str, rows)), dict(builder.info.metadata)


@pytest.mark.third_party
@needs_beam
@pytest.mark.parametrize("repeated", [False, True])
def test_beam_prepares_what_one_process_prepares(tmp_path, repeated):
  world = tiny_world.build(tmp_path / "world")
  records = tiny_world.write_records(world, tmp_path / "records")
  if repeated:
    with open(tmp_path / "records" / store.FILE_NAME, "r+") as lines:
      first = lines.readline()
      lines.seek(0, 2)
      lines.write(first)
  alone = preparation.prepare(wanted(world, records, tmp_path / "alone"))
  beam = teacher_builder.prepare(
    wanted(world, records, tmp_path / "beam"),
    teacher_builder.Runner(name="DirectRunner"),
  )
  assert beam.report["kept"] == 20
  assert beam.report["validation"] == 1
  assert beam.report == alone.report
  for name in ("mini_gsm_teacher", "mini_gsm_teacher_validation"):
    for config in (tfds_builder.ROWS, tfds_builder.QUESTIONS):
      in_beam, metadata = examples(tmp_path / "beam", config, name)
      assert in_beam == examples(tmp_path / "alone", config, name)[0]
      assert metadata["mode"] == "whitespace"
  shown = [
    {row["question_id"]: row for row in reading.read_rows(place)}
    for run in (alone, beam)
    for place in [pathlib.Path(run.path) / questions.DEMONSTRATIONS]
  ]
  assert shown[0] and shown[0].keys() == shown[1].keys()


@pytest.mark.third_party
@needs_beam
def test_an_error_on_a_worker_leaves_what_was_there(tmp_path, capsys):
  world = tiny_world.build(tmp_path / "world")
  records = tiny_world.write_records(world, tmp_path / "records")
  one = wanted(world, records, tmp_path / "tfds")
  runner = teacher_builder.Runner(name="DirectRunner")
  teacher_builder.prepare(one, runner)
  before = examples(tmp_path / "tfds", tfds_builder.ROWS)
  with open(tmp_path / "records" / store.FILE_NAME, "a") as lines:
    lines.write('{"v": 99}\n')
  with pytest.raises(errors.UserError, match="schema version 99"):
    teacher_builder.prepare(one, runner)
  # A record that was altered is JSON still, and not what was written.
  path = tmp_path / "records" / store.FILE_NAME
  whole = map(seals.sealed, path.read_text().splitlines()[:-1])
  path.write_text("".join(f"{line.replace('The', 'Tha')}\n" for line in whole))
  with pytest.raises(errors.UserError, match="checksum"):
    teacher_builder.prepare(one, runner)
  assert examples(tmp_path / "tfds", tfds_builder.ROWS) == before
  assert sorted(p.name for p in (tmp_path / "tfds").iterdir()) == [
    "mini_gsm_teacher",
    "mini_gsm_teacher_validation",
  ]


@pytest.mark.skipif(
  importlib.util.find_spec("apache_beam") is not None,
  reason="apache-beam is installed",
)
def test_without_beam_the_way_out_is_named(tmp_path, capsys):
  for name in ("records", "vocabulary"):
    (tmp_path / name).touch()
  argv = [f"--{name}={tmp_path / name}" for name in ("records", "vocabulary")]
  row = {"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"}
  (tmp_path / "train.jsonl").write_text(json.dumps(row))
  argv += [f"--data_dir={tmp_path}", f"--questions={tmp_path}/train.jsonl"]
  assert main.run("prepare", [*argv, "--runner=DirectRunner"]) == 2
  error = capsys.readouterr().err
  assert "pip install apache-beam" in error and error.count("\n") == 1
