import contextlib
import json
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest
import seqio
from testdata import tiny_world

import tasks.mixtures  # noqa: F401  (registers the tasks)
from specialize_jax.cli import main, prepare
from specialize_jax.cot import formats
from specialize_jax.data import sources
from specialize_jax.records import packed_rows, tfds_builder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tiny_world.build(tmp_path_factory.mktemp("world"))
  tiny_world.write_records(root, f"{root}/mini/records")
  return root


def arguments(world, output, **changes):
  flags = {
    "records": f"{world}/mini/records",
    "vocabulary": f"{world}/mini/student.model",
    "questions": f"{world}/mini/mini_gsm/train.jsonl",
    "data_dir": f"{output}/tfds",
    "dataset_name": "mini_gsm_teacher",
    "report": f"{output}/report.json",
    **changes,
  }
  return [f"--{name}={value}" for name, value in flags.items() if value]


def failed(capsys, argv, output):
  """Runs the command that must fail; gives its one sentence."""
  assert main.run("prepare", argv) == 2
  assert not os.path.exists(f"{output}/tfds")
  assert not os.path.exists(f"{output}/report.json")
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  return error


def test_right_training_samples_become_a_dataset(world, tmp_path, capsys):
  assert prepare.main(arguments(world, tmp_path)) == 0
  for config, count in (("rows", 20), ("questions", 10)):
    builder = tfds_builder.open_dataset(
      tmp_path / "tfds", "mini_gsm_teacher", config
    )
    assert builder.info.splits["train"].num_examples == count
  report = json.loads((tmp_path / "report.json").read_text())
  assert report["records"] == 22
  assert report["kept"] == 20
  assert report["questions"] == 10
  assert report["dropped"] == {"wrong answer": 1}
  assert report["validation"] == 1
  assert report["positions"] > 100
  assert "20 samples of 10 questions" in capsys.readouterr().out


def test_records_of_validation_questions_are_a_split_of_their_own(
  world, tmp_path, capsys
):
  assert prepare.main(arguments(world, tmp_path)) == 0
  assert "1 samples of validation questions" in capsys.readouterr().out
  asked = tiny_world.read(f"{world}/mini/mini_gsm/validation.jsonl")[0]
  sources.set_data_dir(world)
  try:
    with seqio_tfds_dir(tmp_path / "tfds"):
      for data_format in formats.FORMATS:
        name = f"mini_gsm_teacher_{data_format.name}_v1"
        task = seqio.get_mixture_or_task(name)
        assert task.num_input_examples("validation") == 1
        (example,) = task.get_dataset(
          None, split="validation", shuffle=False
        ).as_numpy_iterator()
        assert example["question"].decode() == asked["question"]
        taught = bool(example["teacher_top_mask"].any())
        assert taught == data_format.chain_of_thought
        trained = task.get_dataset(None, split="train", shuffle=False)
        assert all(
          one["question"].decode() != asked["question"]
          for one in trained.as_numpy_iterator()
        )
  finally:
    sources.set_data_dir(None)


@contextlib.contextmanager
def seqio_tfds_dir(path):
  seqio.set_tfds_data_dir_override(str(path))
  try:
    yield
  finally:
    seqio.set_tfds_data_dir_override(None)


def test_the_questions_are_found_in_the_data_directory(world, tmp_path):
  sources.set_data_dir(world)
  try:
    assert prepare.main(arguments(world, tmp_path, questions=None)) == 0
  finally:
    sources.set_data_dir(None)


def test_preparing_again_replaces_the_dataset(world, tmp_path):
  assert prepare.main(arguments(world, tmp_path)) == 0
  assert prepare.main(arguments(world, tmp_path, mode="paper")) == 0
  builder = tfds_builder.open_dataset(tmp_path / "tfds", "mini_gsm_teacher")
  assert builder.info.metadata["mode"] == "paper"
  assert sorted(os.listdir(tmp_path / "tfds")) == [
    "mini_gsm_teacher",
    "mini_gsm_teacher_validation",
  ]


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"records": "{world}/none"}, "does not exist"),
    ({"vocabulary": "{world}/none.model"}, "none.model does not exist"),
    ({"mode": "closest"}, "closest"),
    ({"questions": "{world}/none.jsonl"}, "--questions=.*none.jsonl"),
    ({"report": "{world}"}, "--report=.* is a directory"),
    ({"records": "{world}/empty"}, "holds no record"),
    ({"records": "{world}/cut"}, "line 2, the last, is cut short"),
    (
      {"questions": "{world}/mini/mini_svamp/train.jsonl"},
      "none of the 22 records can be trained on",
    ),
  ],
)
def test_what_the_user_can_mend_is_one_sentence(
  world, tmp_path, capsys, change, sentence
):
  root = pathlib.Path(world)
  (root / "empty").mkdir(exist_ok=True)
  (root / "empty/records.jsonl").write_text("")
  (root / "cut").mkdir(exist_ok=True)
  lines = (root / "mini/records/records.jsonl").read_text().splitlines()
  (root / "cut/records.jsonl").write_text(lines[0] + "\n" + lines[1][:50])
  change = {name: value.format(world=world) for name, value in change.items()}
  error = failed(capsys, arguments(world, tmp_path, **change), tmp_path)
  assert re.search(sentence, error), error


@pytest.mark.parametrize("room", [1_000, 3_000])
def test_a_full_disk_is_said_to_be_full_and_leaves_nothing(
  world, tmp_path, room
):
  # The kernel refuses to let a file grow beyond this, as a full disk does: the
  # smaller one stops the dataset's description, the larger one its rows.
  done = subprocess.run(
    [
      *(sys.executable, "-m", "specialize_jax.cli.prepare"),
      *arguments(world, tmp_path, report=None),
    ],
    capture_output=True,
    text=True,
    check=False,
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
  )
  assert done.returncode == 2, done.stderr
  assert "tfds has no room (File too large): nothing was" in done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "tfds").exists()


def test_without_questions_the_way_out_is_named(world, tmp_path, capsys):
  sources.set_data_dir(tmp_path)
  try:
    error = failed(capsys, arguments(world, tmp_path, questions=None), tmp_path)
  finally:
    sources.set_data_dir(None)
  assert "--questions=FILE.jsonl" in error


def test_the_paper_s_released_samples_find_their_question(tmp_path):
  try:
    data = sources.data_dir()
    records = sources.find("codex/gsm8k_train_0.json")
  except ValueError as error:
    pytest.skip(str(error))
  argv = arguments(
    data,
    tmp_path,
    records=records,
    vocabulary=f"{data}/tokenizers/t5_spiece.model",
    questions=f"{data}/gsm8k/train.jsonl",
    dataset_name="gsm8k_teacher",
  )
  assert prepare.main(argv) == 0
  builder = tfds_builder.open_dataset(tmp_path / "tfds", "gsm8k_teacher")
  assert builder.info.splits["train"].num_examples == 40
  builder = tfds_builder.open_dataset(
    tmp_path / "tfds", "gsm8k_teacher", "questions"
  )
  rows = tfds_builder.parse(
    tfds_builder.read_serialized(builder), builder.info.features
  )
  assert rows["question_id"].numpy().tolist() == [b"gsm8k/train/0"]
  assert rows["text"][0].numpy().startswith(b"Natalia sold clips")
  assert rows["answer"][0].numpy() == b"72"


@pytest.mark.parametrize("missing", ["records", "vocabulary"])
def test_teacher_data_need_records_and_a_vocabulary(
  world, tmp_path, capsys, missing
):
  argv = arguments(world, tmp_path, **{missing: None})
  assert f"--{missing} is missing" in failed(capsys, argv, tmp_path)


def test_a_benchmark_takes_no_records(world, tmp_path, capsys):
  argv = arguments(world, tmp_path, dataset_name="svamp")
  assert "--records is for a teacher's data" in failed(capsys, argv, tmp_path)


def test_a_benchmark_is_built_from_a_manual_folder(tmp_path, capsys):
  try:
    manual = pathlib.Path(sources.find("svamp/SVAMP.json")).parents[1]
  except ValueError as error:
    pytest.skip(str(error))
  argv = ["--dataset_name=svamp", f"--data_dir={tmp_path}"]
  assert main.run("prepare", [*argv, f"--manual_dir={manual}"]) == 0
  folder = capsys.readouterr().out.split()[-1]
  assert folder == f"{tmp_path}/svamp/1.0.0"
  assert (pathlib.Path(folder) / "dataset_info.json").is_file()


def test_what_was_cut_off_is_dropped_or_kept_without_an_end(
  world, tmp_path, capsys
):
  """From the store to the targets that a task gives the model."""
  records = tmp_path / "records.jsonl"
  lines = pathlib.Path(f"{world}/mini/records/records.jsonl").read_text()
  rows = [json.loads(line) for line in lines.splitlines()]
  for row in rows:
    row["finish_reason"] = "length" if row["sample"] else "stop"
  records.write_text("".join(json.dumps(row) + "\n" for row in rows))

  def prepared(*flags):
    argv = arguments(world, tmp_path, records=records)
    assert prepare.main([*argv, *flags]) == 0
    return json.loads((tmp_path / "report.json").read_text())

  report = prepared()
  cut = report["dropped"]["not finished: it ended by 'length'"]
  assert (report["kept"], report["kept_truncated"]) == (10, 0)
  assert cut == 11  # one of them is wrong, too
  report = prepared("--keep_truncated")
  assert (report["kept"], report["kept_truncated"]) == (20, 10)

  builder = tfds_builder.open_dataset(tmp_path / "tfds", "mini_gsm_teacher")
  columns = tfds_builder.parse(
    tfds_builder.read_serialized(builder), builder.info.features
  )
  samples = columns["sample"].numpy()
  has_bit = [
    flags[-1] >= packed_rows.TRUNCATED_BIT
    for flags in columns["flags"].numpy().tolist()
  ]
  assert has_bit == (samples > 0).tolist()
