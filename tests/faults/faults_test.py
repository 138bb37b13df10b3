"""Every command that writes, under every fault: nothing lost, nothing wrong.

Real processes, forked from a warm one (see `fork_server`). What happened goes
into the table of docs/reliability.md: `make test-faults`.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from faults import commands, conftest, started

pytestmark = [pytest.mark.faults, pytest.mark.slow]

KILLS_BETWEEN_ENDS = 5


@pytest.fixture(params=commands.NAMES)
def name(request):
  return request.param


def _sentence(ended):
  """The one sentence of a mendable error, without what differs by run."""
  last = ended.last_line
  assert ": error: " in last, ended.stderr[-2000:]
  assert "Traceback" not in ended.stderr
  said = last.partition(": error: ")[2]
  said = re.sub(r"/\S*/", "", said)
  return said if len(said) < 110 else f"{said[:107]}..."


def test_kill_dash_nine_at_random_moments(name, bench, record):
  """Half of them at a random moment, half just before a change on disk."""
  whole = bench.unbroken(name)
  rng = np.random.default_rng(20)
  wanted = bench.table[name].kills
  kills = ends = 0
  out = bench.fresh(name)
  while kills < wanted:
    if kills % 2 and whole.ended.changes:
      crash_at = int(rng.integers(1, whole.ended.changes + 1))
      ended = bench.start(name, out, crash_at=crash_at).wait()
    else:
      process = bench.start(name, out)
      time.sleep(rng.uniform(0, whole.seconds))
      ended = process.kill()
    assert ended.status in (0, 2, -signal.SIGKILL), ended.stderr[-2000:]
    kills += 1
    if kills % KILLS_BETWEEN_ENDS == 0 or kills == wanted:
      bench.finish(name, out)
      ends += 1
      assert commands.leftovers(out) == []
      out = bench.fresh(name)
  record(name, "kill -9", f"{kills} kills, {ends} ends: equal")


def test_a_full_disk_and_room_again(name, bench, small_disk, remount, record):
  out = bench.fresh(name)
  before = conftest.size_of(out)
  assert bench.start(name, out).wait().status == 0
  needed = conftest.size_of(out) - before
  statuses, said = set(), ""
  for share in (0, 0.6) if bench.table[name].is_slow else (0, 0.05, 0.5, 0.9):
    disk = small_disk("512m")
    out = bench.fresh(name, disk)
    found = os.statvfs(disk)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    # A size of 0 would be one without a limit.
    remount(disk, f"size={max(4096, used + int(needed * share))}")
    ended = bench.start(name, out).wait()
    if ended.status != 0:
      assert "No space left" in ended.stderr or "no space" in ended.stderr, (
        ended.stderr[-2000:]
      )
      assert ended.status == 2, ended.stderr[-3000:]
      said = _sentence(ended)
    statuses.add(ended.status)
    remount(disk, "size=512m")
    bench.finish(name, out)
  assert 2 in statuses
  record(name, "disk full", "status 2; with room: equal", said)


def test_a_read_only_directory(name, bench, small_disk, remount, record):
  disk = small_disk("64m")
  out = bench.fresh(name, disk)
  before = commands.tree(out)
  remount(disk, "ro")
  ended = bench.start(name, out).wait()
  assert ended.status == 2, ended.stderr[-3000:]
  assert commands.tree(out) == before
  said = _sentence(ended)
  remount(disk, "rw")
  bench.finish(name, out)
  record(name, "read-only", "status 2; writable: equal", said)


def test_a_second_writer(name, bench, record):
  """The first stands still while it holds its output; then both end."""
  whole = bench.unbroken(name)
  out = bench.fresh(name)
  middle = max(3, whole.ended.changes // 2)
  first = bench.start(name, out, stop_at=middle)
  assert first.wait().status is None, "it ended before it was to stop"
  second = bench.start(name, out).wait()
  assert second.status == 2, second.stderr[-3000:]
  assert f"is being written by process {first.pid} on" in second.stderr
  first.send(signal.SIGCONT)
  ended = first.wait()
  assert ended.status == 0, ended.stderr[-3000:]
  assert bench.table[name].made(out) == whole.made
  record(name, "second writer", "status 2; the first: equal", _sentence(second))


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_at_random_moments(name, sent, bench, record):
  whole = bench.unbroken(name)
  number = getattr(signal, sent)
  rng = np.random.default_rng(number)
  statuses = set()
  out = bench.fresh(name)
  moments = (rng.uniform(0, 0.4), rng.uniform(0.4, 0.8), 0.9)
  for share in moments[1:2] if bench.table[name].is_slow else moments:
    process = bench.start(name, out)
    time.sleep(whole.seconds * share)
    process.send(number)
    ended = process.wait(60)
    assert ended.status is not None, "it goes on"
    statuses.add(ended.status)
    if number == signal.SIGINT and ended.status:
      assert "Traceback" not in ended.stderr, ended.stderr[-2000:]
  # A run that was told to end may have saved, or have ended before.
  expected = {0, 2, -number, 128 + number, 75}
  assert statuses <= expected, statuses
  bench.finish(name, out)
  assert commands.leftovers(out) == []
  shown = ", ".join(_status(status) for status in sorted(statuses))
  record(name, sent, f"{shown}; again: equal")


def _status(status):
  return signal.Signals(-status).name if status < 0 else str(status)


@pytest.mark.parametrize(
  ("stdout", "fault"),
  [
    ("closed", "stdout closed"),
    ("closed pipe", "stdout without reader"),
    ("/dev/full", "stdout full"),
  ],
)
def test_a_standard_output_that_takes_nothing(
  name, stdout, fault, bench, record
):
  out = bench.fresh(name)
  ended = bench.start(name, out, stdout=stdout).wait()
  assert "Traceback" not in ended.stderr, ended.stderr[-2000:]
  assert "Exception ignored" not in ended.stderr, ended.stderr[-2000:]
  # Where nobody wants to hear, or nothing is said there, nothing is amiss.
  if stdout == "closed" or not bench.unbroken(name).ended.stdout:
    assert ended.status == 0
  else:
    assert ended.status in (2, 141), ended.status
  if name != "inspect --html":  # whose output is what it prints
    assert bench.table[name].made(out) == bench.unbroken(name).made
  record(name, fault, f"status {ended.status}, made: equal")


def test_a_clock_set_back(name, skewed, bench, record):
  """Half of the run today, the rest on a machine whose clock is behind."""
  server, set_clock = skewed
  whole = bench.unbroken(name)
  out = bench.fresh(name)
  argv = bench.argv(name, out)
  set_clock(0)
  process = server.start(argv, below=out)
  time.sleep(whole.seconds * 0.6)
  process.kill()
  set_clock(-400)
  process = server.start(argv, below=out)
  time.sleep(whole.seconds * 0.3)
  set_clock(-800)  # and once more, under its feet
  ended = process.wait()
  assert ended.status in (0, 2), ended.stderr[-2000:]
  assert bench.table[name].made(out) == whole.made
  record(name, "clock set back", "equal")


@pytest.fixture(scope="module")
def skewed(request, tmp_path_factory):
  """A server whose wall clock is off by as many seconds as it is told."""
  compiler = shutil.which("cc")
  if compiler is None:
    pytest.skip("no C compiler is installed")
  folder = tmp_path_factory.mktemp("clock")
  library, offset = folder / "clock.so", folder / "offset"
  source = pathlib.Path(__file__).with_name("clock.c")
  command = [compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"]
  subprocess.run(command, check=True)

  def set_clock(days):
    seconds = days * 24 * 60 * 60
    with offset.open("r+b" if offset.exists() else "wb") as stream:
      stream.write(seconds.to_bytes(8, sys.byteorder, signed=True))

  set_clock(0)
  environment = conftest.environment(request.session) | {
    "LD_PRELOAD": os.fspath(library),
    "CLOCK_OFFSET": os.fspath(offset),
  }
  with started.Server(environment) as server:
    yield server, set_clock
