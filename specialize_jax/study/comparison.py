"""Compares two specialized models on the same test questions."""

import dataclasses
import pathlib
from collections.abc import Sequence

from specialize_jax.evaluation import intervals
from specialize_jax.files import reading

_ROLES = ("in_distribution", "out_of_distribution", "general")


def compare(
  first: pathlib.Path,
  second: pathlib.Path,
  *,
  tasks: dict[str, Sequence[str]],
) -> list[dict[str, object]]:
  """Computes the accuracies of two models and their paired differences.

  Args:
    first: the directory of a model's predictions, with `TASK.jsonl`.
    second: that of the other model, on the same questions.
    tasks: the tasks by role, `in_distribution`, `out_of_distribution` and
      `general`.

  Returns:
    A row for each task, and after several of one role one for their mean,
    whose `task` is None: {"role", "task", "n", "first", "second",
    "difference": {"estimate", "low", "high"}}. The difference is first minus
    second, with a 95 % interval from a paired bootstrap over the questions.

  Raises:
    UserError: a file is missing or invalid.
    ValueError: the questions differ.
  """
  rows = []
  for role in _ROLES:
    verdicts = {
      task: (_verdicts(second, task), _verdicts(first, task))
      for task in tasks[role]
    }
    groups = [([task], task) for task in verdicts]
    if len(verdicts) > 1:
      groups.append((list(verdicts), None))
    for group, task in groups:
      pairs = [_paired(*verdicts[name], task=name) for name in group]
      means = [
        sum(sum(one[side]) / len(one[side]) for one in pairs) / len(pairs)
        for side in (1, 0)
      ]
      rows.append(
        {
          "role": role,
          "task": task,
          "n": sum(len(one) for one, _ in pairs),
          "first": means[0],
          "second": means[1],
          "difference": dataclasses.asdict(
            intervals.paired_bootstrap_mean(pairs)
          ),
        }
      )
  return rows


def _verdicts(directory: pathlib.Path, task: str) -> dict[str, float]:
  return {
    row["question_id"]: float(row["correct"])
    for row in reading.read_rows(directory / f"{task}.jsonl")
  }


def _paired(
  before: dict[str, float], after: dict[str, float], *, task: str
) -> tuple[list[float], list[float]]:
  if before.keys() != after.keys():
    raise ValueError(
      f"{task}: the two models were tested on different questions."
    )
  return [before[name] for name in before], [after[name] for name in before]
