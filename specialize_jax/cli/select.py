"""`specialize select`: the checkpoint with the best held-out mean."""

import argparse
import json
import pathlib
from collections.abc import Sequence

from specialize_jax import errors

_EXAMPLE = """example (after `specialize demo --output_dir=demo_output`):
  specialize select --model_dir=demo_output/specialize
"""


def build_parser() -> argparse.ArgumentParser:
  """Gives the command's flags."""
  parser = argparse.ArgumentParser(
    prog="specialize select",
    description="Chooses a run's checkpoint by its mean accuracy over held-out"
    " out-of-distribution validation sets, from the metrics.jsonl that the run"
    " wrote, and shows what selection in distribution would have chosen. The"
    " last line printed is JSON.",
    epilog=_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--model_dir",
    required=True,
    metavar="DIR",
    help="the run's directory, which holds metrics.jsonl",
  )
  parser.add_argument(
    "--out_of_distribution",
    default="",
    metavar="TASK,TASK",
    help="the tasks whose mean decides (default: MultiArith, ASDiv and SVAMP, "
    "real or of the mini world, zero-shot with chain of thought)",
  )
  parser.add_argument(
    "--in_distribution",
    default="",
    metavar="TASK",
    help="the task of the other rule (default: GSM8K, likewise)",
  )
  parser.add_argument(
    "--output",
    default="",
    metavar="FILE.json",
    help="where the choice is written (default: DIR/selection.json)",
  )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Selects, shows the ranking and writes the choice."""
  flags = build_parser().parse_args(argv)

  from specialize_jax.evaluation import history, selection, written
  from specialize_jax.reports import tables

  model_dir = pathlib.Path(flags.model_dir)
  values = history.read(model_dir / "metrics.jsonl")
  evaluated = selection.evaluated_tasks(values)
  tasks, in_distribution = selection.default_tasks(evaluated)
  if flags.out_of_distribution:
    tasks = [t.strip() for t in flags.out_of_distribution.split(",")]
  if not tasks:
    raise errors.UserError(
      f"--model_dir={flags.model_dir} has no validation accuracy of "
      "MultiArith, ASDiv or SVAMP: evaluate the run on them, or name tasks "
      f"with --out_of_distribution (evaluated: {', '.join(evaluated) or '-'})."
    )
  chosen = selection.select(
    values, tasks, flags.in_distribution or in_distribution
  )
  output = flags.output or model_dir / "selection.json"
  written.write_json(output, chosen.as_json())
  print(tables.selection(chosen))
  summary = {
    "step": chosen.step,
    "mean": chosen.mean,
    "in_distribution_step": chosen.in_distribution_step,
    "in_distribution_mean": chosen.in_distribution_mean,
    "checkpoint": str(model_dir / "checkpoints" / str(chosen.step)),
  }
  print(json.dumps(summary))
  return 0
