"""Reads the results of a study's arms: metrics and verdicts."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax.evaluation import history
from specialize_jax.files import reading
from specialize_jax.study import arms, jobs

# Verdicts by question, by task.
Verdicts = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmResult:
  """The result of one arm for one seed.

  Attributes:
    num_params: number of parameters of the network.
    steps: the step that each rule selects.
    training: training metrics by step.
    validation: validation metrics by step.
    verdicts: verdicts on the test questions, by rule. If both rules select the
      same step, they share its verdicts.
  """

  num_params: int
  steps: Mapping[str, int]
  training: history.History
  validation: history.History
  verdicts: Mapping[str, Verdicts]


Results = Mapping[tuple[str, int], ArmResult]
"""By arm and seed."""


def read(
  study: arms.Study,
  places: Mapping[str, pathlib.Path],
  seeds: Sequence[int],
) -> Results:
  """Reads every arm of every seed.

  Args:
    study: the study.
    places: the directory of each job by name, with a result.
    seeds: the seeds that were run.

  Returns:
    The results by arm and seed.

  Raises:
    UserError: a file is missing or invalid.
  """
  return {
    (arm.name, seed): _read_one(places[arms.job_name(arm.name, seed)])
    for arm in study.arms
    for seed in seeds
  }


def read_certainty(
  places: Mapping[str, pathlib.Path], seeds: Sequence[int]
) -> dict[str, float]:
  """Returns how certain the teachers are, the mean of the seeds' worlds.

  Args:
    places: the directory of each job by name, with a result.
    seeds: the seeds that were run.

  Returns:
    The fields of `teacher.certainty.Certainty`; counts are summed.
  """
  worlds = [places[arms.job_name(arms.WORLD, seed)] for seed in seeds]
  measured = [
    reading.read_json(world / jobs.RESULT)["certainty"] for world in worlds
  ]
  sums = {name: sum(one[name] for one in measured) for name in measured[0]}
  return {
    name: total if name.startswith("num_") else total / len(measured)
    for name, total in sums.items()
  }


def _read_one(job_dir: pathlib.Path) -> ArmResult:
  result = reading.read_json(job_dir / jobs.RESULT)
  metrics = job_dir / "run" / "metrics.jsonl"
  verdicts = {
    rule: {
      task: _verdicts(job_dir, rule, result["steps"][rule], task)
      for task in tested
    }
    for rule, tested in result["tests"].items()
  }
  for rule in result["steps"]:
    verdicts.setdefault(rule, verdicts[arms.SELECTED])
  return ArmResult(
    num_params=result["num_params"],
    steps=result["steps"],
    training=history.read(metrics, "train"),
    validation=history.read(metrics, "evaluation"),
    verdicts=verdicts,
  )


def _verdicts(
  job_dir: pathlib.Path, rule: str, step: int, task: str
) -> dict[str, float]:
  path = job_dir / "predictions" / rule / str(step) / f"{task}.jsonl"
  return {
    row["question_id"]: float(row["correct"]) for row in reading.read_rows(path)
  }


def scores(
  results: Results,
  arm: str,
  tasks: Sequence[str],
  seeds: Sequence[int],
  *,
  rule: str = arms.SELECTED,
) -> list[list[np.ndarray]]:
  """Returns an arm's verdicts by seed, task and question.

  Questions are sorted by id, so that the verdicts of two arms on the same
  questions can be subtracted.

  Args:
    results: the results by arm and seed.
    arm: the name of the arm.
    tasks: the tasks.
    seeds: the seeds.
    rule: the rule by which the tested checkpoint was selected.

  Returns:
    Verdicts, 0 or 1, `[questions]` for each task of each seed.
  """
  return [
    [
      np.array([value for _, value in sorted(verdicts[task].items())])
      for task in tasks
    ]
    for verdicts in (results[arm, seed].verdicts[rule] for seed in seeds)
  ]


def contrast(
  weighted: Sequence[tuple[float, Sequence[Sequence[np.ndarray]]]],
) -> list[list[np.ndarray]]:
  """Computes a weighted sum of the scores of several arms, by question.

  Example: weights 1 and -1 compute the difference of two arms.

  Raises:
    ValueError: the arms were not tested on the same questions.
  """
  weights = [weight for weight, _ in weighted]
  summed = []
  for of_seed in zip(*(scores for _, scores in weighted), strict=True):
    tasks = []
    for of_task in zip(*of_seed, strict=True):
      if len({len(questions) for questions in of_task}) > 1:
        raise ValueError(
          "arms that are compared were tested on different questions."
        )
      tasks.append(np.tensordot(weights, np.stack(of_task), axes=1))
    summed.append(tasks)
  return summed


def curve(
  results: Results,
  arm: str,
  metrics: Sequence[str],
  seeds: Sequence[int],
) -> dict[str, list]:
  """Returns the mean of validation metrics over an arm's steps.

  Args:
    results: the results by arm and seed.
    arm: the name of the arm.
    metrics: the names of the metrics to average.
    seeds: the seeds.

  Returns:
    {"steps": [...], "seeds": [[one value per step], for each seed]}, with the
    steps at which all metrics were computed.
  """
  by_seed = []
  steps: list[int] = []
  for seed in seeds:
    rows = results[arm, seed].validation
    steps = [s for s, row in rows.items() if all(n in row for n in metrics)]
    by_seed.append(
      [float(np.mean([rows[s][n] for n in metrics])) for s in steps]
    )
  return {"steps": steps, "seeds": by_seed}
