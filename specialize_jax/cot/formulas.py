r"""Distinguishes a number that is a whole answer from one within a formula.

"2\sqrt{3}", "3x", "(2, 3)" and "5 or 7" contain digits but are not single
numbers, so their first digits must not be extracted as the answer. The input is
text that `spelling` has normalized.
"""

import re

# LaTeX commands that only change a number's appearance, or separate it from an
# equation. Any other command may change its value.
_LAYOUT = (
  r"(?:(?:display|text|script|scriptscript)style|[lL]arge|LARGE|[hH]uge|small"
  r"|bf|rm|it|degree|textdegree|circ|l?dots|hfill|newline|nonumber|qed|square"
  r"|blacksquare|checkmark|therefore|implies|Rightarrow|rightarrow|to|sim"
  r"|color|textcolor|begin\{(?:aligned|align\*?|equation\*?|gather\*?|split)\}"
  r"|end\{(?:aligned|align\*?|equation\*?|gather\*?|split)\}|label|tag|boxed"
  r"|fbox|framebox|text[a-z]+|math[a-z]+|lbrace|rbrace|lbrack|rbrack)(?![A-Za-z])"
)
_SYMBOL = (
  rf"(?:(?<!\\)\\(?!{_LAYOUT})[A-Za-z]+(?:\{{[a-z*]{{1,12}}\}})?"
  r"|[\u221a\u221b\u221c\u03c0\u221e\u00b1\u2213\u222b\u2211]"  # roots, pi, ...
  r"|pi\b|(?:sqrt|log|ln|sin|cos|tan|exp)(?=\s?[(_{]))"
)
_BETWEEN = r"[\s{}()\[\]*\u00b7\u00d7+/|^-]"
_SYMBOL_BEFORE = re.compile(
  rf"(?:{_SYMBOL}|(?:square|cube) root of|\blog(?:arithm)? of)"
  rf"(?:_\{{?\d{{1,4}})?{_BETWEEN}{{0,6}}\$?{_BETWEEN}{{0,2}}\Z"
)
# A power that is not a readable number: 2^x, 10^1000, (3/4)^2; a base: 101_2.
_ORDINAL = r"(?!\{?\s?(?:st|nd|rd|th|o|\u00b0|\\?circ|\\?prime)\b)"
_SYMBOL_AFTER = re.compile(
  rf"{_BETWEEN}{{0,6}}{_SYMBOL}"
  rf"|[\s)}}]{{0,3}}(?:\^\s?{_ORDINAL}|\*\*(?=[\w({{-]))|_\{{?\d"
  r"|\s(?:squared|cubed|to the power)\b"
)
# "5:30", "3 : 4", but not the label of "Day 3: 64".
_TIME_BEFORE = re.compile(r"\d(?::|\s:\s)\Z")
_TIME_AFTER = re.compile(r"(?::|\s:\s)(?!00(?!\d))\d")

# A continuation after the number, such as another operand.
_OPERATION_AFTER = re.compile(
  r"[)%]?(?:\s[A-Za-z]{1,20}){0,2}"
  r"(?:\s?[+*\u00d7\u00b7\u00f7]\s?|\s[-/x]\s|(?<=\d)[-x](?=\d)"
  r"|\s(?:times|plus|minus|divided\sby|multiplied\sby)\s)[({$-]{0,3}\d"
  r"|\}\s?[-+*/]\s?[({$-]{0,3}\d|\s?/\s?[({]{0,2}\d|\((?=[-\w])"
  r"|[xyzn]\s?(?:[-+*/^=$]|\\\))"
)
_OPERATION_BEFORE = re.compile(
  r"(?:\b[xyzn]|\d|\))\s?[+*\u00d7\u00b7\u00f7]\s?\Z"
)
_LIST_AFTER = re.compile(
  r"\s{1,3}(?:or|and|to)\s{1,3}[-$]{0,2}\.?\d"
  r"|,\d|\.\d|'\s?\d"
  r"|(?:,\s-?[\d.]{1,20}){1,9}(?:,?\s(?:and|or)\s-?\d|[\s.]{0,3}\Z)"
)
_TUPLE_BEFORE = re.compile(r"[(\[{]\s?-?\Z")
_TUPLE_AFTER = re.compile(r"\s{0,3}[,;]\s{0,3}-?[\dxyz\\]")
# The bars of an absolute value change the sign of a negative number.
_BAR_BEFORE = re.compile(r"\|\s?\Z")

# In a box a letter is a variable, and a comma separates several answers.
_BOXED_AFTER = re.compile(
  r"\s?(?:!|[xyznie](?![A-Za-z])|[<>])"
  r"|\s{0,3}[,;]\s{0,3}[-$]{0,2}(?:\.?\d|\\?[A-Za-z]{1,20}\s?=)"
)
_BOXED_BEFORE = re.compile(
  r"(?<![A-Za-z])[xyzn]\s?[-+*/^<>]\s?\Z"
  r"|\d\s{0,3}[,;]\s{0,3}(?:[A-Za-z]{1,20}\s?=\s?)?\Z"
)
_BOXED_SYMBOL = re.compile(rf"{_SYMBOL}|\^|^\s*-?[A-Za-z]\s*$")
_EQUATIONS = re.compile(r"=[^=,;]*[,;]\s{0,3}\\?[A-Za-z]{1,20}\s?=")
_REACH = 80  # characters on either side that can belong to its formula


def touches_symbol(text: str, start: int, end: int) -> bool:
  r"""Returns whether a number is next to a symbol that makes it a formula.

  Args:
    text: The whole text.
    start: The index of the number's first character, without its sign.
    end: The index after its last character.

  Example:
    >>> touches_symbol(r"so it is 2\sqrt{3}", 9, 10)
    True
    >>> touches_symbol("so it is 2 metres", 9, 10)
    False
  """
  before = text[max(start - _REACH, 0) : start]
  return bool(
    _SYMBOL_BEFORE.search(before)
    or _TIME_BEFORE.search(before)
    or _SYMBOL_AFTER.match(text, end)
    or _TIME_AFTER.match(text, end)
  )


def is_part(text: str, start: int, end: int, *, is_boxed: bool) -> bool:
  r"""Returns whether a number is part of a formula or of several answers.

  Args:
    text: The text of the answer.
    start: The index of the number's first character.
    end: The index after its last character.
    is_boxed: Whether `text` is the content of a box, and so a formula: in "12x"
      the x is then a variable, and not a multiplication sign.

  Example:
    >>> is_part("(2, 3)", 1, 2, is_boxed=False)
    True
    >>> is_part("2, which is less than 3", 0, 1, is_boxed=False)
    False
    >>> is_part("12x", 0, 2, is_boxed=True)
    True
  """
  before = text[max(start - _REACH, 0) : start]
  return bool(
    touches_symbol(text, start, end)
    or _OPERATION_AFTER.match(text, end)
    or _OPERATION_BEFORE.search(before)
    or _LIST_AFTER.match(text, end)
    or (_TUPLE_BEFORE.search(before) and _TUPLE_AFTER.match(text, end))
    or (_BAR_BEFORE.search(before) and text.startswith("-", start))
    or (
      is_boxed
      and (_BOXED_AFTER.match(text, end) or _BOXED_BEFORE.search(before))
    )
  )


def is_symbolic(boxed: str) -> bool:
  r"""Returns whether a box without a number contains a symbolic answer.

  Example:
    >>> is_symbolic(r"\pi"), is_symbolic("x"), is_symbolic("three")
    (True, True, False)
  """
  return _BOXED_SYMBOL.search(boxed) is not None


def is_several(boxed: str) -> bool:
  """Returns whether a box contains several equations.

  Example:
    >>> is_several("x = 5, y = 3"), is_several("5 = 3 + 2")
    (True, False)
  """
  return _EQUATIONS.search(boxed) is not None
