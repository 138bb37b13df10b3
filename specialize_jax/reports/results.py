"""Reads a results directory, from which a report is built.

Every file is optional, and missing ones are None or empty. A file that exists
and cannot be read is an error, because a partial report would mislead.

  results.json                  accuracies before and after, and task roles
  predictions/before/**/TASK.jsonl, predictions/after/**/TASK.jsonl
                                predictions and their verdicts; results.json
                                may name other directories,
                                {"predictions": {"before": DIR, "after": DIR}}
  pretrain/metrics.jsonl        the general model's training
  specialize/metrics.jsonl      specialization, with validation accuracies
  selection.json                the selected step; see evaluation.selection
  alignment.json                the coverage report of `specialize align`
  alignment_example.json        one sample, aligned
  study.json                    several seeds and arms; see findings_text
  decoding.json                 ways of decoding a task; see
                                study.decoding_comparison
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from etils import epath

from specialize_jax import errors
from specialize_jax.evaluation import history as history_lib
from specialize_jax.files import reading, writing

Json = Mapping[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
  """The content of a results directory.

  Attributes:
    directory: the directory.
    before: `{task: {"accuracy", "n"}}` of the general model.
    after: `{task: {"accuracy", "n"}}` of the specialized model.
    in_distribution: the task of the training data's dataset, or None.
    out_of_distribution: the other tasks of the target ability.
    general: the tasks of general ability.
    seconds: duration of the whole run, or None.
    peak_rss_gib: peak memory of the run, or None.
    pretraining: training metrics of the general model, by step.
    specialization: training metrics of specialization, by step.
    validation: validation metrics of specialization, by step.
    selection: `selection.json`, or None.
    alignment: coverage reports by name, usually of one alignment mode.
    alignment_example: `alignment_example.json`, or None.
    decoding: `decoding.json`, or None.
    study: `study.json`, or None.
    predictions: `{"before" | "after": {task: rows}}`.
  """

  directory: epath.Path
  before: Mapping[str, Mapping[str, float]]
  after: Mapping[str, Mapping[str, float]]
  in_distribution: str | None
  out_of_distribution: Sequence[str]
  general: Sequence[str]
  seconds: float | None
  peak_rss_gib: float | None
  pretraining: history_lib.History
  specialization: history_lib.History
  validation: history_lib.History
  selection: Json | None
  alignment: Mapping[str, Json]
  alignment_example: Json | None
  decoding: Json | None
  study: Json | None
  predictions: Mapping[str, Mapping[str, Sequence[Json]]]


def load(directory: str | os.PathLike[str]) -> Results:
  """Reads a results directory.

  Args:
    directory: see the module docstring.

  Returns:
    The content.

  Raises:
    UserError: the directory does not exist or has none of the files, or a file
      cannot be read.
  """
  directory = epath.Path(directory)
  if not directory.is_dir():
    raise errors.UserError(
      f"results_dir {str(directory)!r} is not a directory: expected one that "
      "`specialize demo` or a training run has written."
    )
  numbers = _read_json(directory / "results.json") or {}
  tasks = {*numbers.get("before", {}), *numbers.get("after", {})}
  kept = {"before": "predictions/before", "after": "predictions/after"}
  kept |= numbers.get("predictions", {})
  results = Results(
    directory=directory,
    before=numbers.get("before", {}),
    after=numbers.get("after", {}),
    in_distribution=numbers.get("in_distribution"),
    out_of_distribution=tuple(numbers.get("out_of_distribution", ())),
    general=tuple(numbers.get("general", ())),
    seconds=numbers.get("seconds"),
    peak_rss_gib=numbers.get("peak_rss_gib"),
    pretraining=_read_history(directory, "pretrain", "train"),
    specialization=_read_history(directory, "specialize", "train"),
    validation=_read_history(directory, "specialize", "evaluation"),
    selection=_read_json(directory / "selection.json"),
    alignment=_read_alignment(directory / "alignment.json"),
    alignment_example=_read_json(directory / "alignment_example.json"),
    decoding=_read_json(directory / "decoding.json"),
    study=_read_json(directory / "study.json"),
    predictions={
      when: _read_predictions(directory / kept[when], tasks)
      for when in ("before", "after")
    },
  )
  _check_some_file(results, numbers)
  return results


def validation_curve(
  results: Results, task: str
) -> tuple[list[int], list[float]]:
  """Returns the steps and validation accuracies of a task.

  A task that results.json names by dataset only ("mini_svamp") matches the full
  name in the run.
  """
  names = history_lib.names(results.validation)
  wanted = f"{task}/accuracy"
  if wanted not in names:
    longer = [n for n in names if n.startswith(f"{task}_")]
    wanted = next((n for n in longer if n.endswith("/accuracy")), wanted)
  return history_lib.curve(results.validation, wanted)


def mean_curve(
  results: Results, tasks: Sequence[str]
) -> tuple[list[int], list[float]]:
  """Returns the mean validation accuracy at the steps that have all tasks."""
  curves = [
    dict(zip(*validation_curve(results, task), strict=True)) for task in tasks
  ]
  if not curves:
    return [], []
  steps = sorted(set.intersection(*(set(curve) for curve in curves)))
  return steps, [sum(c[s] for c in curves) / len(curves) for s in steps]


def _read_json(path: epath.Path) -> Json | None:
  if not path.is_file():
    return None
  # Figures and pages hold no half of a pair.
  value = writing.printable_json(reading.read_json(path))
  if not isinstance(value, dict):
    raise errors.UserError(
      f"{path} is not a JSON object: got a {type(value).__name__}."
    )
  return value


def _read_history(
  directory: epath.Path, run: str, group: str
) -> history_lib.History:
  path = directory / run / "metrics.jsonl"
  return history_lib.read(path, group) if path.is_file() else {}


def _read_alignment(path: epath.Path) -> Mapping[str, Json]:
  """Reads one coverage report, or several by name."""
  report = _read_json(path)
  if not report:
    return {}
  if "positions" in report:
    return {str(report.get("mode", "alignment")): report}
  return {
    name: part
    for name, part in report.items()
    if isinstance(part, dict) and "positions" in part
  }


def _read_predictions(
  directory: epath.Path, tasks: set[str]
) -> Mapping[str, Sequence[Json]]:
  """Reads the rows of each task, from any subdirectory."""
  last = {}
  for folder, _, names in sorted(directory.walk()):
    for task in tasks & {name.removesuffix(".jsonl") for name in names}:
      last[task] = folder / f"{task}.jsonl"
  return {
    task: writing.printable_json(reading.read_rows(last[task]))
    for task in sorted(last)
  }


def _check_some_file(results: Results, numbers: Json) -> None:
  parts = (
    numbers,
    results.pretraining,
    results.specialization,
    results.validation,
    results.selection,
    results.alignment,
    results.alignment_example,
    results.study,
  )
  if not any(parts):
    raise errors.UserError(
      f"results_dir {str(results.directory)!r} holds no results: expected a "
      "results.json, specialize/metrics.jsonl or alignment.json, as "
      "`specialize demo` writes them."
    )
