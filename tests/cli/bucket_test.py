"""Paths that may be in a bucket by docs/ are read and written there."""

import json
import pathlib

import pytest
from etils import epath
from testdata import tiny_world

from specialize_jax.cli import main
from specialize_jax.files import reading
from specialize_jax.records import tfds_builder


@pytest.fixture(scope="module")
def data(bucket, tmp_path_factory):
  """The tiny world's records, questions and vocabulary, in a bucket."""
  root = pathlib.Path(tiny_world.build(tmp_path_factory.mktemp("world")))
  tiny_world.write_records(root, f"{root}/mini/records")
  place = f"{bucket}/data"
  for name in (
    "student.model",
    "records/records.jsonl",
    *(f"mini_gsm/{split}.jsonl" for split in tiny_world.SIZES),
  ):
    epath.Path(place, name).write_bytes((root / "mini" / name).read_bytes())
  return place


@pytest.fixture(autouse=True)
def nothing_local(tmp_path, monkeypatch):
  """No command makes a folder called `gs:`."""
  monkeypatch.chdir(tmp_path)
  yield
  assert not list(tmp_path.iterdir())


def _teacher_flags(data):
  return [f"--records={data}/records", f"--vocabulary={data}/student.model"]


def test_records_in_a_bucket_are_aligned_and_inspected(bucket, data, capsys):
  outputs = [f"--output={bucket}/a.jsonl", f"--report={bucket}/a.json"]
  assert main.main(["align", *_teacher_flags(data), *outputs]) == 0
  assert len(reading.read_rows(f"{bucket}/a.jsonl")) == 22
  assert reading.read_json(f"{bucket}/a.json")["positions"] > 100
  argv = ["inspect", *_teacher_flags(data), f"--html={bucket}/page.html"]
  assert main.main(argv) == 0, capsys.readouterr().err
  assert "</html>" in reading.read_text(f"{bucket}/page.html")


def test_a_dataset_is_prepared_in_a_bucket_and_replaced_there(
  bucket, data, capsys
):
  questions = [f"--questions={data}/mini_gsm/train.jsonl"]
  questions += ["--dataset_name=mini_gsm_teacher"]
  place = f"--data_dir={bucket}/tfds"
  argv = ["prepare", *_teacher_flags(data), *questions, place]
  editions = set()
  for _ in range(2):
    assert main.main(argv) == 0, capsys.readouterr().err
    builder = tfds_builder.open_dataset(f"{bucket}/tfds", "mini_gsm_teacher")
    editions.add(builder.info.metadata[tfds_builder.EDITION])
    columns = tfds_builder.read_serialized(builder)
    assert len(columns) == builder.info.splits["train"].num_examples > 0
  assert len(editions) == 2
  left = [one.name for one in epath.Path(f"{bucket}/tfds").iterdir()]
  assert not [name for name in left if name.startswith(".")]


def test_a_dataset_in_a_bucket_stays_where_the_upload_of_another_fails(bucket):
  place = epath.Path(f"{bucket}/tfds_2")
  (place / "teacher" / "old").write_text("whole")
  with (
    pytest.raises(FileNotFoundError),
    tfds_builder.replaced_when_done(place, "teacher") as folder,
  ):
    (folder / "a").write_text("new")
    (pathlib.Path(folder) / "b").symlink_to("nowhere")
  assert [one.name for one in place.iterdir()] == ["teacher"]
  assert [one.name for one in (place / "teacher").iterdir()] == ["old"]


def test_predictions_in_a_bucket_are_graded_into_it(bucket):
  row = {"prediction": "The answer is 7.", "target": "7"}
  epath.Path(f"{bucket}/in.jsonl").write_text(json.dumps(row) + "\n")
  files = [f"--inputs={bucket}/in.jsonl", f"--output={bucket}/graded.jsonl"]
  assert main.main(["score", "--task=gsm8k", *files]) == 0
  (graded,) = reading.read_rows(f"{bucket}/graded.jsonl")
  assert graded["correct"]


def test_results_in_a_bucket_become_a_report_beside_them(bucket, capsys):
  place = epath.Path(f"{bucket}/results")
  task, values = "mini_svamp", {"accuracy": 0.5, "n": 2}
  numbers = {
    "before": {task: values},
    "after": {task: values},
    "in_distribution": task,
    "out_of_distribution": [],
    "general": [],
  }
  (place / "results.json").write_text(json.dumps(numbers))
  said = {"prompt": "3 + 4?", "prediction": "7", "target": "7"}
  said |= {"extracted": "7", "question_id": "0", "correct": True}
  for when in ("before", "after"):
    file = place / "predictions" / when / f"{task}.jsonl"
    file.write_text(json.dumps(said) + "\n")
  argv = [
    "report",
    f"--results_dir={place}",
    f"--markdown={place}/report.md",
    f"--figures_dir={place}/figures",
  ]
  assert main.main(argv) == 0, capsys.readouterr().err
  assert "</html>" in reading.read_text(place / "report.html")
  assert "mini SVAMP" in reading.read_text(place / "figures/table.md")
  assert (place / "report.md").is_file()
