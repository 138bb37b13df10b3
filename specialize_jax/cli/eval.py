"""`specialize eval`: evaluates a checkpoint on a seqio task or mixture."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from specialize_jax.cli import (
  devices,
  gin_files,
  logs,
  parsers,
  registered_tasks,
)

_EXAMPLE = """example (after `specialize demo --output_dir=demo_output`):
  specialize eval --data_dir=demo_output/world \\
    --gin.CHECKPOINT_PATH=demo_output/specialize \\
    --gin.MIXTURE_OR_TASK_NAME=mini_math_all_test_v1 \\
    --gin.TASK_FEATURE_LENGTHS='{"inputs": 320, "targets": 64}' \\
    --gin.MAX_NEW_TOKENS=64 --gin.EVAL_OUTPUT_DIR=eval_output
"""


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize eval",
    description="Decodes and grades every example of a seqio task or mixture. "
    "Writes EVAL_OUTPUT_DIR/STEP/TASK.jsonl, the predictions, and "
    "EVAL_OUTPUT_DIR/metrics.jsonl. The last line printed is JSON.",
    epilog=_EXAMPLE,
  )
  gin_files.add_flags(parser, default_file="runs/eval.gin")
  registered_tasks.add_flags(parser)
  devices.add_flags(parser)
  devices.add_process_flags(parser)
  logs.add_flags(parser)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Evaluates; the first process prints a line for each task."""
  argv = sys.argv[1:] if argv is None else argv
  flags, bindings = gin_files.parse(build_parser(), argv)
  logs.start(flags)
  gin_files.check_flags(flags)

  own = registered_tasks.register_for(flags)
  devices.start(flags)

  import jax

  from specialize_jax.files import writing
  from specialize_jax.runs import experiment

  defaults = {"MIXTURE_OR_TASK_NAME": f"{own.dataset.name}_test"} if own else {}
  with gin_files.loaded(flags, bindings, defaults):
    gin_files.check_paths()
    values = gin_files.configured(experiment.evaluate_checkpoint)()
  if jax.process_index() == 0:
    print(writing.to_json(_shown(values)))
  return 0


def _shown(
  values: Mapping[str, float],
) -> dict[str, float | dict[str, float]]:
  """Prints a line for each task, and returns the summary.

  Returns:
    The accuracy by task; of a task without one, its metrics by name.
  """
  by_task: dict[str, dict[str, float]] = {}
  for name, value in values.items():
    task, _, kind = name.rpartition("/")
    by_task.setdefault(task, {})[kind] = value
  summary: dict[str, float | dict[str, float]] = {}
  for task, metrics in sorted(by_task.items()):
    if {"accuracy", "low", "high"} <= metrics.keys():
      low, high = metrics["low"], metrics["high"]
      print(f"{task}  {metrics['accuracy']:.3f}  [{low:.3f}, {high:.3f}]")
      summary[task] = metrics["accuracy"]
    else:
      named = "  ".join(f"{kind} {v:.3f}" for kind, v in metrics.items())
      print(f"{task}  {named}")
      summary[task] = metrics.get("accuracy", metrics)
  return summary


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("eval", sys.argv[1:]))
