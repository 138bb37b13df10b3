"""`specialize select`: selects the checkpoint with the best held-out mean."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import typing
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cli import (
  devices,
  flag_types,
  gin_files,
  logs,
  parsers,
  registered_tasks,
)
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from specialize_jax.datasets import description
  from specialize_jax.evaluation import selection
  from specialize_jax.runs import selecting

_EXAMPLE = """examples (after `specialize demo --output_dir=demo_output`):
  specialize select --model_dir=demo_output/specialize
  specialize select --model_dir=demo_output/specialize --evaluate \\
    --gin_file=experiments/mini/select.gin --data_dir=demo_output/world
For your own domain, --dataset=tickets.yaml specifies the tasks.
The selected checkpoint is MODEL_DIR/best, for INITIAL_CHECKPOINT_PATH,
`specialize convert --checkpoint` and `specialize generate --checkpoint`. A
later call with other tasks or another metric does not change it, unless
--move_best is given.
"""


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize select",
    description="Selects a run's checkpoint by its mean accuracy on held-out"
    " out-of-distribution validation sets, from the run's metrics or from its"
    " own evaluation of the checkpoints, and compares it with selection in"
    " distribution. Writes MODEL_DIR/selection.json and MODEL_DIR/best. The"
    " last line printed is JSON.",
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
    help="the tasks whose mean is compared (default: those of --dataset, else"
    " MultiArith, ASDiv and SVAMP, "
    "real or of the mini world, zero-shot with chain of thought)",
  )
  parser.add_argument(
    "--in_distribution",
    default="",
    metavar="TASK",
    help="the task of selection in distribution (default: GSM8K, likewise)",
  )
  parser.add_argument(
    "--metric",
    default="accuracy",
    metavar="NAME",
    help="the metric to compare, for tasks with their own metrics; higher is"
    " better (default: accuracy)",
  )
  parser.add_argument(
    "--move_best",
    action="store_true",
    help="make this choice MODEL_DIR/best, though that was selected by other"
    " tasks or another metric",
  )
  parser.add_argument(
    "--output",
    metavar="FILE.json",
    help="also write the choice to this file (default: DIR/selection.json"
    " alone)",
  )
  _add_evaluation_flags(parser)
  gin_files.add_flags(parser, default_file="runs/select.gin")
  registered_tasks.add_flags(parser)
  devices.add_flags(parser)
  devices.add_process_flags(parser)
  logs.add_flags(parser)
  return parser


def _add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("evaluation")
  group.add_argument(
    "--evaluate",
    action="store_true",
    help="first evaluate the checkpoints that were not yet evaluated, as "
    "configured by the gin files; then test the two selected steps",
  )
  group.add_argument(
    "--follow",
    action="store_true",
    help="evaluate during training, until its last step; the best checkpoint "
    "so far is kept, even if the run deletes it",
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
    help="how long --follow waits for the next checkpoint before it considers "
    "the run dead and selects among those it has (default: 120)",
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Selects, shows the ranking and writes the choice."""
  argv = sys.argv[1:] if argv is None else argv
  flags, bindings = gin_files.parse(build_parser(), argv)
  logs.start(flags)
  gin_files.check_flags(flags)
  paths.check_flags(
    flags,
    {
      "model_dir": paths.INPUT_DIRECTORY,
      "output": paths.OUTPUT_FILE,
      **registered_tasks.PATHS,
    },
  )
  tested = flags.evaluate or flags.follow
  parsers.check_only_with(
    flags,
    ("gin_file", "gin_search_paths", "data_dir", "tfds_data_dir", "multi_host",
     "num_processes", "process_id", "coordinator_address", "cpu_devices",
     "heartbeat_seconds"),
    tested,
    "--evaluate or --follow",
  )  # fmt: skip
  if bindings and not tested:
    raise errors.UserError(
      f"--gin.{bindings[0].partition(' ')[0]} goes with --evaluate or --follow"
      " alone."
    )
  parsers.check_only_with(
    flags, ("poll_seconds", "patience_minutes"), flags.follow, "--follow"
  )
  if tested:
    own = registered_tasks.register_for(flags)
    devices.start(flags)
  else:
    own = registered_tasks.load_dataset(flags.dataset, flags.imports)
    devices.leave_accelerators()

  import jax

  from specialize_jax.files import locks

  with contextlib.ExitStack() as held:
    if jax.process_index() == 0:
      held.enter_context(
        locks.directory(flags.model_dir, "--model_dir", part="selection")
      )
      held.enter_context(locks.files({"--output": flags.output}))
    return _select(flags, bindings, tested, own.dataset if own else None)


def _select(
  flags: argparse.Namespace,
  bindings: Sequence[str],
  tested: bool,
  own: description.Dataset | None,
) -> int:
  import jax

  from specialize_jax.runs import choosing

  out_of_distribution = _listed(flags.out_of_distribution)
  in_distribution = flags.in_distribution or None
  defaults = {
    "MIXTURE_OR_TASK_NAME": "math_all_validation_v1",
    "TEST_MIXTURE_OR_TASK_NAME": "math_all_test_v1",
  }
  if own is not None:
    if not out_of_distribution:
      out_of_distribution, inside = own.selection_tasks()
      in_distribution = in_distribution or inside
    defaults = {
      "MIXTURE_OR_TASK_NAME": f"{own.name}_validation",
      "TEST_MIXTURE_OR_TASK_NAME": f"{own.name}_test",
    }
  what = None
  if tested:
    from specialize_jax.runs import selecting

    with gin_files.loaded(flags, bindings, defaults):
      what = gin_files.configured(selecting.Selecting)(
        model_dir=flags.model_dir,
        out_of_distribution=out_of_distribution,
        in_distribution=in_distribution,
        metric=flags.metric,
      )
    _refuse_to_move(what, flags)
    _evaluate(what, flags)
  chosen = choosing.choose(
    choosing.evaluated(flags.model_dir),
    flags.model_dir,
    out_of_distribution,
    in_distribution,
    metric=flags.metric,
  )
  earlier = choosing.earlier_criterion(flags.model_dir)
  is_another = earlier not in (None, chosen.criterion)
  if is_another and not flags.move_best:
    if jax.process_index() == 0:
      _tell_another(chosen, earlier, flags)
    return 0
  best = choosing.place(flags.model_dir, chosen)
  test = selecting.test(what, chosen) if what else None
  if jax.process_index() == 0:
    _tell(chosen, test, best, flags)
  return 0


def _listed(text: str) -> list[str]:
  """Splits the value of --out_of_distribution.

  Raises:
    UserError: a task occurs twice, which would count double in the mean.
  """
  tasks = [task.strip() for task in text.split(",") if task.strip()]
  for task in tasks:
    if tasks.count(task) > 1:
      raise errors.UserError(
        f"--out_of_distribution names {task} twice: each task counts once"
      )
  return tasks


def _tell_another(
  chosen: selection.Selection,
  earlier: tuple[str, tuple[str, ...]],
  flags: argparse.Namespace,
) -> None:
  """Shows a choice by another criterion than that of MODEL_DIR/best."""
  from specialize_jax.checkpoints import best
  from specialize_jax.files import writing
  from specialize_jax.reports import tables

  if flags.output:
    writing.write_json(
      flags.output, {**chosen.as_json(), "test": None}, sealed=True
    )
  print(tables.selection(chosen))
  metric, tasks = earlier
  step = best.step_in(flags.model_dir)
  print(
    f"specialize select: {flags.model_dir}/{best.NAME} stays at step {step},"
    f" selected by {metric} of {', '.join(tasks)}: give --move_best to replace"
    " it by this choice",
    file=sys.stderr,
  )
  print(json.dumps(_summary(chosen, None, None, flags)))


def _refuse_to_move(
  what: selecting.Selecting, flags: argparse.Namespace
) -> None:
  """Raises UserError where --follow would replace another choice as it goes."""
  from specialize_jax.evaluation import selection
  from specialize_jax.runs import choosing

  earlier = choosing.earlier_criterion(flags.model_dir)
  if not flags.follow or earlier is None or flags.move_best:
    return
  tasks, _ = selection.default_tasks(what.validation.num_questions())
  now = flags.metric, tuple(sorted(what.out_of_distribution or tasks))
  if earlier != now:
    raise errors.UserError(
      f"--follow keeps the best step so far in {flags.model_dir}/best, which"
      f" was selected by {earlier[0]} of {', '.join(earlier[1])}: give"
      " --move_best to replace it, or leave --follow out"
    )


def _evaluate(what: object, flags: argparse.Namespace) -> None:
  """Evaluates what is missing, now or as it comes."""
  import jax

  from specialize_jax.runs import selecting

  if not flags.follow:
    selecting.evaluate(what)
    return
  ended = selecting.follow(
    what,
    poll_seconds=flags.poll_seconds,
    patience_seconds=60 * flags.patience_minutes,
  )
  if not ended and jax.process_index() == 0:
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
  from specialize_jax.runs import choosing

  model_dir = epath.Path(flags.model_dir)
  test = test or choosing.earlier_test(model_dir, chosen)
  written = {**chosen.as_json(), "test": test}
  if best is not None or not flags.output:  # what MODEL_DIR/best was chosen by
    writing.write_json(model_dir / choosing.SELECTION, written, sealed=True)
  if flags.output:
    writing.write_json(flags.output, written, sealed=True)
  print(tables.selection(chosen))
  if test:
    print(tables.selection_cost(chosen, test))
  print(json.dumps(_summary(chosen, test, best, flags)))


def _summary(
  chosen: selection.Selection,
  test: Mapping[str, object] | None,
  best: object,
  flags: argparse.Namespace,
) -> dict[str, object]:
  """Returns the last line that is printed."""
  steps = os.path.join(flags.model_dir, "checkpoints")
  return {
    "step": chosen.step,
    "mean": chosen.mean,
    "in_distribution_step": chosen.in_distribution_step,
    "in_distribution_mean": chosen.in_distribution_mean,
    "test_cost": test and test["cost"],
    "checkpoint": os.path.join(steps, str(chosen.step)),
    "best": best and str(best),
  }


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("select", sys.argv[1:]))
