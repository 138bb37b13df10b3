"""The facts are few, closed and right."""

import pytest

from specialize_jax.mini import arithmetic


def test_every_fact_is_right_and_stays_small():
  python = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
  }
  for operation, left, right in arithmetic.facts():
    result = arithmetic.apply(operation, left, right)
    assert result == python[operation](left, right)
    assert 0 <= result <= arithmetic.LARGEST


def test_the_facts_are_few_enough_to_learn_in_minutes():
  assert 300 < len(arithmetic.facts()) < 600
  assert len(set(arithmetic.facts())) == len(arithmetic.facts())


def test_sums_from_wrong_numbers_never_turn_negative():
  assert arithmetic.apply("-", 3, 5) == 0
  assert arithmetic.apply("/", 7, 2) == 3


def test_near_misses_are_wrong_and_their_odds_sum_to_one():
  for value in range(arithmetic.LARGEST + 1):
    misses = arithmetic.near_misses(value)
    assert all(wrong != value and wrong >= 0 for wrong, _ in misses)
    assert sum(odds for _, odds in misses) == pytest.approx(1.0, abs=1e-12)


def test_an_unknown_operation_is_named():
  with pytest.raises(ValueError, match="operation='%' is not one of"):
    arithmetic.apply("%", 1, 2)
