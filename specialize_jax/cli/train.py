"""`specialize train`: trains or specializes a T5 from gin files."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence

from specialize_jax import errors
from specialize_jax.cli import (
  devices,
  gin_files,
  logs,
  parsers,
  registered_tasks,
)

if typing.TYPE_CHECKING:
  from specialize_jax.runs import experiment

_EXAMPLE = """example (general pre-training on the world that `specialize demo`
leaves):
  specialize train --gin_file=experiments/mini/pretrain.gin \\
    --data_dir=demo_output/world --gin.MODEL_DIR=runs/pretrain \\
    --gin.TRAIN_STEPS=200
A run that is started again with the same MODEL_DIR is resumed. Ctrl-C saves the
step and exits with status 130; pressed twice, it ends at once.
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
  parser.add_argument(
    "--dry_run",
    action="store_true",
    help="build everything up to the first step and print it, with examples of "
    "the first batch as text, without writing anything",
  )
  parser.add_argument(
    "--topology",
    metavar="NAME",
    help="with --dry_run: compile the train step for this slice, such as "
    "v5e:4x4, and print its memory and speed, like `specialize plan`",
  )
  parser.add_argument(
    "--print_config",
    action="store_true",
    help="print the gin configuration, all files and overrides in one, and end",
  )
  registered_tasks.add_flags(parser)
  devices.add_flags(parser)
  devices.add_process_flags(parser)
  logs.add_flags(parser)
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
  """Trains until the last step.

  Returns:
    0. A run that is preempted exits with 75, one that Ctrl-C ends with 130.
  """
  argv = sys.argv[1:] if argv is None else argv
  flags, bindings = gin_files.parse(build_parser(), argv)
  gin_files.check_flags(flags)
  if flags.topology is not None and not flags.dry_run:
    raise errors.UserError(
      f"--topology={flags.topology} goes with --dry_run: a run takes the "
      "devices that it finds."
    )
  parsers.check_only_with(
    flags,
    ["profile_steps"],
    not (flags.dry_run or flags.print_config),
    "a run, not with --dry_run or --print_config,",
  )
  if flags.print_config and flags.dry_run:
    raise errors.UserError("give either --print_config or --dry_run.")
  logs.start(flags)

  own = registered_tasks.register_for(flags)
  if not flags.print_config:
    devices.start(flags)

  from specialize_jax.runs import experiment, keeping

  defaults = {}
  if own is not None:
    defaults["MIXTURE_OR_TASK_NAME"] = f"{own.dataset.name}_specialize"
  with gin_files.loaded(flags, bindings, defaults) as config_text:
    gin_files.check_paths()
    if flags.print_config:
      print(config_text)
      return 0
    configured = gin_files.configured(experiment.Experiment)()
  if flags.profile_steps is not None:
    profiled = dataclasses.replace(
      configured.loop, profile_steps=flags.profile_steps
    )
    configured = dataclasses.replace(configured, loop=profiled)
  if flags.dry_run:
    _dry_run(configured, flags.topology)
  else:
    experiment.train(
      configured,
      config_text=config_text,
      files={keeping.DATASET: own.content} if own else {},
      selected_by=own.dataset.selection_tasks()[0] if own else (),
    )
  return 0


def _dry_run(run: experiment.Experiment, topology: str | None) -> None:
  """Prints a run's facts and examples, and its needs on a slice, if given."""
  from specialize_jax.runs import dry_run, experiment

  # The devices here need not be those that the run's mesh is for.
  mesh = run.mesh if topology is None else experiment.MeshShape(data=1)
  placed = mesh.placement(1 if topology is not None else None)
  made = dry_run.dry_run(run, placed)
  width = max(map(len, made.facts))
  for name, text in made.facts.items():
    lines = text.replace("\n", f"\n{' ' * (width + 2)}")
    print(f"{name.ljust(width)}  {lines}")
  for example in made.examples:
    print(f"\n{example}")
  if topology is not None:
    print(f"\n{_needs(run, topology)}")


def _needs(run: experiment.Experiment, name: str) -> str:
  """Compiles a run's train step for a slice; returns the table of `plan`."""
  with registered_tasks.quiet_import():
    from specialize_jax.reports import plan_view
    from specialize_jax.tpu import plan, programs
    from specialize_jax.tpu import topology as topologies

    slice_ = topologies.load(name)
  job = programs.Job(
    config=run.model,
    batch_size=run.batch_size,
    input_length=run.task_feature_lengths["inputs"],
    target_length=run.task_feature_lengths["targets"],
    optimizer=run.optimizer,
    loss=run.loss,
    num_microbatches=run.num_microbatches,
  )
  sizes = topologies.parse_mesh(
    f"data={run.mesh.data},fsdp={run.mesh.fsdp},model={run.mesh.model}",
    slice_.num_chips,
  )
  rows = plan.plan(plan.Request(job=job, topology=slice_), [sizes])
  title = f"on {slice_.name} ({slice_.num_chips} chips), by its compiler"
  return plan_view.terminal(rows, title)


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("train", sys.argv[1:]))
