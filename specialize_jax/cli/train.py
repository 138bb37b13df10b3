"""`specialize train`: trains or specializes a T5 from gin files."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from specialize_jax.cli import devices, gin_files, parsers, registered_tasks

_EXAMPLE = """example (general pre-training on the world that `specialize demo`
leaves):
  specialize train --gin_file=experiments/mini/pretrain.gin \\
    --data_dir=demo_output/world --gin.MODEL_DIR=runs/pretrain \\
    --gin.TRAIN_STEPS=200
A second start with the same MODEL_DIR goes on where the first one stopped.
"""


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize train",
    description="Trains a T5 on a seqio mixture; writes checkpoints, "
    "metrics.jsonl, TensorBoard events and held-out predictions to MODEL_DIR.",
    epilog=_EXAMPLE,
  )
  gin_files.add_flags(parser, default_file="runs/train.gin")
  registered_tasks.add_flags(parser)
  devices.add_flags(parser)
  devices.add_process_flags(parser)
  parser.add_argument(
    "--profile_steps",
    type=_first_and_last,
    metavar="FIRST,LAST",
    help="write a trace of these steps to MODEL_DIR/profile, such as 10,12",
  )
  return parser


def _first_and_last(text: str) -> tuple[int, int]:
  first, comma, last = text.partition(",")
  if not comma or not first.isdecimal() or not last.isdecimal():
    raise argparse.ArgumentTypeError(
      f"{text!r} is not possible: expected the first and the last step, such "
      "as 10,12"
    )
  return int(first), int(last)


def main(argv: Sequence[str] | None = None) -> int:
  """Trains until the last step; exits with 75 after a preemption."""
  argv = sys.argv[1:] if argv is None else argv
  flags, bindings = gin_files.parse(build_parser(), argv)

  registered_tasks.register(flags.data_dir, flags.tfds_data_dir)
  devices.start(flags)

  from specialize_jax.runs import experiment

  with gin_files.loaded(flags, bindings) as config_text:
    gin_files.check_paths()
    configured = gin_files.configured(experiment.Experiment)()
  if flags.profile_steps is not None:
    profiled = dataclasses.replace(
      configured.loop, profile_steps=flags.profile_steps
    )
    configured = dataclasses.replace(configured, loop=profiled)
  experiment.train(configured, config_text=config_text)
  return 0


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("train", sys.argv[1:]))
