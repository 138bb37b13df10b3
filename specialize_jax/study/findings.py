"""Measures the paper's findings in a study.

`collect` computes the content of `study.json` from the results of the arms:

  seeds, num_params, cost        what was run, and its cost
  certainty                      how certain the teachers are, mean over seeds
  gain_and_price                 test accuracy before and after, by task
  matching                       distribution against sample matching
  formats                        accuracy by training formats
  selection                      in- and out-of-distribution selection
  scaling                        accuracy by the student's size
  starts                         from an instructed and from a raw model
  tests                          the registered tests; see `registered`

An interval is {"estimate", "low", "high"}, 95 %, from a bootstrap over seeds
and over questions; of differences, over the same questions. A curve is
{"steps": [...], "seeds": [[values] of each seed]}.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax.evaluation import intervals
from specialize_jax.study import arm_results, arms, jobs, registered

Json = dict[str, object]

DISTRIBUTION, SAMPLE = "distribution_matching", "sample_matching"
_FRACTIONS = (0.25, 0.5, 0.75, 1.0)


def collect(
  study: arms.Study,
  places: Mapping[str, pathlib.Path],
  seeds: Sequence[int],
  *,
  directory: pathlib.Path,
) -> Json:
  """Computes `study.json` of a finished study.

  Args:
    study: the study.
    places: the directory of each job by name.
    seeds: the seeds that were run.
    directory: the parent directory of the jobs, with their cost.

  Returns:
    The content of `study.json`.
  """
  results = arm_results.read(study, places, seeds)
  reading = _Reading(study, results, seeds)
  return {
    "seeds": list(seeds),
    "num_params": results[study.roles.specialized, seeds[0]].num_params,
    "cost": _cost(directory),
    "certainty": arm_results.read_certainty(places, seeds),
    "gain_and_price": _gain_and_price(reading),
    "matching": _matching(reading),
    "formats": _formats(reading),
    "selection": _selection(reading),
    "scaling": _scaling(reading),
    "starts": _starts(reading),
    "tests": [
      dataclasses.asdict(test)
      for test in registered.tests(study, results, seeds)
    ],
  }


@dataclasses.dataclass(frozen=True)
class _Reading:
  """The results of a study, with accessors that all findings use."""

  study: arms.Study
  results: arm_results.Results
  seeds: Sequence[int]

  def scores(
    self, arm: str, tasks: Sequence[str], rule: str = arms.SELECTED
  ) -> list[list[np.ndarray]]:
    return arm_results.scores(self.results, arm, tasks, self.seeds, rule=rule)

  def accuracy(self, arm: str, tasks: Sequence[str]) -> Json:
    return _interval(self.scores(arm, tasks))

  def difference(self, before: str, after: str, tasks: Sequence[str]) -> Json:
    pair = [
      (-1.0, self.scores(before, tasks)),
      (1.0, self.scores(after, tasks)),
    ]
    return _interval(arm_results.contrast(pair))

  def curve(self, arm: str, tasks: Sequence[str]) -> Json:
    names = [f"{task}/accuracy" for task in tasks]
    return arm_results.curve(self.results, arm, names, self.seeds)

  def divergence(self, arm: str) -> Json:
    """Returns the held-out divergence from the teacher over the steps."""
    names = [registered.HELD_OUT_KL]
    return arm_results.curve(self.results, arm, names, self.seeds)

  def sets(self) -> dict[str, list[str]]:
    """Returns the tasks of the target ability by role."""
    tasks = self.study.tasks
    return {
      "in_distribution": [tasks.in_distribution],
      "out_of_distribution": list(tasks.out_of_distribution),
    }

  def general(self) -> dict[str, list[str]]:
    """Returns the general tasks by kind of prompt."""
    kinds = ("chain_of_thought", "answer_only")
    return {
      kind: [task for task in self.study.tasks.general if kind in task]
      for kind in kinds
    }


def _interval(scores: Sequence[Sequence[np.ndarray]]) -> Json:
  return dataclasses.asdict(intervals.bootstrap_over_seeds(scores))


def _cost(directory: pathlib.Path) -> Json:
  """Returns the cost of all processes, including stopped and failed ones."""
  spent = jobs.spent(directory)
  return {
    "processes": len(spent),
    "process_seconds": round(sum(s.seconds for s in spent), 1),
    "cpu_seconds": round(sum(s.cpu_seconds for s in spent), 1),
  }


def _gain_and_price(reading: _Reading) -> Json:
  roles = reading.study.roles
  before, after = roles.general, roles.specialized
  general = {f"general_{k}": t for k, t in reading.general().items()}
  sets = {**reading.sets(), **general}
  rows = []
  for role, tasks in sets.items():
    shown = [[task] for task in tasks]
    if len(tasks) > 1:
      shown.append(tasks)
    for part in shown:
      by_task, *_ = reading.scores(after, part)  # of the first seed
      rows.append(
        {
          "role": role,
          "task": part[0] if len(part) == 1 else None,
          "n": sum(map(len, by_task)),
          "before": reading.accuracy(before, part),
          "after": reading.accuracy(after, part),
          "difference": reading.difference(before, after, part),
        }
      )
  curves = {role: reading.curve(after, tasks) for role, tasks in sets.items()}
  return {"rows": rows, "curves": curves}


def _matching(reading: _Reading) -> Json:
  roles = reading.study.roles
  named = {DISTRIBUTION: roles.specialized, SAMPLE: roles.sample_matching}
  divergences = {name: reading.divergence(arm) for name, arm in named.items()}
  return {
    "divergences": divergences,
    "accuracies": {
      name: {r: reading.curve(arm, t) for r, t in reading.sets().items()}
      for name, arm in named.items()
    },
    "levels": [_level(divergences, fraction) for fraction in _FRACTIONS],
    "differences": {
      role: reading.difference(named[SAMPLE], named[DISTRIBUTION], tasks)
      for role, tasks in reading.sets().items()
    },
  }


def steps_to(
  steps: Sequence[float], values: Sequence[float], level: float
) -> float | None:
  """Returns where a curve first falls to `level`; None if it never does.

  Between two evaluations the curve is a straight line.

  Example: 25 for a level of 1.5 and values 3, 2 and 1 at steps 10, 20 and 30.
  """
  for place, (step, value) in enumerate(zip(steps, values, strict=True)):
    if value > level:
      continue
    if not place:
      return step
    before, above = steps[place - 1], values[place - 1]
    return before + (step - before) * (above - level) / (above - value)
  return None


def _level(divergences: Mapping[str, Json], fraction: float) -> Json:
  """Returns when each objective reaches sample matching's best by a step."""
  steps = divergences[SAMPLE]["steps"]
  until = max(1, round(fraction * (len(steps) - 1))) + 1
  levels = [min(values[:until]) for values in divergences[SAMPLE]["seeds"]]
  return {
    "fraction": fraction,
    "divergence": levels,
    "steps": {
      name: [
        steps_to(curve["steps"], values, level)
        for values, level in zip(curve["seeds"], levels, strict=True)
      ]
      for name, curve in divergences.items()
    },
  }


def _formats(reading: _Reading) -> Json:
  """Computes accuracy in both kinds of prompt by training formats."""
  study = reading.study
  prompts = {
    "zero_shot": [task for part in reading.sets().values() for task in part],
    "in_context": list(study.in_context),
  }
  named = {"general": study.roles.general, **study.roles.formats}
  return {
    "arms": {
      name: {
        prompt: reading.accuracy(arm, tasks)
        for prompt, tasks in prompts.items()
      }
      for name, arm in named.items()
    },
    "differences": {
      name: {
        prompt: reading.difference(study.roles.general, arm, tasks)
        for prompt, tasks in prompts.items()
      }
      for name, arm in study.roles.formats.items()
    },
    # Pairwise comparisons of formats: the first minus the second.
    "contrasts": [
      {
        "first": first,
        "second": second,
        **{
          prompt: reading.difference(
            study.roles.formats[second], study.roles.formats[first], tasks
          )
          for prompt, tasks in prompts.items()
        },
      }
      for place, first in enumerate(study.roles.formats)
      for second in list(study.roles.formats)[place + 1 :]
    ],
  }


def _selection(reading: _Reading) -> Json:
  """Computes the cost of in-distribution selection on the test sets."""
  tasks = list(reading.study.tasks.out_of_distribution)
  specialized = [
    arm.name
    for arm in reading.study.arms
    if all(
      arms.IN_DISTRIBUTION in reading.results[arm.name, seed].steps
      for seed in reading.seeds
    )
  ]
  costs = {
    arm: arm_results.contrast(
      [
        (1.0, reading.scores(arm, tasks, arms.SELECTED)),
        (-1.0, reading.scores(arm, tasks, arms.IN_DISTRIBUTION)),
      ]
    )
    for arm in specialized
  }
  # The arms of a seed share its world, so they are pooled like tasks.
  pooled = [
    [task for arm in specialized for task in costs[arm][place]]
    for place in range(len(reading.seeds))
  ]
  main = reading.study.roles.specialized
  return {
    "runs": [
      {
        "arm": arm,
        "seed": seed,
        "steps": dict(reading.results[arm, seed].steps),
        "cost": float(np.mean([task.mean() for task in costs[arm][place]])),
      }
      for arm in specialized
      for place, seed in enumerate(reading.seeds)
    ],
    "cost": _interval(pooled),
    "late_change": {
      role: _late_change(reading.curve(main, part))
      for role, part in reading.sets().items()
    },
  }


def _late_change(curve: Json) -> list[float]:
  """Returns, by seed, the last validation accuracy minus the best before."""
  return [
    values[-1] - max(values[:-1], default=math.nan) for values in curve["seeds"]
  ]


def _scaling(reading: _Reading) -> Json:
  """Computes accuracy by size, and fits a line over log size."""
  pairs = reading.study.roles.sizes
  sizes = [
    reading.results[after, reading.seeds[0]].num_params for _, after in pairs
  ]
  return {
    "sizes": [
      {
        "num_params": num_params,
        **{
          role: {
            "before": reading.accuracy(before, tasks),
            "after": reading.accuracy(after, tasks),
          }
          for role, tasks in reading.sets().items()
        },
      }
      for num_params, (before, after) in zip(sizes, pairs, strict=True)
    ],
    "fits": {
      role: _fit(
        np.log2(sizes), [reading.scores(after, tasks) for _, after in pairs]
      )
      for role, tasks in reading.sets().items()
    },
  }


def _starts(reading: _Reading) -> Json:
  """Computes accuracy before and after from both starts, if both were run."""
  roles = reading.study.roles
  if roles.raw_start is None:
    return {}
  pairs = {
    "instructed": (roles.general, roles.specialized),
    "raw": roles.raw_start,
  }
  return {
    start: {
      role: {
        "before": reading.accuracy(before, tasks),
        "after": reading.accuracy(after, tasks),
      }
      for role, tasks in reading.sets().items()
    }
    for start, (before, after) in pairs.items()
  }


def _fit(
  x: np.ndarray, scores: Sequence[Sequence[Sequence[np.ndarray]]]
) -> Json:
  """Fits accuracy = intercept + slope * x by least squares.

  The slope is a weighted sum of accuracies, so its interval is that of the same
  weighted sum of verdicts by question.
  """
  centred = x - x.mean()
  spread = (centred**2).sum()
  weights = centred / spread if spread else centred  # one size has no slope
  slope = _interval(
    arm_results.contrast(list(zip(weights.tolist(), scores, strict=True)))
  )
  means = np.array(
    [np.mean([[t.mean() for t in tasks] for tasks in s]) for s in scores]
  )
  residuals = means - means.mean() - slope["estimate"] * centred
  total = ((means - means.mean()) ** 2).sum()
  return {
    "slope_per_doubling": slope,
    "intercept": float(means.mean() - slope["estimate"] * x.mean()),
    "r_squared": float(1 - (residuals**2).sum() / total) if total else None,
  }
