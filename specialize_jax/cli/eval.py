"""`specialize eval`: a checkpoint on a seqio task or mixture."""

import argparse
import json
import sys
from collections.abc import Sequence

from specialize_jax.cli import devices, gin_files, parsers, registered_tasks

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
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Evaluates; prints a line for each task."""
  argv = sys.argv[1:] if argv is None else argv
  flags, bindings = gin_files.parse(build_parser(), argv)

  registered_tasks.register(flags.data_dir, flags.tfds_data_dir)
  devices.start(flags)

  from specialize_jax.runs import experiment

  with gin_files.loaded(flags, bindings):
    gin_files.check_paths()
    values = gin_files.configured(experiment.evaluate_checkpoint)()
  tasks = sorted({name.rpartition("/")[0] for name in values})
  for task in tasks:
    accuracy, low, high = (
      values[f"{task}/{kind}"] for kind in ("accuracy", "low", "high")
    )
    print(f"{task}  {accuracy:.3f}  [{low:.3f}, {high:.3f}]")
  print(json.dumps({task: values[f"{task}/accuracy"] for task in tasks}))
  return 0


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("eval", sys.argv[1:]))
