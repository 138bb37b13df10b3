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
_HEAD = """# What happens when things go wrong?

`make test-faults` does it to every command that writes, by real processes on a
small input: kills, full and read-only disks, a second writer, signals, a
standard output that takes nothing, a clock that is set back; and to two hosts
of one run. This page is what it found, on {date} at commit `{commit}`. It is
generated: change `tests/faults/`, not this page.

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
  lines = [
    _HEAD.format(
      date=newest["date"], commit=newest["commit"], compared=_COMPARED
    )
  ]
  lines += _table(results, ["command", *FAULTS], commands.NAMES)
  hosts = {
    row: found for row, found in results.items() if row not in commands.NAMES
  }
  lines += ["\n## Hosts\n"]
  for row, found in hosts.items():
    lines += [f"{row}:\n", "| fault | what happens |", "|---|---|"]
    lines += [f"| {fault} | {_told(cell)} |" for fault, cell in found.items()]
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


def _table(results, head, names):
  yield f"| {' | '.join(head)} |"
  yield f"|{'---|' * len(head)}"
  for name in names:
    row = results.get(name, {})
    cells = [row[f]["outcome"] if f in row else _MISSING for f in head[1:]]
    yield f"| `{name}` | {' | '.join(cells)} |"


def _told(cell):
  return cell["outcome"] + (f": {cell['said']}" if cell["said"] else "")


if __name__ == "__main__":
  write()
