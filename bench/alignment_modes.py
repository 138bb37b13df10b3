"""Which kind of targets makes the better student, on the mini world.

Of each seed a world, a general student and a student a kind of targets, all
from the same records and for the same steps; then how far the targets, and the
students on held-out problems, are from the exact teacher, and accuracies.
Prints means over seeds with Student's intervals, differences to `--baseline`
taken within a seed, and writes JSON. A second start goes on where the first
one stopped. Run from the repository's root:

  python bench/alignment_modes.py --output_dir=modes --output=modes.json
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time

from specialize_jax.cli import devices, gin_files, registered_tasks

_PRETRAIN = "experiments/mini/pretrain.gin"
_SPECIALIZE = "experiments/mini/specialize.gin"


def main(argv):
  """Compares, and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output_dir", required=True, type=pathlib.Path)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--pretrain_steps", type=int, default=1000)
  parser.add_argument("--train_steps", type=int, default=500)
  parser.add_argument("--num_test", type=int, default=300, help="a family")
  parser.add_argument("--num_problems", type=int, default=200, help="a family")
  parser.add_argument("--baseline", default="whitespace")
  parser.add_argument("--output")
  devices.add_flags(parser, cpu_devices=2)
  gin_files.add_flags(parser, default_file="runs/demo.gin")
  flags, bindings = gin_files.parse(parser, argv)
  if len(set(flags.seeds)) < 2:
    parser.error("--seeds: give two or more, for intervals over them")
  registered_tasks.register(None, None)
  devices.start(flags)

  from specialize_jax.files import writing
  from specialize_jax.study import alignment_modes

  comparison = _comparison(flags, bindings)
  start = time.monotonic()
  seeds = []
  for seed in flags.seeds:
    place = flags.output_dir / f"seed{seed}"
    seeds.append(alignment_modes.run_seed(comparison, place, seed=seed))
    print(f"seed {seed}: {time.monotonic() - start:.0f} s", file=sys.stderr)
  summary = alignment_modes.summarize(seeds, flags.baseline)
  _print_table(summary, flags.baseline)
  if flags.output:
    result = {
      **{
        k: v
        for k, v in vars(flags).items()
        if k.startswith(("num_", "pretrain_steps", "train_steps"))
      },
      "seeds": flags.seeds,
      "baseline": flags.baseline,
      "seconds": round(time.monotonic() - start),
      "load_average": os.getloadavg()[0],
      "summary": {
        name: {
          mode: {kind: dataclasses.asdict(one) for kind, one in row.items()}
          for mode, row in rows.items()
        }
        for name, rows in summary.items()
      },
    }
    writing.write_text(flags.output, json.dumps(result, indent=2) + "\n")


def _comparison(flags, bindings):
  """Wires the demo's own world and runs, with other numbers of steps."""
  from specialize_jax import align
  from specialize_jax.study import alignment_modes, demo

  pretraining = _experiment(flags, _PRETRAIN, flags.pretrain_steps)
  specialization = _experiment(
    flags, _SPECIALIZE, flags.train_steps, "INITIAL_CHECKPOINT_PATH = None"
  )
  with gin_files.loaded(flags, bindings):
    whole = gin_files.configured(demo.Demo)(
      pretraining=pretraining, specialization=specialization
    )
  maths = whole.tests[0]
  return alignment_modes.Comparison(
    world=whole.world,
    pretraining=pretraining,
    specialization=specialization,
    tests=[dataclasses.replace(maths, num_examples=flags.num_test)],
    modes=align.MODES,
    num_problems=flags.num_problems,
  )


def _experiment(flags, gin_file, num_steps, *bindings):
  """Configures a run of so many steps, without evaluations on its way."""
  from specialize_jax.runs import experiment

  run_flags = argparse.Namespace(**{**vars(flags), "gin_file": [gin_file]})
  placed = [
    "MODEL_DIR = 'of the student'",
    f"TRAIN_STEPS = {num_steps}",
    f"CHECKPOINT_EVERY = {num_steps}",
    *bindings,
  ]
  with gin_files.loaded(run_flags, placed):
    run = gin_files.configured(experiment.Experiment)()
  return dataclasses.replace(
    run,
    evaluations=(),
    loop=dataclasses.replace(run.loop, evaluate_first=False),
  )


def _print_table(summary, baseline):
  print(f"mean over seeds [95 %]; then the difference to {baseline} [95 %]")
  for name, rows in summary.items():
    print(name)
    for mode, row in rows.items():
      mean, apart = row["mean"], row["difference"]
      print(
        f"  {mode:10}"
        f" {mean.estimate:.4f} [{mean.low:.4f}, {mean.high:.4f}]"
        f" {apart.estimate:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
      )


if __name__ == "__main__":
  main(sys.argv[1:])
