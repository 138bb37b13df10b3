"""The real train step beside T5X's, each by the TPU's own compiler.

  python bench/plan.py --output=plan.json            # all: about ten compiles
  python bench/plan.py --only=xl_v5e_64 --only=flat
  python bench/plan.py --t5x=t5x.json                # of bench/t5x_step.py

needs the TPU compiler and no TPU: `pip install -e '.[plan]'`. Every row is
this package's own step, sparse-KL loss included, compiled by libtpu for a
slice that is not there (input 768, target 256, bfloat16 compute). Below it is
T5X's, its scanned network and Adafactor step compiled the same way: constants
of the day they were measured, or the rows of `bench/t5x_step.py --output`,
which compiles them. Ours is to take at most 0.7 of T5X's memory, and, where
T5X's step was walked, 0.7 of its HBM traffic and 0.75 of its bound.

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

WANTED: Mapping[str, float] = {
  "hbm_gib": 0.7,
  "hbm_bytes": 0.7,
  "step_seconds": 0.75,
}
NAMES = {"hbm_gib": "memory", "hbm_bytes": "traffic", "step_seconds": "bound"}
COMPILE_SECONDS_WANTED = 90.0
GROWTH_WANTED = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5X:
  """What T5X's step needs; None where it was not measured.

  Attributes:
    hbm_gib: at the peak; "OOM" where it does not fit.
    hbm_bytes: read from and written to a chip's HBM.
    interconnect_bytes: that a chip sends.
    step_seconds: the bound.
  """

  hbm_gib: float | str | None = None
  hbm_bytes: float | None = None
  interconnect_bytes: float | None = None
  step_seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One compile.

  Attributes:
    model: a file of gin_configs/models.
    topology: the slice.
    mesh: chips along each axis.
    remat: what the backward pass computes again.
    t5x: what T5X's step needs.
    optimizer: "adafactor" or "adamw", whose moments are float32.
    batch_size: rows of the global batch.
    microbatches: pieces of it, one after the other.
  """

  model: str
  topology: str
  mesh: str
  remat: str
  t5x: T5X = T5X()
  optimizer: str = "adafactor"
  batch_size: int = 128
  microbatches: int = 1


CASES: Mapping[str, Case] = {
  "base_v5e_16": Case(
    model="flan_t5_base",
    topology="v5e:4x4",
    mesh="fsdp=16",
    remat="minimal",
    t5x=T5X(hbm_bytes=43.5e9),
  ),
  "xl_v5e_64": Case(
    model="flan_t5_xl",
    topology="v5e:8x8",
    mesh="fsdp=64",
    remat="minimal",
    t5x=T5X(
      hbm_gib=4.36,
      hbm_bytes=62.9e9,
      interconnect_bytes=11.3e9,
      step_seconds=0.207,
    ),
  ),
  "xl_v5e_16_minimal": Case(
    model="flan_t5_xl",
    topology="v5e:4x4",
    mesh="fsdp=16",
    remat="minimal",
    t5x=T5X(hbm_gib="OOM"),
  ),
  "xl_v5e_16_full": Case(
    model="flan_t5_xl",
    topology="v5e:4x4",
    mesh="fsdp=16",
    remat="full",
    t5x=T5X(hbm_gib=5.75),
  ),
  "xxl_v5e_64": Case(
    model="flan_t5_xxl",
    topology="v5e:8x8",
    mesh="fsdp=64",
    remat="minimal",
    t5x=T5X(hbm_gib=12.7),
  ),
  "xxl_v4_64": Case(
    model="flan_t5_xxl",
    topology="v4:4x4x4",
    mesh="fsdp=64",
    remat="minimal",
    t5x=T5X(hbm_gib=9.3),
  ),
  "xxl_v5p_64": Case(
    model="flan_t5_xxl",
    topology="v5p:4x4x4",
    mesh="fsdp=64",
    remat="minimal",
    batch_size=256,
    t5x=T5X(
      hbm_gib=16.86,
      hbm_bytes=1148e9,
      interconnect_bytes=43.7e9,
      step_seconds=0.415,
    ),
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
  walked = json.loads(args.t5x.read_text()) if args.t5x else {}
  print(HEADING)
  for name in args.only or [*CASES, "flat"]:
    found = flatness() if name == "flat" else compare(_case(name, walked))
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
  parser.add_argument(
    "--t5x",
    type=pathlib.Path,
    metavar="FILE.json",
    help="T5X's rows, of bench/t5x_step.py --output (default: constants)",
  )
  parser.add_argument("--output", type=pathlib.Path, metavar="FILE.json")
  return parser.parse_args(argv)


def _case(name: str, walked: Mapping[str, Mapping]) -> Case:
  """Returns a case, with T5X's row where `walked` has it."""
  case = CASES[name]
  if name not in walked:
    return case
  row = walked[name]["t5x"]
  fields = [field.name for field in dataclasses.fields(T5X)]
  return dataclasses.replace(case, t5x=T5X(**{f: row[f] for f in fields}))


HEADING = (
  f"{'model':<12} {'slice':<10} {'mesh':<18} {'optimizer':<10} {'remat':<8} "
  f"{'batch':>9} {'GiB':>6} {'HBM GB':>7} {'sent GB':>7} {'bound s':>8} "
  f"{'compile s':>9}"
)


def compare(case: Case) -> dict[str, object]:
  """Compiles a case, prints it above T5X's figures and judges it."""
  row = compiled(case)
  t5x = dataclasses.asdict(case.t5x)
  ratios = {
    name: row[name] / t5x[name]
    for name in WANTED
    if isinstance(t5x[name], float) and row[name] is not None
  }
  missed = [
    f"{ratio:.2f} of T5X's {NAMES[name]}, {WANTED[name]} wanted"
    for name, ratio in ratios.items()
    if ratio > WANTED[name]
  ]
  if not row["fits"]:
    missed.append(f"does not fit, {row['advice']}")
  if row["compile_seconds"] > COMPILE_SECONDS_WANTED:
    missed.append(
      f"compiled in {row['compile_seconds']:.0f} s ({row['cpu_seconds']:.0f} s "
      f"of processor time), {COMPILE_SECONDS_WANTED:.0f} s wanted"
    )
  batch = f"{case.batch_size}"
  if case.microbatches > 1:
    batch += f" = {case.microbatches} x {case.batch_size // case.microbatches}"
  print(
    f"{case.model.removeprefix('flan_'):<12} {case.topology:<10} "
    f"{case.mesh:<18} {case.optimizer:<10} {case.remat:<8} {batch:>9} "
    f"{_figures(row)} {row['compile_seconds']:9.0f}"
  )
  print(f"{'T5X':>72} {_figures(t5x)}")
  shares = {name: ratios.get(name) for name in t5x}
  print(f"{'ours / T5X':>72} {_figures(shares, unit=1.0)}", flush=True)
  return {**row, "t5x": t5x, "ratios": ratios, "missed": missed}


def _figures(row: Mapping[str, float | str | None], unit: float = 1e9) -> str:
  """Formats memory, traffic, bytes sent and bound; "-" for what is not known.

  Args:
    row: has the fields of `T5X`.
    unit: of bytes.
  """

  def cell(value: float | str | None, width: int, digits: int) -> str:
    if not isinstance(value, float):
      return f"{value or '-':>{width}}"
    return f"{value:{width}.{digits}f}"

  def scaled(name: str) -> float | None:
    return None if row[name] is None else row[name] / unit

  digits = 1 if unit > 1 else 2
  return (
    f"{cell(row['hbm_gib'], 6, 2)} {cell(scaled('hbm_bytes'), 7, digits)} "
    f"{cell(scaled('interconnect_bytes'), 7, digits)} "
    f"{cell(row['step_seconds'], 8, 4 if unit > 1 else 2)}"
  )


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
