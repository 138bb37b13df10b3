"""Programs that stand in for gcloud, kubectl and specialize.

Real executables, to be found on PATH and started as processes: each writes
down its arguments, as they came, and ends as the test says.
"""

import json
import os
import pathlib
import stat
import sys

_PROGRAM = """#!{python} -IS
import json, os, pathlib, sys
here = pathlib.Path({directory!r})
call = {{
  "program": {name!r},
  "arguments": sys.argv[1:],
  "input": "" if {name!r} != "kubectl" else sys.stdin.read(),
}}
with open(here / "calls.jsonl", "a") as calls:
  calls.write(json.dumps(call) + "\\n")
{body}
"""


def install(directory, name, body=""):
  """Writes an executable; `body` has `here`, `call`, `os`, `sys`, `json`."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / name
  path.write_text(
    _PROGRAM.format(
      python=sys.executable, directory=str(directory), name=name, body=body
    )
  )
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


def calls(directory):
  """Returns the calls so far, in order: program, arguments, input."""
  path = pathlib.Path(directory) / "calls.jsonl"
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def path_with(directory):
  """PATH with a directory in front."""
  return f"{directory}{os.pathsep}{os.environ['PATH']}"
