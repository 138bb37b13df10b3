"""Equality of problems, and the results of their plans."""

import dataclasses
import random

import pytest

from specialize_jax.mini import problems


def step(operation, left, right):
  return problems.Step(
    operation=operation,
    left=left,
    right=right,
    role="own",
    name="Mia",
    things="apples",
  )


def test_a_key_forgets_who_and_what_but_no_number_and_no_event():
  told = "Mia has 5 apples. She buys 3 apples."
  assert problems.normalize(told) == (
    "name0 has 5 things0. they buys 3 things0."
  )
  same = "Tom has 5 pens. He  buys 3 pens."
  assert problems.normalize(same) == problems.normalize(told)
  for other in (
    "Mia has 5 apples. She buys 4 apples.",
    "Mia has 5 apples. She loses 3 apples.",
    "Mia has 5 apples. She buys 3 pens.",
  ):
    assert problems.normalize(other) != problems.normalize(told)


def test_a_plan_uses_earlier_results():
  problem = problems.Problem(
    family="f",
    body="b",
    ask="a",
    steps=(step("+", 5, 3), step("/", problems.Result(0), 2)),
  )
  assert problem.values == (8, 4)
  assert problem.answer == "4"
  longer = (*problem.steps, step("-", problems.Result(1), 3))
  assert dataclasses.replace(problem, steps=longer).values == (8, 4, 1)
  assert problem.question == "b a"


def test_a_plan_with_a_sum_that_is_no_fact_is_not_sound():
  assert problems.is_sound((step("+", 5, 3), step("/", problems.Result(0), 2)))
  assert not problems.is_sound(
    (step("+", 5, 4), step("/", problems.Result(0), 2))
  )


def test_drawing_that_never_succeeds_is_an_error():
  with pytest.raises(RuntimeError, match="returned no problem"):
    problems.draw(lambda rng: None, random.Random(0))
