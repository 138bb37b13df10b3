"""Findings computed from known accuracies are the known ones."""

import json

import numpy as np
import pytest
from testdata import made_up_study

from specialize_jax import errors
from specialize_jax.study import arm_results, arms, findings


def test_a_study_is_json_without_what_json_has_not(study):
  json.dumps(study, allow_nan=False)


def test_the_teachers_figures_are_means_over_worlds(study):
  measured = study["certainty"]
  assert measured["entropy"] == pytest.approx(0.5)
  assert measured["right"] == pytest.approx(0.6)
  assert measured["num_steps"] == 60_000


def test_gain_and_price_are_differences_of_accuracies(study):
  rows = {
    row["role"]: row
    for row in study["gain_and_price"]["rows"]
    if row["role"] in ("in_distribution", "out_of_distribution")
  }
  inside = rows["in_distribution"]
  assert inside["before"]["estimate"] == pytest.approx(0.05)
  assert inside["after"]["estimate"] == pytest.approx(0.6)
  assert inside["difference"]["estimate"] == pytest.approx(0.55)
  assert 0 < inside["difference"]["low"] < 0.55 < inside["difference"]["high"]
  assert rows["out_of_distribution"]["task"] is None  # the mean comes last
  assert rows["out_of_distribution"]["difference"]["estimate"] == (
    pytest.approx(0.3)
  )
  assert study["cost"] == {
    "processes": 1,
    "process_seconds": 9.0,
    "cpu_seconds": 7200.0,
  }


def test_steps_to_a_divergence_are_counted_on_the_same_measure(study):
  matching = study["matching"]
  last = matching["levels"][-1]
  assert last["fraction"] == 1.0
  assert last["steps"]["sample_matching"] == [300, 300, 300]
  # 1 / (1 + step / speed) at twice the speed, evaluated every hundred steps.
  for seed, (level, first) in enumerate(
    zip(last["divergence"], last["steps"]["distribution_matching"], strict=True)
  ):
    assert level == pytest.approx(1 / (1 + 300 / (40 + seed)))
    at_100, at_200 = (1 / (1 + step / (20 + seed)) for step in (100, 200))
    assert first == pytest.approx(
      np.interp(-level, [-at_100, -at_200], [100, 200])
    )
  assert [len(level["divergence"]) for level in matching["levels"]] == [3] * 4
  assert matching["levels"][0]["steps"]["sample_matching"] == [100, 100, 100]


def test_a_curve_is_straight_between_evaluations():
  steps, values = [10, 20, 30], [3.0, 2.0, 1.0]
  assert findings.steps_to(steps, values, 2.0) == 20
  assert findings.steps_to(steps, values, 1.5) == 25
  assert findings.steps_to(steps, values, 4.0) == 10
  assert findings.steps_to(steps, values, 0.5) is None


def test_starts_are_measured_before_and_after(study):
  starts = study["starts"]
  before = starts["raw"]["out_of_distribution"]["before"]
  assert before["estimate"] == pytest.approx(0.0)
  after = starts["instructed"]["in_distribution"]["after"]
  assert after["estimate"] == pytest.approx(0.6)


def test_formats_are_measured_in_both_kinds_of_prompt(study):
  given = study["formats"]["arms"]
  assert list(given) == [
    "general",
    "four formats",
    "zero-shot only",
    "in-context only",
  ]
  assert given["zero-shot only"]["in_context"]["estimate"] == (
    pytest.approx(0.05)
  )
  assert len(study["formats"]["contrasts"]) == 3


def test_selection_costs_what_the_other_rule_loses_on_test(study):
  part = study["selection"]
  assert part["cost"]["estimate"] == pytest.approx(0.1)
  assert part["cost"]["low"] > 0
  assert len(part["runs"]) == 9 * 3  # a general model is not selected
  assert part["late_change"]["in_distribution"] == pytest.approx([0.05] * 3)
  assert part["late_change"]["out_of_distribution"] == pytest.approx([-0.1] * 3)


def test_the_fit_over_sizes_is_least_squares(study):
  for role, index in (("in_distribution", 0), ("out_of_distribution", 1)):
    fit = study["scaling"]["fits"][role]
    x = np.log2(list(made_up_study.SIZES.values()))
    y = [made_up_study.AFTER[name][index] for name in made_up_study.SIZES]
    slope, intercept = np.polyfit(x, y, 1)
    assert fit["slope_per_doubling"]["estimate"] == pytest.approx(slope)
    assert fit["intercept"] == pytest.approx(intercept)
    assert fit["r_squared"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_a_contrast_refuses_other_questions():
  with pytest.raises(ValueError, match="different questions"):
    arm_results.contrast(
      [(1.0, [[np.zeros(3)]]), (-1.0, [[np.zeros(4)]])],
    )


def test_roles_name_arms_and_arms_come_in_order():
  made_up = made_up_study.study()
  with pytest.raises(errors.UserError, match="Roles names general"):
    arms.Study(**{**vars(made_up), "arms": made_up.arms[1:]})
  orphan = arms.Arm(name="orphan", gin_files=(), starts_from="none")
  with pytest.raises(errors.UserError, match="'orphan' starts from 'none'"):
    arms.Study(**{**vars(made_up), "arms": [orphan, *made_up.arms]})
  twice = [*made_up.arms, made_up.arms[0]]
  with pytest.raises(errors.UserError, match="two arms named 'general'"):
    arms.Study(**{**vars(made_up), "arms": twice})
