"""The share of a checkpoint's load time that comparing its digests takes.

  python bench/digests.py --geometry=small --output=digests.json

writes random weights as a checkpoint of ours and as a Hugging Face folder, and
loads each `--rounds` times with the digests compared and with `verify=False`,
by turns, from the page cache: from a disk or a bucket the share is smaller.
Each is also verified once, as `specialize convert --verify` does.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import geometries


def main(argv):
  """Writes, loads and prints the medians."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--geometry", default="small", choices=[*geometries.GEOMETRIES]
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output")
  flags = parser.parse_args(argv)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  with tempfile.TemporaryDirectory() as folder:
    found = measure(pathlib.Path(folder), flags.geometry, flags.rounds)
  print(json.dumps(found, indent=1))
  if flags.output:
    pathlib.Path(flags.output).write_text(json.dumps(found, indent=1) + "\n")


def measure(folder, geometry, rounds):
  """Returns seconds with and without digests, by the kind of checkpoint."""
  import jax
  import numpy as np

  from specialize_jax.checkpoints import conversion, name_table, opening
  from specialize_jax.parallel import mesh, placement

  config = geometries.ours(geometries.GEOMETRIES[geometry])
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.standard_normal(leaf.shape, np.float32),
    name_table.abstract_params(config),
  )
  conversion.export_params(folder / "huggingface", config, params)
  plan = conversion.plan(
    opening.open_checkpoint(folder / "huggingface"), to="ours"
  )
  conversion.write_ours(plan, folder / "ours")
  placed = placement.Placement(mesh=mesh.make_mesh())

  def load(kind, verify):
    began = time.perf_counter()
    checkpoint = opening.open_checkpoint(folder / kind, verify=verify)
    jax.block_until_ready(checkpoint.params(placed))
    return time.perf_counter() - began

  found = {"geometry": geometry}
  for kind in ("ours", "huggingface"):
    load(kind, True)
    seconds = {True: [], False: []}
    for _ in range(rounds):
      for verify in (True, False):
        seconds[verify].append(load(kind, verify))
    began = time.perf_counter()
    opening.open_checkpoint(folder / kind).verify()
    verified = time.perf_counter() - began
    compared, skipped = (statistics.median(seconds[v]) for v in (True, False))
    found[kind] = {
      "mib": round(_size(folder / kind) / 2**20),
      "seconds_compared": round(compared, 3),
      "seconds_skipped": round(skipped, 3),
      "share": round(max(0.0, 1 - skipped / compared), 3),
      "seconds_to_verify": round(verified, 3),
    }
  return found


def _size(directory):
  return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
