"""Runs a graph of jobs, each in a process of its own and each only once.

A job is a command that atomically writes `result.json` to its own directory,
`DIR/NAME-KEY`. The key is a hash of everything the result depends on: the job's
settings and the keys of the jobs that it needs. So a study that is started
again, even after `kill -9`, only runs what is missing, and a changed setting
only repeats the jobs that depend on it.

A job's process ends with its parent process, however that ends, and stops at a
step from which it can resume.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.files import locks, reading

RESULT = "result.json"
_LOG = "log.txt"
_SPENT = "spent.jsonl"
_POLL_SECONDS = 0.2
_SECONDS_TO_STOP = 60.0
_LOG_LINES_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A job.

  Attributes:
    name: unique, and valid in file names.
    settings: everything its result depends on except the jobs it needs;
      JSON-serializable.
    command: maps its directory, and those of the jobs that it needs by name, to
      the arguments of its process.
    needs: names of the jobs that must be done before.
    cost: estimated duration, in any unit that all jobs share.
  """

  name: str
  settings: object
  command: Callable[[pathlib.Path, Mapping[str, pathlib.Path]], Sequence[str]]
  needs: Sequence[str] = ()
  cost: float = 1.0


@dataclasses.dataclass(frozen=True)
class Spent:
  """The cost of a process.

  Attributes:
    job: the name of the job.
    seconds: wall-clock time.
    cpu_seconds: CPU time of all its threads.
    status: exit status; negative if ended by that signal.
  """

  job: str
  seconds: float
  cpu_seconds: float
  status: int


_ENDED_FROM_OUTSIDE = {
  -signal.SIGKILL: "killed, as by a system that is out of memory (fewer"
  " --num_workers need less)",
  -signal.SIGTERM: "ended by SIGTERM",
  75: "ended by SIGTERM",
}


class JobFailed(RuntimeError):
  """A job's process failed; the message shows the end of its log."""


def directories(
  jobs: Sequence[Job], directory: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Returns the directory of each job, whose name includes its key.

  Args:
    jobs: the jobs, each after those that it needs.
    directory: the parent directory.

  Returns:
    The directories by name.

  Raises:
    ValueError: two jobs have the same name, or a job needs one that does not
      precede it.
  """
  keys: dict[str, str] = {}
  for job in jobs:
    if job.name in keys:
      raise ValueError(f"two jobs have the name {job.name!r}.")
    missing = [name for name in job.needs if name not in keys]
    if missing:
      raise ValueError(
        f"job {job.name!r} needs {', '.join(missing)}, which must come before."
      )
    content = [job.settings, [keys[name] for name in job.needs]]
    text = json.dumps(content, sort_keys=True)
    keys[job.name] = hashlib.sha256(text.encode()).hexdigest()[:12]
  return {name: directory / f"{name}-{key}" for name, key in keys.items()}


def run(
  jobs: Sequence[Job], directory: pathlib.Path, *, num_workers: int
) -> dict[str, pathlib.Path]:
  """Runs all jobs that have no result yet, several at a time.

  Of the jobs that can start, the one on the most expensive chain of waiting
  jobs starts first.

  Args:
    jobs: the jobs, each after those that it needs.
    directory: the parent directory of theirs.
    num_workers: number of jobs that run at a time.

  Returns:
    The directory of each job by name; all have a result.

  Raises:
    UserError: another process uses `directory`, or a job ended with a
      UserError.
    JobFailed: a job failed otherwise. The others were stopped.
  """
  places = directories(jobs, directory)
  with locks.directory(directory, "--output_dir"):
    pool = _Pool(jobs, places, directory / _SPENT, num_workers)
    try:
      with _terminated_as_exit():
        while not pool.is_done():
          pool.start()
          time.sleep(_POLL_SECONDS)
          pool.collect()
    finally:
      pool.stop()
  return places


def spent(directory: pathlib.Path) -> list[Spent]:
  """Returns the cost of all processes of a directory, even failed ones."""
  path = directory / _SPENT
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").splitlines()
  # A line is cut short where a study was killed, or its disk was full.
  return [Spent(**json.loads(line)) for line in lines if reading.is_json(line)]


@contextlib.contextmanager
def attached(job_dir: pathlib.Path) -> Iterator[None]:
  """Locks a job's directory, and ends the process when its study ends.

  Used in the job's process. Its standard input is a pipe to which nothing is
  written; end of file means that the study has ended. The process then sends
  itself SIGTERM. If a process of an earlier study still runs, this waits for
  it.
  """
  job_dir.mkdir(parents=True, exist_ok=True)

  def watch() -> None:
    # Not sys.stdin, which the interpreter locks at exit.
    while os.read(0, 1):
      pass
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()
  with (job_dir / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


@dataclasses.dataclass(frozen=True)
class _Process:
  job: Job
  popen: subprocess.Popen
  started: float


class _Pool:
  """The running processes and the waiting jobs."""

  def __init__(
    self,
    jobs: Sequence[Job],
    places: Mapping[str, pathlib.Path],
    spent_path: pathlib.Path,
    num_workers: int,
  ) -> None:
    self._places = places
    self._spent_path = spent_path
    self._num_workers = num_workers
    self._waiting = [job for job in jobs if not self._has_result(job.name)]
    self._urgency = _urgency(jobs)
    self._running: list[_Process] = []
    self._progress = _Progress(len(jobs), self._waiting, num_workers)

  def _has_result(self, name: str) -> bool:
    return (self._places[name] / RESULT).is_file()

  def is_done(self) -> bool:
    return not self._waiting and not self._running

  def start(self) -> None:
    """Starts ready jobs, most urgent first, until all workers are busy."""
    ready = [
      job
      for job in self._waiting
      if all(self._has_result(name) for name in job.needs)
    ]
    ready.sort(key=lambda job: -self._urgency[job.name])
    for job in ready[: self._num_workers - len(self._running)]:
      place = self._places[job.name]
      place.mkdir(parents=True, exist_ok=True)
      needs = {name: self._places[name] for name in job.needs}
      with (place / _LOG).open("ab") as log:
        popen = subprocess.Popen(
          job.command(place, needs),
          stdin=subprocess.PIPE,
          stdout=log,
          stderr=subprocess.STDOUT,
        )
      self._waiting.remove(job)
      self._running.append(_Process(job, popen, time.monotonic()))

  def collect(self) -> None:
    """Removes processes that have ended; raises if one failed."""
    for process in [*self._running]:
      pid, status, usage = os.wait4(process.popen.pid, os.WNOHANG)
      if pid:
        self._ended(process, os.waitstatus_to_exitcode(status), usage)
        if process.popen.returncode or not self._has_result(process.job.name):
          self._raise_failure(process.job, process.popen.returncode)
        self._progress.done(process.job, time.monotonic() - process.started)

  def _ended(self, process: _Process, status: int, usage: object) -> None:
    process.popen.returncode = status  # or Popen would wait for it again
    process.popen.stdin.close()
    self._running.remove(process)
    took = Spent(
      job=process.job.name,
      seconds=round(time.monotonic() - process.started, 1),
      cpu_seconds=round(usage.ru_utime + usage.ru_stime, 1),
      status=status,
    )
    line = json.dumps(dataclasses.asdict(took)) + "\n"
    with self._spent_path.open("a+b") as stream:
      stream.seek(0, os.SEEK_END)
      if stream.tell():
        stream.seek(-1, os.SEEK_END)
        line = line if stream.read(1) == b"\n" else f"\n{line}"
      stream.write(line.encode())

  def _raise_failure(self, job: Job, status: int) -> None:
    log = self._places[job.name] / _LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if status == 2 and lines:
      raise errors.UserError(f"{job.name}: {lines[-1]}")
    if status in _ENDED_FROM_OUTSIDE:
      raise errors.UserError(
        f"{job.name} was {_ENDED_FROM_OUTSIDE[status]}: start the study again,"
        " which goes on where it stopped"
      )
    shown = "\n".join(lines[-_LOG_LINES_SHOWN:])
    raise JobFailed(
      f"job {job.name} ended with status {status}; the end of {log}:\n{shown}"
    )

  def stop(self) -> None:
    """Sends SIGTERM to all processes, and kills those that take too long."""
    # Not by Popen, which would wait for those that have ended: so does this.
    for process in self._running:
      os.kill(process.popen.pid, signal.SIGTERM)
    deadline = time.monotonic() + _SECONDS_TO_STOP
    for process in [*self._running]:
      while True:
        pid, status, usage = os.wait4(process.popen.pid, os.WNOHANG)
        if pid:
          self._ended(process, os.waitstatus_to_exitcode(status), usage)
          break
        if time.monotonic() > deadline:
          os.kill(process.popen.pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


class _Progress:
  """Prints a line to standard error when a job is done."""

  def __init__(
    self, num_jobs: int, waiting: Sequence[Job], num_workers: int
  ) -> None:
    self._num_jobs = num_jobs
    self._num_done = num_jobs - len(waiting)
    self._num_workers = num_workers
    self._cost_left = sum(job.cost for job in waiting)
    self._cost_done = self._seconds_done = 0.0
    self._start = time.monotonic()
    if self._num_done:
      self._tell(f"{self._num_done} jobs were done before")

  def done(self, job: Job, seconds: float) -> None:
    """Counts a job that took some seconds while other workers had their own."""
    self._num_done += 1
    self._cost_left -= job.cost
    self._cost_done += job.cost
    self._seconds_done += seconds
    left = self._cost_left * self._seconds_done / self._cost_done
    left /= self._num_workers
    minutes = (time.monotonic() - self._start) / 60
    self._tell(f"{job.name}; {minutes:.1f} min, about {left / 60:.0f} left")

  def _tell(self, text: str) -> None:
    place = f"[{self._num_done}/{self._num_jobs}]"
    print(f"{place} {text}", file=sys.stderr, flush=True)


def _urgency(jobs: Sequence[Job]) -> dict[str, float]:
  """Returns the cost of each job plus the costliest chain that needs it."""
  urgency: dict[str, float] = {}
  for job in reversed(jobs):
    later = [urgency[j.name] for j in jobs if job.name in j.needs]
    urgency[job.name] = job.cost + max(later, default=0.0)
  return urgency


@contextlib.contextmanager
def _terminated_as_exit() -> Iterator[None]:
  """Converts SIGTERM to SystemExit, so that cleanup runs."""
  if threading.current_thread() is not threading.main_thread():
    yield  # only the main thread can handle signals
    return

  def leave(*_: object) -> None:
    raise SystemExit(75)  # EX_TEMPFAIL of sysexits.h, as for a preempted run

  before = signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
