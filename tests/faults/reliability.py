"""Writes docs/reliability.md from what the last run of the suite found.

python -m faults.reliability    (from tests/; `make test-faults` does)
"""

import json
import pathlib

from faults import commands

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / ".faults" / "results.json"
PAGE = ROOT / "docs" / "reliability.md"

FAULTS = (
  "kill -9",
  "disk full",
  "read-only",
  "second writer",
  "SIGINT",
  "SIGTERM",
  "SIGHUP",
  "stdout closed",
  "stdout without reader",
  "stdout full",
  "clock set back",
)
HOSTS = "train, two hosts"
FILES = "a stranger's file"
_WORDS = {
  HOSTS: "Two processes of one `train`, through `jax.distributed`.\n",
  FILES: "One command reads each, in a process whose time (at most 20 seconds"
  " of a core) and memory (at most 1.5 GiB more than an idle one) are"
  " measured.\n",
}
_HEAD = """# What happens when things go wrong?

`make test-faults` does it to every command that writes, by real processes on a
small input: kills, full and read-only disks, a second writer, signals, a
standard output that takes nothing, a clock that is set back; to two hosts of
one run; and with files that were made to hurt. This page is what it found. The
suite may be run in parts: a row's last column has the commits at which its
cells were found, the newest of all on {date}. It is generated: change
`tests/faults/`, not this page.

"Equal" compares what the command made, file by file, with a run that nothing
disturbed: {compared}. A cell is written by a test that has passed, so none says
"lost" or "wrong and status 0"; "not run" has not been tried, or has not passed.

How a kill is cheap: commands are forked from one process that has imported
everything, so that one costs tenths of a second; odd kills are at a random
moment, even ones just before a random change on disk (Python's audit events),
which is where half-written things come from. After every fifth the command
runs to its end.

"""
_COMPARED = (
  "bytes, but for what a clock measures; of a checkpoint the digests of all "
  "arrays and the place in the data"
)
_MISSING = "not run"


def write():
  """Writes the page."""
  results = json.loads(RESULTS.read_text())
  cells = [cell for row in results.values() for cell in row.values()]
  newest = max(cells, key=lambda cell: cell["date"])
  lines = [_HEAD.format(date=newest["date"], compared=_COMPARED)]
  lines += _table(results)
  for row, title in ((HOSTS, "Hosts"), (FILES, "Files of strangers")):
    found = results.get(row, {})
    lines += [f"\n## {title}\n", _WORDS[row]]
    lines += ["| what is done | what happens | at |", "|---|---|---|"]
    lines += [
      f"| {fault} | {_told(cell)} | `{cell['commit']}` |"
      for fault, cell in found.items()
    ]
  lines += ["\n## What is said\n"]
  for name in commands.NAMES:
    said = {
      fault: cell["said"]
      for fault, cell in results.get(name, {}).items()
      if cell["said"]
    }
    lines += [f"- `{name}`:"] if said else []
    lines += [f"  - {fault}: {text}" for fault, text in said.items()]
  PAGE.write_text("\n".join(lines) + "\n")


def _table(results):
  yield f"| {' | '.join(['command', *FAULTS, 'at'])} |"
  yield f"|{'---|' * (len(FAULTS) + 2)}"
  for name in commands.NAMES:
    row = results.get(name, {})
    cells = [row[f]["outcome"] if f in row else _MISSING for f in FAULTS]
    commits = sorted({f"`{cell['commit']}`" for cell in row.values()})
    yield f"| `{name}` | {' | '.join([*cells, ', '.join(commits)])} |"


def _told(cell):
  said = cell["said"].replace("|", "\\|").replace("<", "&lt;")
  return cell["outcome"] + (f": {said}" if said else "")


if __name__ == "__main__":
  write()
