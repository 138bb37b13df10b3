"""The automaton is locally normalized, and a wrong number stays consistent."""

import random
import re

import pytest

from specialize_jax.mini import arithmetic, grammar, splits, stories


@pytest.fixture(scope="module")
def drawn():
  rng = random.Random(7)
  together = []
  for draw in splits.families((0.2, 0.4, 0.3, 0.1)).values():
    for _ in range(60):
      together.extend(draw(rng))
  return together


def sums_of(text):
  return [
    (operation, int(left), int(right), int(result))
    for left, operation, right, result in re.findall(
      r"(\d+) ([-+*/]) (\d+) = (\d+)", text
    )
  ]


def test_the_arcs_of_every_node_sum_to_one(drawn):
  rng = random.Random(0)
  for problem in drawn:
    told = grammar.Grammar(problem, mistake_rate=0.2)
    starts = told.starts()
    assert sum(odds for _, odds in starts) == pytest.approx(1.0)
    node = rng.choice(starts)[0]
    while arcs := told.arcs(node):
      assert sum(arc.probability for arc in arcs) == pytest.approx(1.0)
      node = rng.choice(arcs).target


def test_every_arc_starts_with_a_space(drawn):
  """What makes a text's tokens those of its arcs, one after another."""
  rng = random.Random(0)
  for problem in drawn:
    told = grammar.Grammar(problem, mistake_rate=0.2)
    node, at_start = rng.choice(told.starts())[0], True
    while arcs := told.arcs(node):
      for arc in arcs:
        assert arc.text.startswith(" ") != at_start
        assert not arc.text.endswith(" ")
        assert "  " not in arc.text
      node, at_start = rng.choice(arcs).target, False


def test_the_likeliest_solution_is_right(drawn):
  for problem in drawn:
    told = grammar.likeliest_solution(problem)
    assert told.endswith(f"The answer is {problem.answer}.")
    results = tuple(result for *_, result in sums_of(told))
    assert results == problem.values
    for operation, left, right, result in sums_of(told):
      assert arithmetic.apply(operation, left, right) == result


def test_a_wrong_number_is_what_later_steps_use(drawn):
  rng = random.Random(0)
  carried = 0
  for problem in drawn:
    told = grammar.random_solution(
      grammar.Grammar(problem, mistake_rate=0.5), rng
    )
    sums = sums_of(told)
    last = sums[-1][-1]
    assert told.endswith(f"The answer is {last}.")
    slips = [
      arithmetic.apply(operation, left, right) != result
      for operation, left, right, result in sums
    ]
    if any(slips[:-1]) and not slips[-1]:
      carried += str(last) != problem.answer
    for operation, left, right, result in sums:
      right_result = arithmetic.apply(operation, left, right)
      misses = dict(arithmetic.near_misses(right_result))
      assert result == right_result or result in misses
  assert carried > 5


def test_solutions_have_many_wordings(drawn):
  rng = random.Random(0)
  told = grammar.Grammar(drawn[0], mistake_rate=0.0)
  assert len({grammar.random_solution(told, rng) for _ in range(60)}) >= 4
  for lead in grammar.leads_of(drawn[0]):
    assert lead == " ".join(lead.split()) or lead.startswith(" ")


def test_steps_may_be_written_in_another_order():
  rng = random.Random(0)
  drawn = (stories.draw(rng, (0.0, 0.2, 0.4, 0.4)) for _ in range(1000))
  problem = next(p for p in drawn if len(p.orders) > 1)
  told = grammar.Grammar(problem, mistake_rate=0.0)
  orders = {
    tuple(result for *_, result in sums_of(grammar.random_solution(told, rng)))
    for _ in range(100)
  }
  assert len(orders) == 2
