"""Kinds of targets are compared on one world, start and order of batches."""

import math

import pytest


@pytest.fixture(scope="module")
def alignment_modes():
  import alignment_modes  # a script of bench/

  return alignment_modes


def found(divergence, accuracy, error=0.1):
  return {
    "target_error": error,
    "divergence": {"a": [divergence, divergence], "b": [divergence + 2]},
    "accuracy": {"t": accuracy},
  }


def test_differences_are_taken_within_a_seed(alignment_modes):
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
