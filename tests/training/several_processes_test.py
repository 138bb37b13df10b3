"""Runs of several processes: started, killed, stopped and resumed.

Real ones: `specialize train`, joined over the network, on one machine.
"""

import re
import signal
import time

import numpy as np
import pytest
from testdata import several_processes, tiny_world

NUM_STEPS = 50
HEARTBEAT_SECONDS = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  return tiny_world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
  """A run of one process on eight devices that nothing disturbs."""
  run = several_processes.Run(
    tmp_path_factory.mktemp("alone"), world, num_steps=NUM_STEPS
  )
  run.finish(1, 8)
  return run


def _assert_same(run, unbroken):
  """All losses within 1e-5, of the very same batches."""
  assert run.examples() == unbroken.examples()
  losses, expected = run.losses(), unbroken.losses()
  assert list(losses) == list(expected) == list(range(1, NUM_STEPS + 1))
  difference = np.abs(np.subtract([*losses.values()], [*expected.values()]))
  print(f"largest difference of a loss: {difference.max():.2e}")
  assert difference.max() < 1e-5


@pytest.mark.slow
def test_four_processes_train_as_one_does(world, alone, tmp_path):
  run = several_processes.Run(tmp_path, world, num_steps=NUM_STEPS)
  run.finish(4, 8)
  _assert_same(run, alone)
  losses = [*run.losses().values()]
  assert len(set(losses)) == NUM_STEPS


@pytest.mark.slow
def test_a_killed_run_resumes_in_two_processes_and_then_in_one(
  world, alone, tmp_path
):
  run = several_processes.Run(
    tmp_path, world, num_steps=NUM_STEPS, CHECKPOINT_EVERY=4
  )
  started = run.start(4, 8, [f"--heartbeat_seconds={HEARTBEAT_SECONDS}"])
  run.wait_for_step(started[0], 14)
  began = time.monotonic()
  started[2].kill()
  statuses = run.wait(started, HEARTBEAT_SECONDS + 60)
  print(f"all ended {time.monotonic() - began:.1f} s after the kill")
  assert statuses.pop(2) == -signal.SIGKILL
  assert 0 not in statuses
  for index in (0, 1, 3):
    # By us or by JAX, whichever comes first: the dead one is named.
    assert re.search(
      r"Task 2 heartbeat timeout|stopped sending heartbeats\):\s+2\b",
      run.errors(index),
    )
  assert "Process (task) 2 of this run is" in run.errors(0)
  assert run.saved_steps()[-1] >= 8

  # Of two processes on four devices, one is told to stop; both save.
  started = run.start(2, 4)
  run.wait_for_step(started[0], 25)
  started[1].send_signal(signal.SIGTERM)
  assert run.wait(started) == [75, 75], run.errors(0)[-3000:]
  assert 25 <= run.saved_steps()[-1] < NUM_STEPS
  assert run.saved_steps()[-1] == max(run.losses())

  run.finish(1, 2)
  _assert_same(run, alone)


@pytest.mark.slow
def test_sigterm_to_all_saves_one_step_everywhere(world, alone, tmp_path):
  run = several_processes.Run(tmp_path, world, num_steps=NUM_STEPS)
  started = run.start(4, 8)
  run.wait_for_step(started[0], 10)
  for process in reversed(started):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
  assert run.wait(started) == [75] * 4, run.errors(0)[-3000:]
  (step,) = run.saved_steps()
  assert 10 <= step < NUM_STEPS
  assert max(run.losses()) == step
  run.finish(2, 8)
  _assert_same(run, alone)
