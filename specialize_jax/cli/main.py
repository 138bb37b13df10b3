# PYTHON_ARGCOMPLETE_OK
"""The console script `specialize`, which runs a command.

Exit statuses: 0 success; 2 an error that the user can correct (one sentence on
standard error); 1 any other error (with its traceback); 130 interrupted; 141
the reader of the output has closed it, as `head` does.

A command is a module of this package with two functions: `build_parser()`,
which imports nothing heavy, so that `--help` answers at once, and
`main(argv) -> int`, which imports what it needs.
"""

import argparse
import importlib
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TextIO

import specialize_jax
from specialize_jax import errors
from specialize_jax.cli import devices, installation, parsers
from specialize_jax.files import paths, writing

# In the order of the pipeline, from a teacher to a report.
COMMANDS = {
  "demo": "run the whole pipeline on the mini world",
  "teach": "sample a teacher's endpoint into a record store",
  "import": "import released files or OpenAI responses into a record store",
  "align": "align teacher records with a student, and report coverage",
  "prepare": "filter, align and write the training dataset",
  "inspect": "show a sample's alignment, or an example as the model sees it",
  "convert": "convert checkpoints between ours, Hugging Face and T5X",
  "train": "train or specialize a T5 from gin files",
  "eval": "evaluate a checkpoint on a seqio task or mixture",
  "generate": "decode or score a file of inputs with a checkpoint",
  "score": "grade a JSONL file of predictions from any system",
  "select": "select the checkpoint with the best out-of-distribution mean",
  "plan": "compute memory and speed on a TPU slice, without a TPU",
  "launch": "start a command on every host of a TPU slice",
  "report": "build tables, figures and an HTML page from written results",
}


# The time that threads have to finish after a failure.
_PATIENCE_SECONDS = 10

_COMPILER = "compiler"  # begins the name of the thread of `step.Compilation`

_KILLED_BY_SIGPIPE = 141  # as shells report a program that `head` ended


def run(command: str, argv: Sequence[str]) -> int:
  """Runs one command; errors that the user can correct are exit status 2.

  Args:
    command: a name in `COMMANDS`.
    argv: the command's own arguments, without its name.

  Returns:
    The exit status.
  """
  status = 2
  _fill_closed_streams()
  _quiet_libraries()
  _pass_over_matplotlibrc()
  writing.survive_any_text()
  try:
    module = importlib.import_module(f"specialize_jax.cli.{command}")
    return module.main(list(argv))
  except errors.ReportError as error:
    print(f"specialize {command}: error: {error.summary}:", file=sys.stderr)
    for line in error.lines:
      print(f"  {' '.join(line.split())}", file=sys.stderr)
    devices.leave_others(2, error)
    return 2
  except errors.UserError as error:
    message = " ".join(str(error).split())
    lacking = installation.problem(error, command)
    message = f"{message} {lacking}" if lacking else message
    status = 1 if isinstance(error, errors.PassingError) else 2
  except OSError as error:
    if not paths.is_mendable(error):
      devices.leave_others(1, error)
      raise
    # Only errors of files that the user named: the others were converted.
    message = paths.reason(error)
  except KeyboardInterrupt:
    print(f"specialize {command}: interrupted", file=sys.stderr)
    return 130
  except Exception as error:
    message = installation.problem(error, command)
    message = message or paths.bucket_reason(error)
    if message is None:
      devices.leave_others(1, error)
      raise
    status = 1 if paths.may_pass(error) else 2
  message = writing.visible(message)
  print(f"specialize {command}: error: {message}", file=sys.stderr)
  devices.leave_others(status, errors.UserError(message))
  return status


def main(argv: Sequence[str]) -> int:
  """Dispatches `specialize COMMAND ARGUMENT...`."""
  parser = _build_parser()
  if not argv or argv[0] in ("-h", "--help"):
    parser.print_help()
    return 0 if argv else 2
  if argv[0] == "--version":
    print(f"specialize {specialize_jax.__version__}")
    return 0
  if argv[0] not in COMMANDS:
    hint = errors.did_you_mean(argv[0], [*COMMANDS, "--help", "--version"])
    parser.error(
      f"{argv[0]!r} is not a command; "
      + (hint or f"expected one of {', '.join(COMMANDS)}")
    )
  return run(argv[0], argv[1:])


def console() -> None:
  """The entry point that `setup.py` installs: ends with the exit status."""
  if "_ARGCOMPLETE" in os.environ:
    from specialize_jax.cli import completion

    completion.answer(COMMANDS)
  try:
    status = _flushed_main()
  except Exception as error:
    if isinstance(error, BrokenPipeError) and _reader_has_left():
      status = _KILLED_BY_SIGPIPE
      _write_no_more()
    else:
      traceback.print_exc()
      status = 1
  if status:
    threading.Thread(target=_end, args=[status], daemon=True).start()
  sys.exit(status)


def _fill_closed_streams() -> None:
  """Puts `/dev/null` where a standard stream was closed (`>&-`).

  Else the next file that is opened would have its descriptor, and what a
  library prints would end in that file. It is opened for reading, so that an
  output to `/dev/stdout` still fails.
  """
  for descriptor in (0, 1, 2):
    try:
      os.fstat(descriptor)
    except OSError:
      os.open(os.devnull, os.O_RDONLY)  # has the lowest descriptor
  for name in ("stdout", "stderr"):
    if getattr(sys, name) is None:
      nothing = os.open(os.devnull, os.O_WRONLY)
      setattr(sys, name, os.fdopen(nothing, "w"))


def _flushed_main() -> int:
  """Runs `main`, and flushes its output while broken pipes can be handled."""
  try:
    status = main(sys.argv[1:])
  except SystemExit as end:  # argparse's, after --help or an error
    status = end.code or 0
  for stream in _output_streams():
    stream.flush()
  return status


def _reader_has_left() -> bool:
  """Returns whether the reader of standard output or error has closed it."""
  poll = select.poll()
  for stream in _output_streams():
    poll.register(stream.fileno(), 0)  # errors alone
  return bool(poll.poll(0))


def _write_no_more() -> None:
  """Redirects the streams, so that Python's flush at exit succeeds."""
  nothing = os.open(os.devnull, os.O_WRONLY)
  for stream in _output_streams():
    os.dup2(nothing, stream.fileno())


def _output_streams() -> list[TextIO]:
  """Returns standard output and error, where they were not closed (`>&-`)."""
  return [s for s in (sys.stdout, sys.stderr) if s is not None]


def _end(status: int) -> None:
  """Ends a failed process that has not ended: at once, or after a timeout.

  Python waits for all threads at exit. Those of a failed Orbax save wait five
  minutes for each other, in which a launcher could have restarted the slice.
  The compiler has nothing to finish, and takes minutes too.
  """
  if not any(one.name.startswith(_COMPILER) for one in threading.enumerate()):
    time.sleep(_PATIENCE_SECONDS)
    waiting = ", ".join(
      thread.name
      for thread in threading.enumerate()
      if thread.is_alive() and not thread.daemon
    )
    print(f"specialize: ended while {waiting} still waited", file=sys.stderr)
  for stream in _output_streams():
    stream.flush()
  os._exit(status)


def _build_parser() -> argparse.ArgumentParser:
  width = max(map(len, COMMANDS))
  listing = "\n".join(
    f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items()
  )
  return parsers.Parser(
    prog="specialize",
    usage="specialize COMMAND [ARGUMENT ...]",
    description="Specializes T5 and FlanT5 to multi-step reasoning.",
    epilog=f"commands:\n{listing}\n\n"
    "`specialize COMMAND --help` shows an example that runs.",
  )


def _quiet_libraries() -> None:
  """Keeps TensorFlow's start-up messages off the user's terminal."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def _pass_over_matplotlibrc() -> None:
  """Imports matplotlib from another directory, if this one has settings for it.

  It obeys a `matplotlibrc` in the working directory of its first import, even
  evaluates expressions in it, and has no switch for that. (TensorFlow imports
  Keras, which imports it.)
  """
  if not os.path.exists("matplotlibrc"):
    return
  here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
  try:
    os.chdir(os.path.dirname(specialize_jax.__file__))
    importlib.import_module("matplotlib")
  finally:
    os.fchdir(here)
    os.close(here)


if __name__ == "__main__":
  console()
