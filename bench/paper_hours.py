"""Writes the hours of the paper's runs into their gin files.

    python bench/paper_hours.py [NAME ...]

The header of each file of gin_configs/experiments/paper/ has the `specialize
plan` command that computes its hours. This runs the command, once for files
that share one, and rewrites the `Hours:` line; names, such as flan_t5_xl,
select files. Takes minutes a command; needs libtpu, but no TPU.
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

PAPER = pathlib.Path(__file__).parents[1] / "gin_configs/experiments/paper"
_PLAN = re.compile(r"# Plan: (specialize plan(?:.*\n#   )*.*)\n")
_HOURS = re.compile(r"# Hours: .*\n")


def main(argv):
  """Plans and rewrites the named files, or all."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  stems = sorted(path.stem for path in PAPER.glob("*.gin"))
  parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(stems))
  names = parser.parse_args(argv).names
  unknown = sorted({*names} - {*stems})
  if unknown:
    parser.error(f"{', '.join(unknown)}: expected among {', '.join(stems)}")
  hours = {}
  for path in sorted(PAPER.glob("*.gin")):
    if names and path.stem not in names:
      continue
    text = path.read_text()
    command = shlex.split(_PLAN.search(text).group(1).replace("\n#", " "))[1:]
    key = tuple(command)
    if key not in hours:
      print(shlex.join(command), flush=True)
      hours[key] = plan(command)
    # Read again: minutes have passed.
    text = path.read_text()
    path.write_text(_HOURS.sub(f"# Hours: {hours[key]}\n", text))
    print(f"{path.stem}: {hours[key]}", flush=True)


def plan(command):
  """Runs `specialize plan` and returns the hours of its mesh as text."""
  with tempfile.TemporaryDirectory() as directory:
    output = pathlib.Path(directory) / "rows.json"
    subprocess.run(
      [
        *(sys.executable, "-m", "specialize_jax.cli.main", *command),
        f"--output={output}",
      ],
      check=True,
    )
    (row,) = json.loads(output.read_text())
  if not row["fits"]:
    raise SystemExit(
      f"{shlex.join(command)}: does not fit ({row['hbm_gib']:.1f} of "
      f"{row['hbm_limit_gib']:.1f} GiB a chip)"
    )
  return (
    f"{row['hours']:.1f} at the least, {row['chip_hours']:.0f} chip hours "
    f"({row['hbm_gib']:.1f} of {row['hbm_limit_gib']:.1f} GiB a chip)."
  )


if __name__ == "__main__":
  main(sys.argv[1:])
