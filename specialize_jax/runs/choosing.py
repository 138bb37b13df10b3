"""Chooses among the evaluated checkpoints of a run, and puts the choice aside.

What is known of a run's steps is in two places: the run's own metrics.jsonl,
and MODEL_DIR/selection, where `selecting` evaluates checkpoints.
"""

import os
from collections.abc import Sequence

import jax
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import best
from specialize_jax.checkpoints import manager as managers
from specialize_jax.evaluation import history, selection

IN_DISTRIBUTION_BEST = "best_in_distribution"
DIRECTORY = "selection"
# Where a step that is being evaluated lies, out of the run's reach.
CANDIDATE = f"{DIRECTORY}/candidate"


def choose(
  values: history.History,
  model_dir: str | os.PathLike[str],
  out_of_distribution: Sequence[str] = (),
  in_distribution: str | None = None,
) -> selection.Selection:
  """Chooses among the steps that were evaluated alike and can be had.

  Args:
    values: what `evaluated` gives.
    model_dir: the run's; steps without a checkpoint are no choice, if there
      is any checkpoint.
    out_of_distribution: the tasks whose mean decides; empty for the paper's.
    in_distribution: the task of the other rule; None for the paper's.

  Raises:
    UserError: nothing was evaluated on such tasks.
  """
  names = selection.evaluated_tasks(values)
  tasks, inside = selection.default_tasks(names)
  tasks = list(out_of_distribution) or tasks
  if not tasks:
    raise errors.UserError(
      f"{model_dir} has no validation accuracy of MultiArith, ASDiv or SVAMP: "
      "let --evaluate make it, or name tasks with --out_of_distribution "
      f"(evaluated: {', '.join(names) or '-'})."
    )
  steps = {
    *steps_of(model_dir),
    best.step_in(model_dir),
    best.step_in(model_dir, CANDIDATE),
  } - {None}
  there = {s: row for s, row in values.items() if s in steps} or values
  return selection.select(
    selection.alike(there, tasks), tasks, in_distribution or inside
  )


def evaluated(model_dir: str | os.PathLike[str]) -> history.History:
  """Gives what is known of a run's steps: its own values, and those made here.

  Raises:
    UserError: the run has neither.
  """
  model_dir = epath.Path(model_dir)
  made = {
    step: values
    for path in sorted(
      (model_dir / DIRECTORY / "validation").glob("*/metrics.jsonl")
    )
    for step, values in history.read(path).items()
  }
  path = model_dir / "metrics.jsonl"
  known = history.read(path) if path.is_file() or not made else {}
  return dict(sorted({**known, **made}.items()))


def place(
  model_dir: str | os.PathLike[str], chosen: selection.Selection
) -> epath.Path | None:
  """Puts the chosen step, and the other rule's, in their places.

  Returns:
    MODEL_DIR/best; None where the run has no checkpoint at all.

  Raises:
    UserError: the chosen step's checkpoint is not there any more.
  """
  if jax.process_index() != 0:
    return epath.Path(model_dir) / best.NAME
  if not steps_of(model_dir) and best.step_in(model_dir) is None:
    return None
  other = chosen.in_distribution_step
  if other is not None and other in steps_of(model_dir):
    best.place(model_dir, other, name=IN_DISTRIBUTION_BEST)
  return best.place(model_dir, chosen.step)


def steps_of(model_dir: str | os.PathLike[str]) -> list[int]:
  """Gives the steps of a run whose checkpoints are there, oldest first."""
  directory = epath.Path(model_dir) / "checkpoints"
  with managers.CheckpointManager(directory, keep=None) as manager:
    return manager.all_steps()


def is_over(model_dir: str | os.PathLike[str]) -> bool:
  """Whether the newest checkpoint is the run's last."""
  directory = epath.Path(model_dir) / "checkpoints"
  with managers.CheckpointManager(directory, keep=None) as manager:
    step = manager.latest_step()
    if step is None:
      return False
    num_steps = manager.metadata(step).get("num_steps")
  return num_steps is not None and step >= num_steps
