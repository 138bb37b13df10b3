"""Confidence intervals of accuracies and of differences of accuracies.

Plain NumPy on counts and 0/1 verdicts, independent of tasks and models.
Accuracies and bounds are in [0, 1].
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy import special


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate and its confidence interval.

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
  """Computes the Wilson score interval of an accuracy.

  With p the accuracy, n the number of examples and z the normal quantile
  (Wilson, 1927, "Probable inference, the law of succession, and statistical
  inference"):

    (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

  Unlike the normal approximation p -+ z sqrt(p (1 - p) / n), it lies within
  [0, 1] and has a positive width even if all or none are correct.

  Example: [0.490, 0.943] for 8 of 10 correct.

  Args:
    num_correct: number of correct answers, from 0 to `num_examples`.
    num_examples: number of questions. If zero, the interval is [0, 1] and the
      estimate nan.
    confidence: coverage of the interval, between 0 and 1.

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
  # Rounding must not push a bound past the estimate or out of [0, 1].
  low = min(max(center - half, 0.0), share)
  high = max(min(center + half, 1.0), share)
  return Interval(share, low, high)


def newcombe(before: Interval, after: Interval) -> Interval:
  """Computes the interval of `after - before` of two independent samples.

  Newcombe's hybrid score interval (1998, "Interval estimation for the
  difference between independent proportions", method 10), computed from both
  Wilson intervals. On the same questions it is wider than `paired_bootstrap`;
  use it if individual verdicts are not available.

  Example: a difference of 1.0 in [0.607, 1.0] for 0 of 10 before and 10 of 10
  after.

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
  """Computes the interval of the mean of independent estimates.

  The method of variance estimates recovery (Zou and Donner, 2008, "Construction
  of confidence limits about effect measures: a general approach"): distances
  from estimates to their bounds are added in quadrature, separately for lower
  and upper bounds.

  Example: the mean of [0.4, 0.5, 0.6] twice, each as (low, estimate, high),
  is 0.5 in [0.429, 0.571].

  Args:
    parts: estimates with intervals of the same confidence, at least one.

  Returns:
    The mean and its interval.

  Raises:
    ValueError: `parts` is empty.
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
  """Computes the interval of `mean(after) - mean(before)`, paired by question.

  Questions are resampled with replacement, keeping both verdicts of a question
  together, and the interval is the central `confidence` of the differences. It
  is that of `paired_bootstrap_mean` for one task.

  Args:
    before: verdicts (0 or 1, or any score), one per question.
    after: verdicts on the same questions in the same order.
    confidence: coverage of the interval, between 0 and 1.
    num_resamples: number of bootstrap resamples.
    seed: random seed; the same seed returns the same interval.

  Returns:
    The difference and its interval.

  Raises:
    ValueError: the lengths differ or are zero.
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
  """Computes the interval of the mean paired difference over tasks.

  Each task is resampled separately and has the same weight, whatever its number
  of questions. This is the mean that the paper reports and selects by.

  If all questions of a task have the same difference, resampling finds no
  other: the interval then includes, in quadrature, the share of questions that
  could differ unseen, by Wilson's upper limit of none of n.

  Args:
    pairs: the verdicts `(before, after)` of each task.
    confidence: coverage of the interval, between 0 and 1.
    num_resamples: number of bootstrap resamples.
    seed: random seed.

  Returns:
    The mean difference and its interval.

  Raises:
    ValueError: `pairs` is empty, or the lengths of a pair differ or are zero.
  """
  if not pairs:
    raise ValueError("pairs must hold at least one task, got none.")
  _normal_quantile(confidence)
  generator = np.random.default_rng(seed)
  estimates, unseen, resampled = [], [], np.zeros(num_resamples)
  for before, after in pairs:
    if len(before) != len(after) or len(before) == 0:
      raise ValueError(
        "before and after must hold the same questions, at least one; got "
        f"{len(before)} and {len(after)}."
      )
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    estimates.append(differences.mean())
    if (differences == differences[0]).all():
      unseen.append(wilson(0, len(differences), confidence=confidence).high)
    resampled += _resampled_means(differences, (num_resamples,), generator)
  resampled /= len(pairs)
  tail = (1.0 - confidence) / 2.0
  low, high = np.quantile(resampled, [tail, 1.0 - tail])
  mean = float(np.mean(estimates))
  if not unseen:
    return Interval(mean, float(low), float(high))
  more = float(np.linalg.norm(unseen)) / len(pairs)
  limit = max(1.0, abs(mean))  # of verdicts 1
  return Interval(
    mean,
    max(-limit, mean - math.hypot(mean - low, more)),
    min(limit, mean + math.hypot(high - mean, more)),
  )


def bootstrap_over_seeds(
  scores: Sequence[Sequence[Sequence[float]]],
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> Interval:
  """Computes the interval of a mean over seeds, tasks and questions.

  Seeds are resampled with replacement, and for each resampled seed so are the
  questions of each of its tasks. A difference that only one seed or a few
  questions show therefore has a wide interval. A score may be a verdict, the
  difference of two verdicts on a question, or any contrast of several.

  With few seeds the interval is conservative: with three, one resample in nine
  consists of a single seed, so the interval spans almost their whole range.

  Args:
    scores: scores by seed, task and question.
    confidence: coverage of the interval, between 0 and 1.
    num_resamples: number of bootstrap resamples.
    seed: random seed.

  Returns:
    The mean and its interval; seeds, and tasks within a seed, have equal
    weight.

  Raises:
    ValueError: there is no seed, or a seed without tasks, or a task without
      questions.
  """
  if not scores or any(
    not tasks or any(len(task) == 0 for task in tasks) for tasks in scores
  ):
    raise ValueError("scores must hold seeds of tasks of questions, got none.")
  _normal_quantile(confidence)
  generator = np.random.default_rng(seed)
  num_seeds = len(scores)
  means = [float(np.mean([np.mean(task) for task in s])) for s in scores]
  # One column for each slot of a resample, with independently drawn questions.
  means_by_seed = [
    sum(
      _resampled_means(task, (num_resamples, num_seeds), generator)
      for task in tasks
    )
    / len(tasks)
    for tasks in scores
  ]
  which = generator.integers(num_seeds, size=(num_resamples, num_seeds))
  resampled = np.take_along_axis(np.stack(means_by_seed), which[None], axis=0)[
    0
  ]
  resampled = resampled.mean(axis=1)
  tail = (1.0 - confidence) / 2.0
  low, high = np.quantile(resampled, [tail, 1.0 - tail])
  return Interval(float(np.mean(means)), float(low), float(high))


def student_t(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
  """Computes the mean of some values and its Student's t interval.

  mean -+ t sqrt(variance / n), with t the quantile for n - 1 degrees of
  freedom.

  Example: [-1.48, 3.48] for 0, 1 and 2.

  Args:
    values: independent values, such as one for each seed.
    confidence: coverage of the interval, between 0 and 1.

  Raises:
    ValueError: there are fewer than two values.
  """
  _normal_quantile(confidence)
  if len(values) < 2:
    raise ValueError(f"{len(values)} values have no variance; expected 2.")
  mean = float(np.mean(values))
  quantile = special.stdtrit(len(values) - 1, (1 + confidence) / 2)
  half = float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))
  return Interval(mean, mean - half, mean + half)


def _resampled_means(
  scores: Sequence[float],
  shape: tuple[int, ...],
  generator: np.random.Generator,
) -> np.ndarray:
  """Computes the means of bootstrap resamples of `scores`.

  A resample is drawn as the multinomial counts of the distinct scores, which
  are three for differences of verdicts.
  """
  values, counts = np.unique(np.asarray(scores, np.float64), return_counts=True)
  draws = generator.multinomial(len(scores), counts / len(scores), size=shape)
  return draws @ values / len(scores)


def _normal_quantile(confidence: float) -> float:
  """Returns z such that [-z, z] has the mass `confidence` of a normal."""
  if not 0.0 < confidence < 1.0:
    raise ValueError(f"confidence must lie between 0 and 1, got {confidence}.")
  return statistics.NormalDist().inv_cdf(0.5 + confidence / 2.0)
