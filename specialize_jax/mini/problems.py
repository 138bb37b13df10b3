"""Word problems: a question and the plan that solves it.

The solution of a problem is a plan of steps rather than a text, so that
`grammar` can generate all the texts of the solution that the teacher may write.
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
  """Refers to the result of an earlier step.

  Attributes:
    step: The earlier step's index in the plan.
  """

  step: int


Operand = int | Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A calculation of a plan, and the words of its sentence.

  Attributes:
    operation: One of `arithmetic.OPERATIONS`.
    left: A number of the question, or the result of an earlier step.
    right: The same.
    role: The meaning of the result, a key of `styles.Style.leads`: the holder's
      `own` amount, an intermediate `part`, the amount of the `other` person,
      what they have `together`, or a `plain` number.
    name: The holder's name.
    things: The things that are counted, a plural noun.
  """

  operation: str
  left: Operand
  right: Operand
  role: str
  name: str
  things: str

  @property
  def pronoun(self) -> str:
    """The holder's pronoun."""
    return lexicon.PRONOUNS[self.name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A word problem and the plan that solves it.

  Attributes:
    family: The family's name, such as `mini_gsm`.
    body: The story, without the question.
    ask: The question.
    steps: The plan; the last step's result is the answer.
    orders: The orders in which the steps may be written, as permutations of
      their indices with probabilities; the plan's own order first.
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
    """The whole text that a student reads."""
    return f"{self.body} {self.ask}"

  @functools.cached_property
  def values(self) -> tuple[int, ...]:
    """The correct result of each step, in the plan's order."""
    values: list[int] = []
    for step in self.steps:
      left, right = (operand_value(o, values) for o in (step.left, step.right))
      values.append(arithmetic.apply(step.operation, left, right))
    return tuple(values)

  @property
  def answer(self) -> str:
    """The correct answer, a bare number."""
    return str(self.values[-1])

  @functools.cached_property
  def key(self) -> str:
    """The normalized story; equal for equal problems (see `normalize`)."""
    return normalize(self.body)


def operand_value(operand: Operand, values: list[int] | tuple[int, ...]) -> int:
  """Returns the value of an operand, given the results of earlier steps."""
  return values[operand.step] if isinstance(operand, Result) else operand


def is_sound(steps: tuple[Step, ...]) -> bool:
  """Returns whether every step of a plan is an arithmetic fact."""
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
  """Calls `attempt` until it returns a problem.

  Raises:
    RuntimeError: `attempt` never returns a problem, which is a bug.
  """
  for _ in range(_MAX_ATTEMPTS):
    problem = attempt(rng)
    if problem is not None:
      return problem
  raise RuntimeError(
    f"{attempt} returned no problem in {_MAX_ATTEMPTS} attempts"
  )


def normalize(text: str) -> str:
  """Normalizes a problem's text, so that equal problems have equal texts.

  Names and things are replaced by their order of appearance and pronouns by
  `they`; case and white space are ignored. Numbers and other words are kept. So
  two stories of the same events with the same numbers are the same problem,
  whatever the names and the things that are counted.

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
