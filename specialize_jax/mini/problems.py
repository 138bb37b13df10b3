"""What a problem of the mini world is: a question and the plan that solves it.

A problem knows its solution as a plan of steps, not as one text, so that the
grammar of `grammar.py` can tell the solution in all the ways the teacher may.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Callable

from specialize_jax.mini import arithmetic, lexicon

_MAX_ATTEMPTS = 10_000


@dataclasses.dataclass(frozen=True)
class Result:
  """Stands for the result of an earlier step.

  Attributes:
    step: The earlier step's index in the plan.
  """

  step: int


Operand = int | Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """One sum of a plan and the words to tell it with.

  Attributes:
    operation: One of `arithmetic.OPERATIONS`.
    left: A number of the question, or an earlier step's result.
    right: The same.
    role: What the result is (a key of `grammar.LEADS`): the holder's `own`
      running amount, a `part` on the way, what the `other` person has, what
      they have `together`, or a `plain` number.
    name: The holder's name.
    things: What is counted, a plural.
  """

  operation: str
  left: Operand
  right: Operand
  role: str
  name: str
  things: str

  @property
  def pronoun(self) -> str:
    """What the holder is called when known."""
    return lexicon.PRONOUNS[self.name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A word problem and the plan that solves it.

  Attributes:
    family: The family's name, such as `mini_gsm`.
    body: What is told, without what is asked.
    ask: What is asked.
    steps: The plan; the last step's result is the answer.
    orders: The orders in which the steps may be told, as permutations of
      their indices, each with its probability; the plan's own order first.
    question_id: `family/split/number` once the problem belongs to a split.
  """

  family: str
  body: str
  ask: str
  steps: tuple[Step, ...]
  orders: tuple[tuple[tuple[int, ...], float], ...] = ()
  question_id: str = ""

  @property
  def question(self) -> str:
    """The whole text, as a student reads it."""
    return f"{self.body} {self.ask}"

  @functools.cached_property
  def values(self) -> tuple[int, ...]:
    """The right result of each step, in the plan's order."""
    values: list[int] = []
    for step in self.steps:
      left, right = (operand_value(o, values) for o in (step.left, step.right))
      values.append(arithmetic.apply(step.operation, left, right))
    return tuple(values)

  @property
  def answer(self) -> str:
    """The right answer, a bare number."""
    return str(self.values[-1])

  @functools.cached_property
  def key(self) -> str:
    """What makes two problems the same one: see `normalize`."""
    return normalize(self.body)


def operand_value(operand: Operand, values: list[int] | tuple[int, ...]) -> int:
  """Gives an operand's number, given the results of the steps so far."""
  return values[operand.step] if isinstance(operand, Result) else operand


def is_sound(steps: tuple[Step, ...]) -> bool:
  """Says whether every step of a plan is an arithmetic fact."""
  values: list[int] = []
  for step in steps:
    left, right = (operand_value(o, values) for o in (step.left, step.right))
    if not arithmetic.is_fact(step.operation, left, right):
      return False
    values.append(arithmetic.apply(step.operation, left, right))
  return True


def draw(
  attempt: Callable[[random.Random], Problem | None], rng: random.Random
) -> Problem:
  """Draws until the numbers fit.

  Raises:
    RuntimeError: `attempt` never gives a problem, which is a defect.
  """
  for _ in range(_MAX_ATTEMPTS):
    problem = attempt(rng)
    if problem is not None:
      return problem
  raise RuntimeError(f"{attempt} gave no problem in {_MAX_ATTEMPTS} attempts")


def normalize(text: str) -> str:
  """Reduces a problem's text to what makes it the same problem as another.

  Names and things become their order of appearance, `he` and `she` become
  one, case and spaces do not count; the numbers and all other words stay. Two
  stories of the same events with the same numbers are one problem, whoever
  they happen to and whatever is counted.

  Example:
    >>> normalize("Mia has 5 apples. She buys 3 apples.")
    'name0 has 5 things0. they buys 3 things0.'
  """
  seen: dict[str, str] = {}

  def replace(match: re.Match[str]) -> str:
    word = match.group()
    if word in lexicon.PRONOUNS:
      kind = "name"
    elif word in lexicon.SORTABLE:
      kind = "things"
    else:
      return "they" if word.lower() in ("he", "she") else word
    known = sum(label.startswith(kind) for label in seen.values())
    return seen.setdefault(word, f"{kind}{known}")

  return " ".join(re.sub(r"[A-Za-z]+", replace, text).lower().split())
