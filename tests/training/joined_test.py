"""Small runs of several real processes: stopped, killed and resumed.

What `specialize train` itself does in several processes is tested, more
slowly, by several_processes_test.py.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from testdata import xla_flags

from specialize_jax.checkpoints import manager
from specialize_jax.training import state
from training import crash_run, tiny_run

TESTS = pathlib.Path(__file__).parents[1]
SECONDS_PER_BATCH = 0.05


class Joined:
  """Processes of one device each that run `crash_run` together."""

  def __init__(self, model_dir, count, *, num_steps, checkpoint_every):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    self.model_dir = pathlib.Path(model_dir)
    self.logs = [self.model_dir.with_suffix(f".{i}") for i in range(count)]
    several = [count, port] if count > 1 else []
    self.processes = [
      subprocess.Popen(
        [sys.executable, "-m", "training.crash_run", str(model_dir)]
        + [str(SECONDS_PER_BATCH), str(num_steps), str(checkpoint_every)]
        + [str(number) for number in ([index] if several else []) + several],
        cwd=TESTS,
        env=os.environ
        | {
          "PYTHONPATH": f"{TESTS.parent}:{os.environ.get('PYTHONPATH', '')}",
          "XLA_FLAGS": xla_flags.joined(),
        },
        stderr=log.open("w"),
      )
      for index, log in enumerate(self.logs)
    ]

  def rows(self, name="metrics"):
    """The whole rows of the log so far."""
    path = self.model_dir / f"{name}.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = text.splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]

  def wait_for_step(self, step, seconds=300):
    """Waits until the row of a step is written."""
    deadline = time.monotonic() + seconds
    while max((row["step"] for row in self.rows()), default=0) < step:
      for process, log in zip(self.processes, self.logs, strict=True):
        assert process.poll() is None, log.read_text()[-3000:]
      assert time.monotonic() < deadline, f"no step {step} in {seconds} s"
      time.sleep(0.01)

  def wait(self, seconds):
    """Returns all exit statuses."""
    try:
      return [process.wait(timeout=seconds) for process in self.processes]
    finally:
      for process in self.processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  model_dir = tmp_path_factory.mktemp("unbroken")
  crash_run.main(model_dir)
  return model_dir


def _read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _assert_is(model_dir, unbroken):
  """The same batches by name, the same losses within 1e-5."""
  ours, theirs = (_read(d / "examples.jsonl") for d in (model_dir, unbroken))
  assert ours == theirs
  ours, theirs = (_read(d / "metrics.jsonl") for d in (model_dir, unbroken))
  assert [row["step"] for row in ours] == [row["step"] for row in theirs]
  np.testing.assert_allclose(
    [row["values"]["loss"] for row in ours],
    [row["values"]["loss"] for row in theirs],
    atol=1e-5,
  )


def test_sigterm_to_one_process_stops_all_at_one_step_and_one_process_resumes(
  unbroken, tmp_path
):
  run = Joined(tmp_path / "run", 2, num_steps=12, checkpoint_every=100)
  run.wait_for_step(4)
  run.processes[1].send_signal(signal.SIGTERM)
  assert run.wait(120) == [75, 75], run.logs[0].read_text()[-3000:]
  with manager.CheckpointManager(run.model_dir / "checkpoints") as saver:
    (step,) = saver.all_steps()
    assert saver.check_files(step)  # the files of both processes are listed
    assert saver.verify(step) > 0
  assert 4 <= step < 12
  assert run.rows()[-1]["step"] == step
  crash_run.main(run.model_dir)
  _assert_is(run.model_dir, unbroken)


@pytest.mark.slow
def test_the_death_of_one_ends_the_others_with_its_number(tmp_path):
  run = Joined(tmp_path / "run", 2, num_steps=10**6, checkpoint_every=10**6)
  run.wait_for_step(3)
  run.processes[1].kill()
  began = time.monotonic()
  other, killed = run.wait(90)
  assert killed == -signal.SIGKILL
  assert other != 0
  seconds = time.monotonic() - began
  print(f"the other ended {seconds:.1f} s later")
  assert seconds < 40  # heartbeats may be 10 s apart
  said = run.logs[0].read_text()
  assert "another process of the run has died" in said
  assert "Task 1 heartbeat timeout" in said
  assert "Process (task) 1 of this run is" in said


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ten_kills_at_random_moments_never_cost_a_saved_step(tmp_path, seed):
  """One process or two, of which one or both are killed; most saves in mid."""
  rng = np.random.default_rng(seed)
  planned = state.abstract(
    tiny_run.model(), tiny_run.adamw(), tiny_run.one_device()
  )
  model_dir = tmp_path / "run"
  checkpoints = model_dir / "checkpoints"

  def committed():
    names = [path.name for path in checkpoints.glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)

  in_flight, newest, logged = 0, 0, 0
  for number in range(10):
    count = 1 + number % 2
    run = Joined(model_dir, count, num_steps=10**6, checkpoint_every=2)
    # Beyond what was logged before: the other of two waits ten minutes for one
    # that is killed before it has joined.
    run.wait_for_step(logged + int(rng.integers(3, 12)))
    time.sleep(rng.uniform(0, 0.3))
    before = committed()
    victims = rng.permutation(count)[: rng.integers(1, count + 1)]
    for victim in victims:
      run.processes[victim].kill()
    run.wait(90)
    in_flight += bool(list(checkpoints.glob("*orbax-checkpoint-tmp*")))
    after = committed()
    # A slow machine may be killed before its first save is whole.
    assert after >= before >= newest
    with manager.CheckpointManager(checkpoints) as saver:
      found = saver.restore_newest(planned)
    assert found.step == after
    assert int(found.state.step) == after
    newest, logged = after, run.rows()[-1]["step"]
  assert not list(checkpoints.glob("damaged_*"))
  print(f"{in_flight} of 10 kills left a save half-written; step {newest}")
  assert in_flight >= 2
  assert newest >= 10
  # What the pieces make together is one run, each step once.
  steps = [row["step"] for row in run.rows()]
  assert steps[:newest] == list(range(1, newest + 1))
  crash_run.main(tmp_path / "whole", num_steps=newest, checkpoint_every=10**6)
  whole = [r["values"]["loss"] for r in _read(tmp_path / "whole/metrics.jsonl")]
  pieces = [row["values"]["loss"] for row in run.rows()][:newest]
  difference = np.abs(np.subtract(whole, pieces)).max()
  print(f"largest difference of a loss from the unbroken run: {difference:.1e}")
  assert difference < 1e-3
  jax.block_until_ready(found.state)
