"""Kinds of targets are compared on one world, start and order of batches."""

import math

import pytest
from testdata import tiny_demo

from specialize_jax.data import sources
from specialize_jax.study import alignment_modes
from tasks import mixtures  # noqa: F401  (registers every task)


def found(divergence, accuracy, error=0.1):
  return {
    "target_error": error,
    "divergence": {"a": [divergence, divergence], "b": [divergence + 2]},
    "accuracy": {"t": accuracy},
  }


def test_differences_are_taken_within_a_seed():
  # The seeds differ by 10; one kind is always better by about 1.
  seeds = [
    {"x": found(base, 0.5), "y": found(base - 1 + noise, 0.6)}
    for base, noise in ((0.0, 0.1), (10.0, 0.0), (20.0, -0.1))
  ]
  summary = alignment_modes.summarize(seeds, "x")
  mean = summary["divergence, mean"]["y"]["mean"]
  apart = summary["divergence, mean"]["y"]["difference"]
  assert mean.estimate == pytest.approx(10.0)
  assert mean.low < 0 < 20 < mean.high
  # Student's t of two degrees of freedom is 4.303; the deviation is 0.1.
  assert apart.estimate == pytest.approx(-1.0)
  assert apart.high == pytest.approx(-1 + 4.3027 * 0.1 / math.sqrt(3), abs=1e-4)
  assert summary["accuracy t"]["y"]["difference"].low == pytest.approx(0.1)
  assert summary["divergence, mean"]["x"]["difference"].high == 0.0


def test_one_value_has_no_interval():
  with pytest.raises(ValueError, match="1 values have no variance"):
    alignment_modes.student_interval([1.0])


@pytest.mark.slow
def test_a_seed_is_run_and_not_run_again(tmp_path):
  comparison = alignment_modes.Comparison(
    world=tiny_demo.WORLD,
    pretraining=tiny_demo.run(tmp_path, "mini_pretrain_v1"),
    specialization=tiny_demo.run(tmp_path, "mini_specialize_v1"),
    tests=[tiny_demo.evaluation("mini_math_test_v1", split="test")],
    modes=("paper", "marginal"),
    num_problems=4,
    num_records=20,
  )
  try:
    first = alignment_modes.run_seed(comparison, tmp_path / "0", seed=0)
    # All is there: nothing is computed, so nothing needs the second mode.
    again = alignment_modes.run_seed(comparison, tmp_path / "0", seed=0)
  finally:
    sources.set_data_dir(None)
  assert again == first
  assert first.keys() == {"paper", "marginal"}
  divergences = {mode: one["divergence"] for mode, one in first.items()}
  assert divergences["paper"] != divergences["marginal"]
  assert len(divergences["paper"]) == 4  # families
  assert len(first["paper"]["accuracy"]) == 4
  assert first["paper"]["one_to_one"] < first["marginal"]["one_to_one"]
