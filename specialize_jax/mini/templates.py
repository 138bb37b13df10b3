"""Problems from hand-written templates, for the out-of-distribution families.

A template is a body with slots, and questions about it. Capital letters are
words (`{N}` and `{M}` people, `{T}` and `{U}` things), `{he}` and `{He}` are
the first person's pronoun, `{gains}` and `{loses}` verbs, and lower-case
letters distinct numbers: `{a}` to `{c}`, and the factor `{k}`.
"""

import dataclasses
import random
from collections.abc import Sequence

from specialize_jax.mini import lexicon, problems

_NUMBERS = range(2, 21)
_FACTORS = range(2, 6)


@dataclasses.dataclass(frozen=True)
class Sum:
  """A step of a plan in terms of a template's slots.

  Attributes:
    operation: One of `arithmetic.OPERATIONS`.
    left: A number's letter, a digit, or `#i` for the result of step i.
    right: The same.
    role: See `problems.Step`.
    name: The holder, `N` or `M`.
    things: The unit: `T`, `U`, or a word such as `dollars`.
  """

  operation: str
  left: str
  right: str
  role: str = "own"
  name: str = "N"
  things: str = "T"


@dataclasses.dataclass(frozen=True)
class Ask:
  """A question about a body, in several wordings, and its plan."""

  wordings: tuple[str, ...]
  sums: tuple[Sum, ...]


@dataclasses.dataclass(frozen=True)
class Template:
  """A body and the questions about it."""

  body: str
  asks: tuple[Ask, ...]


def draw(
  rng: random.Random, family: str, templates: Sequence[Template]
) -> problems.Problem | None:
  """Draws a problem; None if its calculations are not arithmetic facts."""
  siblings = draw_siblings(rng, family, templates)
  return rng.choice(siblings) if siblings else None


def draw_siblings(
  rng: random.Random, family: str, templates: Sequence[Template]
) -> tuple[problems.Problem, ...]:
  """Draws a body with all questions about it.

  Returns:
    Problems with the same body, except those whose calculations are not
    arithmetic facts; possibly none.
  """
  template = rng.choice(templates)
  words = _draw_words(rng)
  numbers = _draw_numbers(rng)
  slots = {**words, **numbers}
  siblings = []
  for ask in template.asks:
    steps = tuple(_step(one, words, numbers) for one in ask.sums)
    wording = rng.choice(ask.wordings).format(**slots)
    if problems.is_sound(steps):
      siblings.append(
        problems.Problem(
          family=family,
          body=template.body.format(**slots),
          ask=wording,
          steps=steps,
          orders=((tuple(range(len(steps))), 1.0),),
        )
      )
  return tuple(siblings)


def _draw_words(rng: random.Random) -> dict[str, str]:
  name = rng.choice(lexicon.NAMES)
  things, others = rng.sample(lexicon.THINGS, 2)
  return {
    "N": name,
    "M": rng.choice(lexicon.others_than(name)),
    "he": lexicon.PRONOUNS[name],
    "He": lexicon.PRONOUNS[name].capitalize(),
    "T": things,
    "U": others,
    "gains": rng.choice(lexicon.GAINS),
    "loses": rng.choice(lexicon.losses_of(things)),
  }


def _draw_numbers(rng: random.Random) -> dict[str, int]:
  factor = rng.choice(_FACTORS)
  free = [n for n in _NUMBERS if n != factor]
  return {"k": factor, **dict(zip("abc", rng.sample(free, 3), strict=True))}


def _step(
  one: Sum, words: dict[str, str], numbers: dict[str, int]
) -> problems.Step:
  def operand(text: str) -> problems.Operand:
    if text.startswith("#"):
      return problems.Result(int(text[1:]))
    return int(text) if text.isdecimal() else numbers[text]

  return problems.Step(
    operation=one.operation,
    left=operand(one.left),
    right=operand(one.right),
    role=one.role,
    name=words[one.name],
    things=words.get(one.things, one.things),
  )
