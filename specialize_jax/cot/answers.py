r"""How an answer is read from a text, and when it is right.

Two graders. `fixed` reads an answer as people write it, by its kind: numbers
with commas, signs, decimals, currency, units and a trailing period; option
letters, yes or no, word lists and brackets in any common spelling.
`paper_code` does what the paper's released code does (FranxYao/
FlanT5-CoT-Specialization: src/utils.py, `test_answer`; test_bbh.py,
`parse_ans_general`), so that its numbers can be reproduced and the difference
measured: it takes the last match of `\d*\.?\d+`, by which "1,000" equals
"2,000" and "-5" equals "5", and calls words right that merely occur.

Whatever a model says, grading it never fails: what cannot be read is wrong.
"""

import dataclasses
import fractions
import re
from typing import Literal, get_args

from specialize_jax import errors

Kind = Literal[
  "number", "numeral", "exact", "option", "choice", "words", "brackets"
]
Grader = Literal["fixed", "paper_code"]

# "A:" speaks for itself where a line or a sentence begins: "Plan A: $50" is
# no answer.
_ANSWER_IS = (
  r"\banswer[\s*]*(?:(?:is|(?:w|sh)ould\ be|(?:will|must)\ be|equals)\b|[:=])"
)
_MARKER = re.compile(
  rf"(?i:{_ANSWER_IS})|\#\#\#\#|\\boxed(?=\s*{{)|(?:^|(?<=[.?!]\ ))A:",
  re.MULTILINE,
)
_SENTENCE_MARKER = re.compile(rf"(?i:{_ANSWER_IS})|\AA:")
# Models that do not stop go on with a question of their own.
_NEXT_QUESTION = re.compile(
  r"^[^\S\n]*(?:Q|Question):", re.IGNORECASE | re.MULTILINE
)
_SENTENCE_END = re.compile(r"\n|\.\s")
# What explains a number may hold others: "18 eggs (16 - 3 = 13 are left)".
_REMARK = re.compile(
  r"\s\([^()]*\)|\b(?:because|since)\b.*", re.IGNORECASE | re.DOTALL
)

# A sign counts where it cannot be an operator: not after a digit, a letter
# or a closing bracket ("10-5"), and before a blank only where nothing but an
# equals sign comes before it ("= - 5", but "10 - 5").
_NUMBER = re.compile(
  r"""
  (?P<sign> (?<![\w).\]}]) [-\u2212\u2013+] | (?<=[=:]\ ) [-\u2212\u2013]\  )?
  (?: [$\u20ac\u00a3\u00a5] \s? (?P<inner> [-\u2212\u2013] )? )?
  (?P<value>
    (?: \d+ \s+ )? \d+ / \d+ (?! [\d/] ) |
    (?: \d{1,3} (?: ,\d{3} )+ (?! \d ) | \d+ ) (?: \.\d+ )?
      (?: [eE][+-]?\d{1,2} (?! \w ) )? |
    \.\d+
  )
  """,
  re.VERBOSE,
)
_LATEX_TEXT = re.compile(
  r"\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}")
# "2\u00bd" is 2 1/2.
_SMALL_FRACTIONS = dict(
  zip(
    map(ord, "\u00bd\u00bc\u00be\u2153\u2154\u215b"),
    (" 1/2", " 1/4", " 3/4", " 1/3", " 2/3", " 1/8"),
    strict=True,
  )
)
_PAPER_NUMBER = re.compile(r"\d*\.?\d+")
_CHOICE = re.compile(r"\b(?:yes|no|true|false|valid|invalid)\b")
_OPTION = re.compile(r"(?:option\s+|choice\s+)?\(?([a-z])\)?")
_OPENING_OPTION = re.compile(r"(?:option\s+|choice\s+)?\(?([a-z])(?:\)|[.:]\s)")
_BRACKETS = re.compile(r"[()\[\]{}<>]+")

# Characters: of what repeats at least four times, and of all repeats.
_MAX_PERIOD, _MIN_LOOP = 100, 40
_MAX_DIGITS = 100  # what is longer is a model that cannot stop
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
  r"""Reads the number that a text answers with.

  It is the first number after the last "answer is", "answer:", "####",
  "\boxed" or, where a sentence begins, "A:" (after the last "=" of that
  sentence where it has one; remarks in parentheses or after "because" do not
  count); without a marker, or with no number after it, the last number of the
  text, unless it ends in a loop. Questions that the model goes on to ask itself
  do not count.

  Returns:
    The number without commas, currency, unit or plus sign; a fraction as
    "3/4", a mixed number as "7/4". None where the text has no number.

  Example:
    >>> extract_number("She pays $5. The answer is $1,234.50 a year.")
    '1234.50'
    >>> extract_number("The answer is 48 + 24 = 72 clips.")
    '72'
    >>> extract_number("10-5 leaves 5, so -5 degrees")
    '-5'
    >>> extract_number("The answer is 1 3/4 cups.")
    '7/4'
    >>> extract_number("The answer is 18 eggs (16 - 3 = 13 are left).")
    '18'
    >>> extract_number("none") is None
    True
  """
  text = _plain(_first_turn(text))
  markers = list(_MARKER.finditer(text))
  if markers:
    sentence = _SENTENCE_END.split(text[markers[-1].end() :].strip())[0]
    for said in (_REMARK.sub("", sentence), sentence):
      result = "= " + said.rpartition("=")[2].strip()
      numbers = _numbers(result) or _numbers(said)
      if numbers:
        return numbers[0]
  numbers = () if _loops(text) else _numbers(text)
  return numbers[-1] if numbers else None


def _loops(text: str) -> bool:
  """Whether a text ends in the same few words again and again.

  Such a model came to no end, and so to no answer.
  """
  for period in range(1, min(_MAX_PERIOD, len(text) // 4) + 1):
    tail = text[-max(4 * period, _MIN_LOOP) :]
    if len(tail) >= _MIN_LOOP and tail[period:] == tail[:-period]:
      return True
  return False


def _first_turn(text: str) -> str:
  """Cuts what follows where the model asks itself another question."""
  text = text.strip()
  following = _NEXT_QUESTION.search(text, 1)
  return text[: following.start()] if following else text


def _plain(text: str) -> str:
  """Writes LaTeX's numbers plainly."""
  text = _LATEX_FRACTION.sub(r"\1/\2", text.replace("{,}", ","))
  return text.replace("\\$", "$").translate(_SMALL_FRACTIONS)


def _numbers(text: str) -> list[str]:
  """Lists the numbers of a text, written plainly."""
  found = []
  for match in _NUMBER.finditer(text):
    value = match["value"].replace(",", "")
    if len(value) > _MAX_DIGITS:
      continue
    if value.startswith("."):
      value = f"0{value}"
    whole, _, part = value.rpartition(" ")
    if whole:  # a mixed number
      above, _, below = part.partition("/")
      value = f"{int(whole) * int(below) + int(above)}/{int(below)}"
    signs = (match["sign"] or "") + (match["inner"] or "")
    negative = bool(signs.strip(" +"))
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

  They are the rest of the line after the last "answer is" or "answer:", or
  the whole text where that is absent; without surrounding quotes, trailing
  period, case and repeated blanks.

  Example:
    >>> extract_words('So the answer is "Apple  cat".')
    'apple cat'
    >>> extract_words("(B)")
    '(b)'
  """
  tail = _SENTENCE_MARKER.split(_first_turn(text))[-1].strip()
  for _ in range(2):  # "\\boxed{\\text{B}}"
    tail = _LATEX_TEXT.sub(r"\1", tail)
  tail = tail.lstrip(":").strip()
  words = " ".join(tail.partition("\n")[0].split()).casefold()
  previous = None
  while words != previous:  # a period may stand inside quotes or outside
    previous = words
    words = words.rstrip(".").strip("\"'`*$\u201c\u201d\u2018\u2019 ")
  return words


def extract_option(text: str) -> str:
  """Reads an option's letter, with or without its text.

  Two options are no answer, and an answer that is no letter stays as it is.

  Example:
    >>> extract_option("The answer is B."), extract_option("(B) 12/25/1937")
    ('(b)', '(b)')
    >>> extract_option("The answer is B: the lion.")
    '(b)'
    >>> extract_option("So the answer is (A) or (B).")
    '(a) or (b)'
  """
  words = extract_words(text)
  alone = _OPTION.fullmatch(words)
  if alone:
    return f"({alone[1]})"
  opening = _OPENING_OPTION.match(words)
  letters = set(re.findall(r"\(([a-z])\)", words))
  if opening and letters <= {opening[1]}:
    return f"({opening[1]})"
  return words


def extract_choice(text: str) -> str:
  """Reads yes or no, true or false, valid or invalid, with what follows it.

  Example:
    >>> extract_choice("The answer is No, he is not back at the start.")
    'no'
    >>> extract_choice("yes or no")
    'yes or no'
  """
  words = extract_words(text)
  found = set(_CHOICE.findall(words))
  opening = _CHOICE.match(words)
  return opening[0] if opening and len(found) == 1 else words


def extract_word_list(text: str) -> str:
  """Reads words in a row, however they are set apart.

  Example:
    >>> extract_word_list("The answer is apple, cat, and dog.")
    'apple cat dog'
    >>> extract_word_list('["apple", "cat"]')
    'apple cat'
  """
  words = re.sub(r",\s*and\s", ", ", extract_words(text))
  return " ".join(re.sub(r"[\s,;\"\[\]<>]+", " ", words).split())


def extract_brackets(text: str) -> str:
  """Reads brackets in a row, with or without blanks.

  Example:
    >>> extract_brackets("So the answer is ] ) >.")
    '])>'
  """
  words = extract_words(text)
  joined = re.sub(r"[\s,\"'`]+", "", words)
  return joined if _BRACKETS.fullmatch(joined) else words


_EXTRACT = {
  "exact": extract_words,
  "option": extract_option,
  "choice": extract_choice,
  "words": extract_word_list,
  "brackets": extract_brackets,
}


def grade(
  prediction: str,
  target: str,
  *,
  kind: Kind = "number",
  grader: Grader = "fixed",
  chain_of_thought: bool | None = None,
) -> Verdict:
  """Judges a prediction.

  Args:
    prediction: The model's whole text.
    target: The gold answer, bare ("72", "9 (apples)") or as a text that ends
      with it ("#### 72").
    kind: What an answer is: a number, exact words, an option's letter, a
      choice of two words, words in a row, or brackets in a row. The paper's
      code knows only numbers and words, and takes the numbers of
      BIG-Bench-Hard, here "numeral", for words.
    grader: Whose rule decides.
    chain_of_thought: Whether the prompt asked for one, on which the paper's
      code for words depends; None if that is not known.

  Raises:
    UserError: there is no such kind or grader.

  Example:
    >>> grade("The answer is 2,000", "1,000", grader="paper_code").correct
    True
    >>> grade("The answer is 2,000", "1,000").correct
    False
  """
  for name, value, known in (
    ("grader", grader, get_args(Grader)),
    ("answer kind", kind, get_args(Kind)),
  ):
    if value not in known:
      raise errors.UserError(
        f"{name} {value!r} is unknown; expected {' or '.join(known)}"
      )
  if grader == "paper_code":
    if kind == "number":
      return _grade_number_as_paper(prediction, target)
    return _grade_words_as_paper(prediction, target, chain_of_thought)
  if kind in ("number", "numeral"):
    return _grade_number(prediction, target)
  extracted = _EXTRACT[kind](prediction)
  correct = extracted != "" and extracted == _EXTRACT[kind](target)
  return Verdict(extracted=extracted or None, correct=correct)


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


def _grade_words_as_paper(
  prediction: str, target: str, chain_of_thought: bool | None
) -> Verdict:
  """Searches the target in a text.

  That is, after a chain of thought, what stands between the first "the answer
  is" and the second, and without it there is no answer; otherwise the whole
  text. Where the prompt is not known, the marker tells which it was.
  """
  _, marker, after = prediction.partition("the answer is")
  if chain_of_thought is None:
    chain_of_thought = bool(marker)
  if not chain_of_thought:
    return Verdict(
      extracted=prediction.strip() or None, correct=target in prediction
    )
  if not marker:
    return Verdict(extracted=None, correct=False)
  searched = after.partition("the answer is")[0]
  return Verdict(extracted=searched.strip() or None, correct=target in searched)
