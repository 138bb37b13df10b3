"""Reads the `metrics.jsonl` and `changes.jsonl` of a run.

A row of metrics is `{"step": n, "group": "train" | "evaluation", "values":
{name: x}}`. If a resumed run wrote a step twice, the later row counts. An
incomplete last line, of a run that is still writing or was killed, is ignored.
"""

import json
import math
import os
from collections.abc import Mapping

from etils import epath

from specialize_jax import errors
from specialize_jax.files import reading, seals

CHANGES = "changes.jsonl"

# Values by name, by step in ascending order.
History = Mapping[int, Mapping[str, float]]


def read(path: str | os.PathLike[str], group: str = "evaluation") -> History:
  """Reads the values of one group by step.

  Args:
    path: a run's `metrics.jsonl`.
    group: "train" or "evaluation".

  Returns:
    `{step: {name: value}}`, by ascending step; empty if the group has no row.

  Raises:
    UserError: the file does not exist, or a line other than an incomplete last
      one is not a row of metrics.
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
    if line is rest and not reading.is_json(line):
      break  # it is still being written, or was cut short
    seals.check(line, f"{path}, line {number}")
    try:
      row = json.loads(line)
      step, row_group = int(row["step"]), row["group"]
      values = {
        name: float(x)
        for name, x in row["values"].items()
        # Not finite: null in our own files, NaN in others'.
        if x is not None and math.isfinite(x)
      }
    except (
      ValueError,
      TypeError,
      KeyError,
      AttributeError,
      RecursionError,
    ) as error:
      raise errors.UserError(
        f"{path}, line {number} is not a row of metrics (got {line[:60]!r}, "
        'expected {"step", "group", "values"}); remove the line.'
      ) from error
    if row_group == group:
      values_by_step.setdefault(step, {}).update(values)
  return dict(sorted(values_by_step.items()))


def read_changes(
  path: str | os.PathLike[str],
) -> list[Mapping[str, object]]:
  """Reads the changes of settings between starts of a run.

  Args:
    path: a run's `changes.jsonl`, which may not exist.

  Returns:
    Rows `{"step": the step that it resumed from, "date", "changes": {name:
    [before, after]}}`, in order; none if the file does not exist.

  Raises:
    UserError: a line is not such a row.
  """
  if not epath.Path(path).exists():
    return []
  rows = reading.read_rows(path)
  for number, row in enumerate(rows, start=1):
    changes = row.get("changes")
    if not (
      isinstance(row.get("step"), int)
      and isinstance(changes, dict)
      and all(isinstance(p, list) and len(p) == 2 for p in changes.values())
    ):
      raise errors.UserError(
        f"{path}, line {number} does not record a change: remove the line"
      )
  return rows


def curve(history: History, name: str) -> tuple[list[int], list[float]]:
  """Returns the steps at which `name` was logged, and its values."""
  points = [(step, row[name]) for step, row in history.items() if name in row]
  return [step for step, _ in points], [value for _, value in points]


def names(history: History) -> list[str]:
  """Returns the sorted names of all values."""
  return sorted({name for row in history.values() for name in row})
