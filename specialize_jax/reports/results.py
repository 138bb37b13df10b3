"""Reads the results that a report is built from: a directory, or a run.

`load` reads the directory that `specialize demo` leaves, `load_run` the
MODEL_DIR of any training run, with the output of `specialize eval` before and
after it. Of a directory:

Every file is optional, and missing ones are None or empty. A file that exists
and cannot be read is an error, because a partial report would mislead.

  results.json                  accuracies before and after, and task roles
  predictions/before/**/TASK.jsonl, predictions/after/**/TASK.jsonl
                                predictions and their verdicts; results.json
                                may name other directories,
                                {"predictions": {"before": DIR, "after": DIR}}
  pretrain/metrics.jsonl        the general model's training
  specialize/metrics.jsonl      specialization, with validation accuracies
  pretrain/changes.jsonl, specialize/changes.jsonl
                                settings that were changed as a run resumed
  selection.json                the selected step; see evaluation.selection
  alignment.json                the coverage report of `specialize align`
  alignment_example.json        one sample, aligned
  comparison.json               another specialization; see study.demo
  certainty.json                how certain the teacher is; see
                                teacher.certainty
  study.json                    several seeds and arms; see findings_text
  decoding.json                 ways of decoding a task; see
                                study.decoding_comparison
"""

import dataclasses
import math
import os
import pathlib
import re
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from specialize_jax import errors
from specialize_jax.evaluation import history as history_lib
from specialize_jax.evaluation import selection as selection_lib
from specialize_jax.files import reading, writing
from specialize_jax.teacher import certainty

Json = Mapping[str, object]

_MAX_TASKS = 1000
_MAX_SHOWN = 60  # characters of a value, in errors
_OF_A_PREDICTION = ("question_id", "prompt", "prediction", "target")


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
    comparison: `comparison.json`, or None.
    certainty: `certainty.json`, or None.
    study: `study.json`, or None.
    predictions: `{"before" | "after": {task: rows}}`.
    other: tasks of no known role.
    run: facts of the run by name, if a single run is reported.
    hints: for sections that lack something, by name, the commands that make
      it. Sections of a run that lack something and have none are left out.
    changes: settings that were changed between two starts of a run, by run.
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
  comparison: Json | None
  certainty: Json | None
  study: Json | None
  predictions: Mapping[str, Mapping[str, Sequence[Json]]]
  other: Sequence[str] = ()
  run: Mapping[str, str] = dataclasses.field(default_factory=dict)
  hints: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  changes: Mapping[str, Sequence[Json]] = dataclasses.field(
    default_factory=dict
  )


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
  if (directory / "metrics.jsonl").is_file():
    raise errors.UserError(
      f"results_dir {str(directory)!r} is the directory of one run: give it as "
      f"--run={directory}."
    )
  numbers = _read_numbers(directory / "results.json")
  selection = _read_json(directory / "selection.json")
  step = (selection or {}).get("step")
  if None not in (step, numbers.get("step")) and step != numbers["step"]:
    # Of a demo that has selected another step, and not tested it yet.
    numbers = {**numbers, "before": {}, "after": {}}
  tasks = {*numbers.get("before", {}), *numbers.get("after", {})}
  kept = {"before": "predictions/before", "after": "predictions/after"}
  for when, named in numbers.get("predictions", {}).items():
    # Within the results: another's file must not have a whole disk searched.
    place = pathlib.PurePosixPath(str(named))
    if place.is_absolute() or ".." in place.parts:
      raise errors.UserError(
        f"{directory / 'results.json'} has predictions in {str(named)[:80]!r}:"
        " expected a directory within that of the results"
      )
    kept[when] = str(named)
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
    selection=selection,
    alignment=_read_alignment(directory / "alignment.json"),
    alignment_example=_read_json(directory / "alignment_example.json"),
    decoding=_of_step(directory / "decoding.json", step, ("step",)),
    comparison=_of_step(
      directory / "comparison.json", step, ("steps", "first")
    ),
    certainty=_read_json(directory / "certainty.json"),
    study=_read_json(directory / "study.json"),
    predictions={
      when: _read_predictions(
        directory / kept[when], tasks, step if when == "after" else None
      )
      for when in ("before", "after")
    },
    changes=_changes(
      {run: directory / run for run in ("pretrain", "specialize")}
    ),
  )
  _check_some_file(results, numbers)
  return results


def _of_step(
  path: epath.Path, step: int | None, keys: Sequence[str]
) -> Json | None:
  """Reads a file of the selected step; None if it is of another one.

  Args:
    path: the file.
    step: the selected step; None if none was selected.
    keys: where in the file its step is.
  """
  found = own = _read_json(path)
  for key in keys:
    own = own.get(key) if isinstance(own, Mapping) else None
  return found if None in (step, own) or own == step else None


def _changes(
  runs: Mapping[str, epath.Path],
) -> Mapping[str, Sequence[Json]]:
  """Reads what was changed as runs resumed, of those where anything was."""
  changed = {
    name: writing.printable_json(
      history_lib.read_changes(place / history_lib.CHANGES)
    )
    for name, place in runs.items()
  }
  return {name: rows for name, rows in changed.items() if rows}


def load_run(
  run: str | os.PathLike[str],
  *,
  before: str | os.PathLike[str] | None = None,
  after: str | os.PathLike[str] | None = None,
  in_distribution: str | None = None,
  out_of_distribution: Sequence[str] = (),
) -> Results:
  """Reads a training run, and evaluations before and after it.

  Args:
    run: MODEL_DIR, with metrics.jsonl; selection.json and alignment.json are
      read if they are there.
    before: EVAL_OUTPUT_DIR of `specialize eval` on the general model.
    after: the same on the specialized model.
    in_distribution: the task in distribution, if no checkpoint was selected;
      None for GSM8K, real or of the mini world.
    out_of_distribution: likewise the tasks out of distribution.

  Returns:
    The content. Without `after`, predictions are those that the run made of
    its validation sets, at the selected or the last step.

  Raises:
    UserError: a directory does not exist or is not of that kind, or a file
      cannot be read.
  """
  run = epath.Path(run)
  path = run / "metrics.jsonl"
  if not path.is_file():
    raise errors.UserError(
      f"--run={run} has no metrics.jsonl: expected the MODEL_DIR of a run that "
      "`specialize train` has started."
    )
  training = history_lib.read(path, "train")
  validation = history_lib.read(path, "evaluation")
  selection = _read_json(run / "selection.json")
  steps, sides = {}, {}
  for when, place in (("before", before), ("after", after)):
    step, sides[when] = _evaluation(
      f"--{when}",
      place,
      (selection or {}).get("step") if when == "after" else None,
    )
    steps[when] = step
  accuracies = {when: _accuracies(values) for when, values in sides.items()}
  tasks = {*accuracies["before"], *accuracies["after"]}
  seen = tasks | set(selection_lib.evaluated_tasks(validation))
  if in_distribution is None:
    out_of_distribution, in_distribution = selection_lib.default_tasks(seen)
  # A run may be selected by some of the target ability's sets alone.
  ability = [*out_of_distribution, in_distribution or ""]
  if selection:
    out_of_distribution = selection.get("out_of_distribution") or []
    in_distribution = selection.get("in_distribution") or (
      in_distribution if in_distribution not in out_of_distribution else None
    )
  target = [
    *out_of_distribution,
    *([in_distribution] if in_distribution else []),
  ]
  general, other = _general_and_other(
    seen - {*target}, [*target, *filter(None, ability)]
  )
  places = {"before": before, "after": after}
  if after is None:
    places["after"] = _own_predictions(run, selection)
  predicted = {
    when: {}
    if place is None
    else _read_predictions(epath.Path(place), seen, steps[when])
    for when, place in places.items()
  }
  return Results(
    directory=run,
    before=accuracies["before"],
    after=accuracies["after"],
    in_distribution=in_distribution,
    out_of_distribution=tuple(out_of_distribution),
    general=tuple(general),
    other=tuple(other),
    seconds=None,
    peak_rss_gib=None,
    pretraining={},
    specialization=training,
    validation=validation,
    selection=selection,
    alignment=_read_alignment(run / "alignment.json"),
    alignment_example=_read_json(run / "alignment_example.json"),
    decoding=_read_json(run / "decoding.json"),
    comparison=None,
    certainty=None,
    study=None,
    predictions=predicted,
    changes=_changes({run.name: run}),
    run=_run_facts(run, training, validation, selection),
    hints=_hints(run, before, after),
  )


def _evaluation(
  flag: str,
  directory: str | os.PathLike[str] | None,
  selected: int | None = None,
) -> tuple[int | None, Mapping[str, float]]:
  """Reads the step and the values that `specialize eval` wrote.

  Of several steps they are those of the selected one.
  """
  if directory is None:
    return None, {}
  path = epath.Path(directory) / "metrics.jsonl"
  if not path.is_file():
    raise errors.UserError(
      f"{flag}={directory} has no metrics.jsonl: expected the EVAL_OUTPUT_DIR "
      "that `specialize eval` wrote."
    )
  values = history_lib.read(path)
  if not values:
    raise errors.UserError(
      f"{flag}={directory} has no evaluation in its metrics.jsonl: expected "
      "the EVAL_OUTPUT_DIR that `specialize eval` wrote."
    )
  if selected is None and len(values) == 1 or [*values] == [0]:
    selected = next(iter(values))  # a converted checkpoint has the step 0
  if selected in values:
    return selected, values[selected]
  steps = ", ".join(f"{step:,}" for step in sorted(values))
  raise errors.UserError(
    f"{flag}={directory} has evaluations of the steps {steps}"
    + ("" if selected is None else f", not of {selected:,}, the selected one")
    + ": give an EVAL_OUTPUT_DIR with one"
  )


def _accuracies(
  values: Mapping[str, float],
) -> dict[str, dict[str, float]]:
  """Returns `{task: {"accuracy", "n"}}` of the tasks that have both."""
  return {
    task: {"accuracy": value, "n": values[f"{task}/n"]}
    for name, value in values.items()
    if name.endswith("/accuracy")
    and f"{(task := name.removesuffix('/accuracy'))}/n" in values
  }


def _general_and_other(
  rest: Iterable[str], target: Sequence[str]
) -> tuple[list[str], list[str]]:
  """Splits tasks that are not of the target ability, by their datasets.

  Other formats of the target's datasets are neither general ability nor what
  is compared, and without a target nothing is known to be general.
  """
  datasets = {_dataset(task) for task in target}
  general = [t for t in sorted(rest) if target and _dataset(t) not in datasets]
  return general, sorted({*rest} - {*general})


def _dataset(task: str) -> str:
  name = re.sub(r"_v\d+$", "", task)
  return re.sub(
    r"_(zero_shot|in_context)_(answer_only|chain_of_thought)$", "", name
  )


def _own_predictions(
  run: epath.Path, selection: Json | None
) -> epath.Path | None:
  """Returns a run's predictions of the selected step, else the last one."""
  place = run / "predictions"
  if not place.is_dir():
    return None
  steps = [int(p.name) for p in place.iterdir() if p.name.isdecimal()]
  if selection and selection.get("step") in steps:
    return place / str(selection["step"])
  return place / str(max(steps)) if steps else None


def _run_facts(
  run: epath.Path,
  training: history_lib.History,
  validation: history_lib.History,
  selection: Json | None,
) -> dict[str, str]:
  facts = {"MODEL_DIR": str(run)}
  if training:
    last = max(training)
    facts["steps"] = f"{last:,}"
    names = ("loss", "nll", "token_accuracy", "tokens_per_second", "mfu")
    for name in names:
      if name in training[last]:
        facts[f"{name} at step {last:,}"] = f"{training[last][name]:,.4g}"
  if validation:
    steps = ", ".join(f"{step:,}" for step in validation)
    facts["evaluated at steps"] = steps
  if selection:
    facts["selected step"] = f"{selection['step']:,}"
  return facts


def _hints(
  run: epath.Path,
  before: str | os.PathLike[str] | None,
  after: str | os.PathLike[str] | None,
) -> dict[str, Sequence[str]]:
  """Returns the commands that make what a report of a run may lack."""
  best, named = run / "best", shlex.quote(os.fspath(run))
  has_own = (run / "dataset.yaml").exists()
  own = " --dataset=FILE.yaml" if has_own else ""
  tests = "" if has_own else " --gin.MIXTURE_OR_TASK_NAME=TEST_SETS"
  commands = []
  for path, place, checkpoint in (
    (before, run / "before", "GENERAL_MODEL"),
    (after, run / "after", best if best.exists() else run),
  ):
    if path is None:
      commands.append(
        f"specialize eval{own}"
        f" --gin.CHECKPOINT_PATH={shlex.quote(os.fspath(checkpoint))}{tests}"
        ' --gin.TASK_FEATURE_LENGTHS=\'{"inputs": N, "targets": M}\''
        f" --gin.EVAL_OUTPUT_DIR={shlex.quote(os.fspath(place))}"
      )
  tested = {
    "before": before or run / "before",
    "after": after or run / "after",
  }
  report = f"specialize report{own} --run={named} " + " ".join(
    f"--{when}={shlex.quote(os.fspath(path))}" for when, path in tested.items()
  )
  select = f"specialize select{own} --model_dir={named} --evaluate"
  return {
    "accuracy": [*commands, report] if commands else [],
    "checkpoint": [select],
    "selection": [select],
    "training": [
      f"specialize train{own}"
      f" --gin_file={shlex.quote(os.fspath(run / 'config.gin'))}"
      f" --data_dir=DATA --gin.MODEL_DIR={named}  # resumes it"
    ],
    "alignment": [
      "specialize align --records=RECORDS --vocabulary=SPIECE "
      "--output=aligned.jsonl"
      f" --report={shlex.quote(os.fspath(run / 'alignment.json'))}"
    ],
  }


def validation_curve(
  results: Results, task: str
) -> tuple[list[int], list[float]]:
  """Returns the steps and validation accuracies of a task.

  A task that results.json names by dataset only ("mini_svamp") matches the full
  name in the run, in the paper's format of selection if it has several.
  """
  names = history_lib.names(results.validation)
  wanted = f"{task}/accuracy"
  if wanted not in names:
    longer = [
      name
      for name in names
      if name.startswith(f"{task}_") and name.endswith("/accuracy")
    ]
    longer.sort(key=lambda name: "zero_shot_chain_of_thought" not in name)
    wanted = next(iter(longer), wanted)
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


# What the sections of a page read of each file, and of what kind it is.
_FIELDS: Mapping[str, Mapping[str, type]] = {
  "selection.json": {"step": int, "mean": float},
  "decoding.json": {"task": str, "ways": list},
  "comparison.json": {"name": str, "steps": dict, "rows": list},
  "certainty.json": dict.fromkeys(
    (one.name for one in dataclasses.fields(certainty.Certainty)), object
  ),
  "alignment_example.json": dict.fromkeys(
    ("teacher_tokens", "student_pieces", "groups", "targets", "mask"), list
  ),
}


def _read_json(path: epath.Path) -> Json | None:
  """Reads a file, which may be missing, and checks that it has its fields."""
  if not path.is_file():
    return None
  # Figures and pages hold no half of a pair.
  value = writing.printable_json(reading.read_json(path))
  if not isinstance(value, dict):
    raise errors.UserError(
      f"{path} is not a JSON object: got a {type(value).__name__}."
    )
  for name, kind in _FIELDS.get(path.name, {}).items():
    found = value.get(name)
    is_kind = _is_number(found) if kind is float else isinstance(found, kind)
    if name not in value or not is_kind:
      raise errors.UserError(
        f"{path} is not as `specialize` writes it: {name} is"
        f" {repr(found)[:_MAX_SHOWN]}; remove the file, or make it anew"
      )
  return value


def _read_numbers(path: epath.Path) -> Json:
  """Reads results.json, which others may have written too.

  Raises:
    UserError: a field is not as in the module's docstring; the message names
      it.
  """
  numbers = _read_json(path) or {}
  for when in ("before", "after"):
    scores = _expected(path, when, numbers.get(when, {}), dict, "an object")
    if len(scores) > _MAX_TASKS:
      raise errors.UserError(
        f"{path}: {when} has {len(scores):,} tasks: expected at most"
        f" {_MAX_TASKS:,}"
      )
    for task, entry in scores.items():
      _check_score(path, f"{when}.{task[:_MAX_SHOWN]}", entry)
  for name in ("out_of_distribution", "general"):
    listed = _expected(path, name, numbers.get(name, []), list, "a list")
    for task in listed:
      _expected(path, name, task, str, "a list of names of tasks")
  task = numbers.get("in_distribution")
  if task is not None:
    _expected(path, "in_distribution", task, str, "the name of a task")
  kept = numbers.get("predictions", {})
  for when, place in _expected(
    path, "predictions", kept, dict, "an object"
  ).items():
    _expected(path, f"predictions.{when}", place, str, "a directory")
  for name in ("seconds", "peak_rss_gib"):
    value = numbers.get(name)
    if value is not None and not _is_number(value):
      _expected(path, name, value, float, "a number")
  return numbers


def _check_score(path: epath.Path, name: str, entry: object) -> None:
  """Checks that an entry is an accuracy of a number of examples."""
  score = _expected(path, name, entry, dict, 'an object of "accuracy" and "n"')
  accuracy, count = score.get("accuracy"), score.get("n")
  if not _is_number(accuracy) or not 0 <= accuracy <= 1:
    raise _unexpected(path, f"{name}.accuracy", accuracy, "a number in [0, 1]")
  if not _is_number(count) or count != int(count) or not 1 <= count <= 10**12:
    raise _unexpected(path, f"{name}.n", count, "a number of examples")


def _is_number(value: object) -> bool:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and abs(value) < math.inf  # NaN is not


def _expected(
  path: epath.Path, name: str, value: object, kind: type, what: str
) -> typing.Any:
  if not isinstance(value, kind):
    raise _unexpected(path, name, value, what)
  return value


def _unexpected(
  path: epath.Path, name: str, value: object, what: str
) -> errors.UserError:
  return errors.UserError(
    f"{path}: {name} is {repr(value)[:_MAX_SHOWN]}: expected {what}"
  )


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
  directory: epath.Path, tasks: set[str], step: int | None = None
) -> Mapping[str, Sequence[Json]]:
  """Reads the rows of each task, from the last subdirectory that has it.

  Of an evaluation's directory, which has one for each step, from that of
  `step`.
  """
  last = {}
  if step is not None and (directory / str(step)).is_dir():
    directory = directory / str(step)
  for folder, _, names in sorted(directory.walk(), key=_numeric_order):
    for task in tasks & {name.removesuffix(".jsonl") for name in names}:
      last[task] = folder / f"{task}.jsonl"
  found = {}
  for task, path in sorted(last.items()):
    found[task] = writing.printable_json(reading.read_rows(path))
    for number, row in enumerate(found[task], start=1):
      lacking = [name for name in _OF_A_PREDICTION if name not in row]
      if lacking:
        raise errors.UserError(
          f"{path}, line {number} lacks {', '.join(lacking)}: expected a"
          " prediction as `specialize eval` writes it"
        )
  return found


def _numeric_order(walked: tuple[epath.Path, ...]) -> Sequence[object]:
  """Sorts folders by name, and those of steps by number: 900 before 1000."""
  return [
    (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
    for part in walked[0].parts
  ]


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
