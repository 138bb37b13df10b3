"""What runs on each machine of a slice: the scripts that ssh carries there.

`gcloud compute tpus tpu-vm ssh --command=` takes one string, which the login
shell of every machine reads: here, and only here, a shell string is made.
Everything in it that a user gave goes through `shlex.quote`.
"""

import re
import shlex
from collections.abc import Sequence

ENVIRONMENT = "specialize_environment"
RUNS = "specialize_runs"
# Machines' own Python is older than what the package needs.
_PYTHON = "3.11"
_DISTRIBUTION = re.compile(r"[-\w.]*")


def install(package: str) -> str:
  """Installs a package, with its `tpu` extra, in an environment of its own.

  Args:
    package: a wheel in the machine's home directory, or what pip takes, such
      as "specialize-jax @ git+https://...".
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


def start(name: str, arguments: Sequence[str]) -> str:
  """Starts `specialize ARGUMENT...`, or finds it running, and waits for it.

  The run does not end with the connection, and a second start joins the first
  one: the run holds a lock, which the system takes back however it ends, so
  that neither a restarted machine nor a used-up process number deceives it.

  Args:
    name: of the run; its log and status lie in a directory of that name.
    arguments: of `specialize`, each as it is.

  Returns:
    The script. It shows the run's log and exits with the run's status.
  """
  program = f'"$HOME"/{ENVIRONMENT}/bin/specialize'
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
      'exit "$(cat status 2>/dev/null || echo 1)"',
    ]
  )


def logs(name: str, num_lines: int = 100) -> str:
  """Shows the end of a run's log, and what is added to it."""
  return "\n".join(
    [*_enter(name), f"exec tail --lines={num_lines} --follow=name log"]
  )


def _enter(name: str) -> list[str]:
  directory = f'"$HOME"/{RUNS}/{shlex.quote(name)}'
  return [f"mkdir -p {directory}", f"cd {directory} || exit 1"]


def _with_extra(package: str, extra: str) -> str:
  """Example: "p @ git+u" gives "p[tpu] @ git+u"; "p.whl", "./p.whl[tpu]"."""
  if package.endswith(".whl"):
    return f"./{package}[{extra}]"
  name = _DISTRIBUTION.match(package)[0]
  return f"{name}[{extra}]{package[len(name) :]}"
