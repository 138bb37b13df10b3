r"""Extracts answers from generated text, and grades them.

There are two graders. `fixed` extracts an answer according to its kind: numbers
with commas, signs, decimals, currency, units and a trailing period; option
letters, yes or no, word lists and brackets in any common notation. `paper_code`
reproduces the paper's released code (FranxYao/FlanT5-CoT-Specialization:
src/utils.py, `test_answer`; test_bbh.py, `parse_ans_general`), so that the
difference can be measured: it extracts the last match of `\d*\.?\d+`, by which
"1,000" equals "2,000" and "-5" equals "5", and accepts words that merely occur
in the text.

Grading never fails on any prediction: one without a readable answer is wrong.
"""

import dataclasses
import fractions
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, get_args

from specialize_jax import errors
from specialize_jax.cot import formulas, spelling, turns, written_numbers

Kind = Literal[
  "number", "numeral", "exact", "option", "choice", "words", "brackets"
]
Grader = Literal["fixed", "paper_code"]

_PAPER_NUMBER = re.compile(r"\d*\.?\d+")
# An explanation of an answer may contain other numbers:
# "18 eggs (16 - 3 = 13 are left)".
_REMARK = re.compile(
  r"\s\([^()]*\)|\b(?:because|since)\b.*", re.IGNORECASE | re.DOTALL
)
# "18 (as 20 - 2)", "18, not 20"
_LAST_REMARK = re.compile(
  r"(?:\s\([^()=]*\)|,\s(?:and\s)?not\s[^,;=\n]{1,40})[.\s]*\Z"
)
_SENTENCE_END = re.compile(r"\n|[.!]\s")
# "1 200,50 euros": within a text a space is rarely a thousands separator.
_GROUPS = re.compile(
  r"(?<![\w.,/])[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d{1,2}(?!\d))?"
  r"(?![\d-]|[.,/]\d| \d| ?[*+/=x])"
)
# In running text, only what is hardly a list: "10 000", "12 500,50", and three
# groups before a word, as in "1 234 567 people".
_SURE_GROUPS = re.compile(
  r"(?<![\w.,/])[1-9]\d{0,2}(?: \d{3})*"
  r"(?: 0\d\d(?: \d{3})*|(?<= \d{3}) \d{3}(?= [A-Za-z])"
  r"| \d{3}(?=,\d{1,2}(?!\d)))"
  r"(?![\d-]|[.,/]\d{3}| \d| ?[*+/=x])"
)
# The steps of a solution: "1. She sold 48 clips.\n2. ..."
_FIRST_STEP = re.compile(r"\(?1[.)]\s")
_NEXT_STEP = re.compile(r"\n\s{0,5}\(?2[.)]\s")
_RESULT = re.compile(r"=\s?\W{0,3}\d")
_QUOTIENT = re.compile(r"\d/\d")
_AFTERWORD = re.compile(
  r"\n\W*(?:check|verif\w*|note|explanation|let me|i hope|hope)\b",
  re.IGNORECASE,
)
_NOT_A_NUMBER = re.compile(r"\W{0,5}not\s\W{0,3}\d")
# "The answer is the sum of the 2, which is 72."
_ENDS_IN = re.compile(
  r"\b(?:is|are|was|were|equals|makes|gives|(?:a|the)\stotal\sof)\s\W{0,4}\Z",
  re.IGNORECASE,
)
# "She has 72, of which 24 are new": the number of which more is said.
_HAS_NUMBER = re.compile(
  r"\b(?:has|have|had|sold|paid|costs?|number)\s\W{0,3}\Z", re.IGNORECASE
)
_SUMS_UP = re.compile(r"\bfor a total of\s\W{0,4}\Z", re.IGNORECASE)
_ASIDE = re.compile(r"\b(?:of which|where|while|and the)\b", re.IGNORECASE)
_REJECTED = re.compile(
  r"\b(?:not|neither\s[^\s,;]{1,40}\snor)\s[^\s,;.]+(?:\s[^\s,;.]+)?"
  r"(?:,?\sbut\s(?:rather\s)?|[,;]\s(?:it\sis|it's|rather)\s)"
)
# "The answer is none.", "... no apples left."
_NONE = re.compile(
  r"(?:none|nothing|no\s[a-z ]{1,30}?(?=\s(?:left|remain)))"
  r"(?:\s(?:left|remain(?:s|ing)?))?[\s.*]*",
  re.IGNORECASE,
)
_OR = re.compile(r",?\sor\s")
_AND_A_FRACTION = re.compile(r"(?<=\d) and (?:a (half)\b|(?=\d+/\d))")
_EQUALS = re.compile(
  r"=|,?\s(?:which\s)?(?:equals|is\sequal\sto)\b", re.IGNORECASE
)
# After an operation: "8 * 8, or 64", "40 + 24 gives 64".
_WHICH_IS = re.compile(
  r",?\s(?:which\s(?:is|equals|makes|gives)|(?:giving|gives|making|makes|or"
  r"|that\sis|for\sa\stotal\sof)(?=,?\s\W{0,3}\d))\b"
  r"|\s?(?:[=-]>|[\u2192\u21d2\u27f9])\s?",
  re.IGNORECASE,
)
# "**$64**", where a text without a marker sets its answer in bold; "**3.**"
# and "**Step 3**" are headings.
_BOLD = re.compile(
  r"\*\*\s?(-?\$?\s?-?\d[\d,.]*(?<!\.)%?(?:\s[A-Za-z]{1,20})?)\.?\s?\*\*"
)
_MINUS = re.compile(
  r"(\b(?:is|was|are|be|to|at|of|equals|reaches|about)\s|[=:(]\s?|\A\W{0,5})"
  r"minus\s(?=\$?\.?\d)",
  re.IGNORECASE,
)
_NEGATIVE = re.compile(r"\bnegative\s(?=\$?\.?\d)", re.IGNORECASE)
_DOLLARS_AND_CENTS = re.compile(
  r"(\d)\sdollars?,?\s(?:and\s)?(\d{1,2})\scents?\b", re.IGNORECASE
)
_NEGATED = re.compile(r"(?<![\w).\]}%])-\s?\(([$\d.,/]{1,40})\)")
_ALONE_FRACTION = re.compile(r"\W{0,5}?(-?\d+)\s/\s(\d+)(?![^\n]*\d)")
# An operator between two numbers, the first of which may have a unit; a share
# of a number.
_OPERATION = re.compile(
  r"\d[)%]?(?:\s[A-Za-z]+){0,2}"
  r"(?:\s?[+*\u00d7\u00b7\u00f7]\s?|\s[-/x]\s|(?<=\d)[-x](?=\d)"
  r"|\s(?:times|plus|minus|divided\sby|multiplied\sby)\s)[($-]{0,3}\d"
  r"|(?:\d\s?(?:%|percent)|\b(?:half|(?:a|one)\s(?:third|quarter)))\sof\s\$?\d"
  r"|\b(?:half|twice|double|triple)\s\$?\d"
)
_OPERATOR = re.compile(r"[+*\u00d7\u00b7\u00f7^]|\s[-/]\s")
# Words that may precede the number that is the answer.
_ABOUT = re.compile(
  r"\W{0,5}(?:(?:about|exactly|only|just|approximately|around|roughly|nearly"
  r"|almost|a total of|equal to|therefore|then|thus|simply)\W{1,3}){0,3}",
  re.IGNORECASE,
)
_NO_ONE = re.compile(r"\bno[ -]one\b", re.IGNORECASE)
_PRONOUN_ONE = re.compile(r"\s(?:of|or|that|who|which)\b")
_CONCLUDES = re.compile(
  r"\b(?:so|therefore|thus|hence|altogether|in total|total|leaving|leaves"
  r"|makes)\b",
  re.IGNORECASE,
)
# After the last number in digits, a number word is the result if one of these
# precedes it ("20 - 8 is twelve") or follows it ("has twelve apples left").
_RESULTS_IN = re.compile(
  r"(?:=|\b(?:(?<!which\s)is|(?<!there\s)are|equals?|equal\sto|makes?|gives?"
  r"|gets?))[,\s]{1,3}(?:(?:exactly|about|only|just)\s)?\Z",
  re.IGNORECASE,
)
_ENDS_SOON = re.compile(
  r"(?!\s(?:more|less|fewer|times|higher|lower|of|each)\b)(?:[\s-]\w+){0,3}\W*\Z"
)
_SUBJECT = re.compile(
  r"(?:[.!]\s\W{0,5}|\b(?:has|have|had|are|is|were|was|got|with)\s"
  r"(?:(?:exactly|about|only|just)\s)?)\Z",
  re.IGNORECASE,
)
_LEFT_OVER = re.compile(
  r"(?:\s\w+){0,4}?\s(?:left|remain(?:s|ing)?|in\s(?:total|all)|altogether)\W*\Z",
  re.IGNORECASE,
)
_NUMBER_WORD = re.compile(
  r"\b(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
  r"|\w{3,5}teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
  r"|answer\sis)\b",
  re.IGNORECASE,
)
# Before an option or a choice: "therefore (C)", "definitely yes".
_ADVERB = re.compile(
  r"(?:(?:therefore|thus|hence|then|so|clearly|definitely|certainly|indeed"
  r"|most\slikely|likely|probably|simply|an?\s(?:resounding|definite|clear)"
  r"),?\s){1,2}"
)
_CHOICE = re.compile(r"\b(?:yes|no|true|false|valid|invalid)\b")
_OPENING_CHOICE = re.compile(
  r"[(\[]?(?:deductively\s)?(not\s)?(yes|no|true|false|valid|invalid)\b"
)
_ENDING_CHOICE = re.compile(
  r"\bis\W{1,3}(not\s)?(?:deductively\s)?(true|false|valid|invalid)\W{0,5}\Z"
)
# "Result: True", "... back at the starting point. No."
_LAST_CHOICE = re.compile(
  r"(?:\A\W{0,4}(?:(?:the|my|final)\s){0,2}(?:answer|result|conclusion|verdict"
  r"|decision|judge?ment|output|prediction|label)\W{0,4}:|.*[.!?])[\s*_]{1,5}"
  r"(yes|no|true|false|valid|invalid)[\s.*_!]{0,5}\Z"
)
_OPPOSITE = {
  "valid": "invalid",
  "invalid": "valid",
  "true": "false",
  "false": "true",
}
_OPTION = re.compile(
  r"(?:the\s)?(?:option|choice|letter|answer|select|choose|pick)?\s?"
  r"(?:\(\s?([a-z])\s?\)|\[([a-z])\]|<([a-z])>|([a-z])[.):,]?)"
)
_OPENING_OPTION = re.compile(
  r"(?:option\s+|choice\s+)?(?:\(([a-z])\)|\[([a-z])\]"
  r"|([a-z])(?:\)|[.:]\s|\s[-\u2013\u2014]\s(?!\(?[a-z]\b)"
  r"|\s\((?!(?:[a-z]|wrong|incorrect|false|not|or|and|maybe)\b)"
  r"|,?\s(?:and\s)?(?:not|rather\sthan|instead\sof)\s(?=\(?[a-z]\)?\W*\Z)"
  r"|,\s(?!(?:and|or)\b|\(?[a-z]\b)))"
)
# "therefore, option (D) is correct", "C is the right answer"
_DECLARED_OPTION = re.compile(
  r"(?:\b(?:option|choice|answer|statement)\s\(?([a-z])\)?"
  r"|(\([a-z]\))|(?:\A|\b(?:so|thus|hence|therefore|that),?\s)([a-z]))"
  r"\sis\s(?:therefore\s|thus\s)?(?:the\s)?"
  r"(?:(?:only\s)?(?:correct|right|true)\b|best\b|answer\b)"
  r"|\b(?:select|choose|pick|go\swith)\s\(?([a-z])\)?(?=[.,;]|\Z)"
)
_DENIED_OPTION = re.compile(
  r"(?:(?:option|choice|answer)\s)?\(?[a-z]\)?\s(?:isn't|is\snot|can't|cannot"
  r"|is\s(?:wrong|incorrect|false))\b"
)
_OPTION_SENTENCE_END = re.compile(
  r"(?<=\))[.;]\s|\b(?:because|since|as)\b|\n"
  r"|(?<=\))(?:,?\s(?:and\s)?not|,?\s(?:rather\sthan|instead\sof))\s(?=\([a-z]\))"
)
_NOT_ANOTHER = re.compile(r",\s(?:and\s)?not\s\([a-z]\).*")
_ENDING_OPTION = re.compile(r"(\([a-z]\))\W{0,5}\Z")
_DENIES = re.compile(
  r"\b(?:not|n't|never|neither|nor|except|wrong|incorrect)\b"
)
_LIST_LINE = re.compile(r"[ \t]*(?:[-*\u2022]|\(?\d{1,3}[.)])[ \t]+(.*)")
_NUMBERING = re.compile(r"(?:\A|[\s,;])\(?\d{1,2}[.)]\s")
_WORD_LINE = re.compile(r"[ \t*]*([^\W\d_][\w'-]*)[ \t*,]*")
# "The words in alphabetical order are: apple, cat"
_LIST_FOLLOWS = re.compile(
  r".{0,200}\b(?:sort\w*|alphabet\w*|order\w*|list\w*|words?|result)\b"
  r"[^:]{0,80}?(?::|\b(?:is|are)\b:?)\s(?=.*\S)"
)
# "The missing brackets are ) ]", but not "12: ( ; stack: [ (".
_BRACKETS_FOLLOW = re.compile(
  r"\b(?:sequence|clos\w+|complet\w+|brackets?|parenthes\w+|missing|append|add"
  r"|need)\b[^:;()\[\]{}<>]{0,60}(?::|\s)\s*([()\[\]{}<>\s]+)\Z"
)
_BRACKETS = re.compile(r"[()\[\]{}<>]+")

_REACH = 2000  # the number of last characters searched for the last number
_MAX_READ_TWICE = 100_000  # characters of a text in Turkish
# In characters: the longest unit of a loop, and the length of the whole loop.
_MAX_PERIOD, _MIN_LOOP = 100, 40
_AROUND = "\"'`*$ "
_DIGIT = re.compile(r"\d")
_REST_OF_NUMBER = re.compile(rf"[\d.,/'{spelling.THIN_SPACE}]*")
# As `fractions.Fraction` reads it, but for exponents and digits without end.
_PLAIN_NUMBER = re.compile(
  r"[-+]?(?:\d{1,200}(?:/\d{1,200}|(?:\.\d{0,200})?(?:e[-+]?\d{1,3})?)"
  r"|\.\d{1,200}(?:e[-+]?\d{1,3})?)",
  re.IGNORECASE,
)
_LAST_WORD = re.compile(r".*\w|", re.DOTALL)
_TOLERANCE = fractions.Fraction(1, 1_000_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """The result of grading a prediction.

  Attributes:
    extracted: The answer extracted from the prediction; None if there is none.
    correct: Whether it equals the target's answer.
  """

  extracted: str | None
  correct: bool


def extract_number(text: str) -> str | None:
  r"""Extracts a text's numeric answer.

  The answer is the first number after the last marker that is followed by one,
  or the last number of a solution that follows "A:" or "Answer:". Markers are
  "answer is", "answer:", "####", "\boxed" or, at the beginning of a sentence,
  "A:". In an equation it is the result, on either side; remarks in parentheses
  or after "because" are ignored. Without a marker the answer is the last number
  of the text, unless the text ends in a repetition loop. Further questions and
  other speakers' turns after the model's own answer are ignored.

  Supports digits of every script, digit groups (separated by commas,
  apostrophes, or thin and non-breaking spaces), decimal commas where they are
  unambiguous, LaTeX, and English number words.

  Returns:
    The number without digit groups, currency, unit or plus sign; a fraction as
    "3/4", a mixed number as "7/4". None if the text has no number, or if its
    answer is not a single number: a formula ("3\pi", "2x + 3"), or several
    numbers ("(2, 3)", "5 or 7").

  Example:
    >>> extract_number("She pays $5. The answer is $1,234.50 a year.")
    '1234.50'
    >>> extract_number("The answer is 48 + 24 = 72 clips.")
    '72'
    >>> extract_number("The answer is 18 = 9 * 2.")
    '18'
    >>> extract_number("10-5 leaves 5, so -5 degrees")
    '-5'
    >>> extract_number("The answer is 1 3/4 cups.")
    '7/4'
    >>> extract_number("The answer is minus twelve.")
    '-12'
    >>> extract_number("The answer is 18 eggs (16 - 3 = 13 are left).")
    '18'
    >>> extract_number(r"It is \boxed{10^{3}}.")
    '1000'
    >>> extract_number(r"It is \boxed{2\sqrt{3}}.") is None
    True
  """
  number = _read_number(text)
  return number.value if number else None


def _read_number(text: str) -> written_numbers.Number | None:
  """Finds the number of a text; None if there is none or it is a formula."""
  number = _find_number(text)
  return number if number and number.is_alone else None


def _find_number(text: str) -> written_numbers.Number | None:
  text = turns.own_turn(spelling.plain_characters(text), _end_of_number)
  denied, in_remark = False, None
  for said in turns.marked(text):
    plain = spelling.plain_latex(said.text).strip()
    sentence = _SENTENCE_END.split(plain, 1)[0]
    if said.is_boxed and formulas.is_several(sentence):
      return None
    if not said.is_boxed and _NOT_A_NUMBER.match(_REJECTED.sub("", sentence)):
      denied = True
      continue
    if said.opens:
      solution = _AFTERWORD.split(plain, 1)[0]
      if _only_opens(solution, sentence):
        return None if _loops(solution) else _last_number(solution)
    bare = _REMARK.sub("", sentence)
    for part in (bare, sentence):
      number = _number_said(part, is_boxed=said.is_boxed)
      if number is None:
        continue
      if number.is_alone or said.is_boxed or part == bare:
        return number
      # "The answer is 72. This answer is correct because 48 + 24."
      in_remark = in_remark or number
      break
    else:
      if _NONE.fullmatch(sentence):
        return written_numbers.Number("0", 0, len(sentence))
      if said.is_boxed and formulas.is_symbolic(sentence):
        return None
  if denied or in_remark is not None:
    return in_remark
  return None if _loops(text) else _last_number(text)


def _only_opens(said: str, sentence: str) -> bool:
  """Returns whether "A:" opens a solution, whose answer is at its end.

  It is a numbered list, or its first sentence is a calculation that others
  follow, or does not begin with a number, and a later one concludes.
  """
  rest = said[len(sentence) :]
  if _FIRST_STEP.match(said) and _NEXT_STEP.search(said):
    return True
  if "=" in sentence and (
    _OPERATION.search(sentence) or _QUOTIENT.search(sentence)
  ):
    return bool(_RESULT.search(rest))
  begins = written_numbers.opening(sentence[_ABOUT.match(sentence).end() :])
  words = written_numbers.in_words(sentence)
  is_said = begins or (words and words[0].start <= _ABOUT.match(sentence).end())
  concludes = "=" in rest or _CONCLUDES.search(rest)
  return not is_said and bool(concludes and _DIGIT.search(rest))


def _end_of_number(text: str) -> int | None:
  """Returns the end of the first number of a text, or None."""
  digit = _DIGIT.search(text)
  word = _NUMBER_WORD.search(text, 0, digit.start() if digit else 5 * _REACH)
  first = word or digit
  return first.end() if first else None


def _loops(text: str) -> bool:
  """Returns whether a text ends in a repetition loop, and so has no answer."""
  text = text[: _LAST_WORD.match(text).end()]  # a line of dashes is no loop
  for period in range(1, min(_MAX_PERIOD, len(text) // 4) + 1):
    tail = text[-max(4 * period, _MIN_LOOP) :]
    if len(tail) >= _MIN_LOOP and tail[period:] == tail[:-period]:
      return True
  return False


def _signed(text: str) -> str:
  """Replaces sign words by signs; joins mixed numbers, dollars and cents."""
  text = _NEGATIVE.sub("-", _MINUS.sub(r"\1-", text))
  text = _NEGATED.sub(r"-\1", text)
  text = _DOLLARS_AND_CENTS.sub(
    lambda m: f"{m[1]}.{m[2].rjust(2, '0')} dollars", text
  )
  return _AND_A_FRACTION.sub(lambda m: " 1/2" if m[1] else " ", text)


def _number_said(said: str, *, is_boxed: bool) -> written_numbers.Number | None:
  """Finds the number in the text after a marker.

  Args:
    said: The text after the marker.
    is_boxed: Whether it is the content of a box.
  """
  said = _GROUPS.sub(
    lambda m: m[0].replace(" ", spelling.THIN_SPACE),
    _signed(_REJECTED.sub("", said)),
  )
  which = _WHICH_IS.search(said)
  if which and _OPERATION.search(said[: which.start()]):
    said = f"{said[: which.start()]} = {said[which.end() :]}"
  sides = _EQUALS.split(said)
  result = _left_of(sides)
  if result is not None:
    return result
  for part in (f"= {sides[-1].strip()}", said):
    number = _first_number(part)
    if number is not None:
      if not is_boxed:
        number = _ending_number(part) or number
      is_part = formulas.is_part(
        part, number.start, _end_of_equal(part, number), is_boxed=is_boxed
      )
      return dataclasses.replace(number, is_alone=not is_part)
  return None


def _ending_number(said: str) -> written_numbers.Number | None:
  """Finds the number of which a sentence says at its end that it is."""
  if written_numbers.opening(said[_ABOUT.match(said).end() :]):
    return None
  numbers = written_numbers.in_digits(said)
  if not numbers:
    return None
  last = numbers[-1]
  if _SUMS_UP.search(said, 0, last.start):
    return last
  if _HAS_NUMBER.search(said, 0, numbers[0].start):
    return None
  is_end = _ENDS_SOON.match(said, last.end) and not _ASIDE.search(
    said, numbers[0].end, last.start
  )
  return last if is_end and _ENDS_IN.search(said, 0, last.start) else None


def _end_of_equal(said: str, number: written_numbers.Number) -> int:
  """Returns the end of a number, and of an equal one after it: 0.5 or 1/2."""
  joined = _OR.match(said, number.end)
  other = joined and written_numbers.opening(said[joined.end() :])
  if other and any(
    numbers_equal(one, two)
    for one in _readings(number)
    for two in _readings(other)
  ):
    return joined.end() + other.end
  return number.end


def _left_of(sides: Sequence[str]) -> written_numbers.Number | None:
  """Finds the result of an equation with its result on the left: 18 = 9 * 2."""
  if len(sides) == 1 or not _OPERATION.search(sides[-1]):
    return None
  for side in reversed(sides[:-1]):
    if _OPERATION.search(side):
      continue
    numbers = written_numbers.in_digits(f"= {side.strip()}")
    if not numbers or _OPERATOR.search(side):
      return None
    return numbers[-1]
  return None


def _first_number(text: str) -> written_numbers.Number | None:
  """Finds the first number: in digits, or in words at the beginning."""
  alone = _ALONE_FRACTION.fullmatch(text.removeprefix("= ").rstrip(" ."))
  if alone:
    number = written_numbers.opening(f"{alone[1]}/{alone[2]}")
    return number and dataclasses.replace(number, end=len(text))
  digits = written_numbers.in_digits(text)
  words = written_numbers.in_words(text)
  if (
    words
    and words[0].start <= _ABOUT.match(text).end()
    and not (words[0].value == "1" and _PRONOUN_ONE.match(text, words[0].end))
  ):
    return words[0]
  if digits:
    return digits[0]
  return next((word for word in words if word.value != "1"), None)


def _last_number(text: str) -> written_numbers.Number | None:
  """Finds the last number of a text without a marker, or the one in bold."""
  bold = _bold_number(text)
  if bold is not None:
    return bold
  last_digit = _DIGIT.search(text[::-1])
  if last_digit is None:
    tail = spelling.plain_latex(text[-_REACH:])
    words = written_numbers.in_words(_NO_ONE.sub("", tail))
    meant = [word for word in words if word.value != "1"]
    return (meant or words or [None])[-1]
  end = len(text) - last_digit.start()
  start = max(end - _REACH, 0)
  if start:  # do not start within a number
    start = _REST_OF_NUMBER.match(text, start).end()
  # The text after the last digits can be part of the number: "5 million".
  tail = _signed(spelling.plain_latex(text[start : end + _REACH]))
  without = _LAST_REMARK.sub("", tail)
  if _DIGIT.search(_last_sentence(without)):
    tail = without
  if _GROUPS.fullmatch(tail.strip(" .$\n")):
    tail = tail.replace(" ", "")
  tail = _SURE_GROUPS.sub(
    lambda m: m[0].replace(" ", spelling.THIN_SPACE), tail
  )
  numbers = written_numbers.in_digits(tail)
  if not numbers:
    return None
  after = tail[numbers[-1].end :]
  words = written_numbers.in_words(after)
  meant = [word for word in words if _is_result(after, word)]
  if meant:
    return meant[-1]
  last = numbers[-1]
  left = _left_of(_last_sentence(tail[: last.end]).split("="))
  is_part = formulas.touches_symbol(tail, last.start, last.end)
  return left or dataclasses.replace(last, is_alone=not is_part)


def _is_result(text: str, word: written_numbers.Number) -> bool:
  """Returns whether a number word after the last digits is the result."""
  if word.value == "1":
    return False
  before, after = text[: word.start], text[word.end :]
  return bool(
    _CONCLUDES.search(before)
    or (_RESULTS_IN.search(before) and _ENDS_SOON.match(after))
    or (_SUBJECT.search(before) and _LEFT_OVER.match(after))
  )


def _bold_number(text: str) -> written_numbers.Number | None:
  """Finds the only number that the last line sets in bold.

  At the beginning of a line, a number in bold is that of a list.
  """
  if "**" not in text[-_REACH:]:
    return None
  line = spelling.plain_latex(text[-_REACH:].strip().rpartition("\n")[2])
  found = list(_BOLD.finditer(line))
  if len(found) != 1 or (found[0].start() == 0 and found[0].end() < len(line)):
    return None
  return written_numbers.opening(found[0][1])


def _last_sentence(text: str) -> str:
  """Returns the last sentence of a text."""
  return _SENTENCE_END.split(text.rstrip(" .\n"))[-1]


def numbers_equal(left: str, right: str) -> bool:
  """Returns whether two numbers, as `extract_number` returns them, are equal.

  The tolerance is one millionth, so that 0.3333333 equals 1/3, and of small
  numbers one thousandth, so that two of them are not both zero.

  Example:
    >>> numbers_equal("72.0", "72"), numbers_equal("-5", "5")
    (True, False)
  """
  a, b = value_of(left), value_of(right)
  if a is None or b is None:
    return False
  return abs(a - b) <= min(_TOLERANCE, max(abs(a), abs(b)) / 1000)


def value_of(number: str) -> fractions.Fraction | None:
  """Returns the value of a number as `extract_number` writes it.

  Returns:
    None for any other text, division by zero, and digits or exponents beyond
    what an answer has, such as 1e999999999, which would fill the memory.

  Example:
    >>> value_of("3/4"), value_of("1e999999999")
    (Fraction(3, 4), None)
  """
  if not _PLAIN_NUMBER.fullmatch(number):
    return None
  try:
    return fractions.Fraction(number)
  except ZeroDivisionError:
    return None


def extract_words(text: str) -> str:
  r"""Extracts a text's answer as normalized words.

  The answer is the rest of the line after the last "answer is", "answer:",
  "####" or "A:", or the content of the last "\boxed"; without any of these, the
  last line. It is normalized by removing surrounding quotes, a trailing period,
  case and repeated spaces.

  Example:
    >>> extract_words('So the answer is "Apple  cat".')
    'apple cat'
    >>> extract_words(r"It is $\boxed{\text{(B)}}$, as was to be shown.")
    '(b)'
  """
  turn = _words_turn(text)
  said = _last_said(turn)
  return _words(next(turns.lines(turn)) if said is None else said)


def _last_said(turn: str) -> str | None:
  """Returns the text after the last marker of an answer, or None."""
  said = next(turns.marked(turn), None)
  return None if said is None else said.text


def _words_turn(text: str) -> str:
  return turns.own_turn(spelling.plain_characters(text), lambda _: 0)


def _words(said: str) -> str:
  """Normalizes the first line of an answer."""
  line = spelling.plain_latex(said).partition("\n")[0]
  words = unicodedata.normalize("NFC", " ".join(line.split()).casefold())
  # A period may be inside the quotes or outside.
  return words.rstrip(_AROUND + ".").lstrip(_AROUND)


def extract_option(text: str) -> str:
  """Extracts an option's letter, such as "(b)".

  An answer that names no option, or several, is returned as normalized words.

  Example:
    >>> extract_option("The answer is B."), extract_option("(B) 12/25/1937")
    ('(b)', '(b)')
    >>> extract_option("The answer is B: the lion.")
    '(b)'
    >>> extract_option("So the answer is (A) or (B).")
    '(a) or (b)'
  """
  text = _words_turn(text)
  first = None
  for said in turns.marked(text, options=True):
    words = _words(said.text)
    option = _option(words) or _declared_option(words)
    if option:
      return option
    first = first or words
  if first is not None:
    return first
  lines = [_words(line) for line in turns.lines(text)]
  for line in lines:
    alone = _OPTION.fullmatch(line)
    if alone:
      return _letter(alone)
  for line in lines:
    option = _option(line) or _declared_option(line) or _only_option(line)
    if option:
      return option
  return lines[0]


def _option(words: str) -> str | None:
  """Returns the option at the beginning of an answer that names no other."""
  words = _without_adverb(_REJECTED.sub("", words))
  if words.startswith("("):
    words = _NOT_ANOTHER.sub("", words)
  for part in (words, _OPTION_SENTENCE_END.split(words, 1)[0].strip()):
    alone = _OPTION.fullmatch(part)
    if alone:
      return _letter(alone)
  words = part
  opening = _OPENING_OPTION.match(words)
  if opening is None or _DENIED_OPTION.match(words):
    return None
  letter = _letter(opening)
  return letter if _letters(words) <= {letter} else None


def _without_adverb(words: str) -> str:
  adverb = _ADVERB.match(words)
  return words[adverb.end() :] if adverb else words


def _declared_option(words: str) -> str | None:
  """Returns the only option that a line declares to be the correct one."""
  found = {_letter(one) for one in _DECLARED_OPTION.finditer(words)}
  return found.pop() if len(found) == 1 else None


def _only_option(words: str) -> str | None:
  """Returns the only option of the last sentence, if it ends it undenied."""
  last = _last_sentence(words)
  ending = _ENDING_OPTION.search(last)
  if ending and len(_letters(last)) == 1 and not _DENIES.search(last):
    return ending[1]
  return None


def _letter(match: re.Match[str]) -> str:
  return f"({match[match.lastindex].strip('()')})"


def _letters(words: str) -> set[str]:
  return set(re.findall(r"\([a-z]\)", words))


def extract_choice(text: str) -> str:
  """Extracts yes or no, true or false, valid or invalid.

  An answer that is none of these is returned as normalized words.

  Example:
    >>> extract_choice("The answer is No, he is not back at the start.")
    'no'
    >>> extract_choice("yes or no")
    'yes or no'
  """
  text = _words_turn(text)
  marked = [_words(said.text) for said in turns.marked(text)]
  read = marked or [_words(line) for line in turns.lines(text)]
  for words in read:
    choice = _choice(words) or (None if marked else _said_choice(words))
    if choice:
      return choice
  return read[0]


def _choice(words: str) -> str | None:
  """Returns the choice at the start of an answer or the end of an equation."""
  result = words.rpartition("=")[2].strip() if "=" in words else ""
  said = _REMARK.sub("", _SENTENCE_END.split(words, 1)[0])
  for part in (result, said):
    opening = _OPENING_CHOICE.match(_without_adverb(part))
    if opening and len(set(_CHOICE.findall(part))) == 1:
      return _OPPOSITE.get(opening[2]) if opening[1] else opening[2]
  return None


def _said_choice(words: str) -> str | None:
  """Returns the choice that ends a sentence: "the statement is false"."""
  last = _LAST_CHOICE.match(words)
  if last:
    return last[1]
  ending = _ENDING_CHOICE.search(words)
  if ending is None or _DENIES.search(words, 0, ending.start()):
    return None
  if len(set(_CHOICE.findall(words))) > 1:
    return None
  return _OPPOSITE.get(ending[2]) if ending[1] else ending[2]


def extract_word_list(text: str) -> str:
  r"""Extracts a list of words, with any separators.

  Example:
    >>> extract_word_list("The answer is apple, cat, and dog.")
    'apple cat dog'
    >>> extract_word_list('["apple", "cat"]')
    'apple cat'
    >>> extract_word_list("1. apple\n2. cat")
    'apple cat'
    >>> extract_word_list("The sorted list is: apple, cat")
    'apple cat'
  """
  turn = _words_turn(text)
  said = _last_said(turn)
  listed = _listed(turn if said is None else said)
  if listed:
    said = " ".join(listed)
  if said is None:
    words = _words(next(turns.lines(turn)))
    lead = _LIST_FOLLOWS.match(words)
    words = words[lead.end() :] if lead else words
  else:
    words = _words(said)
  if _FIRST_STEP.match(words):
    words = _NUMBERING.sub(" ", words)
  words = re.sub(r",\s?(?:and|&)\s", ", ", words)
  words = re.sub(
    r"(?<!\w)'|'(?!\w)|->|[\s,;:|/\"`*\[\]<>\u2192\u2022]+", " ", words
  )
  return " ".join(words.split())


def _listed(text: str) -> list[str]:
  """Returns the items at the end of a text, on lines of their own.

  They follow a bullet or a number, or are single words.
  """
  lines = text[-_REACH:].strip().split("\n")
  for pattern in (_LIST_LINE, _WORD_LINE):
    items: list[str] = []
    for line in reversed(lines):
      found = pattern.fullmatch(line)
      if found is None:
        break
      items.append(found[1].strip())
    if len(items) > 1:
      return items[::-1]
  return []


def extract_brackets(text: str) -> str:
  """Extracts a sequence of brackets, with or without spaces.

  Example:
    >>> extract_brackets("So the answer is ] ) >.")
    '])>'
  """
  text = _words_turn(text)
  marked = [_words(said.text) for said in turns.marked(text, of_brackets=True)]
  read = marked or [_words(line) for line in turns.lines(text)]
  for words in read:
    follow = _BRACKETS_FOLLOW.search(words)
    for part in (words, follow[1] if follow else ""):
      joined = re.sub(r"[\s,\"'`$]+", "", part)
      if _BRACKETS.fullmatch(joined):
        return joined
  return read[0]


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
  """Grades a prediction.

  Args:
    prediction: The model's whole output.
    target: The gold answer, bare ("72", "9 (apples)") or at the end of a text
      ("#### 72").
    kind: The kind of answer: a number, exact words, an option's letter, a
      choice of two words, a list of words, or a sequence of brackets. The
      paper's code supports only numbers and words; it compares the numbers of
      BIG-Bench-Hard ("numeral") as words.
    grader: "fixed" or "paper_code".
    chain_of_thought: Whether the prompt asked for a chain of thought, on which
      the paper's code for words depends; None if unknown.

  Raises:
    UserError: `kind` or `grader` is unknown.

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
  extract = _EXTRACT[kind]
  extracted = extract(prediction)
  correct = extracted != "" and extracted == extract(target)
  if (
    not correct
    and max(len(prediction), len(target)) <= _MAX_READ_TWICE
    and spelling.is_turkish(prediction, target)
  ):
    extracted = extract(spelling.small_turkish_i(prediction))
    gold = extract(spelling.small_turkish_i(target))
    correct = extracted != "" and extracted == gold
  return Verdict(extracted=extracted or None, correct=correct)


def _grade_number(prediction: str, target: str) -> Verdict:
  said, gold = _read_number(prediction), _gold_number(target)
  if said is None:
    return Verdict(extracted=None, correct=False)
  for reading in _readings(said):
    if gold is not None and any(
      numbers_equal(reading, meant) for meant in _readings(gold)
    ):
      return Verdict(extracted=reading, correct=True)
  return Verdict(extracted=said.value, correct=False)


def _readings(number: written_numbers.Number) -> Sequence[str]:
  """Returns a number's possible values; in GSM8K "$4 million" may also be 4."""
  return (number.value, *((number.scaled,) if number.scaled else ()))


def _gold_number(target: str) -> written_numbers.Number | None:
  """Extracts a gold answer; one that begins with a number is bare.

  Numbers within a unit, as in "9 (bags of 2)", are ignored.
  """
  if not turns.has_marker(target):
    plain = spelling.plain_latex(spelling.plain_characters(target[:_REACH]))
    plain = plain.strip()
    if _GROUPS.fullmatch(plain.strip(" .$")):
      plain = plain.replace(" ", "")
    opening = written_numbers.opening(plain)
    if opening is not None:
      is_part = formulas.is_part(
        plain, opening.start, _end_of_equal(plain, opening), is_boxed=False
      )
      return None if is_part else opening
  return _read_number(target)


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
  """Grades words as the paper's code does: the target occurs in the text.

  After a chain of thought, the text between the first and second "the answer
  is" is searched, and there is no answer without that marker; otherwise the
  whole text is. If the prompt is unknown, the presence of the marker decides.
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
