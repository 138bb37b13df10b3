"""Starts commands by forking from a process that has imported everything.

The imports of a command take eight seconds and its work on a tiny input one:
with them done once, a command can be killed hundreds of times. (With
`FAULTS_WARM=light` only those of commands that neither train nor decode; with
`FAULTS_WARM=libraries` none that are ours, so that no task is registered.) What
is forked runs `cli.main.console`, as the console script does, up to Python's
own end.

A program: reads one JSON request a line, and answers each with a line.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import pathlib
import resource
import signal
import sys
import threading
import time
import traceback
import warnings

# Python's own record of what is about to change on disk.
_CHANGES = {
  "os.rename": 2,
  "os.remove": 1,
  "os.mkdir": 1,
  "os.rmdir": 1,
  "os.link": 2,
  "os.truncate": 1,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


# What every command imports, and what those need that train or decode.
_LIGHT = (
  "huggingface_hub",
  "orjson",
  "rich.progress",
  "sentencepiece",
  "specialize_jax.align",
  "specialize_jax.reports.sample_view",
  "specialize_jax.teacher.importing",
  "specialize_jax.teacher.sampling",
)
_HEAVY = (
  "matplotlib.pyplot",
  "orbax.checkpoint",
  "safetensors.numpy",
  "seqio",
  "specialize_jax.checkpoints.conversion",
  "specialize_jax.data.preparation",
  "specialize_jax.decoding.self_consistency",
  "specialize_jax.reports.markdown",
  "specialize_jax.reports.page",
  "specialize_jax.reports.plan_view",
  "specialize_jax.runs.experiment",
  "specialize_jax.runs.selecting",
  "specialize_jax.study.demo",
  "specialize_jax.study.findings_page",
  "specialize_jax.tpu.plan",
  "tasks.mixtures",
  "tensorboard.summary",
  "tensorflow",
  "tensorflow_datasets",
  "tensorstore",
  "tokenizers",
  "transformers",
)


def _warm_up():
  from specialize_jax.cli import main, registered_tasks

  for command in main.COMMANDS:
    importlib.import_module(f"specialize_jax.cli.{command}")
  names = {
    "all": _LIGHT + _HEAVY,
    "light": _LIGHT,
    "libraries": tuple(
      name
      for name in ("jax", *_LIGHT, *_HEAVY)
      if not name.startswith(("specialize_jax.", "tasks."))
    ),
  }[os.environ.get("FAULTS_WARM", "all")]
  with registered_tasks.quiet_import():
    for name in names:
      importlib.import_module(name)


def _watch_changes(request):
  """Counts what the child is about to change below its output directory.

  At the number that was asked for, it ends or stops itself; or it stops at the
  first change whose path has the word that was asked for.
  """
  below = os.path.realpath(request["below"])
  crash_at, stop_at = request.get("crash_at"), request.get("stop_at")
  stop_word = request.get("stop_word")
  count = 0

  def inside(path):
    if not isinstance(path, str | bytes | os.PathLike):
      return False
    path = os.path.abspath(os.fsdecode(path))
    return path == below or path.startswith(f"{below}/")

  def hook(event, arguments):
    nonlocal count, stop_word
    if event == "open":
      path, mode, flags = arguments
      writes = any(c in (mode or "") for c in "wax+") or (flags or 0) & _WRITES
      if not writes or not inside(path):
        return
    elif event not in _CHANGES or not any(
      inside(path) for path in arguments[: _CHANGES[event]]
    ):
      return
    count += 1
    if count == crash_at:
      os.kill(os.getpid(), signal.SIGKILL)
    if count == stop_at:
      os.kill(os.getpid(), signal.SIGSTOP)
    if stop_word is not None and stop_word in str(arguments[0]):
      stop_word = None
      os.kill(os.getpid(), signal.SIGSTOP)
    if count_file is not None:
      os.pwrite(count_file, str(count).encode(), 0)

  count_file = None
  if "count_file" in request:
    count_file = os.open(request["count_file"], os.O_CREAT | os.O_WRONLY)
  sys.addaudithook(hook)


def _stream(path, number):
  """Puts a file, or what a name stands for, at a standard descriptor."""
  if path == "closed pipe":
    reader, descriptor = os.pipe()
    os.close(reader)
  elif path == "closed":
    os.close(number)
    return
  else:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(descriptor, number)
  os.close(descriptor)


def _become_command(request):
  os.setsid()
  # Not even one that is stopped outlives the server.
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)
  os.chdir(request["cwd"])
  os.environ.update(request.get("environment", {}))
  _stream(os.devnull, 0)
  for name, number in (("stdout", 1), ("stderr", 2)):
    _stream(request[name], number)
  if request["stdout"] == "closed":
    sys.stdout = None
  if "below" in request:
    _watch_changes(request)
  if request.get("memory_gib"):
    limit = request["memory_gib"] << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  if request.get("user"):
    os.setgid(request["user"])
    os.setuid(request["user"])
  sys.argv = ["specialize", *request["argv"]]


def _wait(request):
  deadline = time.monotonic() + request["seconds"]
  options = os.WNOHANG | os.WUNTRACED
  while True:
    found, status, used = os.wait4(request["pid"], options)
    if found:
      if os.WIFSTOPPED(status):
        return {"stopped": True}
      return {
        "status": os.waitstatus_to_exitcode(status),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
      }
    if time.monotonic() > deadline:
      return {"status": None}
    time.sleep(0.002)


def _end_as_python_does():
  """Runs the command, its threads and its exit handlers.

  But for taking thousands of modules apart, which takes seconds, and which no
  command has a part in.
  """
  from specialize_jax.cli import main

  status = 1
  try:
    main.console()
  except SystemExit as end:
    status = end.code or 0
  except BaseException:
    traceback.print_exc()
  threading._shutdown()
  atexit._run_exitfuncs()
  for stream in (sys.stdout, sys.stderr):
    try:
      if stream is not None:
        stream.flush()
    except (OSError, ValueError) as error:
      print("Exception ignored:", error, file=sys.__stderr__)
      status = 120
  os._exit(status)


def serve():
  """Answers until its standard input ends; returns in a child alone."""
  warnings.filterwarnings("ignore", message=".*os.fork.*")
  _warm_up()
  gc.collect()
  gc.freeze()
  requests = os.fdopen(os.dup(0), "r")
  answers = os.fdopen(os.dup(1), "w")
  os.set_inheritable(requests.fileno(), False)
  print(json.dumps({"ready": True}), file=answers, flush=True)
  while line := requests.readline():
    request = json.loads(line)
    if request["do"] == "start":
      pid = os.fork()
      if not pid:
        requests.close()
        answers.close()
        _become_command(request)
        return True
      answer = {"pid": pid}
    else:
      answer = _wait(request)
    print(json.dumps(answer), file=answers, flush=True)
  return False


if __name__ == "__main__":
  sys.path.insert(0, os.fspath(pathlib.Path(__file__).parents[2]))
  if serve():
    _end_as_python_does()
