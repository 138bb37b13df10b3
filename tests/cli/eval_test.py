"""`specialize eval` in this process, killed in another, and in several."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib

import pytest
from testdata import tiny_world, xla_flags

from specialize_jax.cli import main
from specialize_jax.data import sources
from specialize_jax.files import reading
from tasks import mixtures  # noqa: F401 (registers the tasks)

STEP = "2"
ROOT = pathlib.Path(__file__).parents[2]
FAMILIES = ("mini_gsm", "mini_multiarith", "mini_asdiv", "mini_svamp")
SUFFIX = "_zero_shot_chain_of_thought_v1"


@pytest.fixture(scope="module")
def world(trained_run, tmp_path_factory):
  """A data directory with a run in it, whose only checkpoint is STEP."""
  path = pathlib.Path(tiny_world.build(tmp_path_factory.mktemp("world")))
  run, _ = trained_run
  shutil.copytree(run.model_dir, path / "run")
  for step in (4, 6):
    shutil.rmtree(path / f"run/checkpoints/{step}")
  yield path
  sources.set_data_dir(None)


def arguments(world, output_dir, mixture="mini_math_all_test"):
  """The arguments of an evaluation."""
  macros = {
    "CHECKPOINT_PATH": world / "run",
    "MIXTURE_OR_TASK_NAME": mixture,
    "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 64},
    "EVAL_OUTPUT_DIR": output_dir,
    "EVAL_BATCH_SIZE": 8,
    "MAX_NEW_TOKENS": 12,
  }
  return [
    f"--data_dir={world}",
    *(f"--gin.{name}={value}" for name, value in macros.items()),
  ]


def start(world, output_dir, *flags, num_devices=1):
  """Starts one process of an evaluation."""
  return subprocess.Popen(
    [sys.executable, "-m", "specialize_jax.cli.main", "eval"]
    + [f"--cpu_devices={num_devices}", *flags, *arguments(world, output_dir)],
    cwd=ROOT,
    env=os.environ
    | {
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": xla_flags.joined(),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  """Waits for success; gives what was printed."""
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err[-3000:]
  return out


def predictions(output_dir):
  """The rows of every task."""
  return {
    family: reading.read_rows(output_dir / STEP / f"{family}{SUFFIX}.jsonl")
    for family in FAMILIES
  }


def answered(output_dir):
  """The outputs that are on disk, as lines, by file."""
  return {
    path.name: path.read_text()
    for path in sorted((output_dir / STEP).glob("*.outputs.jsonl"))
  }


@pytest.fixture(scope="module")
def unbroken(world, tmp_path_factory):
  """Returns the output directory and output of an uninterrupted evaluation."""
  output_dir = tmp_path_factory.mktemp("unbroken")
  return output_dir, finish(start(world, output_dir))


def test_each_task_is_a_line_and_the_last_line_is_all_of_them(
  world, tmp_path, capsys
):
  task = f"mini_svamp{SUFFIX}"
  assert main.main(["eval", *arguments(world, tmp_path, task)]) == 0
  line, last = capsys.readouterr().out.splitlines()
  accuracies = json.loads(last)
  assert list(accuracies) == [task]
  shown = re.fullmatch(
    rf"{task}  ([\d.]+)  \[([\d.]+), ([\d.]+)\]", line
  ).groups()
  accuracy, low, high = map(float, shown)
  assert accuracy == pytest.approx(accuracies[task], abs=5e-4)
  assert 0 <= low <= accuracy <= high <= 1
  rows = reading.read_rows(tmp_path / STEP / f"{task}.jsonl")
  correct = [row["correct"] for row in rows]
  assert accuracies[task] == pytest.approx(sum(correct) / len(correct))
  (metrics,) = reading.read_rows(tmp_path / "metrics.jsonl")
  assert metrics["values"][f"{task}/accuracy"] == accuracies[task]


@pytest.mark.slow
def test_score_grades_what_eval_wrote(unbroken, tmp_path, capsys):
  output_dir, printed = unbroken
  accuracies = json.loads(printed.splitlines()[-1])
  for family in FAMILIES:
    name = f"{family}{SUFFIX}"
    inputs = output_dir / STEP / f"{name}.jsonl"
    arguments = [f"--inputs={inputs}", f"--output={tmp_path / family}"]
    assert main.main(["score", "--task=gsm8k", *arguments]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["accuracy"] == accuracies[name]


@pytest.mark.slow
def test_a_killed_evaluation_asks_the_model_nothing_twice(
  world, unbroken, tmp_path
):
  killed = start(world, tmp_path)
  deadline = time.monotonic() + 200
  # A whole task and a part of the next.
  while time.monotonic() < deadline and killed.poll() is None:
    if len(answered(tmp_path)) == 2 and all(answered(tmp_path).values()):
      killed.send_signal(signal.SIGKILL)
    time.sleep(0.001)
  killed.communicate()
  assert killed.returncode == -signal.SIGKILL, "it was over before the kill"
  before = answered(tmp_path)
  marked = {name: _mark(tmp_path / STEP / name) for name in before}
  finish(start(world, tmp_path))
  after = answered(tmp_path)
  for name, text in marked.items():
    assert after[name].startswith(text)
  # And what it was asked after the kill, it answers as ever.
  whole = answered(unbroken[0])
  for name, text in after.items():
    kept = before.get(name, "").count("\n")
    rest = text.splitlines()[kept:]
    assert rest == whole[name].splitlines()[kept:]
  assert after.keys() == whole.keys()


def _mark(path):
  """Replaces the output of the first row; returns the complete rows."""
  text = path.read_text()
  first, newline, rest = text.partition("\n")
  text = (
    json.dumps({**json.loads(first), "output_ids": [7, 1]}) + newline + rest
  )
  path.write_text(text)
  whole = text[: text.rindex("\n") + 1]
  checksum = {"rows": whole.count("\n"), "crc32": zlib.crc32(whole.encode())}
  progress = path.with_name(f"{path.name}.progress")
  made_of, *_ = progress.read_text().splitlines()
  progress.write_text(f"{made_of}\n{json.dumps(checksum)}\n")
  return whole


@pytest.mark.slow
def test_the_first_of_several_processes_says_what_one_says(
  world, unbroken, tmp_path
):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  together = [
    start(
      world,
      tmp_path,
      f"--coordinator_address=localhost:{port}",
      "--num_processes=2",
      f"--process_id={index}",
      num_devices=2,
    )
    for index in range(2)
  ]
  printed = [finish(process) for process in together]
  output_dir, alone = unbroken
  first, second = printed
  assert first.splitlines()[-1] == alone.splitlines()[-1]
  # Where CPUs are the devices, JAX's own transport prints who is connected.
  assert not [line for line in second.splitlines() if "[Gloo]" not in line]
  assert predictions(tmp_path) == predictions(output_dir)
