"""The tests of a study that were written down before it was run.

`docs/study.md` registers them in words. Each is a statistic whose sign is such
that the paper's claim is positive; it holds if its 95 % interval is above zero,
and a finding appears if all of its tests hold. There are two kinds of interval:
where there is a verdict on every question, a bootstrap over seeds and, within a
seed, over questions, paired by question; where there is one number a seed,
Student's t over seeds. A test that the study has no runs for is left out, and
the finding is then not said to appear.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax.evaluation import intervals
from specialize_jax.study import arm_results, arms, curves

HELD_OUT_KL = "held_out/loss_kl"

FINDINGS = (
  "gain and price",
  "distribution matching",
  "formats",
  "selection",
  "scaling",
  "starts",
)

_ACCURACY, _NATS, _SHARE = "points", "nats", "share"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
  """A registered test and its outcome.

  Attributes:
    finding: one of `FINDINGS`.
    name: the statistic in words, positive if the claim is true.
    unit: "points" of accuracy (the statistic is a share of 1), "nats" a token,
      or "share".
    interval: its estimate and 95 % interval; None if the study has no runs for
      it, or where the interval is over seeds, a single seed or one without the
      statistic (a share of a loss that there was not).
  """

  finding: str
  name: str
  unit: str
  interval: intervals.Interval | None

  @property
  def holds(self) -> bool:
    """Whether the whole interval is above zero."""
    return self.interval is not None and self.interval.low > 0


def tests(
  study: arms.Study, results: arm_results.Results, seeds: Sequence[int]
) -> list[Test]:
  """Computes every registered test, in the order of `FINDINGS`."""
  measured = _Measured(study, results, seeds)
  return [
    *_gain_and_price(measured),
    *_matching(measured),
    *_formats(measured),
    *_selection(measured),
    *_scaling(measured),
    *_starts(measured),
  ]


Weighted = Sequence[tuple[float, str]]
"""Weights of arms: (1, "a") and (-1, "b") are the difference a - b."""


@dataclasses.dataclass(frozen=True)
class _Measured:
  """The results of a study, and the two kinds of interval."""

  study: arms.Study
  results: arm_results.Results
  seeds: Sequence[int]

  @property
  def roles(self) -> arms.Roles:
    return self.study.roles

  @property
  def inside(self) -> list[str]:
    return [self.study.tasks.in_distribution]

  @property
  def outside(self) -> list[str]:
    return list(self.study.tasks.out_of_distribution)

  def general(self, kind: str) -> list[str]:
    return [task for task in self.study.tasks.general if kind in task]

  def contrast(
    self, weighted: Weighted, tasks: Sequence[str]
  ) -> intervals.Interval:
    """Weighs the accuracies of arms, by question."""
    scores = [
      (weight, arm_results.scores(self.results, arm, tasks, self.seeds))
      for weight, arm in weighted
    ]
    return intervals.bootstrap_over_seeds(arm_results.contrast(scores))

  def over_seeds(self, values: Sequence[float]) -> intervals.Interval | None:
    if len(values) < 2 or not all(map(math.isfinite, values)):
      return None
    return intervals.student_t(values)

  def curve(self, arm: str, names: Sequence[str]) -> list[dict[int, float]]:
    """Returns the mean of validation metrics by step, for each seed."""
    return [
      {
        step: float(np.mean([row[name] for name in names]))
        for step, row in self.results[arm, seed].validation.items()
        if all(name in row for name in names)
      }
      for seed in self.seeds
    ]

  def accuracy_curve(
    self, arm: str, tasks: Sequence[str]
  ) -> list[dict[int, float]]:
    return self.curve(arm, [f"{task}/accuracy" for task in tasks])


def _gain_and_price(measured: _Measured) -> list[Test]:
  after, before = measured.roles.specialized, measured.roles.general
  gain, loss = [(1.0, after), (-1.0, before)], [(1.0, before), (-1.0, after)]
  kinds = {
    "chain-of-thought": measured.general("chain_of_thought"),
    "answer-only": measured.general("answer_only"),
  }
  named = {
    "gain in distribution": (gain, measured.inside),
    "gain out of distribution": (gain, measured.outside),
    **{
      f"loss of general ability, {kind}": (loss, tasks)
      for kind, tasks in kinds.items()
    },
  }
  found = [
    _test("gain and price", name, measured.contrast(*how))
    for name, how in named.items()
  ]
  chain, answer = (
    [curves.early_share(c) for c in measured.accuracy_curve(after, tasks)]
    for tasks in kinds.values()
  )
  paces = [one - other for one, other in zip(chain, answer, strict=True)]
  return [
    *found,
    _test(
      "gain and price",
      "share of the loss that has come about at the first evaluation, "
      "chain-of-thought minus answer-only",
      measured.over_seeds(paces),
      unit=_SHARE,
    ),
  ]


def _matching(measured: _Measured) -> list[Test]:
  distribution = measured.roles.specialized
  sample = measured.roles.sample_matching
  divergences = mean_difference(
    measured.curve(sample, [HELD_OUT_KL]),
    measured.curve(distribution, [HELD_OUT_KL]),
  )
  maths = [*measured.inside, *measured.outside]
  accuracies = mean_difference(
    measured.accuracy_curve(distribution, maths),
    measured.accuracy_curve(sample, maths),
  )
  return [
    _test(
      "distribution matching",
      "held-out divergence from the teacher, mean over the evaluations, sample "
      "minus distribution matching",
      measured.over_seeds(divergences),
      unit=_NATS,
    ),
    _test(
      "distribution matching",
      "validation accuracy, mean over the evaluations, distribution minus "
      "sample matching",
      measured.over_seeds(accuracies),
    ),
  ]


def mean_difference(
  first: Sequence[Mapping[int, float]], second: Sequence[Mapping[int, float]]
) -> list[float]:
  """Returns how far one curve lies above another on average, for each seed.

  A curve that gets to each level in fewer steps lies above throughout, however
  the steps between two evaluations are interpolated. Step 0, which two runs
  from the same start share, does not count. NaN without common steps.

  Example: 0.15 for {0: 0, 10: 0.3, 20: 0.4} and {0: 0, 10: 0.1, 20: 0.3}.
  """
  found = []
  for one, other in zip(first, second, strict=True):
    steps = [step for step in one if step and step in other]
    apart = [one[step] - other[step] for step in steps]
    found.append(float(np.mean(apart)) if apart else math.nan)
  return found


def _formats(measured: _Measured) -> list[Test]:
  shares = measured.roles.in_context_shares
  before = measured.roles.general
  zero_shot = [*measured.inside, *measured.outside]
  in_context = list(measured.study.in_context)
  names = {
    "in-context ability of the general model that zero-shot data loses": None,
    "gain by in-context data in in-context prompts": None,
    "gain by in-context data in zero-shot prompts": None,
    "slope of the accuracy in in-context prompts over the share of in-context "
    "data": None,
  }
  if {0.0, 1.0} <= set(shares):
    least, most = shares[0.0], shares[1.0]
    weights = slope_weights(list(shares))
    found = (
      measured.contrast([(1.0, before), (-1.0, least)], in_context),
      measured.contrast([(1.0, most), (-1.0, before)], in_context),
      measured.contrast([(1.0, most), (-1.0, before)], zero_shot),
      measured.contrast(
        list(zip(weights, shares.values(), strict=True)), in_context
      ),
    )
    names = dict(zip(names, found, strict=True))
  return [_test("formats", name, found) for name, found in names.items()]


def slope_weights(x: Sequence[float]) -> list[float]:
  """Returns the weights of y by which sum w y is the least-squares slope.

  Example: [-1, 0, 1] for x of 0, 1/2 and 1.
  """
  centred = np.asarray(x, np.float64) - np.mean(x)
  spread = float((centred**2).sum())
  return (centred / spread if spread else centred).tolist()


def _selection(measured: _Measured) -> list[Test]:
  roles, seeds = measured.roles, measured.seeds
  arm = roles.overfitted or roles.specialized
  tests = [measured.results[arm, seed].verdicts for seed in seeds]
  cost = None
  if all(arms.IN_DISTRIBUTION in one for one in tests):
    outside = measured.outside
    pair = [
      (
        weight,
        arm_results.scores(measured.results, arm, outside, seeds, rule=rule),
      )
      for weight, rule in ((1.0, arms.SELECTED), (-1.0, arms.IN_DISTRIBUTION))
    ]
    cost = intervals.bootstrap_over_seeds(arm_results.contrast(pair))
  falls = [
    late_fall(outside) - late_fall(inside)
    for inside, outside in zip(
      measured.accuracy_curve(arm, measured.inside),
      measured.accuracy_curve(arm, measured.outside),
      strict=True,
    )
  ]
  return [
    _test(
      "selection",
      "test accuracy out of distribution, selected there minus selected in "
      "distribution",
      cost,
    ),
    _test(
      "selection",
      "fall from the best validation accuracy to the last, out of minus in "
      "distribution",
      measured.over_seeds(falls),
    ),
  ]


def late_fall(curve: Mapping[int, float]) -> float:
  """Returns how far the last value is below the best one; 0 if it is the best.

  Example: 0.1 for {0: 0.0, 50: 0.4, 100: 0.3}. NaN for an empty curve.
  """
  if not curve:
    return math.nan
  return max(curve.values()) - curve[max(curve)]


def _scaling(measured: _Measured) -> list[Test]:
  pairs = measured.roles.sizes
  sizes = [
    measured.results[after, measured.seeds[0]].num_params for _, after in pairs
  ]
  weights = slope_weights(np.log2(sizes).tolist())
  after = [(w, arm) for w, (_, arm) in zip(weights, pairs, strict=True)]
  before = [(-w, arm) for w, (arm, _) in zip(weights, pairs, strict=True)]
  found = []
  for role, tasks in (
    ("in distribution", measured.inside),
    ("out of distribution", measured.outside),
  ):
    found += [
      _test(
        "scaling",
        f"slope a doubling of the parameters, {role}, after",
        measured.contrast(after, tasks),
      ),
      _test(
        "scaling",
        f"slope a doubling of the parameters, {role}, after minus before",
        measured.contrast([*after, *before], tasks),
      ),
    ]
  return found


def _starts(measured: _Measured) -> list[Test]:
  """Compares the general model with a raw one that has only read text."""
  roles = measured.roles
  tasks = [*measured.inside, *measured.outside]
  end = gain = None
  if roles.raw_start:
    raw_before, raw_after = roles.raw_start
    end = measured.contrast(
      [(1.0, roles.specialized), (-1.0, raw_after)], tasks
    )
    gain = measured.contrast(
      [
        (1.0, raw_after),
        (-1.0, raw_before),
        (-1.0, roles.specialized),
        (1.0, roles.general),
      ],
      tasks,
    )
  return [
    _test("starts", "accuracy after, instructed minus raw start", end),
    _test("starts", "gain, raw minus instructed start", gain),
  ]


def _test(
  finding: str,
  name: str,
  interval: intervals.Interval | None,
  unit: str = _ACCURACY,
) -> Test:
  return Test(finding=finding, name=name, unit=unit, interval=interval)
