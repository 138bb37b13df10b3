"""Of two commands with one output, the second ends with an error."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from etils import epath
from testdata import local_teacher, tiny_gin

from specialize_jax.cli import main
from specialize_jax.files import locks

_LENGTHS = '{"inputs": 64, "targets": 64}'
_GIN = f"""
from __gin__ import dynamic_registration
from specialize_jax.runs import experiment
from specialize_jax.t5 import config
from specialize_jax.training import loop
include "runs/train.gin"
MIXTURE_OR_TASK_NAME = "mini_facts_v1"
TASK_FEATURE_LENGTHS = {_LENGTHS}
BATCH_SIZE = 4
TRAIN_STEPS = 1
{tiny_gin.MODEL}
"""


class Place:
  """Where a command reads and writes: a directory, or one in a bucket."""

  def __init__(self, local, out):
    self.local, self.out = pathlib.Path(local), out
    self.rows = self.local / "in.jsonl"
    self.rows.write_text("{}\n")

  def run_dir(self):
    """A directory of a run, for commands that want one to be there."""
    epath.Path(f"{self.out}/run/metrics.jsonl").parent.mkdir(
      parents=True, exist_ok=True
    )
    epath.Path(f"{self.out}/run/metrics.jsonl").write_text("")
    return f"{self.out}/run"


def _teacher(place):
  return [f"--records={place.rows}", f"--vocabulary={place.rows}"]


def _train(place):
  gin = place.local / "tiny.gin"
  gin.write_text(_GIN)
  flags = [f"--gin_file={gin}", f"--gin.MODEL_DIR={place.out}/model"]
  return flags, locks.directory(f"{place.out}/model", "MODEL_DIR")


def _eval(place):
  flags = [
    f"--gin.CHECKPOINT_PATH={place.local}",
    "--gin.MIXTURE_OR_TASK_NAME=mini_facts_v1",
    f"--gin.TASK_FEATURE_LENGTHS={_LENGTHS}",
    f"--gin.EVAL_OUTPUT_DIR={place.out}/eval",
  ]
  return flags, locks.directory(f"{place.out}/eval", "EVAL_OUTPUT_DIR")


def _select(place):
  run = place.run_dir()
  held = locks.directory(run, "--model_dir", part="selection")
  return [f"--model_dir={run}", "--out_of_distribution=a"], held


def _select_output(place):
  flags, _ = _select(place)
  out = f"{place.out}/chosen.json"
  return [*flags, f"--output={out}"], locks.file(out, "--output")


def _prepare(place):
  flags = [*_teacher(place), f"--data_dir={place.out}", "--mode=chunk"]
  held = locks.directory(place.out, "--data_dir", part="gsm8k_teacher")
  return flags, held


def _prepare_report(place):
  out = f"{place.out}/report.json"
  return [*_prepare(place)[0], f"--report={out}"], locks.file(out, "--report")


def _convert(place):
  flags = [f"--checkpoint={_huggingface(place)}", f"--output={place.out}/ours"]
  return flags, locks.file(f"{place.out}/ours", "--output")


def _huggingface(place):
  from testdata import tiny_checkpoints

  folder = place.local / "huggingface"
  tiny_checkpoints.save_theirs("t5_1_1", folder)
  return folder


def _teach(place):
  questions = local_teacher.write_questions(place.local / "q.jsonl", 2)
  out = f"{place.out}/store"
  flags = local_teacher.argv("http://127.0.0.1:9/v1", questions, out)
  return flags, locks.directory(out, "--output")


def _report(place, flag=None):
  results = place.local / "results"
  results.mkdir()
  flags = [f"--results_dir={results}", f"--output={place.out}/page.html"]
  flag = flag or "--output"
  return flags, locks.file(f"{place.out}/page.html", flag)


def _more_of_report(flag, name):
  def made(place):
    out = f"{place.out}/{name}"
    return [*_report(place)[0], f"{flag}={out}"], locks.file(out, flag)

  return made


def _plan(flag, name):
  def made(place):
    out = f"{place.out}/{name}"
    flags = ["--model=flan_t5_xl", "--topology=v5e:4x4", f"{flag}={out}"]
    return flags, locks.file(out, flag)

  return made


def _file(flag, *flags):
  """A command whose output is one file."""

  def made(place):
    out = f"{place.out}/out"
    given = [one.format(rows=place.rows, out=place.out) for one in flags]
    return [*given, f"{flag}={out}"], locks.file(out, flag)

  return made


def _demo(*flags):
  return lambda place: (
    [f"--output_dir={place.out}/demo", *flags],
    locks.directory(f"{place.out}/demo", "--output_dir"),
  )


_RECORDS = ("--records={rows}", "--vocabulary={rows}", "--mode=chunk")
# By the command and what it writes: its flags, and the lock that it takes.
OUTPUTS = {
  "train MODEL_DIR": _train,
  "eval EVAL_OUTPUT_DIR": _eval,
  "select --model_dir": _select,
  "select --output": _select_output,
  "generate --outputs": _file(
    "--outputs", "--inputs={rows}", "--checkpoint={out}"
  ),
  "prepare --data_dir": _prepare,
  "prepare --report": _prepare_report,
  "score --output": _file("--output", "--inputs={rows}", "--task=gsm8k"),
  "import --output": _file("--output", "--input={rows}"),
  "convert --output": _convert,
  "report --output": _report,
  "report --markdown": _more_of_report("--markdown", "report.md"),
  "report --figures_dir": _more_of_report("--figures_dir", "figures"),
  "align --output": _file("--output", *_RECORDS, "--report={out}/r.json"),
  "align --report": _file("--report", *_RECORDS, "--output={out}/o.jsonl"),
  "inspect --html": _file("--html", *_RECORDS),
  "plan --output": _plan("--output", "plan.json"),
  "plan --figure": _plan("--figure", "plan.svg"),
  "plan --write_topology": _plan("--write_topology", "plan.gin"),
  "teach --output": _teach,
  "demo --output_dir": _demo(),
  "demo --study --output_dir": _demo("--study"),
}
# docs/decisions/paths.md says why.
LOCAL = (
  "generate --outputs",
  "import --output",
  "teach --output",
  "demo --output_dir",
  "demo --study --output_dir",
)


def _refused(name, place, capsys):
  flags, lock = OUTPUTS[name](place)
  with lock:
    assert main.run(name.split()[0], [str(flag) for flag in flags]) == 2
  said = capsys.readouterr().err.splitlines()[-1]
  assert f"is being written by process {os.getpid()} on" in said
  assert f"{name.split()[-1]}={place.out}" in said


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_held_output_is_refused_and_its_holder_named(name, tmp_path, capsys):
  (tmp_path / "in").mkdir()
  (tmp_path / "out").mkdir()
  _refused(name, Place(tmp_path / "in", str(tmp_path / "out")), capsys)


@pytest.mark.parametrize("name", [n for n in OUTPUTS if n not in LOCAL])
def test_an_output_in_a_bucket_is_held_likewise(
  name, bucket, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.5)
  place = Place(tmp_path, f"{bucket}/{name.replace(' ', '_').strip('-')}")
  _refused(name, place, capsys)
  assert not any(tmp_path.glob("gs:*"))


def test_every_flag_that_is_an_output_is_in_the_table():
  """Found in the commands' own lists of what their paths are."""
  folder = pathlib.Path(main.__file__).parent
  for command in main.COMMANDS:
    text = (folder / f"{command}.py").read_text()
    for line in text.splitlines():
      name, _, kind = line.strip().partition(": ")
      if kind.startswith("paths.") and ("OUTPUT" in kind or "RESUMED" in kind):
        flag = f"--{json.loads(name)}"
        assert f"{command} {flag}" in OUTPUTS, (command, flag)


def test_the_second_of_two_processes_is_refused_and_the_first_ends_well(
  tmp_path, capsys
):
  inputs, output = tmp_path / "inputs.jsonl", tmp_path / "out.jsonl"
  os.mkfifo(inputs)  # the first waits for it while it holds its output
  flags = ["--task=gsm8k", f"--inputs={inputs}", f"--output={output}"]
  first = subprocess.Popen(
    [sys.executable, "-m", "specialize_jax.cli.main", "score", *flags],
    stdout=subprocess.DEVNULL,
  )
  try:
    deadline = time.monotonic() + 120
    while not (lock := tmp_path / ".out.jsonl.lock").exists() or (
      str(first.pid) not in lock.read_text()
    ):
      assert time.monotonic() < deadline
      assert first.poll() is None
      time.sleep(0.05)
    assert main.run("score", flags) == 2
    assert f"by process {first.pid} on" in capsys.readouterr().err
    inputs.write_text('{"prediction": "The answer is 3.", "target": "3"}\n')
    assert first.wait(120) == 0
  finally:
    first.kill()
  assert '"correct": true' in output.read_text()
  assert not lock.exists()
