"""The log of a run: its metrics, and the examples of its batches."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
from etils import epath

from specialize_jax import errors
from specialize_jax.files import reading, writing
from specialize_jax.training import metric_writers


class RunLog:
  """Writes to MODEL_DIR what a run does; only the first process writes.

  `MODEL_DIR/metrics.jsonl` has rows `{"step": n, "group": "train" |
  "evaluation", "values": {name: float}}`, one for each step and group, in
  order, each with its checksum (see `files.seals`); other places get the same
  values as `group/name`. `MODEL_DIR/examples.jsonl`, if enabled, has the
  example ids of each step, one list for each row of the global batch.

  Attributes:
    directory: MODEL_DIR, a local or `gs://` path.
    path: the path of metrics.jsonl.
  """

  def __init__(
    self,
    model_dir: str | os.PathLike,
    writers: Sequence[str] = ("tensorboard",),
  ) -> None:
    """Sets the directory, without creating or reading it.

    Args:
      model_dir: MODEL_DIR.
      writers: names of further writers of metrics, besides metrics.jsonl; see
        `metric_writers.check`.
    """
    self.directory = epath.Path(model_dir)
    self.path = self.directory / "metrics.jsonl"
    self._writes = jax.process_index() == 0
    self._names = writers
    self._writers: list[metric_writers.MetricWriter] = []
    self._examples_path = self.directory / "examples.jsonl"
    self._examples = None
    self._start: int | None = None

  def start_after(self, step: int | None) -> None:
    """Opens the log, removing the rows of steps that will be repeated.

    Args:
      step: the restored step. Later rows, and an incomplete last line, are
        removed; None removes all rows.
    """
    if not self._writes:
      return
    if step is None:
      self._check_no_evaluation()
    self._start = step
    self.directory.mkdir(parents=True, exist_ok=True)
    self._writers = metric_writers.create(
      self._names, self.directory, after=step
    )

  def _check_no_evaluation(self) -> None:
    """Raises UserError if metrics.jsonl is that of `specialize eval`."""
    text = reading.read_text(self.path) if self.path.is_file() else ""
    # A run that was lost before its first checkpoint may leave half a line.
    lines = filter(reading.is_json, text.splitlines())
    if any("checkpoint" in dict(json.loads(line)) for line in lines):
      raise errors.UserError(
        f"MODEL_DIR={os.fspath(self.directory)} is the EVAL_OUTPUT_DIR of an"
        " evaluation, whose metrics.jsonl would be replaced: give another"
        " directory"
      )

  def write(
    self, step: int, group: metric_writers.Group, values: Mapping[str, float]
  ) -> None:
    """Writes the values of a step."""
    values = {name: float(value) for name, value in values.items()}
    self._each(lambda writer: writer.write(step, group, values))

  def rows(
    self, group: metric_writers.Group
  ) -> dict[int, Mapping[str, float]] | None:
    """Returns the values of metrics.jsonl's rows of a group, by step.

    Of several rows of a step the last; None on all processes but the first,
    which alone has the log.
    """
    if not self._writes:
      return None
    if not self.path.is_file():
      return {}
    return {
      row.get("step"): row.get("values") or {}
      for row in reading.read_rows(self.path)
      if row.get("group") == group
    }

  def write_examples(self, step: int, example_ids: list[list[str]]) -> None:
    """Appends the example ids of a step's batch, one list for each row."""
    if not self._writes:
      return
    if self._examples is None:
      self._examples = metric_writers.open_after(
        self._examples_path, self._start
      )
    row = {"step": step, "example_ids": example_ids}
    self._examples.write(writing.to_json(row) + "\n")
    self._examples.flush()

  def write_file(self, name: str, content: object) -> None:
    """Writes a JSON file next to the log."""
    if self._writes:
      writing.write_json(self.directory / name, content)

  def flush(self) -> None:
    """Makes what was written durable."""
    self._each(lambda writer: writer.flush())

  def close(self) -> None:
    """Closes all files, and ends what other places call a run."""
    self._each(lambda writer: writer.close())
    self._writers = []
    if self._examples is not None:
      self._examples.close()
      self._examples = None

  def _each(self, act: Callable[[metric_writers.MetricWriter], None]) -> None:
    """Calls a function on each writer.

    A service that fails does not end the run: the failure is printed, and the
    writer is removed until the next start, as each try may take minutes. That
    of metrics.jsonl comes first, and its errors end the run.
    """
    for number, writer in enumerate(tuple(self._writers)):
      try:
        act(writer)
      except Exception as error:
        if number == 0:
          raise
        self._writers.remove(writer)
        print(
          f"{type(writer).__name__} gets no more metrics until the run is"
          f" started again, since it failed ({type(error).__name__}:"
          f" {' '.join(str(error).split())[:300]}); metrics.jsonl has them all",
          file=sys.stderr,
          flush=True,
        )
