r"""Normalizes Unicode and LaTeX notation before answers are extracted.

A model may write the digits of any script, full-width letters, non-breaking
and thin spaces, any of Unicode's minus signs, and LaTeX. `plain_characters`
and `plain_latex` replace these by ASCII where possible, so that extraction
handles one notation of each.
"""

import fractions
import functools
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping

THIN_SPACE = "\u2009"
"""Replaces every kind of space that can separate groups of digits."""

_MAX_MARKS = 30  # in a row
_GRAPHEME_JOINER = "\u034f"
_TURKISH = str.maketrans({"I": "ı", "İ": "i"})

# Marks a vulgar fraction until the preceding character is known.
_FRACTION_MARK = "\u2044"

_EXCEPTIONS = {
  "\u2212": "-",  # minus sign
  "\u2010": "-",  # hyphen
  "\u2011": "-",  # non-breaking hyphen
  "\u2013": "-",  # en dash
  "\ufe63": "-",  # small hyphen-minus
  "\u2044": "/",  # fraction slash
  "\u2215": "/",  # division slash
  "\u066a": "%",  # Arabic percent sign
  "\u066b": ".",  # Arabic decimal separator
  "\u066c": ",",  # Arabic thousands separator
  "\u3002": ". ",  # ideographic full stop
  "\u2018": "'",
  "\u2019": "'",
  "\u201c": '"',
  "\u201d": '"',
  "\u2248": "=",  # almost equal to
  "\u2245": "=",  # approximately equal to
  "\u22c5": "\u00b7",  # dot operator
}


def plain_characters(text: str) -> str:
  r"""Replaces characters by ASCII equivalents, in linear time.

  Digits of every script, full-width and mathematical letters, minus signs,
  quotation marks and currency signs (as "$") become ASCII; every other kind of
  space becomes a thin space; vulgar fractions such as "\u00bd" become "1/2",
  after a space if they follow a digit; zero-width and direction characters are
  removed.

  Example:
    >>> plain_characters("\u0661\u0662 \uff11\uff0c\uff12\uff10\uff10 2\u00bd")
    '12 1,200 2 1/2'
  """
  if text.isascii():
    return text
  text = text.translate(_replacements())
  if _FRACTION_MARK in text:
    for digit in string.digits:  # four times as fast as a regular expression
      text = text.replace(f"{digit}{_FRACTION_MARK}", f"{digit} ")
    text = text.replace(_FRACTION_MARK, "")
  return text


def nfkc(text: str) -> str:
  r"""Returns Unicode's compatibility form, NFKC, in time linear in the text.

  Python sorts the marks on one letter in quadratic time. So after every thirty
  in a row a joiner ends the letter, as in Unicode's stream-safe text format
  (UAX 15, section 13): no language writes as many.

  Example:
    >>> nfkc("\uff36\u2460"), len(nfkc("e\u0301"))
    ('V1', 1)
  """
  if not text.isascii():
    text = _marks().sub(lambda run: run[0] + _GRAPHEME_JOINER, text)
  return unicodedata.normalize("NFKC", text)


def is_turkish(*texts: str) -> bool:
  """Returns whether a text has a letter of Turkish and Azerbaijani alone."""
  return any("ı" in text or "İ" in text for text in texts)


def small_turkish_i(text: str) -> str:
  """Replaces I and İ by their small letters in Turkish, ı and i.

  Unicode's rules, which are those of `str.casefold`, are for other languages.

  Example:
    >>> small_turkish_i("HAYIR").casefold(), small_turkish_i("İyi")
    ('hayır', 'iyi')
  """
  return text.translate(_TURKISH)


@functools.cache
def _replacements() -> Mapping[int, str]:
  """Returns what stands for each character that is not kept, for `translate`.

  A text may have a million different characters, each of which would else be
  looked up in Unicode's tables.
  """
  found = {}
  for character in _characters():
    if (
      character in _EXCEPTIONS
      or unicodedata.category(character) in ("Nd", "Zs", "Cf", "Sc")
      or unicodedata.decomposition(character)
    ):
      plain = _plain_character(character)
      if plain != character:
        found[ord(character)] = plain
  return found


@functools.cache
def _marks() -> re.Pattern[str]:
  """Returns a pattern of as many marks in a row as one letter may have."""
  marks = [
    character
    for character in _characters()
    if unicodedata.combining(character)
    or (
      unicodedata.decomposition(character)
      and unicodedata.combining(unicodedata.normalize("NFKD", character)[0])
    )
  ]
  return re.compile(f"[{re.escape(''.join(marks))}]{{{_MAX_MARKS}}}")


def _characters() -> Iterator[str]:
  """Yields all beyond ASCII but ideographs, private and unassigned planes."""
  yield from map(chr, range(0x80, 0x20000))
  yield from map(chr, range(0xE0000, 0xE1000))


def _plain_character(character: str) -> str:
  if character in _EXCEPTIONS:
    return _EXCEPTIONS[character]
  category = unicodedata.category(character)
  if category == "Nd":
    return str(unicodedata.decimal(character))
  if category == "Zs":
    return THIN_SPACE
  if category == "Cf":
    return ""
  if category == "Sc":
    return "$"
  kind = unicodedata.decomposition(character).partition(" ")[0]
  if kind == "<fraction>":
    fraction = unicodedata.normalize("NFKC", character)
    return _FRACTION_MARK + fraction.replace("\u2044", "/")
  if kind in ("<wide>", "<font>"):
    return unicodedata.normalize("NFKC", character)
  return character


_LATEX_SYMBOLS = {
  r"\!": "",  # a negative space: 1,\!200
  r"^\circ": " degrees",
  r"^{\circ}": " degrees",
  r"\,": THIN_SPACE,
  r"\:": THIN_SPACE,
  r"\;": THIN_SPACE,
  "\\ ": THIN_SPACE,
  "~": THIN_SPACE,
  r"\thinspace": THIN_SPACE,
  r"\quad": " ",
  r"\qquad": " ",
  "{,}": ",",
  r"{\,}": THIN_SPACE,
  "{.}": ".",
  "{-}": "-",
  r"\$": "$",
  r"\%": "%",
  r"\{": "{",
  r"\}": "}",
  r"\left": "",
  r"\right": "",
  r"\langle": "<",
  r"\rangle": ">",
  r"\lbrace": "{",
  r"\rbrace": "}",
  r"\lbrack": "[",
  r"\rbrack": "]",
  r"\times": "\u00d7",
  r"\cdot": "\u00b7",
  r"\div": "\u00f7",
  r"\approx": "=",
  r"\textdollar": "$",
  r"\pounds": "$",
  r"\yen": "$",
  r"\euro": "$",
}


def _after(first: str) -> str:
  """Returns a pattern of what follows a symbol's first character."""
  # A command's name ends before a character that is not a letter.
  return "|".join(
    re.escape(symbol[1:]) + ("(?![A-Za-z])" if symbol[-1].isalpha() else "")
    for symbol in sorted(_LATEX_SYMBOLS, key=len, reverse=True)
    if symbol[0] == first
  )


# By first characters: most alternatives fail at the character after it.
_LATEX_SYMBOL = re.compile(
  "|".join(
    rf"{re.escape(first)}(?:{_after(first)})"
    for first in sorted({symbol[0] for symbol in _LATEX_SYMBOLS})
  )
)
_LATEX_UNIT = re.compile(r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{[^{}]*\}")
_LATEX_GROUP = re.compile(
  r"\\(?:text[a-z]*|math[a-z]*|mbox|boxed|hbox|fbox|framebox|underline|emph|operatorname|num|SI"
  r"|qty)\s*"
  r"\{([^{}]*)\}"
)
_MAX_NESTED_GROUPS = 8
_LATEX_INTEGER = r"\s*(-?)\s*(\d+(?:,\d{3})*)\s*"
_LATEX_OVER = re.compile(
  rf"(-?)\{{{_LATEX_INTEGER}\\over(?![A-Za-z]){_LATEX_INTEGER}\}}"
)
_LATEX_REPEATING = re.compile(
  r"(\d{0,12})\.(\d{0,12})\\(?:overline|bar)\s?(?:\{(\d{1,12})\}|(\d))"
)
_LATEX_FRACTION = re.compile(
  rf"(-?)\\(?:[dtcs]?|nice)frac\s*"
  rf"(?:\{{{_LATEX_INTEGER}\}}|()(\d))\s*(?:\{{{_LATEX_INTEGER}\}}|()(\d))"
)


def plain_latex(text: str) -> str:
  r"""Replaces LaTeX notation of numbers, signs and text by plain characters.

  Example:
    >>> plain_latex(r"1{,}200 \text{ or } \dfrac{-3}{4} \$5 2\frac12")
    '1,200  or  -3/4 $5 2 1/2'
    >>> plain_latex(r"{-3 \over 4}, 1.\overline{3}")
    '-3/4, 4/3'
  """
  if "\\" not in text and "{" not in text and "~" not in text:
    return text
  text = _LATEX_SYMBOL.sub(lambda found: _LATEX_SYMBOLS[found[0]], text)
  text = _LATEX_UNIT.sub(r"\1", text)
  for _ in range(_MAX_NESTED_GROUPS):
    text, replaced = _LATEX_GROUP.subn(r"\1", text)
    if not replaced:
      break
  if "\\" not in text:
    return text
  text = _LATEX_FRACTION.sub(_plain_fraction, text)
  text = _LATEX_OVER.sub(_plain_over, text)
  return _LATEX_REPEATING.sub(_plain_repeating, text)


def _plain_repeating(found: re.Match[str]) -> str:
  r"""Converts a repeating decimal, 0.\overline{3}, to a fraction, 3/9."""
  whole, first, *repeated = found.groups(default="")
  repeats = repeated[0] or repeated[1]
  first = whole + first
  nines = int("9" * len(repeats) + "0" * len(found[2]))
  value = fractions.Fraction(int(first + repeats) - int(first or 0), nines)
  return f"{value.numerator}/{value.denominator}"


def _plain_over(found: re.Match[str]) -> str:
  outer, *parts = found.groups(default="")
  return _fraction(found, outer + parts[0] + parts[2], parts[1], parts[3])


def _plain_fraction(found: re.Match[str]) -> str:
  outer, *parts = found.groups(default="")
  above, below = (parts[at] or parts[at + 2] for at in (1, 5))
  return _fraction(found, outer + parts[0] + parts[4], above, below)


def _fraction(found: re.Match[str], signs: str, above: str, below: str) -> str:
  above, below = above.replace(",", ""), below.replace(",", "")
  sign = "-" if signs.count("-") % 2 else ""
  before = found.string[max(found.start() - 1, 0) : found.start()]
  blank = " " if before.isdigit() and not sign else ""  # 2\frac12 is 2 1/2
  return f"{blank}{sign}{above}/{below}"
