"""Hosts that do not belong together are noticed, named, and lose nothing.

Two real processes through jax.distributed, with a device each.
"""

import re
import shutil
import signal
import socket
import time

import pytest

from faults import commands, reliability

pytestmark = [pytest.mark.faults, pytest.mark.slow]

ROW = reliability.HOSTS
HEARTBEAT_SECONDS = 10
# Heartbeats may be missed twice, and this machine may be busy.
BOUND_SECONDS = 60


class Hosts:
  """Two processes of one run."""

  def __init__(self, bench, model_dir):
    self._bench, self.model_dir = bench, model_dir
    with socket.socket() as free:
      free.bind(("localhost", 0))
      self._port = free.getsockname()[1]
    self.processes = {}

  def start(self, index, *more, count=2, data_dir=None, **how):
    """Starts one of them."""
    inputs = self._bench.inputs
    flags = inputs.train_flags(self.model_dir, *more)
    if data_dir is not None:
      flags[1] = f"--data_dir={data_dir}"
    flags += [
      f"--coordinator_address=localhost:{self._port}",
      f"--num_processes={count}",
      f"--process_id={index}",
      f"--heartbeat_seconds={HEARTBEAT_SECONDS}",
    ]
    self.processes[index] = self._bench.server.start(
      ["train", *flags], below=self.model_dir.parent, **how
    )
    return self.processes[index]

  def wait(self, seconds=1200):
    """How each ended, by its number."""
    return {i: p.wait(seconds) for i, p in self.processes.items()}


@pytest.fixture
def hosts(bench, tmp_path):
  return Hosts(bench, tmp_path / "run")


@pytest.fixture(scope="module")
def together(bench, tmp_path_factory):
  """An undisturbed run of two hosts."""
  hosts = Hosts(bench, tmp_path_factory.mktemp("together") / "run")
  hosts.start(0)
  hosts.start(1)
  ended = hosts.wait()
  assert {e.status for e in ended.values()} == {0}, ended[0].stderr[-3000:]
  return commands.trained(hosts.model_dir)


def _nothing_was_written(model_dir):
  return (
    not (model_dir / "metrics.jsonl").exists()
    and not (model_dir / "checkpoints").exists()
  )


def test_other_gin_text_on_one_host_is_refused_by_both(hosts, record):
  hosts.start(0)
  hosts.start(1, "--gin.BATCH_SIZE=8")
  for ended in hosts.wait().values():
    assert ended.status == 2, ended.stderr[-3000:]
    assert "batch_size is 4 on process 0 and 8 on process 1" in ended.stderr
  assert _nothing_was_written(hosts.model_dir)
  record(
    ROW,
    "other gin text",
    "both end with status 2",
    "batch_size is 4 on process 0 and 8 on process 1",
  )


def test_other_data_on_one_host_is_refused_before_the_first_step(
  hosts, bench, tmp_path, record
):
  other = tmp_path / "world"
  shutil.copytree(bench.inputs.world, other)
  facts = other / "mini/facts/train.jsonl"
  facts.write_text(facts.read_text().replace("19 + 1", "19 + 2"))
  hosts.start(0)
  hosts.start(1, data_dir=other)
  for ended in hosts.wait().values():
    assert ended.status == 2, ended.stderr[-3000:]
    assert "differ: data of mini_facts_v1 is" in ended.stderr
  assert not (hosts.model_dir / "checkpoints").exists()
  record(ROW, "other data", "both end with status 2 before the first step")


def test_one_killed_in_a_save_ends_the_other_and_the_run_resumes(
  hosts, bench, together, tmp_path, record
):
  # The first stands still as it makes the folder of its first save.
  first = hosts.start(0, stop_word="orbax-checkpoint-tmp")
  second = hosts.start(1)
  assert first.wait(600).stopped
  second.kill()
  first.send(signal.SIGCONT)
  began = time.monotonic()
  ended = {0: first.wait(BOUND_SECONDS + 60)}
  seconds = time.monotonic() - began
  assert ended[0].status not in (0, None), ended[0].stderr[-3000:]
  assert seconds < BOUND_SECONDS
  # After what every start says, which names each process.
  said = ended[0].stderr.partition("saving to")[2]
  assert re.search(r"\b[Tt]ask:? ?1\b|\b1 (stopped|unexpectedly)", said), said
  again = Hosts(bench, hosts.model_dir)
  again.start(0)
  again.start(1)
  assert {e.status for e in again.wait().values()} == {0}
  assert commands.trained(hosts.model_dir) == together
  record(
    ROW,
    "one killed in a save",
    f"the other ended after {seconds:.0f} s and named it; resumed: equal",
  )


def test_another_number_of_processes_is_noticed(hosts, record):
  """By two of them; a third may come when process 0 has ended, and waits."""
  hosts.start(0, count=2)
  hosts.start(1, count=3)
  late = hosts.start(2, count=3)
  began = time.monotonic()
  for number in (0, 1):
    ended = hosts.processes[number].wait(BOUND_SECONDS)
    assert ended.status == 2, ended.stderr[-3000:]
    assert re.search(r"--num_processes=\d on process \d, and", ended.stderr)
  seconds = time.monotonic() - began
  third = late.kill()
  assert third.status != 0
  assert "joining --num_processes=3 at localhost" in third.stderr
  assert _nothing_was_written(hosts.model_dir)
  record(
    ROW,
    "wrong process count",
    f"0 and 1 ended after {seconds:.0f} s with status 2 and named it; 2 says"
    " what it waits for, at most 600 s",
  )


def test_a_host_that_comes_late_is_waited_for(hosts, together, record):
  hosts.start(0)
  time.sleep(15)
  hosts.start(1)
  assert {e.status for e in hosts.wait().values()} == {0}
  assert commands.trained(hosts.model_dir) == together
  record(ROW, "one starts 15 s late", "waited for; equal")


def test_a_host_that_comes_back_into_a_run_ends_the_other_and_is_joined(
  hosts, together, record
):
  """As a supervisor does that restarts what died, at once: one, then both."""
  first = hosts.start(0, stop_word="orbax-checkpoint-tmp")
  second = hosts.start(1)
  assert first.wait(600).stopped
  second.kill()
  began = time.monotonic()
  back = hosts.start(1)
  first.send(signal.SIGCONT)
  ended = first.wait(2 * BOUND_SECONDS)
  seconds = time.monotonic() - began
  assert ended.status not in (0, None), ended.stderr[-3000:]
  assert seconds < BOUND_SECONDS
  assert re.search(
    r"\b1 unexpectedly tried to connect.*restarted", ended.stderr
  )
  if back.wait(5).status is not None:
    hosts.start(1)
  hosts.start(0)
  assert {e.status for e in hosts.wait().values()} == {0}
  assert commands.trained(hosts.model_dir) == together
  record(
    ROW,
    "one killed and back at once",
    f"the other ended after {seconds:.0f} s and named it; started again: equal",
  )
