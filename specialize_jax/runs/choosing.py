"""Selects among the evaluated checkpoints of a run, and keeps the best.

The metrics of a run are in two places: its own metrics.jsonl, and
MODEL_DIR/selection, to which `selecting` writes.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence

import jax
from absl import logging
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import best, opening
from specialize_jax.checkpoints import manager as managers
from specialize_jax.evaluation import history, selection
from specialize_jax.files import reading
from specialize_jax.parallel import processes
from specialize_jax.runs import resuming

IN_DISTRIBUTION_BEST = "best_in_distribution"
DIRECTORY = "selection"
SELECTION = "selection.json"
# The step that is being evaluated, kept apart from the run's checkpoints.
CANDIDATE = f"{DIRECTORY}/candidate"
# Beside the values of a step: what they are of.
MADE_OF = "made_of.json"


def choose(
  values: history.History,
  model_dir: str | os.PathLike[str],
  out_of_distribution: Sequence[str] = (),
  in_distribution: str | None = None,
  *,
  metric: str = selection.ACCURACY,
  is_unfinished: bool = False,
) -> selection.Selection:
  """Selects among the steps evaluated on the same number of questions.

  A selection that was interrupted, or a run that was trained on after it, has
  some steps evaluated on more questions than others. All of them are compared
  by the run's own evaluations if it has evaluated all of them alike, and else
  those on the most questions. Either is logged.

  Args:
    values: from `evaluated`.
    model_dir: the run's directory. If it has checkpoints, only steps with a
      checkpoint are candidates.
    out_of_distribution: the tasks to average; empty for the paper's.
    in_distribution: the task of in-distribution selection; None for the
      paper's.
    metric: the metric to compare.
    is_unfinished: whether the other steps are still to be evaluated on as many
      questions, so that they are not compared yet, without a word.

  Returns:
    The selection.

  Raises:
    UserError: no step was evaluated on such tasks.
  """
  names = selection.evaluated_tasks(values, metric)
  tasks, inside = selection.default_tasks(names)
  tasks = list(out_of_distribution) or tasks
  if not tasks:
    raise errors.UserError(
      f"{model_dir} has no validation {metric} of MultiArith, ASDiv, SVAMP: "
      "evaluate with --evaluate, name tasks with --out_of_distribution, or "
      "give the --dataset that names them (evaluated: "
      f"{', '.join(names) or '-'})."
    )
  steps = {
    *steps_of(model_dir),
    best.step_in(model_dir),
    best.step_in(model_dir, CANDIDATE),
  } - {None}
  there = {s: row for s, row in values.items() if s in steps} or values
  inside = in_distribution or inside
  most = selection.alike(there, tasks)
  if len(most) < len(there) and not is_unfinished:
    own = _own(model_dir, there, [*tasks, *filter(None, [inside])], metric)
    if own:
      return selection.select(own, tasks, inside, metric)
    logging.warning(
      "Steps %s of %s were evaluated on fewer questions than others, and are"
      " not compared: `specialize select --evaluate` evaluates all alike",
      ", ".join(str(step) for step in sorted({*there} - {*most})),
      model_dir,
    )
  chosen = selection.select(most, tasks, inside, metric)
  # The step that was kept for its accuracy in distribution, and that alone.
  kept = best.step_in(model_dir, IN_DISTRIBUTION_BEST)
  if kept in there or kept not in values or inside is None:
    return chosen
  both = {s: values[s] for s in sorted({kept, chosen.in_distribution_step})}
  if len(selection.alike(both, tasks)) < len(both):
    return chosen  # it was evaluated on other questions
  other = selection.select(both, tasks, inside, metric)
  return dataclasses.replace(
    chosen,
    in_distribution_step=other.in_distribution_step,
    in_distribution_accuracy=other.in_distribution_accuracy,
    in_distribution_mean=other.in_distribution_mean,
  )


def _own(
  model_dir: str | os.PathLike[str],
  steps: Iterable[int],
  tasks: Sequence[str],
  metric: str,
) -> history.History:
  """Returns a run's own values of steps, if it has evaluated all of them alike.

  Args:
    model_dir: the run's directory.
    steps: the steps to compare.
    tasks: the tasks to compare them by.
    metric: the metric of each task.

  Returns:
    The values; empty if a step lacks some, or was evaluated on fewer questions.
  """
  path = epath.Path(model_dir) / "metrics.jsonl"
  known = history.read(path) if path.is_file() else {}
  own = {step: known.get(step, {}) for step in steps}
  names = [f"{task}/{metric}" for task in tasks]
  if not all(name in row for row in own.values() for name in names):
    return {}
  if len(selection.alike(own, tasks)) < len(own):
    return {}
  logging.warning(
    "Steps of %s are compared by the run's own evaluations: not all were"
    " evaluated on more questions, as `specialize select --evaluate` does",
    model_dir,
  )
  return own


def best_in_words(
  model_dir: str | os.PathLike[str],
  best_metrics: Sequence[str] = (),
  out_of_distribution: Sequence[str] = (),
) -> str:
  """Describes the best checkpoint of a run, or how to choose one.

  Args:
    model_dir: the run's directory.
    best_metrics: names of evaluation metrics, whose mean is maximized; empty
      for the rule of `choose`.
    out_of_distribution: the tasks of that rule; empty for the paper's.
  """
  values = evaluated(model_dir)
  names = selection.evaluated_tasks(values)
  unknown = (
    "no checkpoint was evaluated on the tasks to select by (evaluated: "
    f"{', '.join(names) or 'none'}): `specialize select --model_dir={model_dir}"
    " --evaluate` evaluates the checkpoints and selects one"
  )
  if best_metrics:
    steps = set(steps_of(model_dir))
    means = {
      step: sum(row[name] for name in best_metrics) / len(best_metrics)
      for step, row in values.items()
      if step in steps and all(name in row for name in best_metrics)
    }
    if not means:
      return unknown
    step = max(means, key=means.get)
    score = f"the mean of best_metrics is {means[step]:.4g}"
  else:
    try:
      chosen = choose(values, model_dir, out_of_distribution)
    except errors.UserError:  # not evaluated on the tasks to select by
      return unknown
    step = chosen.step
    score = (
      f"mean out-of-distribution validation accuracy {100 * chosen.mean:.1f} %"
    )
  place = epath.Path(model_dir) / "checkpoints" / str(step)
  return f"best checkpoint: step {step:,}, {place} ({score})"


def earlier_criterion(
  model_dir: str | os.PathLike[str],
) -> tuple[str, tuple[str, ...]] | None:
  """Returns the metric and tasks that MODEL_DIR/best was selected by.

  They are read from MODEL_DIR/selection.json; None if it does not have them.
  """
  model_dir = epath.Path(model_dir)
  path = model_dir / SELECTION
  if best.step_in(model_dir) is None or not path.is_file():
    return None
  written = reading.read_json(path)
  if not isinstance(written, dict):
    return None
  tasks = written.get("out_of_distribution") or ()
  return written.get("metric", selection.ACCURACY), tuple(sorted(tasks))


def earlier_test(
  model_dir: str | os.PathLike[str], chosen: selection.Selection
) -> dict[str, object] | None:
  """Returns the test in MODEL_DIR/selection.json, if it is of the same choice.

  Args:
    model_dir: the run's directory.
    chosen: the choice now, whose steps and tasks have to be those of the file.
  """
  path = epath.Path(model_dir) / SELECTION
  written = reading.read_json(path) if path.is_file() else None
  if not isinstance(written, dict):
    return None
  now = json.loads(json.dumps(chosen.as_json()))
  same = ("step", "in_distribution_step", "out_of_distribution", "metric")
  if any(written.get(name) != now[name] for name in same):
    return None
  return written.get("test")


def evaluated(model_dir: str | os.PathLike[str]) -> history.History:
  """Returns the metrics of a run's steps, from both places.

  Those of checkpoints that others have replaced since are left out.

  Raises:
    UserError: the run has none.
  """
  model_dir = epath.Path(model_dir)
  made = {
    step: values
    for path in sorted(
      (model_dir / DIRECTORY / "validation").glob("*/metrics.jsonl")
    )
    for step, values in history.read(path).items()
    if _is_of(path.parent / MADE_OF, model_dir, step)
  }
  path = model_dir / "metrics.jsonl"
  known = history.read(path) if path.is_file() or not made else {}
  return dict(sorted({**known, **made}.items()))


def _is_of(made_of: epath.Path, model_dir: epath.Path, step: int) -> bool:
  """Returns whether values are of the step's checkpoint, if that is there.

  It is the run's own or, where the run has deleted that, the one that was kept.
  """
  known = reading.read_json(made_of) if made_of.is_file() else {}
  if known.get("checkpoint") is None:
    return True
  places = [model_dir]
  if not (model_dir / "checkpoints" / str(step)).is_dir():
    places = [model_dir / name for name in (best.NAME, IN_DISTRIBUTION_BEST)]
  found = []
  for place in places:
    with contextlib.suppress(FileNotFoundError):  # the run may delete it
      found.append(
        opening.fingerprint_of_ours(place / "checkpoints" / str(step))
      )
  return known["checkpoint"] in found or not any(found)


def place(
  model_dir: str | os.PathLike[str], chosen: selection.Selection
) -> epath.Path | None:
  """Keeps the selected checkpoint, and that of in-distribution selection.

  Returns:
    MODEL_DIR/best; None if the run has no checkpoint at all.

  Raises:
    UserError: the selected checkpoint no longer exists.
  """
  placed, problem = epath.Path(model_dir) / best.NAME, None
  if jax.process_index() == 0:
    try:
      placed = _place(model_dir, chosen)
    except errors.UserError as error:
      problem = error
  # Others read what the first has placed, and do not wait for it if it fails.
  if processes.anywhere(problem is not None):
    raise problem or errors.UserError(
      "the first process could not keep the selected checkpoint: see its error"
    )
  return placed


def _place(
  model_dir: str | os.PathLike[str], chosen: selection.Selection
) -> epath.Path | None:
  if not steps_of(model_dir) and best.step_in(model_dir) is None:
    return None
  other = chosen.in_distribution_step
  if other is not None and other in steps_of(model_dir):
    best.place(model_dir, other, name=IN_DISTRIBUTION_BEST)
  return best.place(model_dir, chosen.step)


def steps_of(model_dir: str | os.PathLike[str]) -> list[int]:
  """Returns the steps of a run's checkpoints, oldest first."""
  directory = epath.Path(model_dir) / "checkpoints"
  with managers.CheckpointManager(directory, keep=None) as manager:
    return manager.all_steps()


def is_over(model_dir: str | os.PathLike[str]) -> bool:
  """Returns whether the newest checkpoint is that of the run's last step.

  The last step may have been raised since that checkpoint was saved.
  """
  model_dir = epath.Path(model_dir)
  directory = model_dir / "checkpoints"
  with managers.CheckpointManager(directory, keep=None) as manager:
    step = manager.latest_step()
    if step is None:
      return False
    num_steps = manager.metadata(step).get("num_steps")
  for row in history.read_changes(model_dir / history.CHANGES):
    raised = row["changes"].get(resuming.written("loop.num_steps"))
    if row["step"] == step and raised is not None:
      num_steps = int(raised[1])
  return num_steps is not None and step >= num_steps
