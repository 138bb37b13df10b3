"""The in-distribution family `mini_gsm`: short stories of 1 to 4 steps.

  Tom has 3 bags with 4 apples each. He eats 5 apples. Then he buys 6 apples.
  How many apples does Tom have now?

A story starts with an amount, which changes a few times. It may end with
another person who has more or less of the same, or ask how many more there are
of one kind than of another.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

from specialize_jax.mini import arithmetic, lexicon, problems

FAMILY = "mini_gsm"

# Which of them can be combined is determined by the facts of `arithmetic`.
_AMOUNTS = (2, 18)
_CHANGES = (2, 16)
_BAGS, _IN_A_BAG = (2, 5), (2, 10)

_CONNECTIVES = ("", "Then", "Later", "At last")
_BAGS_SHARE = 0.25
_BAG_EVENT_SHARE = 0.08
_HALF_SHARE = 0.12
_COMPARE_SHARE = 0.2
_TOGETHER_SHARE = 0.15
_DIFFERENCE_SHARE = 0.12
_JOINED_SHARE = 0.35
_BYSTANDER_SHARE = 0.3
_PART_FIRST_SHARE = 0.25


_FINISH_STEPS = {"none": 0, "compare": 1, "difference": 1, "together": 2}

_T = TypeVar("_T")


class _DoesNotFitError(Exception):
  """The story cannot be continued with the numbers drawn so far."""


class _Story:
  """A story under construction: its sentences, plan and numbers."""

  def __init__(self, rng: random.Random) -> None:
    self.rng = rng
    self.name = rng.choice(lexicon.NAMES)
    self.pronoun = lexicon.PRONOUNS[self.name]
    # The others have the other pronoun, so that `he` is unambiguous.
    self.other, self.receiver = rng.sample(lexicon.others_than(self.name), 2)
    self.things, self.other_things = rng.sample(lexicon.THINGS, 2)
    self.sentences: list[str] = []
    self.steps: list[problems.Step] = []
    self.values: list[int] = []
    self.amount: problems.Operand = 0
    self.other_amount = 0
    self.used_numbers: set[int] = set()
    self.used_verbs: set[str] = set()
    self.num_events = 0
    self.part_step: int | None = None

  def number(self, low: int, high: int) -> int:
    """Draws a number that the story has not used yet."""
    number = self._fresh(range(low, high + 1), self.used_numbers)
    self.used_numbers.add(number)
    return number

  def verb(self, verbs: Sequence[str]) -> str:
    """Draws a verb that the story has not used yet."""
    verb = self._fresh(verbs, self.used_verbs)
    self.used_verbs.add(verb)
    return verb

  def _fresh(self, choices: Sequence[_T], used: set[_T]) -> _T:
    free = [choice for choice in choices if choice not in used]
    if not free:
      raise _DoesNotFitError
    return self.rng.choice(free)

  def step(
    self,
    operation: str,
    left: problems.Operand,
    right: problems.Operand,
    *,
    role: str,
    name: str | None = None,
  ) -> problems.Result:
    """Adds a step, which must be an arithmetic fact with a positive result."""
    numbers = [problems.operand_value(o, self.values) for o in (left, right)]
    value = arithmetic.apply(operation, *numbers)
    if not arithmetic.is_fact(operation, *numbers) or value == 0:
      raise _DoesNotFitError
    self.values.append(value)
    self.steps.append(
      problems.Step(
        operation=operation,
        left=left,
        right=right,
        role=role,
        name=name or self.name,
        things=self.things,
      )
    )
    return problems.Result(len(self.steps) - 1)

  def tell_event(self, phrase: str) -> None:
    """Adds an event, as a new sentence or joined to the last one.

    A new sentence starts with the connective of its position.
    """
    if self.num_events % 2 and self.rng.random() < _JOINED_SHARE:
      self.sentences[-1] = f"{self.sentences[-1][:-1]} and {phrase}."
      self.num_events += 1
      return
    connective = _CONNECTIVES[self.num_events]
    subject = f"{connective} {self.pronoun}".strip()
    self.sentences.append(f"{subject[0].upper()}{subject[1:]} {phrase}.")
    self.num_events += 1


def draw_of_length(
  rng: random.Random, num_steps: int
) -> problems.Problem | None:
  """Draws a story with some number of steps; None if the numbers do not fit."""
  story = _Story(rng)
  finish = _draw_finish(rng, num_steps)
  last_event = num_steps - _FINISH_STEPS[finish]
  try:
    if finish == "difference":
      _start_with_two_kinds(story)
    elif last_event and rng.random() < _BAGS_SHARE:
      _start_with_bags(story)
    else:
      _start_with_amount(story, bystander=finish == "none")
    while len(story.steps) < last_event:
      _add_event(story, last_event - len(story.steps))
    if finish == "none":
      ask = _ask_for_own(story)
    elif finish == "difference":
      ask = _ask_for_difference(story)
    else:
      ask = _add_other_person(story, together=finish == "together")
  except _DoesNotFitError:
    return None
  return problems.Problem(
    family=FAMILY,
    body=" ".join(story.sentences),
    ask=ask,
    steps=tuple(story.steps),
    orders=_orders(story),
  )


def draw(rng: random.Random, step_weights: Sequence[float]) -> problems.Problem:
  """Draws a story; `step_weights` are the weights of 1 to 4 steps."""
  lengths = range(1, len(step_weights) + 1)
  num_steps = rng.choices(lengths, weights=step_weights)[0]
  # The number of steps is kept while the numbers are redrawn: longer stories
  # are rejected more often, and would otherwise be too rare.
  return problems.draw(lambda r: draw_of_length(r, num_steps), rng)


def _draw_finish(rng: random.Random, num_steps: int) -> str:
  if rng.random() < _DIFFERENCE_SHARE:
    return "difference"
  if rng.random() < _COMPARE_SHARE:
    return "compare"
  if num_steps >= 2 and rng.random() < _TOGETHER_SHARE:
    return "together"
  return "none"


def _start_with_amount(story: _Story, *, bystander: bool) -> None:
  """Starts with one amount, possibly with a distractor."""
  story.amount = story.number(*_AMOUNTS)
  told = f"{story.name} has {story.amount} {story.things}"
  kind = story.rng.random() / _BYSTANDER_SHARE if bystander else 1.0
  if kind < 0.5:
    told += f" and {story.number(*_CHANGES)} {story.other_things}"
  story.sentences.append(f"{told}.")
  if 0.5 <= kind < 1.0:
    number = story.number(*_CHANGES)
    story.sentences.append(f"{story.other} has {number} {story.things}.")


def _start_with_two_kinds(story: _Story) -> None:
  """Starts with two amounts, both of which are needed."""
  story.amount = story.number(*_AMOUNTS)
  story.other_amount = story.number(*_CHANGES)
  story.sentences.append(
    f"{story.name} has {story.amount} {story.things} and"
    f" {story.other_amount} {story.other_things}."
  )


def _start_with_bags(story: _Story) -> None:
  bags, each = story.number(*_BAGS), story.number(*_IN_A_BAG)
  story.sentences.append(
    f"{story.name} has {bags} bags with {each} {story.things} each."
  )
  story.amount = story.step("*", bags, each, role="own")


def _add_event(story: _Story, steps_left: int) -> None:
  """Adds an event of one step, or of two if as many remain."""
  rng = story.rng
  can_be_bags = steps_left >= 2 and story.part_step is None
  if can_be_bags and rng.random() < _BAG_EVENT_SHARE:
    _add_bag_event(story)
  elif "half" not in story.used_verbs and rng.random() < _HALF_SHARE:
    story.used_verbs.add("half")
    story.tell_event(f"gives half of the {story.things} to {story.receiver}")
    story.amount = story.step("/", story.amount, 2, role="own")
  else:
    operation = rng.choice("+-")
    losses = (*lexicon.losses_of(story.things), "gives")
    verb = story.verb(lexicon.GAINS if operation == "+" else losses)
    number = story.number(*_CHANGES)
    receiver = f" to {story.receiver}" if verb == "gives" else ""
    story.tell_event(f"{verb} {number} {story.things}{receiver}")
    story.amount = story.step(operation, story.amount, number, role="own")


def _add_bag_event(story: _Story) -> None:
  bags, each = story.number(*_BAGS), story.number(*_IN_A_BAG)
  verb = story.verb(lexicon.GAINS)
  story.tell_event(f"{verb} {bags} bags with {each} {story.things} each")
  part = story.step("*", bags, each, role="part")
  story.part_step = part.step
  story.amount = story.step("+", story.amount, part, role="own")


def _add_other_person(story: _Story, *, together: bool) -> str:
  """Adds a person who has more or less, and returns the question."""
  rng, name, other, things = story.rng, story.name, story.other, story.things
  kind = rng.choice(("times", "more", "fewer", "half"))
  if kind == "half":
    told = f"{other} has half as many {things} as {name}."
    operands = ("/", story.amount, 2)
  elif kind == "times":
    number = story.number(*_BAGS)
    told = f"{other} has {number} times as many {things} as {name}."
    operands = ("*", number, story.amount)
  else:
    number = story.number(*_CHANGES)
    told = f"{other} has {number} {kind} {things} than {name}."
    operands = ("+" if kind == "more" else "-", story.amount, number)
  story.sentences.append(told)
  amount = story.step(*operands, role="other", name=other)
  if not together:
    return f"How many {things} does {other} have?"
  story.step("+", story.amount, amount, role="together")
  words = rng.choice(("together", "in all"))
  return f"How many {things} do they have {words}?"


def _ask_for_own(story: _Story) -> str:
  words = story.rng.choice(("now", "in the end", "now"))
  return f"How many {story.things} does {story.name} have {words}?"


def _ask_for_difference(story: _Story) -> str:
  story.step("-", story.amount, story.other_amount, role="plain")
  return (
    f"How many more {story.things} than {story.other_things} does"
    f" {story.name} have?"
  )


def _orders(
  story: _Story,
) -> tuple[tuple[tuple[int, ...], float], ...]:
  """Returns the orders: an independent part may also be told first."""
  plan = tuple(range(len(story.steps)))
  if not story.part_step:
    return ((plan, 1.0),)
  part_first = (story.part_step, *(i for i in plan if i != story.part_step))
  return ((plan, 1.0 - _PART_FIRST_SHARE), (part_first, _PART_FIRST_SHARE))
