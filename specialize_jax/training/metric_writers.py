"""Writers of a run's metrics: JSON lines, TensorBoard, W&B and MLflow.

`metrics.jsonl` is always written, since `select` and `report` read it; the
others are chosen by `METRIC_WRITERS`. Writers are created in the first process
only, once the step that the run resumes from is known.
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TextIO

from etils import epath

from specialize_jax import errors
from specialize_jax.files import paths, reading, seals, writing

Group = Literal["train", "evaluation"]


class MetricWriter(Protocol):
  """Writes the metrics of a run, step by step."""

  def write(self, step: int, group: Group, values: Mapping[str, float]) -> None:
    """Writes the values of a step."""

  def flush(self) -> None:
    """Makes what was written durable; called before every checkpoint."""

  def close(self) -> None:
    """Flushes and closes the writer."""


class JsonLines:
  """Rows `{"step", "group", "values"}` with checksums, each flushed at once."""

  def __init__(self, directory: epath.Path, *, after: int | None) -> None:
    """Opens `directory/metrics.jsonl`.

    Args:
      directory: MODEL_DIR.
      after: the step that the run resumes from. Later rows, and an incomplete
        last line, are removed; None removes all rows.
    """
    self._rows = open_after(directory / "metrics.jsonl", after)

  def write(self, step: int, group: Group, values: Mapping[str, float]) -> None:
    """Appends a row."""
    row = {"step": step, "group": group, "values": dict(values)}
    self._rows.write(seals.sealed(writing.to_json(row)) + "\n")
    self._rows.flush()

  def flush(self) -> None:
    """Does nothing: every row is flushed."""

  def close(self) -> None:
    """Closes the file."""
    self._rows.close()


class TensorBoard:
  """Event files in `directory/tensorboard`, with scalars `GROUP/NAME`."""

  def __init__(self, directory: epath.Path, *, after: int | None) -> None:
    """Opens a new event file; TensorBoard merges those of earlier starts."""
    # Imported here, because it takes seconds to import TensorFlow, by which
    # TensorBoard opens files. TensorFlow's own summaries take 0.6 ms a scalar.
    from tensorboard import summary

    self._writer = summary.Writer(os.fspath(directory / "tensorboard"))

  def write(self, step: int, group: Group, values: Mapping[str, float]) -> None:
    """Writes scalars."""
    for name, value in _named(group, values).items():
      self._writer.add_scalar(name, value, step)

  def flush(self) -> None:
    """Flushes the event file."""
    self._writer.flush()

  def close(self) -> None:
    """Closes the event file."""
    self._writer.close()


class WeightsAndBiases:
  """A run of Weights & Biases, named after the directory and resumed with it.

  Project, entity and key are W&B's own: `wandb login`, `WANDB_PROJECT`,
  `WANDB_ENTITY`, `WANDB_MODE=offline`.
  """

  def __init__(self, directory: epath.Path, *, after: int | None) -> None:
    """Starts the run, or resumes that of `directory`."""
    import wandb

    self._run = wandb.init(
      id=_identity(directory / "wandb_run.txt", wandb.util.generate_id),
      name=directory.name,
      resume="allow",
    )

  def write(self, step: int, group: Group, values: Mapping[str, float]) -> None:
    """Logs scalars."""
    self._run.log(_named(group, values), step=step)

  def flush(self) -> None:
    """Does nothing: W&B sends as it goes."""

  def close(self) -> None:
    """Waits until everything is sent."""
    self._run.finish()


class MLflow:
  """A run of MLflow, named after the directory and resumed with it.

  Server and experiment are MLflow's own: `MLFLOW_TRACKING_URI`,
  `MLFLOW_EXPERIMENT_NAME`.
  """

  def __init__(self, directory: epath.Path, *, after: int | None) -> None:
    """Starts the run, or resumes that of `directory`."""
    import mlflow

    self._mlflow = mlflow
    place = directory / "mlflow_run.txt"
    known = reading.read_text(place).strip() if place.is_file() else None
    run = mlflow.start_run(
      run_id=known, run_name=None if known else directory.name
    )
    if known is None:
      writing.write_text(place, run.info.run_id + "\n")

  def write(self, step: int, group: Group, values: Mapping[str, float]) -> None:
    """Logs scalars."""
    self._mlflow.log_metrics(_named(group, values), step=step)

  def flush(self) -> None:
    """Does nothing: MLflow sends as it goes."""

  def close(self) -> None:
    """Ends the run."""
    self._mlflow.end_run()


# The writer, its module and the requirement for pip, by the name in
# METRIC_WRITERS.
_WRITERS = {
  "tensorboard": (TensorBoard, "tensorboard", "specialize-jax[train]"),
  "wandb": (WeightsAndBiases, "wandb", "wandb"),
  "mlflow": (MLflow, "mlflow", "mlflow"),
}


def check(names: Sequence[str]) -> None:
  """Checks that every writer can be created, without creating any.

  Args:
    names: any of "tensorboard", "wandb" and "mlflow".

  Raises:
    UserError: a name is not one of these, or its package is not installed.
  """
  for name in names:
    if name not in _WRITERS:
      raise errors.UserError(
        f"METRIC_WRITERS names {name!r}: expected some of "
        f"{', '.join(_WRITERS)}; metrics.jsonl is always written."
      )
    _, module, package = _WRITERS[name]
    if importlib.util.find_spec(module) is None:
      raise errors.UserError(
        f"METRIC_WRITERS names {name!r}, and {module} is not installed: run "
        f"`pip install '{package}'`, or leave it out."
      )


def create(
  names: Sequence[str], directory: epath.Path, *, after: int | None
) -> list[MetricWriter]:
  """Creates the writers of a run, that of metrics.jsonl first.

  Args:
    names: as in `check`.
    directory: MODEL_DIR.
    after: the step that the run resumes from; None for a new run.

  Raises:
    PassingError: a writer cannot start, for example without a login.
  """
  made: list[MetricWriter] = []
  try:
    for name in names:
      made.append(_started(name, directory, after=after))
    return [JsonLines(directory, after=after), *made]
  except Exception:
    for writer in made:
      with contextlib.suppress(Exception):  # the first error is the reason
        writer.close()
    raise


def _started(
  name: str, directory: epath.Path, *, after: int | None
) -> MetricWriter:
  """Creates a writer; the errors of its service become a `PassingError`."""
  try:
    return _WRITERS[name][0](directory, after=after)
  except Exception as error:
    is_of_files = isinstance(error, OSError) and paths.is_mendable(error)
    is_told = isinstance(error, errors.UserError) or is_of_files
    if is_told or paths.bucket_reason(error) is not None:
      raise
    # The service may be back at the next start, which a supervisor makes.
    raise errors.PassingError(
      f"METRIC_WRITERS names {name!r}, which cannot be started"
      f" ({type(error).__name__}: {' '.join(str(error).split())[:300]}):"
      " mend that, or leave it out; metrics.jsonl is always written"
    ) from error


def open_after(path: epath.Path, step: int | None) -> TextIO:
  """Removes the rows after a step, and opens a file of rows for appending."""
  kept = [] if step is None else _rows_up_to(path, step)
  # Replaced atomically: a kill leaves either the old rows or the new ones.
  writing.write_text(path, "".join(kept))
  return writing.appended(path)


def _rows_up_to(path: epath.Path, step: int) -> list[str]:
  if not path.exists():
    return []
  kept = []
  lines = reading.read_text(path).splitlines(keepends=True)
  for number, line in enumerate(lines, start=1):
    if line.endswith("\n") and _step_of(line, f"{path}, line {number}") <= step:
      kept.append(line)
  return kept


def _step_of(line: str, where: str) -> int:
  seals.check(line, where)
  try:
    return int(json.loads(line)["step"])
  except (ValueError, LookupError, TypeError, RecursionError) as error:
    raise errors.UserError(
      f"{where} is not a row of this run's log (got {line[:60]!r}): remove the"
      " line, or give another MODEL_DIR"
    ) from error


def _named(group: Group, values: Mapping[str, float]) -> dict[str, float]:
  return {f"{group}/{name}": value for name, value in values.items()}


def _identity(place: epath.Path, generate: Callable[[], str]) -> str:
  """Returns the id of a directory's run; writes a new one if it has none."""
  if place.is_file():
    return reading.read_text(place).strip()
  identity = generate()
  writing.write_text(place, identity + "\n")
  return identity
