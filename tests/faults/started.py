"""Commands as processes: forked from a warm one, to be stopped and compared."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from testdata import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
_PROGRAM = pathlib.Path(__file__).with_name("fork_server.py")


@dataclasses.dataclass
class Ended:
  """How a process ended.

  Attributes:
    status: its exit status, negative after a signal; None if it has not.
    stopped: whether it stands still, as after SIGSTOP.
    stdout: what it printed.
    stderr: what it printed there.
    changes: how often it changed something below `below`.
    cpu_seconds: what it computed.
    peak_mib: the most memory that it had at once.
  """

  status: int | None
  stopped: bool = False
  stdout: str = ""
  stderr: str = ""
  changes: int = 0
  cpu_seconds: float = 0.0
  peak_mib: float = 0.0

  @property
  def last_line(self):
    """The last line on standard error."""
    lines = self.stderr.strip().splitlines()
    return lines[-1] if lines else ""


class Process:
  """A command that was forked."""

  def __init__(self, server, pid, folder):
    self._server, self.pid, self._folder = server, pid, folder

  def wait(self, seconds=1200):
    """Waits until it ends or stops, or for as long."""
    answer = self._server.ask(do="wait", pid=self.pid, seconds=seconds)
    if answer.get("stopped"):
      return Ended(status=None, stopped=True)
    files = {
      name: path.read_text(errors="replace") if path.exists() else ""
      for name in ("stdout", "stderr", "changes")
      if (path := self._folder / name) is not None
    }
    return Ended(
      answer["status"],
      stdout=files["stdout"],
      stderr=files["stderr"],
      changes=int(files["changes"] or 0),
      cpu_seconds=answer.get("cpu_seconds", 0.0),
      peak_mib=answer.get("peak_mib", 0.0),
    )

  def send(self, number):
    """Sends a signal; it may have ended."""
    try:
      os.kill(self.pid, number)
    except ProcessLookupError:
      return

  def kill(self):
    """Kills it, and waits for its end."""
    self.send(signal.SIGKILL)
    return self.wait()


class Server:
  """The warm process; use it as a context manager."""

  def __init__(self, environment=None):
    self._folder = pathlib.Path(tempfile.mkdtemp(prefix="faults"))
    self._number = 0
    given = {
      name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }
    self._process = subprocess.Popen(
      [sys.executable, os.fspath(_PROGRAM)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=self._folder,
      env=given
      | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags.joined(),
        "JAX_COMPILATION_CACHE_DIR": os.fspath(self._folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "HOME": os.fspath(self._folder),
        **(environment or {}),
      },
    )
    assert json.loads(self._process.stdout.readline())["ready"]

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._process.stdin.close()
    self._process.wait()

  def ask(self, **request):
    """Sends a request and gives the answer."""
    print(json.dumps(request), file=self._process.stdin, flush=True)
    return json.loads(self._process.stdout.readline())

  def start(self, argv, *, cwd=None, stdout=None, below=None, **more):
    """Starts a command; `more` as `fork_server` takes it."""
    self._number += 1
    folder = self._folder / str(self._number)
    folder.mkdir()
    if below is not None:
      more["below"] = os.fspath(below)
      more["count_file"] = os.fspath(folder / "changes")
    answer = self.ask(
      do="start",
      argv=[str(argument) for argument in argv],
      cwd=os.fspath(cwd or folder),
      stdout=stdout or os.fspath(folder / "stdout"),
      stderr=os.fspath(folder / "stderr"),
      **more,
    )
    return Process(self, answer["pid"], folder)

  def idle_mib(self):
    """The memory of a process that has done nothing yet."""
    status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024

  def run(self, argv, *, seconds=1200, **more):
    """Starts a command and waits for its end."""
    return self.start(argv, **more).wait(seconds)
