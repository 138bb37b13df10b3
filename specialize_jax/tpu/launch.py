"""Commands of other programs: printed, or run without a shell.

A `Command` is a list of arguments throughout. `as_text` quotes it for a shell,
to be printed; no code parses that text.
"""

import dataclasses
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from specialize_jax import errors

_HERE_DOCUMENT = "END_OF_MANIFEST"
_WHERE_FROM = {
  "gcloud": "cloud.google.com/sdk/docs/install",
  "kubectl": "kubernetes.io/docs/tasks/tools",
  "xpk": "pip install xpk",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """A command line of another program.

  Attributes:
    purpose: what it does, in a few words.
    arguments: the program and its arguments, unquoted.
    input_text: its standard input; None for none.
  """

  purpose: str
  arguments: tuple[str, ...]
  input_text: str | None = None


def as_text(command: Command) -> str:
  r"""Returns a command quoted for a shell, to be copied and pasted.

  Example: `("gcloud", "version", "--filter=a b")` with the purpose "which
  gcloud" is

      # which gcloud
      gcloud version \
        '--filter=a b'
  """
  words = [shlex.quote(word) for word in command.arguments]
  first = next(
    (i for i, word in enumerate(words) if word.startswith(("-", "'-"))),
    len(words),
  )
  lines = [" ".join(words[:first]), *words[first:]]
  text = f"# {command.purpose}\n" + " \\\n  ".join(lines)
  if command.input_text is None:
    return text
  return f"{text} <<'{_HERE_DOCUMENT}'\n{command.input_text}{_HERE_DOCUMENT}"


def run(command: Command) -> int:
  """Runs a command and returns its exit status.

  It inherits standard output and standard error. As in a shell, the status
  after a signal is 128 plus the signal's number.

  Raises:
    UserError: the program is not installed.
  """
  print(as_text(command).split("\n", 1)[0], file=sys.stderr, flush=True)
  finished = subprocess.run(
    _resolved(command),
    input=command.input_text,
    stdin=subprocess.DEVNULL if command.input_text is None else None,
    text=True,
    check=False,
  )
  return _status(finished)


def run_all(commands: Sequence[Command]) -> int:
  """Runs commands in order until one fails.

  Returns:
    The exit status of the last command that ran.

  Raises:
    UserError: a program is not installed.
  """
  for command in commands:
    status = run(command)
    if status:
      name = " ".join(command.arguments[:5])
      print(f"{name} ended with status {status}.", file=sys.stderr)
      return status
  return 0


def ask(command: Command) -> tuple[int, str, str]:
  """Runs a command; returns its status, standard output and standard error.

  Raises:
    UserError: the program is not installed.
  """
  finished = subprocess.run(
    _resolved(command),
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
  )
  return _status(finished), finished.stdout.strip(), finished.stderr.strip()


def _resolved(command: Command) -> list[str]:
  program, *rest = command.arguments
  path = shutil.which(program)
  if path is None:
    where = _WHERE_FROM.get(program)
    raise errors.UserError(
      f"{program} is not installed: install it"
      + (f" ({where})" if where else "")
      + ", or leave out --execute to print the commands."
    )
  return [path, *rest]


def _status(finished: subprocess.CompletedProcess) -> int:
  code = finished.returncode
  return code if code >= 0 else 128 - code
