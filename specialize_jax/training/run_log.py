"""What a run writes down of itself: metrics.jsonl and TensorBoard events."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Literal

import jax

Group = Literal["train", "evaluation"]


class RunLog:
  """Writes rows into MODEL_DIR; on every process but the first, nothing.

  `MODEL_DIR/metrics.jsonl` has rows `{"step": n, "group": "train" |
  "evaluation", "values": {name: float}}`, each step and group once, in
  order; `MODEL_DIR/tensorboard` has the same values as `group/name`.
  """

  def __init__(self, model_dir: str | os.PathLike) -> None:
    """Names the directory, without touching it."""
    self.path = pathlib.Path(model_dir) / "metrics.jsonl"
    self._writes = jax.process_index() == 0
    self._rows = None
    self._summaries = None

  def start_after(self, step: int | None) -> None:
    """Opens the log, without the rows of steps that will be taken again.

    Args:
      step: the restored step, after which everything is forgotten, a half
        written last line included; None forgets all.
    """
    if not self._writes:
      return
    kept = [] if step is None else _rows_up_to(self.path, step)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    # Replaced at once, so that a kill leaves the old rows or the new ones.
    beside = self.path.with_suffix(".jsonl.new")
    beside.write_text("".join(kept), encoding="utf-8")
    beside.replace(self.path)
    self._rows = self.path.open("a", encoding="utf-8")
    # TensorFlow takes seconds to import, and only its event files are wanted.
    from clu import metric_writers

    self._summaries = metric_writers.SummaryWriter(
      str(self.path.parent / "tensorboard")
    )

  def write(self, step: int, group: Group, values: Mapping[str, float]) -> None:
    """Adds one row, which survives the process from here on."""
    if not self._writes:
      return
    values = {name: float(value) for name, value in values.items()}
    row = {"step": step, "group": group, "values": values}
    self._rows.write(json.dumps(row) + "\n")
    self._rows.flush()
    self._summaries.write_scalars(
      step, {f"{group}/{name}": value for name, value in values.items()}
    )

  def flush(self) -> None:
    """Hands TensorBoard's events to the file system too."""
    if self._summaries is not None:
      self._summaries.flush()

  def close(self) -> None:
    """Closes both files."""
    if self._rows is not None:
      self._rows.close()
      self._summaries.close()
      self._rows = self._summaries = None


def _rows_up_to(path: pathlib.Path, step: int) -> list[str]:
  if not path.exists():
    return []
  with path.open(encoding="utf-8") as lines:
    return [
      line
      for line in lines
      if line.endswith("\n") and json.loads(line)["step"] <= step
    ]
