"""Completion of commands and flags by the shell, through argcomplete.

    pip install 'specialize-jax[completion]'
    eval "$(register-python-argcomplete specialize)"

The shell runs `specialize` with the line so far in its environment.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from specialize_jax.cli import parsers


def answer(commands: Mapping[str, str]) -> NoReturn:
  """Writes the completions of the line in `COMP_LINE`, and ends the process.

  Without argcomplete there are none: a message would land in the user's line.

  Args:
    commands: what each command does, by name.
  """
  try:
    import argcomplete
  except ModuleNotFoundError:
    sys.exit(1)
  argcomplete.autocomplete(
    parser_for(os.environ.get("COMP_LINE", ""), commands)
  )
  sys.exit(1)  # the environment is not that of a completion


def parser_for(line: str, commands: Mapping[str, str]) -> parsers.Parser:
  """Builds the parser of all commands, with the flags of the one in the line.

  Args:
    line: the command line so far, such as "specialize train --gin_f".
    commands: what each command does, by name.

  Returns:
    A parser for argcomplete.
  """
  words = line.split()
  parser = parsers.Parser(prog="specialize")
  choices = parser.add_subparsers(metavar="COMMAND")
  for name, what in commands.items():
    own = []
    if name in words[1:2]:
      module = importlib.import_module(f"specialize_jax.cli.{name}")
      own.append(module.build_parser())
    choices.add_parser(name, help=what, parents=own, add_help=not own)
  return parser
