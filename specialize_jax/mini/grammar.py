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
A teacher that misreads a question follows a wrong plan from the start; which of
its plans it follows is known once the two differ.
"""

import dataclasses
import functools
import random
from typing import NamedTuple

from specialize_jax.mini import arithmetic, problems, styles

_MISTAKEN_OPERATION = {"+": "-", "-": "+", "*": "+", "/": "-"}
_CALCULATION = "{left} {operation} {right} ="


class Node(NamedTuple):
  """A state of the automaton; a tuple, since millions of them are hashed.

  Attributes:
    order: Index of the order in which the steps are written.
    place: Number of completed steps.
    values: The results so far, by step; None for later steps.
    waits_for_value: Whether the calculation is written and its result is next.
    opened: Whether any text precedes, so that a space comes first.
    ended: Whether the solution is complete.
    misread: Whether the teacher follows its wrong reading of the question.
    waits_for_sum: Whether a sentence has begun and its calculation is next.
    corrects: Whether the next sentence corrects the last result.
    words: Words of the current phrase that are still to be written.
    hesitated: Whether a filler was written before the next word.
  """

  order: int
  place: int
  values: tuple[int | None, ...]
  waits_for_value: bool = False
  opened: bool = True
  ended: bool = False
  misread: bool = False
  waits_for_sum: bool = False
  corrects: bool = False
  words: tuple[str, ...] = ()
  hesitated: bool = False


class Arc(NamedTuple):
  """A transition: its text, its probability and its target."""

  text: str
  probability: float
  target: Node


class Grammar:
  """The automaton of a problem's solutions, expanded lazily.

  Attributes:
    problem: The problem.
    mistake_rate: The probability that a step's result is a near miss.
    style: How the teacher writes.
  """

  def __init__(
    self,
    problem: problems.Problem,
    *,
    mistake_rate: float,
    style: styles.Style = styles.CERTAIN,
  ) -> None:
    self.problem = problem
    self.mistake_rate = mistake_rate
    self.style = style

  def starts(self) -> tuple[tuple[Node, float], ...]:
    """Returns the start nodes, one for each order, with probabilities.

    If the teacher may misread the question, there is one for each order and
    reading.
    """
    empty = (None,) * len(self.problem.steps)
    wrong = self._misreading.odds
    return tuple(
      (Node(order, 0, empty, opened=False, misread=misread), odds * share)
      for order, (_, odds) in enumerate(self.problem.orders)
      for misread, share in ((False, 1.0 - wrong), (True, wrong))
      if share
    )

  def arcs(self, node: Node) -> tuple[Arc, ...]:
    """Returns the arcs that leave a node; none at the end of a solution."""
    if not self.style.filler_rate:
      return self._phrases(node)
    return self._words(node)

  def _words(self, node: Node) -> tuple[Arc, ...]:
    """Returns arcs of one word each, fillers included.

    None interrupts the last sentence, from which the answer is read.
    """
    following = self._next_words(node)
    if node.hesitated or node.ended:
      return following
    hesitating = node._replace(opened=True, hesitated=True)
    space = " " if node.opened else ""
    rate = self.style.filler_rate
    return (
      *(Arc(text, odds * (1.0 - rate), to) for text, odds, to in following),
      *(
        Arc(f"{space}{word}", rate * odds, hesitating)
        for word, odds in self.style.fillers
      ),
    )

  def _next_words(self, node: Node) -> tuple[Arc, ...]:
    if not node.words:
      return tuple(map(_first_word, self._phrases(node)))
    first, *others = node.words
    target = node._replace(words=tuple(others), hesitated=False)
    return (Arc(f" {first}", 1.0, target),)

  def _phrases(self, node: Node) -> tuple[Arc, ...]:
    if node.ended:
      return ()
    if node.corrects:
      return self._correction_arcs(node)
    if node.place == self._num_steps(node):
      return self._closing_arcs(node)
    if node.waits_for_sum:
      return self._calculation_arcs(node)
    if node.waits_for_value:
      return self._value_arcs(node)
    return self._sentence_arcs(node)

  @functools.cached_property
  def _misreading(self) -> "_Misreading":
    return _misreading(self.problem, self.style)

  def _num_steps(self, node: Node) -> int:
    missing = node.misread and self._misreading.stops_early
    return len(self.problem.steps) - missing

  def _step_index(self, node: Node) -> int:
    return self.problem.orders[node.order][0][node.place]

  def _operation(self, node: Node, index: int) -> str:
    operation = self.problem.steps[index].operation
    if node.misread and self._misreading.wrong_step == index:
      return _MISTAKEN_OPERATION[operation]
    return operation

  def _operands(self, node: Node, index: int) -> tuple[int, int]:
    step = self.problem.steps[index]
    return (
      problems.operand_value(step.left, node.values),
      problems.operand_value(step.right, node.values),
    )

  def _sentence_arcs(self, node: Node) -> tuple[Arc, ...]:
    step = self.problem.steps[self._step_index(node)]
    first, later = self.style.leads[step.role]
    ways = self._calculations(node)
    if len(ways) == 1:  # then it belongs to the beginning of its sentence
      target = node._replace(waits_for_value=True, opened=True)
      rest = f" {ways[0][0]}"
    else:
      target = node._replace(waits_for_sum=True, opened=True)
      rest = ""
    arcs = []
    openings = (("", 1.0),) if node.opened else self.style.openings
    for opening, opening_odds in openings:
      for lead, odds in later if node.place else first:
        words = _worded(lead, step)
        start = f"{opening} " if opening or node.opened else ""
        arcs.append(Arc(f"{start}{words}{rest}", opening_odds * odds, target))
    return tuple(arcs)

  def _calculation_arcs(self, node: Node) -> tuple[Arc, ...]:
    target = node._replace(waits_for_sum=False, waits_for_value=True)
    return tuple(
      Arc(f" {text}", odds, target) for text, odds in self._calculations(node)
    )

  def _calculations(self, node: Node) -> styles.Choices:
    """Returns the ways to write the next calculation, up to its result."""
    index = self._step_index(node)
    step = self.problem.steps[index]
    operation = self._operation(node, index)
    left, right = self._operands(node, index)
    ways: styles.Choices = ((_CALCULATION, 1.0),)
    if operation in "+-" and step.role != "plain":
      ways = self.style.calculations
    orders = [(left, right, 1.0)]
    if operation == "+" and self.style.swapped:
      orders = [
        (left, right, 1.0 - self.style.swapped),
        (right, left, self.style.swapped),
      ]
    return tuple(
      (
        way.format(
          left=one, operation=operation, right=other, things=step.things
        ),
        odds * share,
      )
      for way, odds in ways
      for one, other, share in orders
    )

  def _value_arcs(self, node: Node) -> tuple[Arc, ...]:
    index = self._step_index(node)
    step = self.problem.steps[index]
    right = arithmetic.apply(
      self._operation(node, index), *self._operands(node, index)
    )
    values = [(right, 1.0 - self.mistake_rate)]
    if self.mistake_rate:
      values += [
        (wrong, self.mistake_rate * odds)
        for wrong, odds in arithmetic.near_misses(right)
      ]
    arcs = []
    for value, odds in values:
      after = self._after(node, index, value)
      ways = [(after, 1.0)]
      if value != right and self.style.correction_rate:
        rate = self.style.correction_rate
        corrected = after._replace(corrects=True)
        ways = [(after, 1.0 - rate), (corrected, rate)]
      for ending, ending_odds in self.style.endings:
        text = f" {value}{ending.format(things=step.things)}"
        arcs += [
          Arc(text, odds * ending_odds * share, target)
          for target, share in ways
        ]
    return tuple(arcs)

  def _correction_arcs(self, node: Node) -> tuple[Arc, ...]:
    """Returns the sentences that correct the last result."""
    before = node._replace(place=node.place - 1)
    index = self._step_index(before)
    left, right = self._operands(before, index)
    operation = self._operation(before, index)
    value = arithmetic.apply(operation, left, right)
    target = self._after(before, index, value)
    calculation = _CALCULATION.format(
      left=left, operation=operation, right=right
    )
    things = self.problem.steps[index].things
    return tuple(
      Arc(f" {start} {calculation} {value} {things}.", odds, target)
      for start, odds in self.style.corrections
    )

  def _closing_arcs(self, node: Node) -> tuple[Arc, ...]:
    end = node._replace(ended=True)
    order, _ = self.problem.orders[node.order]
    answer = node.values[order[node.place - 1]]
    return tuple(
      Arc(f" {closing.format(answer=answer)}", odds, end)
      for closing, odds in self.style.closings
    )

  def _after(self, node: Node, index: int, value: int) -> Node:
    values = (*node.values[:index], value, *node.values[index + 1 :])
    return Node(node.order, node.place + 1, values, misread=node.misread)


@dataclasses.dataclass(frozen=True)
class _Misreading:
  """A teacher's wrong reading of a question.

  Attributes:
    odds: Its probability.
    stops_early: Whether the last step is left out.
    wrong_step: The step whose operation is mistaken; None if none is.
  """

  odds: float
  stops_early: bool = False
  wrong_step: int | None = None


def _misreading(problem: problems.Problem, style: styles.Style) -> _Misreading:
  """Returns how a teacher misreads a question, a function of the question."""
  if not style.misread_share:
    return _Misreading(0.0)
  rng = random.Random(f"misread/{problem.question}")
  share = style.misread_share
  odds = style.misread_odds if rng.random() < share else style.doubt_odds
  if len(problem.steps) > 1 and rng.random() < 0.5:
    return _Misreading(odds, stops_early=True)
  return _Misreading(odds, wrong_step=rng.randrange(len(problem.steps)))


def _first_word(arc: Arc) -> Arc:
  """Returns the arc of a phrase's first word; the others wait at its target."""
  first, *others = arc.text.split()
  space = " " if arc.text.startswith(" ") else ""
  target = arc.target._replace(
    words=tuple(others), opened=True, hesitated=False
  )
  return Arc(f"{space}{first}", arc.probability, target)


def _worded(lead: str, step: problems.Step) -> str:
  return lead.format(
    name=step.name, he=step.pronoun, He=step.pronoun.capitalize()
  )


def likeliest_solution(
  problem: problems.Problem, style: styles.Style = styles.CERTAIN
) -> str:
  """Returns the correct solution with the likeliest arc at each node."""
  reads_right = dataclasses.replace(style, misread_share=0.0)
  grammar = Grammar(problem, mistake_rate=0.0, style=reads_right)
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


def leads_of(
  problem: problems.Problem, style: styles.Style = styles.CERTAIN
) -> tuple[str, ...]:
  """Returns all beginnings of sentences in the problem's solutions."""
  leads = [opening for opening, _ in style.openings if opening]
  for place, step in enumerate(problem.steps):
    for lead, _ in style.leads[step.role][min(place, 1)]:
      words = _worded(lead, step)
      leads.append(f" {words}" if place else words)
  return tuple(leads)
