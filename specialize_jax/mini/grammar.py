"""The teacher's probabilistic grammar of the solutions of a problem.

The solutions of a problem are the paths of a finite acyclic automaton. Each arc
has a text and a probability; the probabilities of the arcs that leave a node
sum to one, and the probability of a path is the product of its arcs'. The
automaton is locally normalized, so the mass of all solutions with a given
prefix is the mass of the paths that produce it, without a backward pass.

The text of an arc starts with a space, except at the start of a solution, and
does not end with one. GPT-2's pre-tokenizer always splits there, so the tokens
of a solution are the concatenated tokens of its arcs.

A wrong number leads to a different node, and later steps use it consistently.
"""

import dataclasses
import random
from collections.abc import Mapping

from specialize_jax.mini import arithmetic, problems

Choices = tuple[tuple[str, float], ...]

OPENINGS: Choices = (("", 0.8), ("Let us count.", 0.12), ("We add up.", 0.08))

LEADS: Mapping[str, tuple[Choices, Choices]] = {
  "own": (
    (("{name} has", 0.55), ("Now {name} has", 0.25), ("So {name} has", 0.2)),
    (
      ("Then {he} has", 0.5),
      ("Now {he} has", 0.25),
      ("So {name} has", 0.15),
      ("That makes", 0.1),
    ),
  ),
  "part": (
    (("The bags hold", 0.6), ("In the bags are", 0.25), ("That makes", 0.15)),
    (("The bags hold", 0.6), ("In the bags are", 0.25), ("That makes", 0.15)),
  ),
  "other": (
    (("{name} has", 0.55), ("So {name} has", 0.25), ("Now {name} has", 0.2)),
    (("{name} has", 0.55), ("So {name} has", 0.25), ("Then {name} has", 0.2)),
  ),
  "together": (
    (("Together they have", 0.6), ("In all they have", 0.4)),
    (("Together they have", 0.6), ("In all they have", 0.4)),
  ),
  "plain": (
    (("That makes", 0.6), ("That is", 0.4)),
    (("That makes", 0.6), ("That is", 0.4)),
  ),
}
"""How sentences of each role begin: the first sentence, and later ones."""


@dataclasses.dataclass(frozen=True)
class Node:
  """A state of the automaton.

  Attributes:
    order: Index of the order in which the steps are written.
    place: Number of completed steps.
    values: The results so far, by step; None for later steps.
    waits_for_value: Whether the calculation is written and its result is next.
    opened: Whether any text precedes, so that a space comes first.
    ended: Whether the solution is complete.
  """

  order: int
  place: int
  values: tuple[int | None, ...]
  waits_for_value: bool = False
  opened: bool = True
  ended: bool = False


@dataclasses.dataclass(frozen=True)
class Arc:
  """A transition: its text, its probability and its target."""

  text: str
  probability: float
  target: Node


class Grammar:
  """The automaton of a problem's solutions, expanded lazily.

  Attributes:
    problem: The problem.
    mistake_rate: The probability that a step's result is a near miss.
  """

  def __init__(self, problem: problems.Problem, *, mistake_rate: float) -> None:
    self.problem = problem
    self.mistake_rate = mistake_rate

  def starts(self) -> tuple[tuple[Node, float], ...]:
    """Returns the start nodes, one for each order, with probabilities."""
    empty = (None,) * len(self.problem.steps)
    return tuple(
      (Node(order, 0, empty, opened=False), probability)
      for order, (_, probability) in enumerate(self.problem.orders)
    )

  def arcs(self, node: Node) -> tuple[Arc, ...]:
    """Returns the arcs that leave a node; none at the end of a solution."""
    if node.ended:
      return ()
    if node.place == len(self.problem.steps):
      end = dataclasses.replace(node, ended=True)
      return (Arc(f" The answer is {node.values[-1]}.", 1.0, end),)
    if node.waits_for_value:
      return self._value_arcs(node)
    return self._sentence_arcs(node)

  def _step_index(self, node: Node) -> int:
    return self.problem.orders[node.order][0][node.place]

  def _operands(self, node: Node) -> tuple[int, int]:
    step = self.problem.steps[self._step_index(node)]
    return (
      problems.operand_value(step.left, node.values),
      problems.operand_value(step.right, node.values),
    )

  def _sentence_arcs(self, node: Node) -> tuple[Arc, ...]:
    step = self.problem.steps[self._step_index(node)]
    left, right = self._operands(node)
    target = dataclasses.replace(node, waits_for_value=True, opened=True)
    first, later = LEADS[step.role]
    arcs = []
    for opening, opening_odds in (("", 1.0),) if node.opened else OPENINGS:
      for lead, odds in later if node.place else first:
        words = lead.format(name=step.name, he=step.pronoun)
        sentence = f"{words} {left} {step.operation} {right} ="
        start = f"{opening} " if opening or node.opened else ""
        arcs.append(Arc(f"{start}{sentence}", opening_odds * odds, target))
    return tuple(arcs)

  def _value_arcs(self, node: Node) -> tuple[Arc, ...]:
    index = self._step_index(node)
    step = self.problem.steps[index]
    right = arithmetic.apply(step.operation, *self._operands(node))
    values = [(right, 1.0 - self.mistake_rate)]
    if self.mistake_rate:
      values += [
        (wrong, self.mistake_rate * odds)
        for wrong, odds in arithmetic.near_misses(right)
      ]
    return tuple(
      Arc(f" {value} {step.things}.", odds, self._after(node, index, value))
      for value, odds in values
    )

  def _after(self, node: Node, index: int, value: int) -> Node:
    values = (*node.values[:index], value, *node.values[index + 1 :])
    return Node(node.order, node.place + 1, values)


def likeliest_solution(problem: problems.Problem) -> str:
  """Returns the correct solution with the likeliest arc at each node."""
  grammar = Grammar(problem, mistake_rate=0.0)
  node, _ = max(grammar.starts(), key=lambda start: start[1])
  solution = ""
  while arcs := grammar.arcs(node):
    arc = max(arcs, key=lambda arc: arc.probability)
    solution, node = solution + arc.text, arc.target
  return solution


def random_solution(grammar: Grammar, rng: random.Random) -> str:
  """Samples a solution."""
  nodes, odds = zip(*grammar.starts(), strict=True)
  node = rng.choices(nodes, odds)[0]
  solution = ""
  while arcs := grammar.arcs(node):
    arc = rng.choices(arcs, [arc.probability for arc in arcs])[0]
    solution, node = solution + arc.text, arc.target
  return solution


def leads_of(problem: problems.Problem) -> tuple[str, ...]:
  """Returns all beginnings of sentences in the problem's solutions."""
  leads = [opening for opening, _ in OPENINGS if opening]
  for place, step in enumerate(problem.steps):
    for lead, _ in LEADS[step.role][min(place, 1)]:
      words = lead.format(name=step.name, he=step.pronoun)
      leads.append(f" {words}" if place else words)
  return tuple(leads)
