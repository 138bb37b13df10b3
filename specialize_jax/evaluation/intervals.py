"""How sure an accuracy is: intervals for one and for a difference.

Everything here is plain NumPy on counts and on 0/1 verdicts; nothing knows
of tasks or models. Accuracies and bounds are shares from 0 to 1.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate and the interval around it.

  Attributes:
    estimate: the accuracy, or the difference of two accuracies.
    low: the lower bound.
    high: the upper bound.
  """

  estimate: float
  low: float
  high: float


def wilson(
  num_correct: int, num_examples: int, *, confidence: float = 0.95
) -> Interval:
  """Gives the Wilson score interval of one accuracy.

  With p the accuracy, n the number of examples and z the normal quantile
  (Wilson, 1927, "Probable inference, the law of succession, and statistical
  inference"):

    (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

  Unlike the textbook p -+ z sqrt(p (1 - p) / n) it stays inside [0, 1] and
  has a width even when everything, or nothing, is right.

  Example: 8 of 10 right gives [0.490, 0.943].

  Args:
    num_correct: how many are right, from 0 to `num_examples`.
    num_examples: how many were asked. With none the interval is [0, 1] and
      the estimate is not a number.
    confidence: the coverage wanted, between 0 and 1.

  Returns:
    The accuracy and its interval.

  Raises:
    ValueError: a count or the confidence is out of its range.
  """
  if not 0 <= num_correct <= num_examples:
    raise ValueError(
      f"num_correct must be from 0 to num_examples={num_examples}, got "
      f"{num_correct}."
    )
  if num_examples == 0:
    return Interval(math.nan, 0.0, 1.0)
  z = _normal_quantile(confidence)
  share = num_correct / num_examples
  shrink = 1.0 + z**2 / num_examples
  center = (share + z**2 / (2 * num_examples)) / shrink
  variance = share * (1 - share) / num_examples + z**2 / (4 * num_examples**2)
  half = z * math.sqrt(variance) / shrink
  # Rounding may leave a bound a hair outside of what it must contain.
  low = min(max(center - half, 0.0), share)
  high = max(min(center + half, 1.0), share)
  return Interval(share, low, high)


def newcombe(before: Interval, after: Interval) -> Interval:
  """Gives the interval of `after - before` from two separate samples.

  Newcombe's hybrid score interval (1998, "Interval estimation for the
  difference between independent proportions", method 10), which needs no
  more than both Wilson intervals. On the same questions it is wider than
  `paired_bootstrap`, so use it where single verdicts are not at hand.

  Example: 0 of 10 before and 10 of 10 after give a difference of 1.0 in
  [0.607, 1.0].

  Args:
    before: the Wilson interval of the first accuracy.
    after: the Wilson interval of the second, at the same confidence.

  Returns:
    The difference and its interval, within [-1, 1].
  """
  difference = after.estimate - before.estimate
  down = math.hypot(after.estimate - after.low, before.high - before.estimate)
  up = math.hypot(after.high - after.estimate, before.estimate - before.low)
  return Interval(
    difference, max(difference - down, -1.0), min(difference + up, 1.0)
  )


def mean(parts: Sequence[Interval]) -> Interval:
  """Gives the interval of the mean of independent estimates.

  The method of variance estimates recovery (Zou and Donner, 2008,
  "Construction of confidence limits about effect measures: a general
  approach"): the distances from the estimates to their bounds add up as
  standard deviations do, each side on its own.

  Example: the mean of [0.4, 0.5, 0.6] twice, each as (low, estimate, high),
  is 0.5 in [0.429, 0.571].

  Args:
    parts: estimates with intervals of the same confidence, at least one.

  Returns:
    The mean and its interval.

  Raises:
    ValueError: there is no part.
  """
  if not parts:
    raise ValueError("parts must hold at least one interval, got none.")
  estimate = sum(part.estimate for part in parts) / len(parts)
  down = math.hypot(*(part.estimate - part.low for part in parts))
  up = math.hypot(*(part.high - part.estimate for part in parts))
  return Interval(
    estimate, estimate - down / len(parts), estimate + up / len(parts)
  )


def paired_bootstrap(
  before: Sequence[float],
  after: Sequence[float],
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> Interval:
  """Gives the interval of `mean(after) - mean(before)` on the same questions.

  Questions are drawn with replacement, both verdicts of a question together,
  and the interval holds the middle `confidence` of the resampled differences.

  Args:
    before: verdicts (0 or 1, or any score), one a question.
    after: verdicts on the same questions in the same order.
    confidence: the coverage wanted, between 0 and 1.
    num_resamples: how often the questions are drawn anew.
    seed: of the draws; the same seed gives the same interval.

  Returns:
    The difference and its interval.

  Raises:
    ValueError: the two differ in length, or there is no question.
  """
  return paired_bootstrap_mean(
    [(before, after)],
    confidence=confidence,
    num_resamples=num_resamples,
    seed=seed,
  )


def paired_bootstrap_mean(
  pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> Interval:
  """Gives the interval of the mean over tasks of the paired differences.

  Each task is resampled on its own and each counts the same, whatever its
  number of questions: the mean that the paper selects by and reports.

  Args:
    pairs: the verdicts `(before, after)` of each task.
    confidence: the coverage wanted, between 0 and 1.
    num_resamples: how often the questions are drawn anew.
    seed: of the draws.

  Returns:
    The mean difference and its interval.

  Raises:
    ValueError: a pair differs in length or is empty, or there is no pair.
  """
  if not pairs:
    raise ValueError("pairs must hold at least one task, got none.")
  _normal_quantile(confidence)
  generator = np.random.default_rng(seed)
  estimates, resampled = [], np.zeros(num_resamples)
  for before, after in pairs:
    if len(before) != len(after) or len(before) == 0:
      raise ValueError(
        "before and after must hold the same questions, at least one; got "
        f"{len(before)} and {len(after)}."
      )
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    estimates.append(differences.mean())
    resampled += _resampled_means(differences, (num_resamples,), generator)
  resampled /= len(pairs)
  tail = (1.0 - confidence) / 2.0
  low, high = np.quantile(resampled, [tail, 1.0 - tail])
  return Interval(float(np.mean(estimates)), float(low), float(high))


def bootstrap_over_seeds(
  scores: Sequence[Sequence[Sequence[float]]],
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> Interval:
  """Gives the interval of a mean over seeds, tasks and questions.

  Seeds are drawn with replacement, and in each seed that is drawn, and of
  each of its tasks, so are the questions: a difference that one seed alone
  shows, or a few questions, has a wide interval. A score may be a verdict,
  the difference of two on the same question, or any contrast of several.

  Few seeds bound what can be said: of three, all draws are one and the same
  seed in one of nine, so the interval covers nearly their whole range.

  Args:
    scores: of each seed, of each task, of each question.
    confidence: the coverage wanted, between 0 and 1.
    num_resamples: how often seeds and questions are drawn anew.
    seed: of the draws.

  Returns:
    The mean, each task of a seed and each seed counting the same, and its
    interval.

  Raises:
    ValueError: there is no seed, a seed without a task, or a task without a
      question.
  """
  if not scores or any(
    not tasks or any(len(task) == 0 for task in tasks) for tasks in scores
  ):
    raise ValueError("scores must hold seeds of tasks of questions, got none.")
  _normal_quantile(confidence)
  generator = np.random.default_rng(seed)
  num_seeds = len(scores)
  means = [float(np.mean([np.mean(task) for task in s])) for s in scores]
  # One column a place that a seed can be drawn for, each of other questions.
  drawn = [
    sum(
      _resampled_means(task, (num_resamples, num_seeds), generator)
      for task in tasks
    )
    / len(tasks)
    for tasks in scores
  ]
  which = generator.integers(num_seeds, size=(num_resamples, num_seeds))
  resampled = np.take_along_axis(np.stack(drawn), which[None], axis=0)[0]
  resampled = resampled.mean(axis=1)
  tail = (1.0 - confidence) / 2.0
  low, high = np.quantile(resampled, [tail, 1.0 - tail])
  return Interval(float(np.mean(means)), float(low), float(high))


def _resampled_means(
  scores: Sequence[float],
  shape: tuple[int, ...],
  generator: np.random.Generator,
) -> np.ndarray:
  """Means of as many draws with replacement as `scores` has questions.

  Such a draw is a multinomial draw of how often each distinct score comes
  up: three of them for the differences of verdicts.
  """
  values, counts = np.unique(np.asarray(scores, np.float64), return_counts=True)
  draws = generator.multinomial(len(scores), counts / len(scores), size=shape)
  return draws @ values / len(scores)


def _normal_quantile(confidence: float) -> float:
  """The z that holds `confidence` of a normal distribution in [-z, z]."""
  if not 0.0 < confidence < 1.0:
    raise ValueError(f"confidence must lie between 0 and 1, got {confidence}.")
  return statistics.NormalDist().inv_cdf(0.5 + confidence / 2.0)
