"""What a run writes down of itself: metrics.jsonl and TensorBoard events."""

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
  """Writes rows into MODEL_DIR; on every process but the first, nothing.

  `MODEL_DIR/metrics.jsonl` has rows `{"step": n, "group": "train" |
  "evaluation", "values": {name: float}}`, each step and group once, in
  order; `MODEL_DIR/tensorboard` has the same values as `group/name`; and
  `MODEL_DIR/examples.jsonl`, where asked for, the names of each step's
  examples, a list for each row of the global batch.

  Attributes:
    directory: MODEL_DIR, a local path or a `gs://` one.
    path: of metrics.jsonl.
  """

  def __init__(self, model_dir: str | os.PathLike) -> None:
    """Names the directory, without touching it."""
    self.directory = epath.Path(model_dir)
    self.path = self.directory / "metrics.jsonl"
    self._writes = jax.process_index() == 0
    self._rows = None
    self._examples_path = self.directory / "examples.jsonl"
    self._examples = None
    self._start: int | None = None
    self._summaries = None

  def start_after(self, step: int | None) -> None:
    """Opens the log, without the rows of steps that will be taken again.

    Args:
      step: the restored step, after which everything is forgotten, a half
        written last line included; None forgets all.
    """
    if not self._writes:
      return
    self._start = step
    self.directory.mkdir(parents=True, exist_ok=True)
    self._rows = _open_after(self.path, step)
    # TensorFlow takes seconds to import, and only its event files are wanted.
    from clu import metric_writers

    self._summaries = metric_writers.SummaryWriter(
      os.fspath(self.directory / "tensorboard")
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

  def write_examples(self, step: int, example_ids: list[list[str]]) -> None:
    """Names the examples of a step's batch, by its rows."""
    if not self._writes:
      return
    if self._examples is None:
      self._examples = _open_after(self._examples_path, self._start)
    row = {"step": step, "example_ids": example_ids}
    self._examples.write(json.dumps(row) + "\n")
    self._examples.flush()

  def write_file(self, name: str, content: object) -> None:
    """Writes a file of JSON beside the log."""
    if self._writes:
      writing.write_json(self.directory / name, content)

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
    if self._examples is not None:
      self._examples.close()
      self._examples = None


def _open_after(path: epath.Path, step: int | None) -> typing.TextIO:
  """Opens a file of rows to add to it, those after a step taken out."""
  kept = [] if step is None else _rows_up_to(path, step)
  # Replaced at once, so that a kill leaves the old rows or the new ones.
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
