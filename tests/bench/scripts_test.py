"""Every benchmark starts: all its imports and flags, and its smallest form."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest
from testdata import real_files

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(
  path
  for path in (ROOT / "bench").glob("*.py")
  if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_what_it_names_and_prints_its_help(
  path, capsys, monkeypatch
):
  monkeypatch.setattr("sys.argv", [str(path), "--help"])
  with pytest.raises(SystemExit) as ended:
    runpy.run_path(str(path), run_name="__main__")
  assert ended.value.code == 0
  assert "usage: " in capsys.readouterr().out


def run(name, *argv):
  """Runs a script as its header tells a user to."""
  unset = ("XLA_FLAGS", "JAX_PLATFORMS")
  ended = subprocess.run(
    [sys.executable, f"bench/{name}.py", *map(str, argv)],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k not in unset}
    | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stderr[-3000:]
  return ended.stdout


@pytest.mark.slow
def test_the_smallest_comparison_of_alignment_modes(tmp_path):
  sizes = {
    "train_size": 40,
    "out_of_distribution_train_size": 20,
    "validation_size": 10,
    "test_size": 10,
    "general_train_size": 20,
    "general_validation_size": 10,
    "general_test_size": 10,
    "weak_maths_size": 20,
  }
  argv = [
    f"--output_dir={tmp_path}",
    f"--output={tmp_path / 'modes.json'}",
    *("--seeds", "0", "1", "--modes", "paper", "marginal"),
    *("--baseline", "marginal", "--pretrain_steps=2", "--train_steps=2"),
    *("--num_test=4", "--num_problems=4", "--num_records=20"),
    *(f"--gin.WorldConfig.{name}={size}" for name, size in sizes.items()),
  ]
  table = run("alignment_modes", *argv)
  summary = json.loads((tmp_path / "modes.json").read_text())["summary"]
  error = summary["target_error"]
  assert error["paper"]["mean"]["estimate"] > error["marginal"]["mean"]["high"]
  # A second start computes nothing, and prints the same.
  results = sorted(tmp_path.glob("seed*/*/result.json"))
  assert len(results) == 4
  times = [path.stat().st_mtime_ns for path in results]
  assert run("alignment_modes", *argv) == table
  assert [path.stat().st_mtime_ns for path in results] == times


@pytest.mark.slow
def test_the_smallest_loss_and_step(tmp_path):
  sizes = ("--vocab_size=512", "--num_chunks=2", "--rounds=1")
  run(
    *("loss", "--batch_size=1", "--length=16", "--embed_dim=16", *sizes),
    *("--dtype=float32", f"--output={tmp_path / 'loss.json'}"),
  )
  assert json.loads((tmp_path / "loss.json").read_text())
  data_dir = real_files.find("gsm8k", "train.jsonl").parents[1]
  run(
    *("train_step", f"--data_dir={data_dir}", "--geometry=tiny", *sizes),
    *("--batch_size=1", "--input_length=16", "--target_length=8"),
    *("--mixture_batches=1", f"--output={tmp_path / 'step.json'}"),
  )
  assert json.loads((tmp_path / "step.json").read_text())["mixture"]


@pytest.mark.slow
def test_the_smallest_decoding(tmp_path):
  pytest.importorskip("ctranslate2", reason="the bench extra is missing")
  run(
    *("decode", "--geometry=tiny", "--batch_size=2", "--input_length=8"),
    *("--new_tokens=4", "--rounds=1", f"--output={tmp_path / 'decode.json'}"),
  )
  assert json.loads((tmp_path / "decode.json").read_text())


@pytest.mark.slow
def test_the_smallest_dataset_is_prepared_and_read(tmp_path):
  data_dir = real_files.find("gsm8k", "train.jsonl").parents[1]
  run(
    *("prepare", f"--work_dir={tmp_path}", "--num_samples=40"),
    *("--target_tokens=30", f"--output={tmp_path / 'prepare.json'}"),
  )
  assert json.loads((tmp_path / "prepare.json").read_text())
  (dataset,) = tmp_path.glob("**/gsm8k_teacher")
  run(
    *("read", f"--data_dir={data_dir}", f"--tfds_data_dir={dataset.parent}"),
    *("--batch_size=2", "--batches=4", "--hosts", "1", "2"),
    f"--output={tmp_path / 'read.json'}",
  )
  found = json.loads((tmp_path / "read.json").read_text())
  assert [one["hosts"] for one in found] == [1, 2]


@pytest.mark.slow
def test_the_smallest_alignment_and_teaching(tmp_path):
  run(
    *("teach", "--num_questions=4", "--num_samples=1", "--repeats=1"),
    *("--num_tokens=5", f"--output={tmp_path / 'teach.json'}"),
  )
  assert json.loads((tmp_path / "teach.json").read_text())
  pytest.importorskip("spacy_alignments", reason="the bench extra is missing")
  real_files.find("tokenizers", "p50k_base.tiktoken")
  run(
    *("align", "--rounds=1", "--num_solutions=20"),
    f"--output={tmp_path / 'align.json'}",
  )
  assert json.loads((tmp_path / "align.json").read_text())


@pytest.mark.slow
def test_a_grader_that_agrees_ends_well(tmp_path):
  folder = tmp_path / "grade_school_math/data"
  folder.mkdir(parents=True)
  solved = {"solution": "So 4.\nA: 4", "is_correct": True}
  (folder / "example_model_solutions.jsonl").write_text(
    json.dumps({"ground_truth": "2 + 2 = 4\n#### 4", "175b": solved}) + "\n"
  )
  text = run("graders", f"--grade_school_math={tmp_path}")
  assert json.loads(text)["gsm8k"]["differing"] == 0
