"""The registered tests hold where the claims are true, and only there."""

import dataclasses
import math

import pytest
from testdata import made_up_study

from specialize_jax.study import arm_results, curves, registered


def outcome(directory, study=None, **made_up):
  """Returns the made-up study's tests by finding, in their order."""
  study = study or made_up_study.study()
  places = made_up_study.write(directory, **made_up)
  results = arm_results.read(study, places, made_up_study.SEEDS)
  found = {name: [] for name in registered.FINDINGS}
  for test in registered.tests(study, results, made_up_study.SEEDS):
    found[test.finding].append(test)
  return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  return outcome(tmp_path_factory.mktemp("study"))


def held(tests):
  return [test.holds for test in tests]


def estimates(tests):
  return [test.interval.estimate for test in tests]


@pytest.mark.parametrize("finding", registered.FINDINGS)
def test_every_test_holds_where_the_claims_are_true(found, finding):
  assert len(found[finding]) >= 2
  assert all(held(found[finding]))


def test_estimates_are_those_of_the_made_up_accuracies(found):
  pace = 1.0 - (0.9 - 0.4) / (0.9 - 0.4 / 3)
  assert estimates(found["gain and price"]) == pytest.approx(
    [0.55, 0.3, 0.8, 0.8, pace], abs=0.01
  )
  # Zero-shot data loses 0.15; in-context data gains 0.25 and, of
  # (0.5 + 3 x 0.3) / 4 and (0.05 + 3 x 0.1) / 4, the difference; the slope of
  # 0.05, 0.3 and 0.45 over 0, 1/2 and 1 is 0.4.
  assert estimates(found["formats"]) == pytest.approx(
    [0.15, 0.25, 0.2625, 0.4], abs=0.01
  )
  assert estimates(found["selection"]) == pytest.approx([0.1, 0.1], abs=0.01)
  assert estimates(found["scaling"])[0] == pytest.approx(0.1, abs=0.01)
  assert estimates(found["starts"]) == pytest.approx([0.05, 0.0375], abs=0.01)


def test_selection_does_not_hold_where_neither_curve_falls(tmp_path):
  tests = outcome(tmp_path, cost=0.0, parts=False)["selection"]
  assert held(tests) == [False, False]
  assert estimates(tests) == pytest.approx([0.0, 0.0])


def test_matching_does_not_hold_if_the_arms_are_exchanged(tmp_path):
  study = made_up_study.study()
  roles = dataclasses.replace(
    study.roles, specialized="sample", sample_matching="middle"
  )
  exchanged = dataclasses.replace(study, roles=roles)
  tests = outcome(tmp_path, exchanged)["distribution matching"]
  assert held(tests) == [False, False]
  assert all(test.interval.high < 0 for test in tests)


def test_formats_do_not_hold_if_the_shares_are_the_other_way(tmp_path):
  study = made_up_study.study()
  roles = dataclasses.replace(
    study.roles,
    in_context_shares={1.0: "zero_shot", 0.5: "half", 0.0: "in_context"},
  )
  tests = outcome(tmp_path, dataclasses.replace(study, roles=roles))["formats"]
  assert held(tests) == [False, False, True, False]


def test_scaling_does_not_hold_if_the_largest_is_the_worst(tmp_path):
  study = made_up_study.study()
  pairs = [("general", name) for name in reversed(made_up_study.SIZES)]
  study = dataclasses.replace(
    study, roles=dataclasses.replace(study.roles, sizes=pairs)
  )
  # Sizes and accuracies are both reversed, so the slope stays; exchanging
  # before and after exchanges what is claimed.
  assert all(held(outcome(tmp_path / "a", study)["scaling"]))
  pairs = [(name, "general") for name in made_up_study.SIZES]
  roles = dataclasses.replace(study.roles, sizes=pairs)
  flat = dataclasses.replace(study, roles=roles)
  assert not any(held(outcome(tmp_path / "b", flat)["scaling"]))


def test_what_has_no_runs_is_not_said_to_hold(tmp_path):
  study = made_up_study.study()
  roles = dataclasses.replace(
    study.roles, raw_start=None, in_context_shares={0.5: "half"}
  )
  found = outcome(tmp_path, dataclasses.replace(study, roles=roles))
  for finding in ("starts", "formats"):
    assert [test.interval for test in found[finding]] == (
      [None] * len(found[finding])
    )
    assert not any(held(found[finding]))


def test_early_shares_and_late_falls():
  assert curves.early_share({0: 0.8, 100: 0.2, 200: 0.0}) == (
    pytest.approx(0.75)
  )
  assert math.isnan(curves.early_share({0: 0.1, 100: 0.2}))
  assert registered.late_fall({0: 0.0, 50: 0.4, 100: 0.3}) == (
    pytest.approx(0.1)
  )
  assert registered.late_fall({0: 0.0, 50: 0.3, 100: 0.4}) == 0.0


def test_curves_are_compared_at_the_steps_of_both_after_the_start():
  one = [{0: 0.0, 10: 0.3, 20: 0.4, 30: 9.0}]
  other = [{0: 0.9, 10: 0.1, 20: 0.3}]
  assert registered.mean_difference(one, other) == pytest.approx([0.15])
  assert math.isnan(registered.mean_difference([{0: 1.0}], [{0: 1.0}])[0])


def test_slope_weights_are_least_squares():
  assert registered.slope_weights([0.0, 0.5, 1.0]) == pytest.approx(
    [-1.0, 0.0, 1.0]
  )
  assert registered.slope_weights([2.0, 2.0]) == [0.0, 0.0]
