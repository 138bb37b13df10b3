"""Selects the checkpoint with the best out-of-distribution validation mean.

The paper selects by the mean accuracy over the validation sets of the
out-of-distribution datasets, because in-distribution accuracy keeps rising
after the others have begun to fall (arXiv 2301.12726, section 4.1). The choice
by in-distribution accuracy is reported for comparison.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.evaluation import history as history_lib

ACCURACY = "accuracy"
_OUT_OF_DISTRIBUTION = ("multiarith", "asdiv", "svamp")
_IN_DISTRIBUTION = ("gsm8k", "gsm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """The selected step, and the values it was selected by.

  Attributes:
    step: the step with the best out-of-distribution mean.
    mean: that mean.
    out_of_distribution: the tasks of the mean.
    in_distribution: the in-distribution task, or None.
    in_distribution_step: the step with the best in-distribution accuracy.
    in_distribution_accuracy: that accuracy.
    in_distribution_mean: the out-of-distribution mean at
      `in_distribution_step`; `mean - in_distribution_mean` is the cost of
      selecting by in-distribution accuracy.
    means: the out-of-distribution mean by step.
    in_distribution_accuracies: the in-distribution accuracy by step.
    metric: the metric that was compared, "accuracy" or one of the tasks' own.
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
  metric: str = ACCURACY

  @property
  def criterion(self) -> tuple[str, tuple[str, ...]]:
    """The metric and the tasks that the step was selected by."""
    return self.metric, tuple(sorted(self.out_of_distribution))

  def as_json(self) -> dict[str, object]:
    """Returns the content of `selection.json`."""
    return dataclasses.asdict(self)


def select(
  history: history_lib.History,
  ood_tasks: Sequence[str],
  in_distribution_task: str | None = None,
  metric: str = ACCURACY,
) -> Selection:
  """Selects the step with the best mean over the out-of-distribution tasks.

  In a tie the earliest step wins: it is closest to the general model. Steps at
  which none of the tasks was evaluated are ignored.

  Example: 200 for means 0.30 at step 100, 0.50 at 200 and 0.50 at 300.

  Args:
    history: validation values by step, with accuracies as "TASK/accuracy".
    ood_tasks: the tasks to average.
    in_distribution_task: the task of the alternative selection, or None.
    metric: the metric to compare, more of which is better.

  Returns:
    The selection.

  Raises:
    UserError: `ood_tasks` is empty, a task was never evaluated, or a step lacks
      the accuracy of one task or has nan.
  """
  if not ood_tasks:
    raise errors.UserError(
      "out_of_distribution is empty: expected at least one evaluated task to "
      "select by."
    )
  for task in (*ood_tasks, *filter(None, [in_distribution_task])):
    _check_evaluated(history, task, metric)
  means, in_distribution = {}, {}
  for step in sorted(history):
    row = history[step]
    if any(f"{task}/{metric}" in row for task in ood_tasks):
      accuracies = [_value(row, task, step, metric) for task in ood_tasks]
      means[step] = sum(accuracies) / len(accuracies)
      if in_distribution_task is not None:
        in_distribution[step] = _value(row, in_distribution_task, step, metric)
  best = _first_best(means)
  chosen = Selection(
    step=best,
    mean=means[best],
    out_of_distribution=tuple(ood_tasks),
    means=means,
    metric=metric,
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
  """Drops steps that were evaluated on fewer questions than others.

  A run may be evaluated on some of the questions while it trains, and on all of
  them later; means over different questions are not comparable.

  Args:
    history: values by step, with numbers of questions as "TASK/n" if known.
    tasks: the tasks to compare.

  Returns:
    The history of the steps with the most questions.
  """
  sizes = {
    step: tuple(row.get(f"{task}/n", 0.0) for task in tasks)
    for step, row in history.items()
  }
  most = max(sizes.values(), default=())
  return {step: row for step, row in history.items() if sizes[step] == most}


def evaluated_tasks(
  history: history_lib.History, metric: str = ACCURACY
) -> list[str]:
  """Returns the sorted tasks that have a metric at some step."""
  suffix = f"/{metric}"
  return [
    name.removesuffix(suffix)
    for name in history_lib.names(history)
    if name.endswith(suffix)
  ]


def default_tasks(tasks: Iterable[str]) -> tuple[list[str], str | None]:
  """Returns the paper's out-of-distribution and in-distribution tasks.

  MultiArith, ASDiv and SVAMP are out of distribution and GSM8K is in
  distribution, real or of the mini world, in the format that the paper
  evaluates: zero-shot chain of thought.

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
  """Returns the earliest step with the largest value."""
  return max(values, key=lambda step: (values[step], -step))


def _value(
  row: Mapping[str, float], task: str, step: int, metric: str
) -> float:
  value = row.get(f"{task}/{metric}")
  if value is None or not math.isfinite(value):
    raise errors.UserError(
      f"step {step} has no {metric} of {task} (got {value}), though others "
      "were evaluated there: evaluate that checkpoint on it, or leave the "
      "task out."
    )
  return value


def _check_evaluated(
  history: history_lib.History, task: str, metric: str
) -> None:
  known = evaluated_tasks(history, metric)
  if task in known:
    return
  others = sorted(
    name.removeprefix(f"{task}/")
    for name in history_lib.names(history)
    if name.startswith(f"{task}/")
  )
  if others:
    raise errors.UserError(
      f"task {task!r} has no metric {metric!r} in this run: expected --metric"
      f" to be one of {', '.join(others)}."
    )
  hint = errors.did_you_mean(task, known) or (
    f"those that were: {', '.join(known)}" if known else "none was"
  )
  raise errors.UserError(
    f"task {task!r} was never evaluated in this run: evaluate it (`specialize"
    f" select --evaluate`), or name another task; {hint}"
  )
