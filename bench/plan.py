"""Memory a chip of the real train step, beside what T5X's needs.

  python bench/plan.py --output=plan.json            # all: about ten compiles
  python bench/plan.py --only=xl_v5e_64 --only=flat

needs the TPU compiler and no TPU: `pip install -e '.[plan]'`. Every row is
this package's own step, sparse-KL loss included, compiled by libtpu for a
slice that is not there (input 768, target 256, bfloat16 compute). T5X's
figures are constants: its scanned network and Adafactor step compiled the
same way, as they were measured for issue 4. `ratio` is ours over T5X's at the
same remat, and at most 0.7 is wanted.

`flat` compiles FlanT5-XL with 8 rows a chip: fsdp over 16 chips, 16 copies of
that over 256, whose chips must not send a tenth more, and fsdp over all 256.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import sys
from collections.abc import Mapping, Sequence

RATIO_WANTED = 0.7
COMPILE_SECONDS_WANTED = 90.0
GROWTH_WANTED = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One compile.

  Attributes:
    model: a file of gin_configs/models.
    topology: the slice.
    mesh: chips along each axis.
    remat: what the backward pass computes again.
    t5x_gib: what T5X's step needs a chip; infinite where it does not fit.
    optimizer: "adafactor" or "adamw", whose moments are float32.
    batch_size: rows of the global batch.
    microbatches: pieces of it, one after the other.
  """

  model: str
  topology: str
  mesh: str
  remat: str
  t5x_gib: float | None = None
  optimizer: str = "adafactor"
  batch_size: int = 128
  microbatches: int = 1


# T5X's figures: "What it must show" of issue 4.
CASES: Mapping[str, Case] = {
  "xl_v5e_64": Case(
    model="flan_t5_xl",
    topology="v5e:8x8",
    mesh="fsdp=64",
    remat="minimal",
    t5x_gib=4.36,
  ),
  "xl_v5e_16_minimal": Case(
    model="flan_t5_xl",
    topology="v5e:4x4",
    mesh="fsdp=16",
    remat="minimal",
    t5x_gib=float("inf"),
  ),
  "xl_v5e_16_full": Case(
    model="flan_t5_xl",
    topology="v5e:4x4",
    mesh="fsdp=16",
    remat="full",
    t5x_gib=5.75,
  ),
  "xxl_v5e_64": Case(
    model="flan_t5_xxl",
    topology="v5e:8x8",
    mesh="fsdp=64",
    remat="minimal",
    t5x_gib=12.7,
  ),
  "xxl_v4_64": Case(
    model="flan_t5_xxl",
    topology="v4:4x4x4",
    mesh="fsdp=64",
    remat="minimal",
    t5x_gib=9.3,
  ),
  "xxl_v5p_64": Case(
    model="flan_t5_xxl",
    topology="v5p:4x4x4",
    mesh="fsdp=64",
    remat="minimal",
    batch_size=256,
    t5x_gib=16.9,
  ),
  "xxl_adamw_v5e_16": Case(
    model="flan_t5_xxl",
    topology="v5e:4x4",
    mesh="fsdp=16",
    remat="full",
    optimizer="adamw",
  ),
}
FLAT: Sequence[Case] = tuple(
  Case(
    model="flan_t5_xl",
    topology=slice_name,
    mesh=mesh,
    remat="minimal",
    batch_size=8 * num_chips,
  )
  for num_chips, slice_name, mesh in (
    (16, "v5e:4x4", "fsdp=16"),
    (256, "v5e:16x16", "data=16,fsdp=16"),
    (256, "v5e:16x16", "fsdp=256"),
  )
)


def main(argv: Sequence[str] | None = None) -> int:
  """Compiles what is asked for, prints each row as it comes; 1 if one fails."""
  args = parse(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  results, failed = {}, []
  print(HEADING)
  for name in args.only or [*CASES, "flat"]:
    found = flatness() if name == "flat" else compare(CASES[name])
    results[name] = found
    failed += [f"{name}: {what}" for what in found["missed"]]
    if args.output:
      args.output.write_text(json.dumps(results, indent=2) + "\n")
  for what in failed:
    print(f"missed: {what}")
  return int(bool(failed))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--only", action="append", choices=[*CASES, "flat"], help="default: all"
  )
  parser.add_argument("--output", type=pathlib.Path, metavar="FILE.json")
  return parser.parse_args(argv)


HEADING = (
  f"{'model':<12} {'slice':<10} {'optimizer':<10} {'remat':<8} {'batch':>9} "
  f"{'GiB':>6} {'of':>6} {'T5X':>6} {'ratio':>6} {'compile s':>9}"
)


def compare(case: Case) -> dict[str, object]:
  """Compiles a case, prints it beside T5X's figure and judges it."""
  row = compiled(case)
  ratio = None if case.t5x_gib is None else row["hbm_gib"] / case.t5x_gib
  missed = []
  if not row["fits"]:
    missed.append(f"does not fit, {row['advice']}")
  if ratio is not None and ratio > RATIO_WANTED:
    missed.append(f"{ratio:.2f} of T5X's memory, {RATIO_WANTED} wanted")
  if row["compile_seconds"] > COMPILE_SECONDS_WANTED:
    missed.append(
      f"compiled in {row['compile_seconds']:.0f} s ({row['cpu_seconds']:.0f} s "
      f"of processor time), {COMPILE_SECONDS_WANTED:.0f} s wanted"
    )
  batch = f"{case.batch_size}"
  if case.microbatches > 1:
    batch += f" = {case.microbatches} x {case.batch_size // case.microbatches}"
  t5x = "-"
  if case.t5x_gib is not None:
    out_of_memory = case.t5x_gib == float("inf")
    t5x = "OOM" if out_of_memory else f"{case.t5x_gib:.2f}"
  print(
    f"{case.model.removeprefix('flan_'):<12} {case.topology:<10} "
    f"{case.optimizer:<10} {case.remat:<8} {batch:>9} "
    f"{row['hbm_gib']:6.2f} {row['hbm_limit_gib']:6.2f} {t5x:>6} "
    f"{'-' if not ratio else f'{ratio:.2f}':>6} {row['compile_seconds']:9.0f}",
    flush=True,
  )
  return {**row, "t5x_gib": t5x, "ratio": ratio or None, "missed": missed}


def flatness() -> dict[str, object]:
  """Compares what a chip sends at 16 and at 256 chips."""
  rows = [compiled(case) for case in FLAT]
  few = rows[0]["interconnect_bytes"]
  for case, row in zip(FLAT, rows, strict=True):
    row["growth"] = row["interconnect_bytes"] / few - 1
    print(
      f"{case.model.removeprefix('flan_')} on {case.topology}, {case.mesh}: "
      f"a chip sends {row['interconnect_bytes'] / 1e9:.2f} GB "
      f"({row['growth']:+.1%})",
      flush=True,
    )
  growth = rows[1]["growth"]
  missed = []
  if abs(growth) > GROWTH_WANTED:
    missed.append(f"{growth:+.1%}, at most {GROWTH_WANTED:.0%} wanted")
  return {"rows": rows, "growth": growth, "missed": missed}


def compiled(case: Case) -> dict[str, object]:
  """Returns the row of `specialize plan`, and its CPU seconds."""
  from specialize_jax.cli import plan as command
  from specialize_jax.tpu import plan, topology

  argv = [
    f"--model={case.model}",
    f"--topology={case.topology}",
    f"--optimizer={case.optimizer}",
    f"--remat={case.remat}",
    f"--batch_size={case.batch_size}",
    f"--microbatches={case.microbatches}",
  ]
  request = command.request(argv)
  mesh = topology.parse_mesh(case.mesh, request.topology.num_chips)
  start = _processor_seconds()
  (row,) = plan.plan(request, [mesh])
  return {**row, "cpu_seconds": _processor_seconds() - start}


def _processor_seconds() -> float:
  used = resource.getrusage(resource.RUSAGE_SELF)
  return used.ru_utime + used.ru_stime


if __name__ == "__main__":
  sys.exit(main())
