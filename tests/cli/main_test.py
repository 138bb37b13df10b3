"""`specialize` answers at once and ends with an honest exit status."""

import importlib
import subprocess
import sys

import pytest

from specialize_jax import errors
from specialize_jax.cli import logs, main

_HEAVY = ("jax", "tensorflow", "seqio", "flax", "numpy", "matplotlib")


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_shows_an_example_and_imports_nothing_heavy(command):
  script = (
    "import sys\n"
    "from specialize_jax.cli import main\n"
    "try:\n"
    f"  main.main([{command!r}, '--help'])\n"
    "except SystemExit as exit:\n"
    "  assert exit.code == 0, exit.code\n"
    f"heavy = [m for m in {_HEAVY!r} if m in sys.modules]\n"
    "assert not heavy, heavy\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert f"specialize {command} " in done.stdout.split("example", 1)[1]


def test_every_command_is_a_module_with_a_parser():
  for command in main.COMMANDS:
    module = importlib.import_module(f"specialize_jax.cli.{command}")
    assert module.build_parser().prog == f"specialize {command}"


@pytest.mark.parametrize(
  "command",
  ["teach", "import", "align", "prepare", "train", "eval", "generate",
   "select", "convert", "demo", "plan"],
)  # fmt: skip
def test_what_runs_long_takes_a_log_level_before_all_else(
  monkeypatch, capsys, command
):
  def start(flags):
    raise errors.UserError(f"the level is {flags.log_level}")

  monkeypatch.setattr(logs, "start", start)
  parser = importlib.import_module(f"specialize_jax.cli.{command}")
  needed = [
    f"{action.option_strings[0]}=x"
    for action in parser.build_parser()._actions
    if action.required
  ]
  assert main.main([command, *needed, "--log_level=info"]) == 2
  assert "the level is info" in capsys.readouterr().err


def test_an_error_of_the_user_is_one_sentence_and_status_2(monkeypatch, capsys):
  command = importlib.import_module("specialize_jax.cli.score")

  def fail(argv):
    raise errors.UserError("--inputs=x is\n  not there")

  monkeypatch.setattr(command, "main", fail)
  assert main.main(["score"]) == 2
  assert capsys.readouterr().err == (
    "specialize score: error: --inputs=x is not there\n"
  )


def test_a_defect_keeps_its_traceback(monkeypatch):
  command = importlib.import_module("specialize_jax.cli.score")
  monkeypatch.setattr(command, "main", lambda argv: 1 // 0)
  with pytest.raises(ZeroDivisionError):
    main.main(["score"])


def test_an_unknown_command_is_named(capsys):
  with pytest.raises(SystemExit) as exit_info:
    main.main(["trian"])
  assert exit_info.value.code == 2
  assert capsys.readouterr().err == (
    "specialize: error: 'trian' is not a command; did you mean train?\n"
  )
