r"""How an answer is read from a text, and when it is right.

Two graders. `fixed` reads numbers as people write them (commas, signs,
decimals, currency, units, a trailing period) and compares words exactly.
`paper_code` does what the paper's released code does (FranxYao/
FlanT5-CoT-Specialization: src/utils.py, `test_answer`; test_bbh.py,
`parse_ans_general`), so that its numbers can be reproduced and the difference
measured: it takes the last match of `\d*\.?\d+`, by which "1,000" equals
"2,000" and "-5" equals "5", and calls words right that merely occur.
"""

import dataclasses
import fractions
import re
from typing import Literal

from specialize_jax import errors

Kind = Literal["number", "exact"]
Grader = Literal["fixed", "paper_code"]

_MARKER = re.compile(r"the answer is|####|\bA:", re.IGNORECASE)
_SENTENCE_MARKER = re.compile(r"the answer is", re.IGNORECASE)

# A sign counts where it cannot be an operator: not after a digit, a letter
# or a closing bracket ("10-5"), and not before a blank ("10 - 5").
_NUMBER = re.compile(
  r"""
  (?P<sign>(?<![\w).])[-\u2212+])?
  (?: [$\u20ac\u00a3\u00a5]\s? (?P<inner>[-\u2212])? )?
  (?P<value>
    \d+/\d+ (?![\d/]) |
    (?: \d{1,3}(?:,\d{3})+(?!\d) | \d+ ) (?: \.\d+ )? |
    \.\d+
  )
  """,
  re.VERBOSE,
)
_PAPER_NUMBER = re.compile(r"\d*\.?\d+")

_TOLERANCE = fractions.Fraction(1, 1_000_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """What a grader read and how it judged.

  Attributes:
    extracted: The answer found in the prediction; None for none.
    correct: Whether it is the target's.
  """

  extracted: str | None
  correct: bool


def extract_number(text: str) -> str | None:
  """Reads the number that a text answers with.

  It is the first number after the last "the answer is", "####" or "A:" (after
  the last "=" of that sentence where it has one); without a marker, or with no
  number after it, the last number of the text.

  Returns:
    The number without commas, currency, unit or plus sign; a fraction as
    "3/4". None where the text has no number.

  Example:
    >>> extract_number("She pays $5. The answer is $1,234.50 a year.")
    '1234.50'
    >>> extract_number("The answer is 48 + 24 = 72 clips.")
    '72'
    >>> extract_number("10-5 leaves 5, so -5 degrees")
    '-5'
    >>> extract_number("none") is None
    True
  """
  markers = list(_MARKER.finditer(text))
  if markers:
    sentence = re.split(r"\n|\.\s", text[markers[-1].end() :].strip())[0]
    numbers = _numbers(sentence.rpartition("=")[2]) or _numbers(sentence)
    if numbers:
      return numbers[0]
  numbers = _numbers(text)
  return numbers[-1] if numbers else None


def _numbers(text: str) -> list[str]:
  """Lists the numbers of a text, written plainly."""
  found = []
  for match in _NUMBER.finditer(text):
    value = match["value"].replace(",", "")
    if value.startswith("."):
      value = f"0{value}"
    signs = (match["sign"] or "") + (match["inner"] or "")
    negative = "-" in signs or "\u2212" in signs
    found.append(f"-{value}" if negative else value)
  return found


def numbers_equal(left: str, right: str) -> bool:
  """Whether two numbers as `extract_number` writes them are the same.

  They may differ by one millionth, so that 0.3333333 is 1/3.

  Example:
    >>> numbers_equal("72.0", "72"), numbers_equal("-5", "5")
    (True, False)
  """
  try:
    a, b = fractions.Fraction(left), fractions.Fraction(right)
  except (ValueError, ZeroDivisionError):
    return False
  return abs(a - b) <= _TOLERANCE


def extract_words(text: str) -> str:
  """Reads the words that a text answers with, in a form to compare.

  They are the rest of the line after the last "the answer is", or the whole
  text where that is absent; without surrounding quotes, trailing period,
  case and repeated blanks.

  Example:
    >>> extract_words('So the answer is "Apple  cat".')
    'apple cat'
    >>> extract_words("(B)")
    '(b)'
  """
  tail = _SENTENCE_MARKER.split(text)[-1].strip().lstrip(":").strip()
  words = " ".join(tail.partition("\n")[0].split()).casefold()
  previous = None
  while words != previous:  # a period may stand inside quotes or outside
    previous = words
    words = words.rstrip(".").strip("\"'`\u201c\u201d\u2018\u2019 ")
  return words


def grade(
  prediction: str,
  target: str,
  *,
  kind: Kind = "number",
  grader: Grader = "fixed",
) -> Verdict:
  """Judges a prediction.

  Args:
    prediction: The model's whole text.
    target: The gold answer, bare ("72", "9 (apples)") or as a text that ends
      with it ("#### 72").
    kind: What an answer is: a number, or exact words.
    grader: Whose rule decides.

  Raises:
    UserError: there is no such kind or grader.

  Example:
    >>> grade("The answer is 2,000", "1,000", grader="paper_code").correct
    True
    >>> grade("The answer is 2,000", "1,000").correct
    False
  """
  if grader not in ("fixed", "paper_code"):
    raise errors.UserError(
      f"grader {grader!r} is unknown; expected fixed or paper_code"
    )
  if kind not in ("number", "exact"):
    raise errors.UserError(
      f"answer kind {kind!r} is unknown; expected number or exact"
    )
  if kind == "number":
    if grader == "fixed":
      return _grade_number(prediction, target)
    return _grade_number_as_paper(prediction, target)
  if grader == "fixed":
    words = extract_words(prediction)
    correct = words != "" and words == extract_words(target)
    return Verdict(extracted=words or None, correct=correct)
  return _grade_words_as_paper(prediction, target)


def _grade_number(prediction: str, target: str) -> Verdict:
  extracted = extract_number(prediction)
  gold = _gold_number(target)
  correct = (
    extracted is not None
    and gold is not None
    and numbers_equal(extracted, gold)
  )
  return Verdict(extracted=extracted, correct=correct)


def _gold_number(target: str) -> str | None:
  """Reads a gold answer: one that opens with its number is bare.

  Numbers in a unit, as in "9 (bags of 2)", are no answer.
  """
  if not _MARKER.search(target):
    opening = _NUMBER.match(target.strip())
    if opening:
      return _numbers(opening[0])[0]
  return extract_number(target)


def _grade_number_as_paper(prediction: str, target: str) -> Verdict:
  found = _PAPER_NUMBER.findall(prediction)
  gold = _PAPER_NUMBER.findall(target)
  if not found:
    return Verdict(extracted=None, correct=False)
  correct = bool(gold) and float(found[-1]) == float(gold[-1])
  return Verdict(extracted=found[-1], correct=correct)


def _grade_words_as_paper(prediction: str, target: str) -> Verdict:
  """Searches the target in the text after the first "the answer is".

  The code knows from the prompt whether a chain of thought was asked for and,
  where it was not, searches the whole text; here the marker tells.
  """
  before, marker, after = prediction.partition("the answer is")
  searched = after.partition("the answer is")[0] if marker else before
  return Verdict(extracted=searched.strip(), correct=target in searched)
