"""Chooses the checkpoint: the best mean over held-out other datasets.

The paper selects by the mean accuracy over the validation sets of the
out-of-distribution datasets, since the accuracy in distribution goes on
rising after the others have begun to fall (arXiv 2301.12726, section 4.1).
What selection in distribution would have chosen is kept beside the choice,
so that the difference can be seen.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.evaluation import history as history_lib

_SUFFIX = "/accuracy"
_OUT_OF_DISTRIBUTION = ("multiarith", "asdiv", "svamp")
_IN_DISTRIBUTION = ("gsm8k", "gsm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """The chosen step, and what it was chosen among.

  Attributes:
    step: the step of the best out-of-distribution mean.
    mean: that mean.
    out_of_distribution: the tasks of the mean.
    in_distribution: the task that the other rule looks at; None if no step
      has it.
    in_distribution_step: the step that selection by it would have chosen.
    in_distribution_accuracy: its best accuracy, at that step.
    in_distribution_mean: the out-of-distribution mean at that step, so
      `mean - in_distribution_mean` is what that choice would have cost.
    means: the out-of-distribution mean by step.
    in_distribution_accuracies: the accuracy in distribution by step.
  """

  step: int
  mean: float
  out_of_distribution: tuple[str, ...]
  in_distribution: str | None = None
  in_distribution_step: int | None = None
  in_distribution_accuracy: float | None = None
  in_distribution_mean: float | None = None
  means: Mapping[int, float] = dataclasses.field(default_factory=dict)
  in_distribution_accuracies: Mapping[int, float] = dataclasses.field(
    default_factory=dict
  )

  def as_json(self) -> dict[str, object]:
    """Gives the selection as `selection.json` holds it."""
    return dataclasses.asdict(self)


def select(
  history: history_lib.History,
  ood_tasks: Sequence[str],
  in_distribution_task: str | None = None,
) -> Selection:
  """Chooses the step of the best mean over the out-of-distribution tasks.

  Of equal means the earliest step wins: it has moved least from the general
  model. Steps at which none of the tasks was evaluated are passed over.

  Example: means of 0.30 at step 100, 0.50 at 200 and 0.50 at 300 choose 200.

  Args:
    history: validation values by step, accuracies under "TASK/accuracy".
    ood_tasks: the tasks whose mean decides.
    in_distribution_task: the task of the other rule, or None.

  Returns:
    The selection.

  Raises:
    UserError: no task is given, a task was never evaluated, or some step
      lacks one of them or holds a value that is not a number.
  """
  if not ood_tasks:
    raise errors.UserError(
      "out_of_distribution is empty: expected at least one evaluated task to "
      "select by."
    )
  for task in (*ood_tasks, *filter(None, [in_distribution_task])):
    _check_evaluated(history, task)
  means, in_distribution = {}, {}
  for step in sorted(history):
    row = history[step]
    if any(task + _SUFFIX in row for task in ood_tasks):
      accuracies = [_accuracy(row, task, step) for task in ood_tasks]
      means[step] = sum(accuracies) / len(accuracies)
      if in_distribution_task is not None:
        in_distribution[step] = _accuracy(row, in_distribution_task, step)
  best = _first_best(means)
  chosen = Selection(
    step=best,
    mean=means[best],
    out_of_distribution=tuple(ood_tasks),
    means=means,
  )
  if in_distribution_task is None:
    return chosen
  other = _first_best(in_distribution)
  return dataclasses.replace(
    chosen,
    in_distribution=in_distribution_task,
    in_distribution_step=other,
    in_distribution_accuracy=in_distribution[other],
    in_distribution_mean=means[other],
    in_distribution_accuracies=in_distribution,
  )


def alike(
  history: history_lib.History, tasks: Sequence[str]
) -> history_lib.History:
  """Leaves out the steps that were asked fewer questions than others.

  A run may evaluate itself on some questions as it trains, and be evaluated
  on all of them later: means over different questions are not compared.

  Args:
    history: values by step; where a run says how many questions there were,
      it does so under "TASK/n".
    tasks: those that count.
  """
  sizes = {
    step: tuple(row.get(f"{task}/n", 0.0) for task in tasks)
    for step, row in history.items()
  }
  most = max(sizes.values(), default=())
  return {step: row for step, row in history.items() if sizes[step] == most}


def evaluated_tasks(history: history_lib.History) -> list[str]:
  """Gives the tasks that have an accuracy at some step, sorted."""
  return [
    name.removesuffix(_SUFFIX)
    for name in history_lib.names(history)
    if name.endswith(_SUFFIX)
  ]


def default_tasks(tasks: Iterable[str]) -> tuple[list[str], str | None]:
  """Gives the paper's roles to the tasks of a run, by their names.

  Out of distribution are MultiArith, ASDiv and SVAMP, in distribution is
  GSM8K, real or of the mini world, in the format that the paper evaluates:
  zero-shot chain of thought.

  Args:
    tasks: names such as "mini_asdiv_zero_shot_chain_of_thought_v1".

  Returns:
    The out-of-distribution tasks, sorted, and the in-distribution one or
    None.
  """
  wanted = sorted(t for t in tasks if "zero_shot_chain_of_thought" in t)
  out_of_distribution = [t for t in wanted if _is_of(t, _OUT_OF_DISTRIBUTION)]
  in_distribution = [t for t in wanted if _is_of(t, _IN_DISTRIBUTION)]
  return out_of_distribution, next(iter(in_distribution), None)


def _is_of(task: str, datasets: Sequence[str]) -> bool:
  name = task.removeprefix("mini_")
  return any(name == d or name.startswith(f"{d}_") for d in datasets)


def _first_best(values: Mapping[int, float]) -> int:
  """The earliest step of the greatest value."""
  return max(values, key=lambda step: (values[step], -step))


def _accuracy(row: Mapping[str, float], task: str, step: int) -> float:
  value = row.get(task + _SUFFIX)
  if value is None or not math.isfinite(value):
    raise errors.UserError(
      f"step {step} has no accuracy of {task} (got {value}), though others "
      "were evaluated there: evaluate that checkpoint on it, or leave the "
      "task out."
    )
  return value


def _check_evaluated(history: history_lib.History, task: str) -> None:
  known = evaluated_tasks(history)
  if task in known:
    return
  near = difflib.get_close_matches(task, known, n=3, cutoff=0.5) or known
  expected = f"one of {', '.join(near)}" if near else "an evaluated run"
  raise errors.UserError(
    f"task {task!r} was never evaluated in this run: expected {expected}; "
    "evaluate it, or name another task."
  )
