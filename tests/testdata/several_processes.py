"""`specialize train` in several processes of one machine, to be compared."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

from testdata import tiny_gin, xla_flags

ROOT = pathlib.Path(__file__).parents[2]

GIN = (
  """
from __gin__ import dynamic_registration
from specialize_jax.t5 import config
from specialize_jax.training import loop
from specialize_jax.training import optimizer
from tasks import mixtures

include "runs/train.gin"

MIXTURE_OR_TASK_NAME = "mini_pretrain_v1"
TASK_FEATURE_LENGTHS = {"inputs": 64, "targets": 64}
BATCH_SIZE = 16  # two groups of rows, see data/pipeline.py
LOG_EVERY = 1
loop.LoopConfig.log_example_ids = True
config.T5Config.dtype = "float32"
"""
  + tiny_gin.MODEL
)


class Run:
  """One run: its directory, and the processes that take part in it."""

  def __init__(self, directory, data_dir, *, num_steps, **macros):
    self.model_dir = pathlib.Path(directory) / "model"
    gin_file = pathlib.Path(directory) / "tiny.gin"
    gin_file.parent.mkdir(parents=True, exist_ok=True)
    gin_file.write_text(GIN)
    macros = {"TRAIN_STEPS": num_steps, "MODEL_DIR": self.model_dir, **macros}
    self._command = [
      *(sys.executable, "-m", "specialize_jax.cli.main", "train"),
      *(f"--gin_file={gin_file}", f"--data_dir={data_dir}"),
      *(f"--gin.{name}={value}" for name, value in macros.items()),
    ]
    self._errors = []

  def start(self, num_processes, num_devices, flags=(), **environment):
    """Starts processes that have so many devices together."""
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    self._errors = []
    started = []
    for index in range(num_processes):
      several = [
        f"--coordinator_address=localhost:{port}",
        f"--num_processes={num_processes}",
        f"--process_id={index}",
      ]
      log = self.model_dir.with_name(f"errors_{len(self._errors)}")
      self._errors.append(log)
      with log.open("w") as stderr:
        started.append(
          subprocess.Popen(
            self._command
            + [f"--cpu_devices={num_devices // num_processes}", *flags]
            + (several if num_processes > 1 else []),
            env=_environment(environment),
            cwd=ROOT,
            stderr=stderr,
          )
        )
    return started

  def finish(self, *args, **kwargs):
    """Starts, waits, and expects success."""
    processes = self.start(*args, **kwargs)
    assert self.wait(processes) == [0] * len(processes), self.errors(0)

  def wait(self, processes, seconds=600):
    """Returns all exit statuses."""
    try:
      return [process.wait(timeout=seconds) for process in processes]
    finally:
      for process in processes:
        process.kill()

  def errors(self, index):
    """Returns the standard error of a process."""
    return self._errors[index].read_text()

  def rows(self):
    """The rows of the first process's log so far."""
    path = self.model_dir / "metrics.jsonl"
    lines = path.read_text() if path.exists() else ""
    # The last line may be half written.
    return [
      json.loads(line)
      for line in lines.splitlines(keepends=True)
      if line.endswith("\n")
    ]

  def examples(self):
    """The names of each step's examples, by rows of the global batch."""
    lines = (self.model_dir / "examples.jsonl").read_text().splitlines()
    return {row["step"]: row["example_ids"] for row in map(json.loads, lines)}

  def wait_for_step(self, process, step, seconds=400):
    """Waits until the row of a step is written by a process that is alive."""
    deadline = time.monotonic() + seconds
    while max(self.losses(), default=0) < step:
      assert process.poll() is None, self.errors(0)[-3000:]
      assert time.monotonic() < deadline, f"no step {step} in {seconds} s"
      time.sleep(0.02)

  def losses(self):
    """Loss by step."""
    return {row["step"]: row["values"]["loss"] for row in self.rows()}

  def saved_steps(self):
    """The steps whose checkpoints are whole."""
    places = (self.model_dir / "checkpoints").glob("*")
    return sorted(int(p.name) for p in places if p.name.isdecimal())


def _environment(more):
  environment = {
    name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
  }
  return environment | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla_flags.joined(),
    **more,
  }
