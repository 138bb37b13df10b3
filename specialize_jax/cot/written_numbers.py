r"""Finds the numbers of a text, in digits or in English words.

The input is text that `spelling` has normalized. Numbers are returned as
strings that `fractions.Fraction` parses: "1200", "-0.5", "3/4", "1.5e3".
"""

import dataclasses
import fractions
import re

from specialize_jax.cot.spelling import THIN_SPACE

_MAX_DIGITS = 100  # longer numbers occur only in a repetition loop

# A "-" is a sign only if it cannot be an operator: not after a digit, a letter
# or a closing bracket ("10-5"), and before a space only directly after an
# equals sign or colon ("= - 5", but not "10 - 5").
_NUMBER = re.compile(
  rf"""
  (?P<sign> (?<![\w).\]}}%]) [-+] | (?<=[=:]\ ) -\  )?
  (?: \$ \s? (?P<inner> - )? )?
  (?P<value>
    (?: \d++ [^\S\n]{{1,3}} )? \d++ / \d++ (?! /\d ) |  # 3/4, 1 3/4
    (?P<digits>
      (?P<european>
        \d{{1,3}} (?: \.\d{{3}} )+ ,\d{{1,2}} (?! \d ) |  # 1.234,50
        \d{{1,3}} (?: \.\d{{3}} ){{2,}} (?! [.,]?\d ) |  # 1.234.567
        \d{{1,3}} (?: [{THIN_SPACE}] \d{{3}} )+ ,\d{{1,2}} (?! \d ) |
        (?<! [,(\[] ) (?: \d++ , \d{{1,2}} | 0,\d++ ) (?! ,?\d )  # 12,50
      ) |
      (?:
        [1-9] \d{{0,2}} (?P<group> [,'_{THIN_SPACE}] ) \d{{3}}
          (?: (?P=group) \d{{3}} )* (?! \d ) |
        \d{{1,3}} (?: ,\d\d )+ ,\d{{3}} (?! \d ) |  # 12,34,567 in India
        \d++
      ) (?: \.\d++ )? |
      (?<! [A-Za-z] ) \.\d++  # not "Rs.18"
    )
    (?: [eE] [+-]? \d{{1,2}} (?! \w ) )?
    (?: \s? (?: [x*\u00d7\u00b7] ) \s? 10
      (?: \s?\^\s? (?: \{{ [+-]? \d{{1,2}} \}} | [+-]? \d{{1,2}} (?! \d ) ) |
        \u207b? [\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{{1,2}} )
    )?
  )
  (?P<power> (?: \s? (?: \^ | \*\* (?= [\d({{] ) ) \s?
      (?: \{{ \s? [+-]? \d{{1,4}} \s? \}} | \( [+-]? \d{{1,4}} \)
        | [+-]? \d{{1,4}} (?! [\w^] ) )
    | \u207b? [\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{{1,4}} ) )?
  (?: [^\S\n]? (?P<scale> (?: hundred|thousand|million|billion|trillion|dozens?
    |percent|lakhs?|crores? )\b | [%\u4e07\u842c\u4ebf\u5104\ub9cc\uc5b5] )
    | (?P<letter> k|m|b|bn|mn ) \b )?
  """,
  re.VERBOSE | re.IGNORECASE,
)
_SUPERSCRIPTS = str.maketrans(
  "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b",
  "0123456789-",
)
_MAX_POWER_BITS = 200
_EXPONENT_BEFORE = re.compile(r"(?:\^|[A-Za-z]_|\d_)\s?[{(]?\Z")
# "48 m2"
_UNIT_BEFORE = re.compile(r"(?<![A-Za-z])(?:[kcdm]?m|ft|in|yd|mi)\Z")
_POWER_OF_UNIT = re.compile(r"[23](?![\w.,/^]?\w)")
_POWER_OF_TEN = re.compile(r"\s?[x*\u00d7\u00b7]\s?10\s?\^?\s?\{?(.*?)\}?\Z")


@dataclasses.dataclass(frozen=True)
class Number:
  r"""A number of a text.

  Attributes:
    value: A string that `fractions.Fraction` parses.
    start: The index of its first character in the text.
    end: The index after its last character.
    scaled: The value multiplied by the word after it ("4 million", "$4k",
      "2 dozen", "50%"), which could also be a unit; None without such a word.
    is_alone: Whether the number is the whole answer, and not part of a formula
      such as "2\sqrt{3}".
  """

  value: str
  start: int
  end: int
  scaled: str | None = None
  is_alone: bool = True


def in_digits(text: str) -> list[Number]:
  r"""Finds the numbers that are written in digits, in linear time.

  Powers are computed; numbers of more than a hundred digits, subscripts, and
  exponents of anything but a number are omitted.

  Example:
    >>> [n.value for n in in_digits("-$1,200.50 of 2 1/2 or 1.5 x 10^3")]
    ['-1200.50', '5/2', '1.5e3']
    >>> [n.value for n in in_digits("10^{3}, 2**10, 5\u00b2; 24 cm^2")]
    ['1000', '1024', '25', '24']
    >>> [n.value for n in in_digits("1.200,50 or 12,5 or 3 million; 10-5")]
    ['1200.50', '12.5', '3', '10', '5']
  """
  found = (
    _number(match)
    for match in _NUMBER.finditer(text)
    if not _EXPONENT_BEFORE.search(text, match.start() - 4, match.start())
    and not _is_of_unit(text, match.start())
  )
  return [number for number in found if number is not None]


def _is_of_unit(text: str, start: int) -> bool:
  """Returns whether a digit is the power of a unit, as in "48 m2"."""
  return bool(
    _POWER_OF_UNIT.match(text, start)
    and _UNIT_BEFORE.search(text, max(start - 3, 0), start)
  )


def opening(text: str) -> Number | None:
  """Returns the number in digits at the beginning of a text, or None."""
  match = _NUMBER.match(text)
  return _number(match) if match else None


def _number(match: re.Match[str]) -> Number | None:
  written, end = match["value"], match.end()
  if len(written) > _MAX_DIGITS:
    return None
  if match["digits"] is None:
    value = _fraction(written)
  else:
    digits, rest = match["digits"], written[len(match["digits"]) :]
    value = _plain_digits(digits, european=match["european"] is not None)
    value += _exponent(rest)
  if match["power"]:
    power = _power(value, match["power"]) if match["digits"] else None
    value, end = (power, end) if power else (value, match.start("power"))
  if "-" in (match["sign"] or "") + (match["inner"] or ""):
    value = f"-{value}"
  scaled, unit = None, match["scale"] or match["letter"]
  if unit and end == match.end() and not _ZERO_BELOW.search(value):
    scale = _SCALES_OF_DIGITS[unit.lower()]
    scaled = _decimal(fractions.Fraction(value) * scale)
  return Number(value, match.start(), end, scaled)


def _fraction(written: str) -> str:
  whole, _, part = re.sub(r"\s+", " ", written).rpartition(" ")
  if not whole:
    return part
  above, _, below = part.partition("/")  # a mixed number
  return f"{int(whole) * int(below) + int(above)}/{int(below)}"


def _plain_digits(digits: str, *, european: bool) -> str:
  if european:
    digits = re.sub(rf"[.{THIN_SPACE}]", "", digits).replace(",", ".")
  digits = re.sub(rf"[,'_{THIN_SPACE}]", "", digits)
  return f"0{digits}" if digits.startswith(".") else digits


def _exponent(rest: str) -> str:
  if not rest or rest[0] in "eE":
    return rest
  power = _POWER_OF_TEN.match(rest)[1].translate(_SUPERSCRIPTS)
  return f"e{int(power)}"


def _power(base: str, written: str) -> str | None:
  """Computes a power of a number in digits; None if it is invalid or long."""
  exponent = int(re.sub(r"[^\d-]", "", written.translate(_SUPERSCRIPTS)))
  value = fractions.Fraction(base)
  size = max(value.numerator, value.denominator)
  if (not value and exponent <= 0) or (
    size.bit_length() * abs(exponent) > _MAX_POWER_BITS
  ):
    return None
  return _decimal(value**exponent)


def _decimal(value: fractions.Fraction) -> str:
  """Writes a value as an integer or decimal if exact, else as a fraction."""
  for places in range(13):
    scaled = abs(value) * 10**places
    if scaled.denominator == 1:
      digits = str(scaled.numerator).rjust(places + 1, "0")
      sign = "-" if value < 0 else ""
      decimals = f".{digits[-places:]}" if places else ""
      return f"{sign}{digits[: len(digits) - places]}{decimals}"
  return str(value)


_UNITS = {
  "zero": 0,
  "one": 1,
  "two": 2,
  "three": 3,
  "four": 4,
  "five": 5,
  "six": 6,
  "seven": 7,
  "eight": 8,
  "nine": 9,
  "ten": 10,
  "eleven": 11,
  "twelve": 12,
  "thirteen": 13,
  "fourteen": 14,
  "fifteen": 15,
  "sixteen": 16,
  "seventeen": 17,
  "eighteen": 18,
  "nineteen": 19,
}
_TENS = {
  "twenty": 20,
  "thirty": 30,
  "forty": 40,
  "fifty": 50,
  "sixty": 60,
  "seventy": 70,
  "eighty": 80,
  "ninety": 90,
}
_SCALES = {
  "hundred": 100,
  "thousand": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
}
_SCALES_OF_DIGITS = _SCALES | {
  "dozen": 12,
  "dozens": 12,
  "lakh": 10**5,
  "lakhs": 10**5,
  "crore": 10**7,
  "crores": 10**7,
  **dict.fromkeys("\u4e07\u842c\ub9cc", 10**4),  # ten thousand: 3\u4e07
  **dict.fromkeys("\u4ebf\u5104\uc5b5", 10**8),
  "%": fractions.Fraction(1, 100),
  "percent": fractions.Fraction(1, 100),
  "k": 10**3,
  "m": 10**6,
  "mn": 10**6,
  "b": 10**9,
  "bn": 10**9,
}
_ZERO_BELOW = re.compile(r"/0+\Z")
_PARTS = {
  "half": 2,
  "third": 3,
  "quarter": 4,
  "fourth": 4,
  "fifth": 5,
  "sixth": 6,
  "seventh": 7,
  "eighth": 8,
  "ninth": 9,
  "tenth": 10,
}
_CARDINAL = "|".join([*_UNITS, *_TENS, *_SCALES])
_UNIT = "|".join(_UNITS)
_PART = "|".join([*_PARTS, "halve"])
# The number of words is limited: a longer match is a list or a loop.
_WORDS = re.compile(
  rf"""
  (?P<sign> (?<![\w-]) (?: minus | negative )\s{{1,3}} )?
  (?<![\w'-])
  (?:
    (?P<dozen> (?: (?: (?P<half>half)\s )? an? | (?P<dozens> {_UNIT} ) )
      \ dozens? )
    | (?P<cardinal>
        (?: an?\s (?= hundred|thousand|million|billion|trillion ) )?
        (?: {_CARDINAL} ) \b
        (?: (?: \s?-\s? | \s(?:and\s)? ) (?: {_CARDINAL} )\b ){{0,11}}
      )?
      (?: (?: (?(cardinal) [\s-] | \b (?:an?\s)? ) (?P<part> {_PART} )s?\b )
        | (?(cardinal) \s and\s an?\s (?P<added> {_PART} )s?\b | (?!) )
        | (?(cardinal) | (?!) ) )
  )
  (?![\w'-])
  """,
  re.VERBOSE | re.IGNORECASE,
)


def in_words(text: str) -> list[Number]:
  """Finds the numbers that are written in English words.

  Supports cardinals, fractions ("three quarters", "two and a half") and "half a
  dozen", optionally after "minus" or "negative". Words that are numbers in some
  sentences only ("one of them", "the third") count as numbers, so call this
  only where a number is expected.

  Example:
    >>> [n.value for n in in_words("Eighteen, or minus twenty-five.")]
    ['18', '-25']
    >>> [n.value for n in in_words("one thousand two hundred and five")]
    ['1205']
    >>> [n.value for n in in_words("three quarters; two and a half")]
    ['3/4', '5/2']
  """
  found = []
  for match in _WORDS.finditer(text):
    value = _value_of_words(match)
    if value is not None:
      sign = "-" if match["sign"] else ""
      found.append(Number(f"{sign}{value}", match.start(), match.end()))
  return found


def _value_of_words(match: re.Match[str]) -> str | None:
  if match["dozens"]:
    return str(12 * _UNITS[match["dozens"].lower()])
  if match["dozen"]:
    return "6" if match["half"] else "12"
  value = _cardinal(match["cardinal"]) if match["cardinal"] else 1
  if value is None:
    return None
  if match["part"]:
    part = _part(match["part"])
    if not match["cardinal"] and part != 2:
      before = match[0].lower().split()[0]
      return f"1/{part}" if before in ("a", "an") else None  # "the third"
    return f"{value}/{part}"
  if match["added"]:
    part = _part(match["added"])
    return f"{value * part + 1}/{part}"
  return str(value)


def _part(word: str) -> int:
  return _PARTS[word.lower().replace("halve", "half")]


def _cardinal(words: str) -> int | None:
  """Computes the value of a cardinal in words; None if it is not one."""
  total, current, last = 0, 0, ""
  for word in re.split(r"[\s-]+", words.lower()):
    if word in ("and", "a", "an"):
      continue
    if word == "hundred":
      current = max(current, 1) * 100
    elif word in _SCALES:
      total += max(current, 1) * _SCALES[word]
      current = 0
    else:
      follows_tens = last in _TENS and _UNITS.get(word, 0) in range(1, 10)
      joins = not last or last in _SCALES or follows_tens
      if not joins:
        return None  # "two three"
      current += _UNITS.get(word) or _TENS.get(word, 0)
    last = word
  return total + current
