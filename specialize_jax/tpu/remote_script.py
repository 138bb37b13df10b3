"""The shell scripts that run over ssh on each host of a slice.

`gcloud compute tpus tpu-vm ssh --command=` takes one string, which the login
shell of every host runs: only this module builds a shell string. Every value
from the user is quoted by `shlex.quote`.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence

from specialize_jax import errors

ENVIRONMENT = "specialize_environment"
RUNS = "specialize_runs"
FILES = ("log", "lock", "status")
"""The files in a run's directory that `start` writes."""
# The hosts' own Python is older than the package needs.
_PYTHON = "3.11"
_REQUIREMENT = re.compile(
  r"(?P<name>\w[-\w.]*)(?:\s*\[(?P<extras>[^\]]*)\])?(?P<rest>\s*(?:[@=<>!~;].*)?)",
  re.DOTALL,
)


def install(package: str) -> str:
  """Returns a script that installs a package in a virtual environment.

  Args:
    package: a wheel in the host's home directory, or a requirement of pip, such
      as "specialize-jax @ git+https://..."; its `tpu` extra is installed too.
  """
  return "\n".join(
    [
      "set -eu",
      'cd "$HOME"',
      "python3 -m pip install --quiet --user --upgrade uv",
      f"python3 -m uv venv --quiet --allow-existing --python {_PYTHON} "
      + ENVIRONMENT,
      f"python3 -m uv pip install --quiet --python {ENVIRONMENT}/bin/python "
      + shlex.quote(_with_extra(package, "tpu")),
    ]
  )


def make_directory(name: str) -> str:
  """Returns a script that makes the directory of a run."""
  return f"mkdir -p {_directory(name)}"


def start(
  name: str,
  arguments: Sequence[str],
  environment: Mapping[str, str] | None = None,
) -> str:
  """Returns a script that starts `specialize ARGUMENT...` and waits for it.

  The run outlives the connection, and a second start follows the run that is
  there: the run holds a file lock, which the kernel releases however the run
  ends, so that neither a reboot nor a reused process id is mistaken for it.

  Args:
    name: name of the run, and of the directory of its log and status.
    arguments: the arguments of `specialize`, unquoted.
    environment: variables that are set for it; None for none.

  Returns:
    The script, which prints the run's log and exits with the run's status.
  """
  variables = [f"{name}={value}" for name, value in (environment or {}).items()]
  setting = shlex.join(["env", *variables]) + " " if variables else ""
  program = f'{setting}"$HOME"/{ENVIRONMENT}/bin/specialize'
  words = " ".join(map(shlex.quote, arguments))
  return "\n".join(
    [
      *_enter(name),
      "touch log",
      "exec 9>lock",
      "if flock --nonblock 9; then",
      "  rm -f status",
      "  setsid bash -c '\"$@\"; echo $? >status' run \\",
      f"    {program} {words} \\",
      "    >>log 2>&1 </dev/null &",
      "fi",
      "exec 9>&-",
      "flock lock true &",
      "waiting=$!",
      'tail --pid="$waiting" --lines=20 --follow=name log',
      'code="$(cat status 2>/dev/null)"',
      'exit "${code:-1}"',  # it is empty where the disk was full
    ]
  )


def logs(name: str, num_lines: int = 100) -> str:
  """Returns a script that prints the end of a run's log and follows it."""
  return "\n".join(
    [*_enter(name), f"exec tail --lines={num_lines} --follow=name log"]
  )


def _enter(name: str) -> list[str]:
  return [make_directory(name), f"cd {_directory(name)} || exit 1"]


def _directory(name: str) -> str:
  return f'"$HOME"/{RUNS}/{shlex.quote(name)}'


def _with_extra(package: str, extra: str) -> str:
  """Adds an extra to a requirement or a wheel.

  Example: "p @ git+u" -> "p[tpu] @ git+u"; "p.whl" -> "./p.whl[tpu]".

  Raises:
    UserError: it is neither a wheel nor a requirement.
  """
  if is_wheel(package):
    return f"./{package}[{extra}]"
  match = _REQUIREMENT.fullmatch(package)
  if match is None:
    raise errors.UserError(
      f"--package={package} is neither a wheel nor a requirement for pip, which"
      " begins with a name: give one such as 'specialize-jax @ git+https://...'"
    )
  extras = ",".join(filter(None, [extra, match["extras"]]))
  return f"{match['name']}[{extras}]{match['rest']}"


def is_wheel(package: str) -> bool:
  """Returns whether a package is a local wheel, not a requirement."""
  return package.endswith(".whl") and (
    "@" not in package or os.path.isfile(package)
  )
