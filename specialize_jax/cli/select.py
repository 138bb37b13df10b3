"""`specialize select`: the checkpoint with the best held-out mean."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from specialize_jax.cli import (
  devices,
  flag_types,
  gin_files,
  parsers,
  registered_tasks,
)
from specialize_jax.files import paths

_EXAMPLE = """examples (after `specialize demo --output_dir=demo_output`):
  specialize select --model_dir=demo_output/specialize
  specialize select --model_dir=demo_output/specialize --evaluate \\
    --gin_file=experiments/mini/select.gin --data_dir=demo_output/world
The choice is MODEL_DIR/best, which INITIAL_CHECKPOINT_PATH, `specialize
convert --checkpoint` and `specialize generate --checkpoint` take.
"""


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize select",
    description="Chooses a run's checkpoint by its mean accuracy over held-out"
    " out-of-distribution validation sets, from what the run wrote or from its"
    " own evaluation of the checkpoints, and shows what selection in"
    " distribution would have chosen, and what that would have cost. Writes"
    " MODEL_DIR/selection.json and MODEL_DIR/best. The last line printed is"
    " JSON.",
    epilog=_EXAMPLE,
  )
  parser.add_argument(
    "--model_dir",
    required=True,
    metavar="DIR",
    help="the run's directory, which holds checkpoints and metrics.jsonl",
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
    metavar="FILE.json",
    help="where the choice is written (default: DIR/selection.json)",
  )
  _add_evaluation_flags(parser)
  gin_files.add_flags(parser, default_file="runs/select.gin")
  registered_tasks.add_flags(parser)
  devices.add_flags(parser)
  devices.add_process_flags(parser)
  return parser


def _add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("evaluation")
  group.add_argument(
    "--evaluate",
    action="store_true",
    help="first evaluate the checkpoints that were not yet evaluated, as the "
    "gin files say; then test the two steps that the rules choose",
  )
  group.add_argument(
    "--follow",
    action="store_true",
    help="do so beside the training, until its last step: the best checkpoint "
    "so far is kept, whatever the run clears away",
  )
  group.add_argument(
    "--poll_seconds",
    type=flag_types.real(at_least=0),
    default=10.0,
    metavar="S",
    help="how often --follow looks for a checkpoint (default: 10)",
  )
  group.add_argument(
    "--patience_minutes",
    type=flag_types.real(at_least=0),
    default=120.0,
    metavar="M",
    help="how long --follow waits for the next checkpoint before it takes the "
    "run for dead and chooses among what there is (default: 120)",
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Selects, shows the ranking and writes the choice."""
  argv = sys.argv[1:] if argv is None else argv
  flags, bindings = gin_files.parse(build_parser(), argv)
  paths.check_flags(
    flags,
    {
      "model_dir": paths.INPUT_DIRECTORY,
      "output": paths.OUTPUT_FILE,
      **registered_tasks.PATHS,
    },
  )
  tested = flags.evaluate or flags.follow
  if tested:
    registered_tasks.register(flags.data_dir, flags.tfds_data_dir)
    devices.start(flags)

  import jax

  from specialize_jax.files import locks

  held = contextlib.nullcontext()
  if jax.process_index() == 0:
    held = locks.directory(flags.model_dir, "--model_dir", part="selection")
  with held:
    return _select(flags, bindings, tested)


def _select(
  flags: argparse.Namespace, bindings: Sequence[str], tested: bool
) -> int:
  import jax

  from specialize_jax.runs import choosing

  out_of_distribution = [
    task.strip() for task in flags.out_of_distribution.split(",") if task
  ]
  in_distribution = flags.in_distribution or None
  what = None
  if tested:
    from specialize_jax.runs import selecting

    with gin_files.loaded(flags, bindings):
      what = gin_files.configured(selecting.Selecting)(
        model_dir=flags.model_dir,
        out_of_distribution=out_of_distribution,
        in_distribution=in_distribution,
      )
    _evaluate(what, flags)
  chosen = choosing.choose(
    choosing.evaluated(flags.model_dir),
    flags.model_dir,
    out_of_distribution,
    in_distribution,
  )
  best = choosing.place(flags.model_dir, chosen)
  test = selecting.test(what, chosen) if what else None
  if jax.process_index() == 0:
    _tell(chosen, test, best, flags)
  return 0


def _evaluate(what: object, flags: argparse.Namespace) -> None:
  """Evaluates what is missing, now or as it comes."""
  from specialize_jax.runs import selecting

  if not flags.follow:
    selecting.evaluate(what)
    return
  ended = selecting.follow(
    what,
    poll_seconds=flags.poll_seconds,
    patience_seconds=60 * flags.patience_minutes,
  )
  if not ended:
    print(
      f"specialize select: no new checkpoint for {flags.patience_minutes:g} "
      "minutes, and the run has not reached its last step: chosen among those "
      "there are.",
      file=sys.stderr,
    )


def _tell(
  chosen: object, test: object, best: object, flags: argparse.Namespace
) -> None:
  """Writes the choice down, and prints it."""
  from etils import epath

  from specialize_jax.files import writing
  from specialize_jax.reports import tables

  model_dir = epath.Path(flags.model_dir)
  output = flags.output or model_dir / "selection.json"
  writing.write_json(output, {**chosen.as_json(), "test": test})
  print(tables.selection(chosen))
  if test:
    print(tables.selection_cost(chosen, test))
  summary = {
    "step": chosen.step,
    "mean": chosen.mean,
    "in_distribution_step": chosen.in_distribution_step,
    "in_distribution_mean": chosen.in_distribution_mean,
    "test_cost": test and test["cost"],
    "checkpoint": str(model_dir / "checkpoints" / str(chosen.step)),
    "best": best and str(best),
  }
  print(json.dumps(summary))


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("select", sys.argv[1:]))
