"""The log of a run: metrics.jsonl and TensorBoard events."""

import json
import os
import typing
from collections.abc import Mapping
from typing import Literal

import jax
from etils import epath

from specialize_jax.files import reading, writing

Group = Literal["train", "evaluation"]


class RunLog:
  """Writes metrics to MODEL_DIR; only the first process writes.

  `MODEL_DIR/metrics.jsonl` has rows `{"step": n, "group": "train" |
  "evaluation", "values": {name: float}}`, one for each step and group, in
  order. `MODEL_DIR/tensorboard` has the same values as `group/name`.
  `MODEL_DIR/examples.jsonl`, if enabled, has the example ids of each step, one
  list for each row of the global batch.

  Attributes:
    directory: MODEL_DIR, a local or `gs://` path.
    path: the path of metrics.jsonl.
  """

  def __init__(self, model_dir: str | os.PathLike) -> None:
    """Sets the directory, without creating or reading it."""
    self.directory = epath.Path(model_dir)
    self.path = self.directory / "metrics.jsonl"
    self._writes = jax.process_index() == 0
    self._rows = None
    self._examples_path = self.directory / "examples.jsonl"
    self._examples = None
    self._start: int | None = None
    self._summaries = None

  def start_after(self, step: int | None) -> None:
    """Opens the log, removing the rows of steps that will be repeated.

    Args:
      step: the restored step. Later rows, and an incomplete last line, are
        removed; None removes all rows.
    """
    if not self._writes:
      return
    self._start = step
    self.directory.mkdir(parents=True, exist_ok=True)
    self._rows = _open_after(self.path, step)
    # Imported here, because it takes seconds to import TensorFlow.
    from clu import metric_writers

    self._summaries = metric_writers.SummaryWriter(
      os.fspath(self.directory / "tensorboard")
    )

  def write(self, step: int, group: Group, values: Mapping[str, float]) -> None:
    """Appends a row and flushes it."""
    if not self._writes:
      return
    values = {name: float(value) for name, value in values.items()}
    row = {"step": step, "group": group, "values": values}
    self._rows.write(json.dumps(row) + "\n")
    self._rows.flush()
    self._summaries.write_scalars(
      step, {f"{group}/{name}": value for name, value in values.items()}
    )

  def write_examples(self, step: int, example_ids: list[list[str]]) -> None:
    """Appends the example ids of a step's batch, one list for each row."""
    if not self._writes:
      return
    if self._examples is None:
      self._examples = _open_after(self._examples_path, self._start)
    row = {"step": step, "example_ids": example_ids}
    self._examples.write(json.dumps(row) + "\n")
    self._examples.flush()

  def write_file(self, name: str, content: object) -> None:
    """Writes a JSON file beside the log."""
    if self._writes:
      writing.write_json(self.directory / name, content)

  def flush(self) -> None:
    """Flushes TensorBoard's events."""
    if self._summaries is not None:
      self._summaries.flush()

  def close(self) -> None:
    """Closes all files."""
    if self._rows is not None:
      self._rows.close()
      self._summaries.close()
      self._rows = self._summaries = None
    if self._examples is not None:
      self._examples.close()
      self._examples = None


def _open_after(path: epath.Path, step: int | None) -> typing.TextIO:
  """Removes the rows after a step, and opens the file for appending."""
  kept = [] if step is None else _rows_up_to(path, step)
  # Replaced atomically: a kill leaves either the old rows or the new ones.
  writing.write_text(path, "".join(kept))
  return writing.appended(path)


def _rows_up_to(path: epath.Path, step: int) -> list[str]:
  if not path.exists():
    return []
  return [
    line
    for line in reading.read_text(path).splitlines(keepends=True)
    if line.endswith("\n") and json.loads(line)["step"] <= step
  ]
