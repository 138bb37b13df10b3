"""What importing a part of the library takes, beside what others take.

  python bench/imports.py --rounds=7 --output=imports.json

imports each module in a process of its own, by turns, and prints the median of
the processor time that the import took there (without the start of Python, 15
to 30 ms), the number of modules, and which of the large packages it imported.
The last rows are the large packages themselves.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

LARGE = ("jax", "tensorflow", "seqio", "matplotlib", "flax", "transformers")
OURS = (
  "specialize_jax.cli.main",
  *(f"specialize_jax.{room}" for room in ("align", "losses", "t5")),
  *(f"specialize_jax.{room}" for room in ("checkpoints", "decoding", "data")),
)
OTHERS = ("numpy", "jax", "tensorflow")
_SCRIPT = """
import importlib, json, sys, time
start = time.process_time()
importlib.import_module(sys.argv[1])
seconds = time.process_time() - start
large = [name for name in sys.argv[2:] if name in sys.modules]
print(json.dumps({"s": seconds, "modules": len(sys.modules), "large": large}))
"""


def main(argv):
  """Imports, and prints a row for each module."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--output")
  flags = parser.parse_args(argv)
  rounds = {name: [] for name in (*OURS, *OTHERS)}
  for _ in range(flags.rounds):
    for name, found in rounds.items():
      found.append(_imported(name))
  rows = {
    name: {
      "s": round(statistics.median(one["s"] for one in found), 3),
      "modules": found[0]["modules"],
      "large": found[0]["large"],
    }
    for name, found in rounds.items()
  }
  for name, row in rows.items():
    print(
      f"{name:28}{row['s']:7.3f} s {row['modules']:6,} modules "
      + ", ".join(row["large"])
    )
  if flags.output:
    pathlib.Path(flags.output).write_text(json.dumps(rows, indent=1) + "\n")


def _imported(name):
  compiled_once = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
  done = subprocess.run(
    [sys.executable, "-c", _SCRIPT, name, *LARGE],
    env=compiled_once,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
  main(sys.argv[1:])
