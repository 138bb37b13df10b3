"""Evaluates the checkpoints of a run, and keeps the best one.

Results are written to MODEL_DIR/selection, so that a second call resumes and
evaluates no checkpoint twice:

  validation/STEP/metrics.jsonl          the values of one checkpoint
  validation/STEP/STEP/TASK.jsonl        its predictions
  test/STEP/...                          the same for the two selected steps

A run that is evaluated while it trains already has values in its own
metrics.jsonl; steps evaluated there on the same questions are skipped.
"""

import dataclasses
import json
import os
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from specialize_jax import errors
from specialize_jax.checkpoints import best, opening
from specialize_jax.evaluation import (
  evaluator,
  history,
  intervals,
  selection,
)
from specialize_jax.files import reading, writing
from specialize_jax.parallel import processes
from specialize_jax.runs import choosing, experiment, resuming

_DONE = -1  # broadcast instead of a step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selecting:
  """The configuration of checkpoint selection.

  Attributes:
    model_dir: the run's directory.
    validation: the evaluation to select by, in and out of distribution.
    test: the evaluation that measures the cost of in-distribution selection;
      None for no test.
    mesh: the mesh of the devices of all hosts.
    out_of_distribution: the tasks to average; empty for the paper's.
    in_distribution: the task of in-distribution selection; None for the
      paper's.
    metric: the metric to compare.
  """

  model_dir: str
  validation: experiment.Evaluation
  test: experiment.Evaluation | None = None
  mesh: experiment.MeshShape = dataclasses.field(
    default_factory=experiment.MeshShape
  )
  out_of_distribution: Sequence[str] = ()
  in_distribution: str | None = None
  metric: str = selection.ACCURACY


def evaluate(selecting: Selecting) -> None:
  """Evaluates every checkpoint of the run that has not been evaluated yet."""
  evaluator = _evaluator(selecting, selecting.validation)
  kept_alone = _kept_alone(selecting.model_dir)
  for step in _agreed(_missing(selecting, kept_alone)):
    place = kept_alone.get(step, epath.Path(selecting.model_dir))
    # Of the first process: a run may delete a step between two looks.
    found = processes.gather({"place": os.fspath(place).encode()})
    _evaluate_step(selecting, evaluator, step, found["place"].decode())
  _barrier("evaluated")  # all read what the first process writes


def follow(
  selecting: Selecting, *, poll_seconds: float, patience_seconds: float
) -> bool:
  """Evaluates a run's checkpoints while it trains, and keeps the best one.

  A checkpoint is hard-linked before it is evaluated, so that the run may delete
  it meanwhile. Returns when the run's last step has been evaluated.

  Args:
    selecting: the configuration.
    poll_seconds: interval between looking for new checkpoints.
    patience_seconds: time without a new checkpoint after which to stop.

  Returns:
    Whether the run has ended, rather than the patience.
  """
  model_dir = epath.Path(selecting.model_dir)
  candidate_dir = model_dir / choosing.CANDIDATE
  waiting = _Waiting(selecting, poll_seconds, patience_seconds)
  evaluator = _evaluator(selecting, selecting.validation)
  for step in _agreed(_linked_aside(waiting.steps(), model_dir)):
    _evaluate_step(selecting, evaluator, step, candidate_dir)
    if jax.process_index() == 0:
      _put_aside(selecting, candidate_dir, step)
    _barrier("put aside")
  return processes.anywhere(waiting.ended)  # the first process alone looks


def test(
  selecting: Selecting, chosen: selection.Selection
) -> Mapping[str, object] | None:
  """Tests the selected step and that of in-distribution selection.

  Returns:
    `mean` and `in_distribution_mean` over the out-of-distribution test sets;
    `cost`, their difference with its paired interval; and the accuracies of
    each step by task. None if there is no test, or the checkpoint of
    in-distribution selection no longer exists.
  """
  other = chosen.in_distribution_step
  # In this order, so that the best wins if both steps are the same.
  places = {other: choosing.IN_DISTRIBUTION_BEST, chosen.step: best.NAME}
  model_dir = epath.Path(selecting.model_dir)
  is_gone = None in places or any(
    best.step_in(model_dir, name) != step for step, name in places.items()
  )
  if selecting.test is None or processes.anywhere(is_gone):
    return None
  evaluator = _evaluator(selecting, selecting.test)
  values = {
    step: _evaluation_of(selecting, evaluator, "test", step, model_dir / name)
    for step, name in places.items()
  }
  if jax.process_index() != 0:  # only the first process has the predictions
    return None
  tasks = [
    task
    for task in chosen.out_of_distribution
    if f"{task}/accuracy" in values[chosen.step]
    and _verdicts(model_dir, chosen.step, task)
  ]
  if not tasks:
    return None
  means = {
    step: sum(row[f"{task}/accuracy"] for task in tasks) / len(tasks)
    for step, row in values.items()
  }
  cost = intervals.paired_bootstrap_mean(
    [
      (
        _verdicts(model_dir, other, task),
        _verdicts(model_dir, chosen.step, task),
      )
      for task in tasks
    ]
  )
  return {
    "mean": means[chosen.step],
    "in_distribution_mean": means[other],
    "cost": dataclasses.asdict(cost),
    "accuracies": {
      str(step): {
        name.removesuffix("/accuracy"): value
        for name, value in row.items()
        if name.endswith("/accuracy")
      }
      for step, row in values.items()
    },
  }


def _linked_aside(steps: Iterator[int], model_dir: epath.Path) -> Iterator[int]:
  """Hard-links each step; skips those that the run has deleted meanwhile."""
  for step in steps:
    try:
      best.place(model_dir, step, name=choosing.CANDIDATE)
    except (errors.UserError, FileNotFoundError):
      if step in choosing.steps_of(model_dir):
        raise
      print(
        f"step {step:,}: deleted by the run before it could be evaluated",
        file=sys.stderr,
      )
      continue
    yield step


class _Waiting:
  """Polls for checkpoints until the run's last one, or until a timeout."""

  def __init__(
    self, selecting: Selecting, poll_seconds: float, patience_seconds: float
  ) -> None:
    self._selecting = selecting
    self._poll_seconds = poll_seconds
    self._patience_seconds = patience_seconds
    self.ended = False

  def steps(self) -> Iterator[int]:
    """Yields each step to evaluate as it appears, oldest first."""
    asked: set[int] = set()
    last_change = time.monotonic()
    while True:
      missing = [s for s in _missing(self._selecting) if s not in asked]
      if missing:
        asked.add(missing[0])
        yield missing[0]
        last_change = time.monotonic()
        continue
      self.ended = choosing.is_over(self._selecting.model_dir)
      if self.ended:
        return
      if time.monotonic() - last_change > self._patience_seconds:
        return
      time.sleep(self._poll_seconds)


def _agreed(steps: Sequence[int] | Iterator[int]) -> Iterator[int]:
  """Yields the steps of the first process on all processes."""
  if jax.process_count() == 1:
    yield from steps
    return
  own = iter(steps) if jax.process_index() == 0 else iter(())
  while True:
    number = next(own, _DONE)
    number = int(multihost_utils.broadcast_one_to_all(np.int32(number)))
    if number == _DONE:
      return
    yield number


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _kept_alone(model_dir: str | os.PathLike[str]) -> dict[int, epath.Path]:
  """Returns the places of selected steps that the run itself has deleted."""
  kept = {}
  for name in (choosing.IN_DISTRIBUTION_BEST, best.NAME):
    step = best.step_in(model_dir, name)
    if step is not None:
      kept[step] = epath.Path(model_dir) / name
  for step in choosing.steps_of(model_dir):
    kept.pop(step, None)
  return kept


def _missing(
  selecting: Selecting, kept_alone: Mapping[int, epath.Path] | None = None
) -> list[int]:
  """Returns the steps that have a checkpoint and no values.

  Args:
    selecting: the configuration.
    kept_alone: steps outside the run's checkpoints that are compared too.
  """
  model_dir = epath.Path(selecting.model_dir)
  data = selecting.validation.data_identity()
  made = {
    step
    for step, place in (kept_alone or {}).items()
    if _written(
      selecting.validation, data, model_dir, "validation", step, run_dir=place
    )
  }
  for step in choosing.steps_of(model_dir):
    try:
      if _written(selecting.validation, data, model_dir, "validation", step):
        made.add(step)
    except (errors.UserError, FileNotFoundError):
      if step in choosing.steps_of(model_dir):
        raise
      # The run has deleted it while it was read.
  path = model_dir / "metrics.jsonl"
  if path.is_file():
    made |= _evaluated_by_run(selecting, history.read(path), kept_alone or {})
  steps = sorted({*choosing.steps_of(model_dir), *(kept_alone or ())})
  return [step for step in steps if step not in made]


def _evaluated_by_run(
  selecting: Selecting,
  values: history.History,
  kept_alone: Mapping[int, epath.Path] = types.MappingProxyType({}),
) -> set[int]:
  """Returns the steps that the run itself evaluated likewise.

  That is on the same questions, all of them, in as many tokens, as the step's
  own metadata say where it was saved with them.
  """
  sizes = selecting.validation.num_questions()
  data = experiment.evaluated_data([selecting.validation])

  def checkpoint(step: int) -> epath.Path:
    place = kept_alone.get(step, epath.Path(selecting.model_dir))
    return place / "checkpoints" / str(step)

  return {
    step
    for step, row in values.items()
    if all(row.get(f"{task}/n") == size for task, size in sizes.items())
    and _is_evaluated_likewise(selecting.validation, data, checkpoint(step))
  }


def _is_evaluated_likewise(
  evaluation: experiment.Evaluation,
  data: Mapping[str, str],
  checkpoint: epath.Path,
) -> bool:
  """Returns whether a run's own evaluations are as another one would be.

  They may also read and write more tokens.

  Args:
    evaluation: the other one.
    data: hashes of its questions and prompts.
    checkpoint: the run's checkpoint, whose metadata has its settings.
  """
  try:
    settings = opening.open_checkpoint(checkpoint).metadata.get("settings")
  except (errors.UserError, FileNotFoundError):
    if int(checkpoint.name) in choosing.steps_of(checkpoint.parent.parent):
      raise
    return True  # the run has deleted it, and its values alone are left
  if not isinstance(settings, dict):
    return True  # of a release that saved none
  hashes = resuming.evaluated_data(settings)
  known = data.keys() & hashes.keys()
  if hashes and (not known or any(data[n] != hashes[n] for n in known)):
    return False  # of another split, or of questions that have changed since
  run = {
    name: value
    for name, value in settings.items()
    if name.startswith("evaluations.")
  }
  wanted = {"max_new_tokens": evaluation.max_new_tokens} | {
    f"task_feature_lengths.{name}": length
    for name, length in evaluation.task_feature_lengths.items()
    if name == "inputs"
  }
  reaches = {
    place: all(
      (run.get(f"{place}.{name}") or 0) >= n for name, n in wanted.items()
    )
    for place in {".".join(name.split(".")[:2]) for name in run}
  }
  tasks = set(evaluation.task_names())
  tasks_of = {place: _tasks_of(run, place) for place in reaches}
  places = [p for p, names in tasks_of.items() if tasks.intersection(names)]
  if places:
    return all(reaches[place] for place in places)
  return any(reaches[p] for p, names in tasks_of.items() if not names)


def _tasks_of(run: Mapping[str, object], place: str) -> Sequence[str]:
  """Returns the tasks of an evaluation in a run's settings; none if unknown."""
  name, split = (
    run.get(f"{place}.{field}") for field in ("mixture_or_task_name", "split")
  )
  try:
    return evaluator.task_names(name, split)
  except errors.UserError:
    return []  # of modules that this process does not import


def _evaluator(
  selecting: Selecting, evaluation: experiment.Evaluation
) -> experiment.CheckpointEvaluator:
  """Returns what evaluates all steps, reading the examples once."""
  return experiment.CheckpointEvaluator([evaluation], mesh=selecting.mesh)


def _evaluate_step(
  selecting: Selecting,
  evaluator: experiment.CheckpointEvaluator,
  step: int,
  run_dir: str | os.PathLike[str],
) -> None:
  start = time.monotonic()
  values = _evaluation_of(selecting, evaluator, "validation", step, run_dir)
  suffix = f"/{selecting.metric}"
  compared = [v for name, v in values.items() if name.endswith(suffix)]
  if jax.process_index() == 0:
    mean = sum(compared) / len(compared) if compared else float("nan")
    print(
      f"step {step:,}: mean {selecting.metric} {mean:.3f} "
      f"on {len(compared)} validation sets, "
      f"{time.monotonic() - start:.0f} s",
      file=sys.stderr,
      flush=True,
    )


def _put_aside(
  selecting: Selecting, candidate_dir: epath.Path, step: int
) -> None:
  """Keeps a step if it is the best so far by either selection rule."""
  model_dir = selecting.model_dir
  chosen = choosing.choose(
    choosing.evaluated(model_dir),
    model_dir,
    selecting.out_of_distribution,
    selecting.in_distribution,
    metric=selecting.metric,
    is_unfinished=True,
  )
  for name, best_step in (
    (best.NAME, chosen.step),
    (choosing.IN_DISTRIBUTION_BEST, chosen.in_distribution_step),
  ):
    if best_step == step:
      best.place(model_dir, step, name=name, source_dir=candidate_dir)
  candidate_dir.rmtree()


def _evaluation_of(
  selecting: Selecting,
  evaluator: experiment.CheckpointEvaluator,
  kind: str,
  step: int,
  run_dir: str | os.PathLike[str],
) -> Mapping[str, float]:
  """Evaluates a step, or reads its values if they exist."""
  model_dir = epath.Path(selecting.model_dir)
  evaluation = selecting.test if kind == "test" else selecting.validation
  data = evaluation.data_identity()
  known = _written(evaluation, data, model_dir, kind, step)
  if known:
    return known
  directory = model_dir / choosing.DIRECTORY / kind / str(step)
  checkpoint = epath.Path(run_dir) / "checkpoints" / str(step)
  if jax.process_index() == 0:  # of other settings, or of other data
    # What says of which they are goes first, and comes last.
    for name in (choosing.MADE_OF, "metrics.jsonl"):
      (directory / name).unlink(missing_ok=True)
  values = evaluator(checkpoint, directory)
  if jax.process_index() == 0:
    made_of = _made_of(evaluation, data, checkpoint)
    writing.write_json(directory / choosing.MADE_OF, made_of, sealed=True)
  return values


def _written(
  evaluation: experiment.Evaluation,
  data: Mapping[str, str],
  model_dir: epath.Path,
  kind: str,
  step: int,
  *,
  run_dir: epath.Path | None = None,
) -> Mapping[str, float] | None:
  """Reads a step's values if they are of this checkpoint and evaluation.

  Args:
    evaluation: the evaluation.
    data: its current `data_identity`: questions may have changed since.
    model_dir: the run's directory.
    kind: "validation" or "test".
    step: the step.
    run_dir: where the checkpoint is, if not in the run's directory.
  """
  directory = model_dir / choosing.DIRECTORY / kind / str(step)
  path, values = directory / choosing.MADE_OF, directory / "metrics.jsonl"
  if not path.is_file() or not values.is_file():
    return None
  made_of = reading.read_json(path)
  checkpoint = epath.Path(run_dir or model_dir) / "checkpoints" / str(step)
  now = _made_of(evaluation, data, checkpoint)
  if now["checkpoint"] is None:  # deleted since
    now["checkpoint"] = made_of["checkpoint"]
  if made_of != json.loads(json.dumps(now)):
    return None
  return history.read(values).get(step)


def _made_of(
  evaluation: experiment.Evaluation,
  data: Mapping[str, str],
  checkpoint: epath.Path,
) -> dict[str, object]:
  there = checkpoint.exists()
  return {
    "checkpoint": opening.open_checkpoint(checkpoint).fingerprint()
    if there
    else None,
    "evaluation": dataclasses.asdict(evaluation),
    "data": dict(data),
  }


def _verdicts(model_dir: epath.Path, step: int, task: str) -> list[bool]:
  """Returns whether each answer is correct; [] without scores per example."""
  directory = model_dir / choosing.DIRECTORY / "test" / str(step) / str(step)
  rows = reading.read_rows(directory / f"{task}.jsonl")
  return [bool(row["correct"]) for row in rows if "correct" in row]
