"""Each family has its steps, numbers, distractors and wordings."""

import collections
import random
import re

import pytest

from specialize_jax.mini import arithmetic, problems, splits

STEP_WEIGHTS = (0.2, 0.4, 0.3, 0.1)
FAMILIES = splits.families(STEP_WEIGHTS)
ONE_STEP = splits.one_step_families()


def draw_many(draw, count=400, seed=0):
  rng = random.Random(seed)
  drawn = []
  while len(drawn) < count:
    drawn.extend(draw(rng))
  return drawn


def numbers_in(text):
  return [int(number) for number in re.findall(r"\d+", text)]


def constants(problem):
  return [
    operand
    for step in problem.steps
    for operand in (step.left, step.right)
    if not isinstance(operand, problems.Result)
  ]


ALL = [*FAMILIES.items(), *((f"1 {n}", d) for n, d in ONE_STEP.items())]


@pytest.mark.parametrize(("name", "draw"), ALL)
def test_every_sum_is_a_fact_over_numbers_of_the_question(name, draw):
  for problem in draw_many(draw):
    told = numbers_in(problem.question)
    assert len(told) == len(set(told)), problem.question
    assert all(2 <= number <= 20 for number in told), problem.question
    for step in problem.steps:
      allowed = {*told, 2} if step.operation == "/" else set(told)
      constant = {
        o for o in (step.left, step.right) if not isinstance(o, problems.Result)
      }
      assert constant <= allowed, problem.question
    assert problems.is_sound(problem.steps)
    assert all(0 <= v <= arithmetic.LARGEST for v in problem.values)


@pytest.mark.parametrize(("name", "draw"), ALL)
def test_no_sentence_has_an_unfilled_slot_or_a_small_letter_first(name, draw):
  for problem in draw_many(draw):
    assert not set("{}") & set(problem.question)
    for sentence in re.split(r"(?<=[.?]) ", problem.question):
      assert sentence[0].isupper() or sentence[0].isdigit(), problem.question
      assert sentence[-1] in ".?"


def test_mini_gsm_has_one_to_four_steps_in_the_configured_proportions():
  drawn = draw_many(FAMILIES["mini_gsm"], count=2000)
  counts = collections.Counter(len(problem.steps) for problem in drawn)
  for length, weight in enumerate(STEP_WEIGHTS, start=1):
    assert counts[length] / 2000 == pytest.approx(weight, abs=0.04)


def test_mini_gsm_sometimes_has_a_distractor():
  drawn = draw_many(FAMILIES["mini_gsm"], count=2000)
  spare = [
    set(numbers_in(problem.question)) - set(constants(problem))
    for problem in drawn
  ]
  assert 0.05 < sum(map(bool, spare)) / len(spare) < 0.3


def test_mini_multiarith_always_has_two_steps():
  assert {len(p.steps) for p in draw_many(FAMILIES["mini_multiarith"])} == {2}


def test_mini_asdiv_has_mostly_one_step_and_many_units():
  drawn = draw_many(FAMILIES["mini_asdiv"], count=1000)
  share = sum(len(problem.steps) == 1 for problem in drawn) / len(drawn)
  assert 0.75 < share < 0.97
  units = {problem.steps[-1].things for problem in drawn}
  assert {"dollars", "metres", "hours"} <= units


def test_mini_svamp_has_one_step_and_a_distractor():
  for problem in draw_many(FAMILIES["mini_svamp"]):
    assert len(problem.steps) == 1
    assert set(numbers_in(problem.question)) - set(constants(problem))


def test_mini_svamp_asks_one_body_several_questions():
  by_body = collections.defaultdict(set)
  for problem in draw_many(FAMILIES["mini_svamp"]):
    by_body[problem.body].add(problem.answer)
  assert sum(len(answers) > 1 for answers in by_body.values()) > 50


@pytest.mark.parametrize(("name", "draw"), ONE_STEP.items())
def test_weak_maths_draws_one_step_in_every_wording(name, draw):
  assert {len(problem.steps) for problem in draw_many(draw)} == {1}


def test_every_order_of_a_story_has_its_operands():
  reordered = 0
  for problem in draw_many(FAMILIES["mini_gsm"], count=4000):
    assert sum(odds for _, odds in problem.orders) == pytest.approx(1.0)
    for order, _ in problem.orders:
      assert sorted(order) == list(range(len(problem.steps)))
      known = set()
      for index in order:
        step = problem.steps[index]
        for operand in (step.left, step.right):
          if isinstance(operand, problems.Result):
            assert operand.step in known
        known.add(index)
    reordered += len(problem.orders) > 1
  assert reordered > 20
