"""One warm server, one set of inputs, and a table that fills as tests run."""

import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest
from testdata import local_teacher

from faults import commands, reliability, started


@dataclasses.dataclass
class Unbroken:
  """A run that nothing disturbs: what it made, and how it went."""

  made: object
  ended: started.Ended
  seconds: float


class Bench:
  """Runs the commands of the table in directories of their own."""

  def __init__(self, server, inputs, folder):
    self.server, self.inputs, self._folder = server, inputs, folder
    self.table = commands.table(inputs)
    self._unbroken = {}
    self._count = 0

  def fresh(self, name, parent=None):
    """A new directory with what the command wants there before."""
    self._count += 1
    out = (parent or self._folder) / str(self._count)
    out.mkdir()
    if self.table[name].prepare:
      self.table[name].prepare(out)
    return out

  def argv(self, name, out):
    """The command's words."""
    return [name.split()[0], *self.table[name].argv(out)]

  def start(self, name, out, **more):
    """Starts it."""
    return self.server.start(self.argv(name, out), below=out, **more)

  def finish(self, name, out, **more):
    """Runs it to its end and checks that it made what it should.

    Of what appears at once, a second run may say that it is there.
    """
    was_whole = self._is_whole(name, out)
    ended = self.start(name, out, **more).wait()
    refused = ended.status == 2 and was_whole
    assert ended.status == 0 or refused, (ended.status, ended.stderr[-2000:])
    assert self.table[name].made(out) == self.unbroken(name).made
    return "refused, since it was whole" if refused else "equal"

  def _is_whole(self, name, out):
    is_whole = self.table[name].is_whole
    return is_whole is not None and is_whole(out)

  def unbroken(self, name):
    """The command's undisturbed run, made once.

    The first that compiles takes several times as long as all others, so a
    second is timed, and has to make the same.
    """
    if name not in self._unbroken:
      first, second = (self._undisturbed(name) for _ in range(2))
      assert second.made == first.made
      self._unbroken[name] = second
    return self._unbroken[name]

  def _undisturbed(self, name):
    out = self.fresh(name)
    began = time.monotonic()
    ended = self.start(name, out).wait()
    seconds = time.monotonic() - began
    assert ended.status == 0, ended.stderr[-3000:]
    assert commands.leftovers(out) == []
    return Unbroken(self.table[name].made(out), ended, seconds)


def environment(session):
  """What the server imports, by the commands of the tests that were chosen."""
  names = {
    getattr(item, "callspec", None) and item.callspec.params.get("name")
    for item in session.items
    if item.module.__name__.rpartition(".")[2] != "hostile_files_test"
  }
  return {"FAULTS_WARM": "light"} if names <= {*commands.LIGHT} else {}


@pytest.fixture(scope="session")
def server(request):
  with started.Server(environment(request.session)) as running:
    yield running


@pytest.fixture(scope="session")
def bench(server, tmp_path_factory):
  folder = tmp_path_factory.mktemp("faults")
  # Slow enough that a request is under way whenever something happens.
  with local_teacher.started("--latency_seconds=0.05") as base_url:
    inputs = commands.Inputs(folder / "inputs", server, base_url)
    yield Bench(server, inputs, folder)


@pytest.fixture(scope="session")
def record():
  """Writes what happened into the results, from which the table is made."""
  commit = _commit()  # of what is imported: the checkout may move on meanwhile

  def write(row, fault, outcome, said=""):
    results = reliability.RESULTS
    results.parent.mkdir(exist_ok=True)
    with results.with_name("lock").open("w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)  # parts of the suite may run at once
      known = json.loads(results.read_text()) if results.exists() else {}
      known.setdefault(row, {})[fault] = {
        "outcome": outcome,
        "said": said,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
      }
      results.write_text(json.dumps(known, indent=1, sort_keys=True))

  return write


def _commit():
  return subprocess.run(
    ["git", "describe", "--always", "--dirty"],
    cwd=started.ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()


@pytest.fixture
def small_disk(tmp_path):
  """Mounts disks of some size, which may be changed."""
  if os.geteuid() != 0:
    pytest.skip("only root mounts a disk")
  mounted = []

  def mount(size, *options):
    place = tmp_path / f"disk{len(mounted)}"
    place.mkdir()
    _mount("-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), place)
    mounted.append(place)
    return place

  yield mount
  for place in mounted:
    subprocess.run(["umount", "-l", place], check=True)
    shutil.rmtree(place, ignore_errors=True)


def _mount(*words):
  try:
    subprocess.run(["mount", *words[:-1], "tmpfs", words[-1]], check=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("no disk can be mounted here")


@pytest.fixture
def remount():
  """Changes a mounted disk's options."""
  return lambda place, options: subprocess.run(
    ["mount", "-o", f"remount,{options}", place], check=True
  )


def size_of(directory):
  """Bytes of all files below a directory."""
  return sum(
    file.stat().st_size
    for file in pathlib.Path(directory).rglob("*")
    if file.is_file()
  )
