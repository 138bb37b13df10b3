"""Intervals against published numbers, laws and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specialize_jax.evaluation import intervals


def test_students_interval_is_the_tables():
  # t for 2 degrees of freedom is 4.303; the deviation of 0, 1, 2 is 1.
  interval = intervals.student_t([0.0, 1.0, 2.0])
  assert interval.estimate == 1.0
  assert interval.high == pytest.approx(1 + 4.3027 / math.sqrt(3), abs=1e-4)
  assert interval.low == pytest.approx(1 - 4.3027 / math.sqrt(3), abs=1e-4)
  with pytest.raises(ValueError, match="1 values have no variance"):
    intervals.student_t([1.0])


def test_wilson_equals_the_numbers_of_the_docstring():
  interval = intervals.wilson(8, 10)
  assert interval.estimate == 0.8
  assert interval.low == pytest.approx(0.490, abs=5e-4)
  assert interval.high == pytest.approx(0.943, abs=5e-4)


def test_wilson_equals_newcombes_published_numbers():
  # Newcombe (1998), "Two-sided confidence intervals for the single
  # proportion", table I, method 3.
  for correct, total, low, high in [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ]:
    interval = intervals.wilson(correct, total)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_newcombe_equals_published_numbers_of_a_difference():
  # Newcombe (1998), "Interval estimation for the difference between
  # independent proportions", table II, method 10: 56/70 - 48/80.
  difference = intervals.newcombe(
    intervals.wilson(48, 80), intervals.wilson(56, 70)
  )
  assert difference.estimate == pytest.approx(0.2)
  assert difference.low == pytest.approx(0.0524, abs=5e-5)
  assert difference.high == pytest.approx(0.3339, abs=5e-5)


@given(st.data())
def test_wilson_contains_its_estimate_and_stays_within_zero_and_one(data):
  total = data.draw(st.integers(1, 5000))
  correct = data.draw(st.integers(0, total))
  interval = intervals.wilson(correct, total)
  assert 0.0 <= interval.low <= interval.estimate <= interval.high <= 1.0
  mirrored = intervals.wilson(total - correct, total)
  assert mirrored.low == pytest.approx(1.0 - interval.high, abs=1e-12)


def test_wilson_of_no_examples_is_the_whole_range():
  interval = intervals.wilson(0, 0)
  assert math.isnan(interval.estimate)
  assert (interval.low, interval.high) == (0.0, 1.0)


def test_wilson_has_its_nominal_coverage():
  generator = np.random.default_rng(0)
  for truth in (0.1, 0.5, 0.9):
    correct = generator.binomial(100, truth, size=4000)
    bounds = [intervals.wilson(int(k), 100) for k in range(101)]
    covered = [bounds[k].low <= truth <= bounds[k].high for k in correct]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_the_paired_bootstrap_has_its_nominal_coverage():
  generator = np.random.default_rng(1)
  covered = []
  for trial in range(300):
    # Half of the questions decide themselves; the rest improve by 0.2.
    before = generator.random(200) < 0.4
    after = before | (generator.random(200) < 1.0 / 3.0)
    interval = intervals.paired_bootstrap(
      before, after, num_resamples=1000, seed=trial
    )
    covered.append(interval.low <= 0.6 / 3.0 <= interval.high)
  assert np.mean(covered) == pytest.approx(0.95, abs=0.04)


def test_pairing_narrows_the_interval():
  before = [1] * 50 + [0] * 50
  after = [1] * 70 + [0] * 30
  paired = intervals.paired_bootstrap(before, after)
  separate = intervals.newcombe(
    intervals.wilson(50, 100), intervals.wilson(70, 100)
  )
  assert paired.estimate == pytest.approx(separate.estimate)
  assert paired.high - paired.low < separate.high - separate.low


def test_the_paired_bootstrap_is_that_of_drawing_questions():
  generator = np.random.default_rng(2)
  before = generator.random(80) < 0.5
  after = generator.random(80) < 0.7
  interval = intervals.paired_bootstrap(before, after, num_resamples=20_000)
  drawn = generator.integers(0, 80, size=(20_000, 80))
  differences = (after.astype(float) - before)[drawn].mean(axis=1)
  low, high = np.quantile(differences, [0.025, 0.975])
  assert interval.low == pytest.approx(low, abs=0.013)
  assert interval.high == pytest.approx(high, abs=0.013)


def test_the_mean_over_tasks_counts_each_task_once():
  small = ([0, 0], [1, 1])
  large = ([0] * 100, [0] * 100)
  interval = intervals.paired_bootstrap_mean([small, large])
  assert interval.estimate == pytest.approx(0.5)


def test_a_task_without_differences_widens_a_mean():
  """By what could differ unseen; no interval has no width."""
  none = ([0] * 100, [0] * 100)
  (alone,) = [intervals.paired_bootstrap(*none)]
  assert alone == intervals.paired_bootstrap_mean([none])
  assert (alone.low, alone.high) == pytest.approx((-0.037, 0.037), abs=5e-4)
  two = intervals.paired_bootstrap_mean([none, none])
  assert two.high == pytest.approx(alone.high / np.sqrt(2))
  some = ([0] * 100, [1] * 30 + [0] * 70)
  mixed, other = (
    intervals.paired_bootstrap_mean([some, task])
    for task in (none, ([0] * 100, [1] * 2 + [0] * 98))
  )
  assert mixed.estimate == pytest.approx(0.15)
  width = mixed.high - mixed.low
  assert width == pytest.approx(other.high - other.low, rel=0.1)


def test_a_mean_of_intervals_narrows_as_standard_deviations_do():
  part = intervals.Interval(0.5, 0.4, 0.6)
  mean = intervals.mean([part, part])
  assert mean.estimate == 0.5
  assert mean.low == pytest.approx(0.429, abs=5e-4)
  assert mean.high == pytest.approx(0.571, abs=5e-4)
  assert intervals.mean([part]) == part


def test_intervals_are_a_function_of_the_seed():
  before, after = [0, 1, 0, 1, 1], [1, 1, 0, 1, 0]
  first = intervals.paired_bootstrap(before, after, seed=3)
  assert first == intervals.paired_bootstrap(before, after, seed=3)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: intervals.wilson(3, 2), "num_correct must be from 0"),
    (lambda: intervals.wilson(1, 2, confidence=1.0), "confidence must lie"),
    (lambda: intervals.paired_bootstrap([1], [1, 0]), "the same questions"),
    (lambda: intervals.paired_bootstrap([], []), "at least one"),
    (lambda: intervals.paired_bootstrap_mean([]), "at least one task"),
    (lambda: intervals.mean([]), "at least one interval"),
  ],
)
def test_arguments_out_of_range_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_bootstrap_over_one_seed_is_the_bootstrap_of_its_questions():
  rng = np.random.default_rng(3)
  before = (rng.random(200) < 0.4).astype(float)
  after = (rng.random(200) < 0.6).astype(float)
  ours = intervals.bootstrap_over_seeds([[after - before]])
  plain = intervals.paired_bootstrap(before, after)
  assert ours.estimate == plain.estimate
  assert ours.low == pytest.approx(plain.low, abs=0.011)
  assert ours.high == pytest.approx(plain.high, abs=0.011)


def test_seeds_that_disagree_widen_the_interval():
  agree = intervals.bootstrap_over_seeds([[[0.0, 1.0] * 200]] * 3)
  disagree = intervals.bootstrap_over_seeds(
    [[[0.0] * 400], [[0.0, 1.0] * 200], [[1.0] * 400]]
  )
  assert agree.estimate == disagree.estimate == 0.5
  assert agree.high - agree.low < 0.1
  assert disagree.low < 0.05
  assert disagree.high > 0.95


def test_each_task_and_each_seed_counts_the_same():
  part = intervals.bootstrap_over_seeds(
    [[[1.0] * 10, [0.0] * 90], [[1.0], [1.0, 1.0]]]
  )
  assert part.estimate == pytest.approx(0.75)


def test_a_contrast_s_interval_covers_the_truth():
  # Five seeds, each with its own accuracy, 60 questions a task, two tasks.
  rng = np.random.default_rng(11)
  covered = 0
  for trial in range(200):
    shares = 0.5 + 0.1 * rng.normal(size=5)
    scores = [
      [(rng.random(60) < share).astype(float) for _ in range(2)]
      for share in shares
    ]
    part = intervals.bootstrap_over_seeds(
      scores, num_resamples=1000, seed=trial
    )
    covered += part.low <= 0.5 <= part.high
  # Few seeds: the bootstrap is known to be short of its nominal 95 %.
  assert 0.8 <= covered / 200 <= 1.0


@pytest.mark.parametrize("scores", [[], [[]], [[[]]], [[[1.0]], []]])
def test_a_bootstrap_of_nothing_is_refused(scores):
  with pytest.raises(ValueError, match="got none"):
    intervals.bootstrap_over_seeds(scores)
