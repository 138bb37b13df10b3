"""How a teacher writes: the wordings and the mistakes of its grammar.

A `Style` has every choice that a teacher has when it writes down a plan, with
probabilities. There are two:

- `certain` has a few wordings, and hardly makes a mistake: nine of ten of its
  tokens are no choice at all. It is the teacher of the demo.
- `calibrated` is as uncertain as code-davinci-002 on GSM8K, by the figures of
  `teacher.certainty`: `bench/calibration.py` measures both.
"""

import dataclasses
from collections.abc import Mapping

from specialize_jax import errors

Choices = tuple[tuple[str, float], ...]
"""Texts with their probabilities, which sum to one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
  """The choices of a teacher, by their place in a solution.

  Attributes:
    model_name: The name of the teacher in its records.
    openings: What precedes the first sentence; "" for nothing.
    leads: How sentences of each role begin: the first one, and later ones.
      `{name}`, `{he}` and `{He}` are the holder and its pronoun.
    calculations: How a sum or difference of like things is written, up to its
      result. Other calculations, and those of a style with a single entry, are
      written as `{left} {operation} {right} =`.
    swapped: The probability that the addends of a sum are swapped.
    endings: What follows the result of a step.
    closings: The last sentence.
    corrections: The beginning of a sentence that corrects a wrong result.
    correction_rate: The probability that a wrong result is corrected.
    fillers: Words without a meaning that may stand before any word up to the
      first one of the last sentence: the tail of the distributions.
    filler_rate: The probability of a filler before a word.
    misread_share: The share of questions that the teacher misreads.
    misread_odds: The probability of the wrong reading of such a question.
    doubt_odds: The probability of a wrong reading of any other.
  """

  model_name: str
  openings: Choices
  leads: Mapping[str, tuple[Choices, Choices]]
  calculations: Choices = (("{left} {operation} {right} =", 1.0),)
  swapped: float = 0.0
  endings: Choices = ((" {things}.", 1.0),)
  closings: Choices = (("The answer is {answer}.", 1.0),)
  corrections: Choices = ()
  correction_rate: float = 0.0
  fillers: Choices = ()
  filler_rate: float = 0.0
  misread_share: float = 0.0
  misread_odds: float = 0.0
  doubt_odds: float = 0.0


_FEW_LEADS: Mapping[str, tuple[Choices, Choices]] = {
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

CERTAIN = Style(
  model_name="mini-teacher",
  openings=(("", 0.8), ("Let us count.", 0.12), ("We add up.", 0.08)),
  leads=_FEW_LEADS,
)

_NEUTRAL: Choices = (
  ("That makes", 0.36),
  ("That is", 0.26),
  ("We get", 0.2),
  ("There are", 0.18),
)
_PARTS: Choices = (
  ("The bags hold", 0.4),
  ("In the bags are", 0.28),
  ("That makes", 0.18),
  ("There are", 0.14),
)
_TOGETHER: Choices = (
  ("Together they have", 0.42),
  ("In all they have", 0.28),
  ("So they have", 0.16),
  ("That makes", 0.14),
)
_MANY_LEADS: Mapping[str, tuple[Choices, Choices]] = {
  "own": (
    (
      ("{name} has", 0.34),
      ("{name} gets", 0.1),
      ("Now {name} has", 0.18),
      ("So {name} has", 0.16),
      ("First {name} has", 0.12),
      ("There are", 0.1),
    ),
    (
      ("Then {he} has", 0.3),
      ("Then {he} gets", 0.08),
      ("Now {he} has", 0.2),
      ("So {name} has", 0.12),
      ("So {he} has", 0.08),
      ("{He} has", 0.12),
      ("That makes", 0.1),
    ),
  ),
  "part": (_PARTS, _PARTS),
  "other": (
    (
      ("{name} has", 0.36),
      ("{name} gets", 0.1),
      ("So {name} has", 0.22),
      ("Now {name} has", 0.18),
      ("There are", 0.14),
    ),
    (
      ("{name} has", 0.36),
      ("{name} gets", 0.1),
      ("So {name} has", 0.22),
      ("Then {name} has", 0.18),
      ("That makes", 0.14),
    ),
  ),
  "together": (_TOGETHER, _TOGETHER),
  "plain": (_NEUTRAL, _NEUTRAL),
}
_FILLERS = (
  *("the", "of", "and", "in", "with", "more", "as", "to", "each", "half"),
  *("all", "then"),
)

CALIBRATED = Style(
  model_name="mini-teacher-calibrated",
  openings=(("", 0.84), ("Let us count.", 0.1), ("We add up.", 0.06)),
  leads=_MANY_LEADS,
  calculations=(
    ("{left} {operation} {right} =", 0.54),
    ("{left} {things} {operation} {right} =", 0.14),
    ("{left} {operation} {right} {things} =", 0.2),
    ("{left} {things} {operation} {right} {things} =", 0.12),
  ),
  swapped=0.2,
  endings=(
    (" {things}.", 0.5),
    (" {things} now.", 0.14),
    (" {things} in all.", 0.08),
    (".", 0.28),
  ),
  closings=(
    ("The answer is {answer}.", 0.68),
    ("So the answer is {answer}.", 0.32),
  ),
  corrections=(("No, that is", 0.6), ("No, we get", 0.4)),
  correction_rate=0.25,
  fillers=tuple((word, 1 / len(_FILLERS)) for word in _FILLERS),
  filler_rate=0.06,
  misread_share=0.34,
  misread_odds=0.85,
  doubt_odds=0.02,
)

STYLES: Mapping[str, Style] = {"certain": CERTAIN, "calibrated": CALIBRATED}


def find(name: str) -> Style:
  """Returns the style with a name.

  Raises:
    UserError: There is none.
  """
  if name not in STYLES:
    raise errors.UserError(
      f"style={name!r} is not one of {', '.join(STYLES)}: the mini world's"
      " teacher writes in one of them"
    )
  return STYLES[name]
