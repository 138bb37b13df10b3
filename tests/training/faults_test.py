"""A run survives faults, and keeps the right checkpoints and traces."""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from specialize_jax import errors
from specialize_jax.checkpoints import manager
from training import tiny_run

TESTS = pathlib.Path(__file__).parents[1]


def test_steps_that_are_not_finite_end_the_run_with_step_and_loss(tmp_path):
  class Poisoned(tiny_run.Batches):
    def __next__(self):
      batch = super().__next__()
      if self.number > 2:
        tokens = batch["encoder_input_tokens"]
        tokens[tokens > 0] = tiny_run.VOCAB + 1
      return batch

  run = tiny_run.loop_run(
    tmp_path, config={"num_steps": 9, "max_skipped_in_a_row": 2}
  )
  with pytest.raises(
    FloatingPointError,
    match="Step 5: the loss is nan.* 3 steps in a row .*non_finite.json",
  ):
    tiny_run.finish(run, Poisoned())
  skipped = json.loads((tmp_path / "non_finite.json").read_text())
  assert [row["step"] for row in skipped] == [3, 4, 5]
  assert skipped[0]["loss"] == "nan"
  assert skipped[1]["example_ids"] == [[f"3/{row}"] for row in range(8)]


def test_the_best_checkpoints_stay_beside_the_newest(tmp_path):
  accuracies = {2: 0.1, 4: 0.9, 6: 0.3, 8: 0.8, 10: 0.2, 12: 0.25}
  run = tiny_run.loop_run(
    tmp_path,
    config={
      "num_steps": 12,
      "eval_every": 2,
      "checkpoint_every": 2,
      "best_metrics": ("a/accuracy", "b/accuracy"),
    },
    evaluators=[
      lambda params, step: {"a/accuracy": accuracies[step] + 0.1},
      lambda params, step: {"b/accuracy": accuracies[step] - 0.1},
    ],
    keep=1,
    keep_best=2,
  )
  tiny_run.finish(run)
  with manager.CheckpointManager(tmp_path / "checkpoints") as saver:
    assert saver.all_steps() == [4, 8, 12]


def test_best_metrics_that_no_evaluation_reports_are_refused(tmp_path):
  config = {"num_steps": 2, "eval_every": 1, "best_metrics": ("b/accuracy",)}
  run = tiny_run.loop_run(
    tmp_path, config=config, evaluators=[lambda *_: {"a": 1.0}]
  )
  with pytest.raises(errors.UserError, match="names b/accuracy.* some of a"):
    tiny_run.finish(run)


_TRACED_RUN = """
import dataclasses, pathlib, sys
from specialize_jax.training import run_log
from training import tiny_run

model_dir = pathlib.Path(sys.argv[1])
config = {"num_steps": 5, "profile_steps": (2, 3)}
run = tiny_run.loop_run(model_dir, config=config)
log = run_log.RunLog(model_dir, writers=())  # without TensorFlow
tiny_run.finish(dataclasses.replace(run, log=log))
"""


def test_the_requested_steps_are_traced(tmp_path):
  # In a process of its own: the profiler does not start, but dies, in one
  # that has compiled for a TPU without a TPU, as other tests have here.
  subprocess.run(
    [sys.executable, "-c", _TRACED_RUN, str(tmp_path)],
    cwd=TESTS,
    env=dict(
      os.environ,
      PYTHONPATH=f"{TESTS.parent}:{os.environ.get('PYTHONPATH', '')}",
    ),
    check=True,
    timeout=300,
  )
  (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
  traced = {
    event["args"]["step_num"]
    for event in events
    if event.get("name") == "train" and "args" in event
  }
  # The next step has begun when a step's metrics are read.
  assert {"2", "3"} <= traced <= {"2", "3", "4"}
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
  ("name", "shown"), [("SIGTERM", "SIGTERM"), ("SIGINT", "Ctrl-C")]
)
def test_a_second_signal_ends_even_a_process_that_is_stuck(name, shown):
  """Stuck where Python cannot run a handler, as in a device's wait."""
  script = """
import ctypes, os, signal, threading, time
from specialize_jax.training import termination

def send():
  for _ in range(2):
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGNAL)

signal.signal(signal.SIGINT, signal.default_int_handler)
with termination.TerminationSignal():
  threading.Thread(target=send, daemon=True).start()
  libc = ctypes.CDLL(None)
  mutex = ctypes.create_string_buffer(64)
  print("stuck", flush=True)
  libc.pthread_mutex_lock(mutex)
  libc.pthread_mutex_lock(mutex)  # for ever, whatever signal comes
""".replace("SIGNAL", name)
  began = time.monotonic()
  finished = subprocess.run(
    [sys.executable, "-c", script],
    env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )
  assert finished.stdout == "stuck\n", finished.stderr
  assert finished.returncode == 128 + signal.Signals[name]
  assert f"{shown}: saving after this step" in finished.stderr
  assert time.monotonic() - began < 60
