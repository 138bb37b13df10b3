"""Of two commands with one output, the second is refused by name."""

import os
import subprocess
import sys
import time

import pytest

from specialize_jax.cli import main
from specialize_jax.files import locks


@pytest.fixture(params=["score", "generate", "import", "align", "prepare"])
def command(request, tmp_path):
  """A command's arguments, with the lock that it takes."""
  file = tmp_path / "in.jsonl"
  file.write_text("{}\n")
  out, report = tmp_path / "out", tmp_path / "report.json"
  beside = locks.file(out, "--output")
  return {
    "score": ([f"--inputs={file}", f"--output={out}", "--task=gsm8k"], beside),
    "generate": (
      [f"--inputs={file}", f"--outputs={out}", f"--checkpoint={tmp_path}"],
      beside,
    ),
    "import": ([f"--input={file}", f"--output={out}"], beside),
    "align": (
      [f"--records={file}", f"--vocabulary={file}", f"--output={out}",
       f"--report={report}", "--mode=chunk"],
      beside,
    ),
    "prepare": (
      [f"--records={file}", f"--vocabulary={file}", f"--data_dir={out}",
       "--mode=chunk"],
      locks.directory(out, "--data_dir", part="gsm8k_teacher"),
    ),
  }[request.param], request.param  # fmt: skip


def test_a_held_output_is_refused_and_its_holder_named(command, capsys):
  (flags, lock), name = command
  with lock:
    assert main.run(name, flags) == 2
  said = capsys.readouterr().err
  assert f"is being written by process {os.getpid()} on" in said
  assert said.count("\n") == 1


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
