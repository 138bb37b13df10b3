"""Reads back what a run wrote down: `metrics.jsonl`, row by row.

A row is `{"step": n, "group": "train" | "evaluation", "values": {name: x}}`.
A run that was resumed may have written a step twice: the later row counts.
A run that is still writing, or was killed, may leave an unfinished last
line, which is passed over.
"""

import json
import os
from collections.abc import Mapping

from etils import epath

from specialize_jax import errors
from specialize_jax.files import reading

# Values by name, by step in rising order.
History = Mapping[int, Mapping[str, float]]


def read(path: str | os.PathLike[str], group: str = "evaluation") -> History:
  """Gives the values of one group by step.

  Args:
    path: a run's `metrics.jsonl`.
    group: "train" or "evaluation".

  Returns:
    `{step: {name: value}}`, steps rising; empty if the group has no row.

  Raises:
    UserError: there is no such file, or a line other than an unfinished
      last one is not such a row.
  """
  path = epath.Path(path)
  if not path.is_file():
    raise errors.UserError(
      f"there is no {path}: expected the metrics.jsonl that a training run "
      "writes into its model directory; give the directory of a run."
    )
  *lines, rest = reading.read_text(path).split("\n")
  values_by_step: dict[int, dict[str, float]] = {}
  for number, line in enumerate([*lines, rest], start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      step, row_group = int(row["step"]), row["group"]
      values = {name: float(x) for name, x in row["values"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      if line is rest:
        break
      raise errors.UserError(
        f"{path}, line {number} is not a row of metrics (got {line[:60]!r}, "
        'expected {"step", "group", "values"}); remove the line.'
      ) from error
    if row_group == group:
      values_by_step.setdefault(step, {}).update(values)
  return dict(sorted(values_by_step.items()))


def curve(history: History, name: str) -> tuple[list[int], list[float]]:
  """Gives the steps at which `name` was written, and its values there."""
  points = [(step, row[name]) for step, row in history.items() if name in row]
  return [step for step, _ in points], [value for _, value in points]


def names(history: History) -> list[str]:
  """Gives every name that some step has, sorted."""
  return sorted({name for row in history.values() for name in row})
