r"""A calculator for decoding: computes the result of arithmetic in a rationale.

A model that has written `48 / 2 =` may still compute the wrong result.
`result_of` returns the text that should follow the equals sign, so that a
decoder can force it. (Cobbe et al. 2021, arXiv 2110.14168, section 4 and
appendix C, do so between `<<` and `>>`; here any complete expression counts.)

The text is untrusted and is never evaluated by Python. A recursive-descent
parser for numbers, `+ - * / x ( )`, powers, `%` and `$` computes exact
fractions, with limits on the length of the expression, the depth of its
parentheses, the digits of its numbers, its exponents, and the size of every
intermediate value. If the text exceeds a limit, or is not certainly arithmetic,
there is no result and the model continues by itself, since forcing a wrong
number is worse than forcing none:

    end of the text          | result | why
    -------------------------|--------|----------------------------------
    She has 48 / 2 =         | 24     | white space as before the sign
    <<48/2=                  | 24>>   | closes GSM8K's annotation
    3 x $1.50 =              | $4.50  | money has two decimals or none
    1,200 * 3 =              | 3,600  | thousands separators as in the input
    100% - 40% =             | 60%    | only percentages: a percentage
    10 / 3 =                 | 3.33   | see `write`
    5 apples + 3 * 2 =       | None   | the sum begins before the word
    20% of 40 + 2 =          | None   | the scope of `of` is ambiguous
    2x + 3 =                 | None   | algebra
    12 =                     | None   | nothing to compute
"""

import dataclasses
import fractions
import re

MAX_CHARACTERS = 160
"""Of an expression; a longer one is not a step of a rationale."""

MAX_DEPTH = 16
"""Of nested parentheses, signs and powers."""

MAX_DIGITS = 30
"""Of a number in the text."""

MAX_EXPONENT = 64
"""Of a power, as an absolute value."""

MAX_BITS = 2048
"""Of the numerator and the denominator of every intermediate value."""

MAX_RESULT = 10**15
"""Larger results are not written."""

_HALF_A_CENT = fractions.Fraction(1, 200)
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(
  rf"(?P<number>(?:{_NUMBER})(?!\.?\d))|(?P<power>\*\*|\^)"
  r"|(?P<times>[*\u00d7\u22c5\u00b7])|(?P<letter>[xX])"
  r"|(?P<over>[/\u00f7])|(?P<plus>\+)|(?P<minus>[-\u2212])"
  r"|(?P<open>\()|(?P<close>\))|(?P<percent>%)|(?P<dollar>\$)",
  re.ASCII,
)
# Matches, in the reversed text, the longest stretch before the equals sign that
# could be arithmetic, in linear time. An "x" must follow a digit, `)` or `%`,
# possibly after spaces, since it could otherwise belong to a word.
_BACKWARDS = re.compile(
  r"(?:[\d.,+*/%$()^\u00d7\u22c5\u00b7\u00f7\u2212\s-]"
  r"|[xX](?=[\d)%])|(?<=\s)[xX](?=\s[\d)%]))*",
  re.ASCII,
)
# After these words the stretch is only part of the calculation.
_BINDS = re.compile(
  r"(?:[\d%]|\b(?:half|halves|percent|third|quarter|fourth|fifth|sixth|seventh"
  r"|eighth|ninth|tenth|hundredth|thirds|quarters|fourths|fifths|sixths|sevenths"
  r"|eighths|ninths|tenths|hundredths))\s+of(?:\s+the)?\s*\Z"
  r"|\b(?:root|average|mean|median|remainder|power|square|cube|logarithm"
  r"|factorial)\s+of(?:\s+the)?\s*\Z"
  r"|\b(?:more|less|fewer|greater|larger|smaller|higher|lower)\s+than\s*\Z"
  r"|\bas\s+(?:many|much)(?:\s+\w+)?\s+as\s*\Z"
  r"|\b(?:subtract\w*|take\w*|deduct\w*)\s+(?:away\s+)?from\s*\Z"
  r"|(?:\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten))\s+and\s*\Z"
  r"|\bhalf(?:\s+(?:the|a))?\s*\Z"
  r"|\b(?:times|by|plus|minus|over|per|divided|multiplied|twice|thrice|double"
  r"|triple|quadruple)(?:\s+the)?\s*\Z|[\u221a\u221b]\s*\Z",
  re.IGNORECASE,
)

# A letter x between words, or a ratio's colon.
_OPERAND_BEFORE = re.compile(r"(?:\A|\s)[xX]\Z|\d\s:\Z")


class _NotArithmeticError(Exception):
  """The text is not arithmetic or exceeds a limit; private to this module."""


@dataclasses.dataclass(frozen=True)
class Value:
  """A number and its notation.

  Attributes:
    amount: The exact value.
    dollars: Whether it is money: a sum, difference, multiple or fraction of
      money, but not a ratio of two amounts.
    grouped: Whether an operand had thousands separators.
    percent: Whether all operands were percentages, and it is not a ratio.
    computed: Whether it is the result of an operator.
    mixed: Whether a number and a percentage were added or subtracted: "200 -
      20%" can mean 199.8 and 160.
  """

  amount: fractions.Fraction
  dollars: bool = False
  grouped: bool = False
  percent: bool = False
  computed: bool = False
  mixed: bool = False


def result_of(text: str) -> str | None:
  """Returns the text that should follow a text that ends with `=`.

  Args:
    text: The text so far; white space after the sign is ignored, and only the
      last `MAX_CHARACTERS` before the sign are considered.

  Returns:
    The result, with a leading space if there is one before the sign but none
    after it, and with `>>` if the expression began with `<<`. None if the text
    does not end with `=` after a complete expression with at least one
    operator, or if the expression divides by zero or exceeds a limit.

  Example:
    >>> result_of("Half of it is 48 / 2 ="), result_of("<<48/2=")
    (' 24', '24>>')
    >>> result_of("3 apples ="), result_of("1 / 0 =")
    (None, None)
  """
  written = text.rstrip()
  if not written.endswith("="):
    return None
  before = written[:-1]
  # One character more than the limit, to detect longer expressions.
  window = before[-(MAX_CHARACTERS + 1) :]
  stretch = _BACKWARDS.match(window[::-1])[0][::-1]
  if len(stretch) > MAX_CHARACTERS:
    return None
  lead = before[: len(before) - len(stretch)]
  expression, marked = stretch.strip(), lead.endswith("<<")
  # A comma or period that ends the preceding text is not part of the sum.
  if not marked:
    expression = _after_punctuation(expression)
    if _continues(lead, stretch, expression):
      return None
  value = evaluate(expression)
  if value is None or value.mixed or not value.computed:
    return None
  if abs(value.amount) >= MAX_RESULT:
    return None
  if value.dollars and 0 < abs(value.amount) < _HALF_A_CENT:
    return None  # it would be written as $0
  space = " " if before[-1:].isspace() and written == text else ""
  return f"{space}{write(value)}{'>>' if marked else ''}"


def _after_punctuation(stretch: str) -> str:
  """Removes the end of a sentence: returns "3 + 4" for ". 3 + 4"."""
  parts = re.split(r"(?:^|(?<=\S))[.,]+(?:\s+|\Z)", stretch)
  return parts[-1].strip()


def _continues(lead: str, stretch: str, expression: str) -> bool:
  """Returns whether an expression is only the end of a longer calculation."""
  if len(expression) < len(stretch.strip()):
    return False  # it begins after a comma or a full stop
  if lead[-1:].isalnum() and not stretch[:1].isspace():
    return True  # a name such as f(3) or a2
  if lead[-1:] in ("_", "\\", "{", "}", "[", "]", "<", ">", "!"):
    return True
  if _OPERAND_BEFORE.search(lead.rstrip()):
    return True
  if re.search(r"\d:\Z", lead) and not stretch[:1].isspace():
    return True  # a ratio or a time of day; "Step 2: 3 + 4" is a label
  # After a word, an operator has the word as its operand; a sign has not.
  if re.match(r"[+*/^\u00d7\u22c5\u00b7\u00f7xX%)]|[-\u2212]\s", expression):
    return not re.search(r"[=:]\Z", lead.rstrip())
  return bool(_BINDS.search(lead[-40:] + " "))


def evaluate(expression: str) -> Value | None:
  """Computes an expression exactly.

  The grammar has the usual precedences; `-` before a number or a parenthesis is
  a sign only if no space follows it:

      sum      = product (("+" | "-") product)*
      product  = factor (("*" | "x" | "/") factor)*
      factor   = "-" factor | power
      power    = atom ("^" factor)?
      atom     = ("$"? number | "(" sum ")") "%"?

  Returns:
    The value; None if the text is not such an expression, divides by zero or
    exceeds one of the module's limits.

  Example:
    >>> evaluate("(1 + 2) * 3").amount, evaluate("20% x 1,000").amount
    (Fraction(9, 1), Fraction(200, 1))
    >>> evaluate("10**10**10") is None, evaluate("1 / 0") is None
    (True, True)
  """
  if len(expression) > MAX_CHARACTERS:
    return None
  try:
    return _Parser(expression).whole()
  except _NotArithmeticError:
    return None


def write(value: Value) -> str:
  """Writes a value as a person would.

  An integer has no decimals, and a number with at most four decimals is written
  exactly. Any other is rounded (half away from zero) to two decimals, or to two
  significant digits if it is below one. (None of the 23,716 annotated results
  in GSM8K's training solutions has more than three decimals.) Money is rounded
  to cents and has two decimals or none; a result computed only from percentages
  is a percentage.

  Example:
    >>> f = fractions.Fraction
    >>> write(Value(f(24))), write(Value(f(1, 2))), write(Value(f(10, 3)))
    ('24', '0.5', '3.33')
    >>> write(Value(f(1, 300))), write(Value(f(1, 16)))
    ('0.0033', '0.0625')
    >>> (
    ...   write(Value(f(-9, 2), dollars=True)),
    ...   write(Value(f(1200), grouped=True)),
    ... )
    ('-$4.50', '1,200')
  """
  amount = abs(value.amount) * (100 if value.percent else 1)
  places = 2
  if not value.dollars:
    ending = [n for n in range(5) if (amount * 10**n).denominator == 1]
    if ending:
      places = ending[0]
    else:
      while amount * 10**places < 10 and amount < 1 and places < MAX_DIGITS:
        places += 1
  # floor(x + 1/2) in integers, which rounds half away from zero.
  scaled = (2 * amount * 10**places + 1) // 2
  whole, part = divmod(scaled, 10**places)
  digits = f"{whole:,}" if value.grouped else str(whole)
  if part:
    decimals = f"{part:0{places}d}"
    digits += "." + (decimals if value.dollars else decimals.rstrip("0"))
  sign = "-" if value.amount < 0 and scaled else ""
  unit = "%" if value.percent else ""
  return f"{sign}{'$' if value.dollars else ''}{digits}{unit}"


class _Parser:
  """A recursive-descent parser of one expression."""

  def __init__(self, expression: str) -> None:
    self._tokens = _tokens(expression)
    self._next = 0
    self._depth = 0

  def whole(self) -> Value:
    """Parses and computes the whole expression."""
    value = self._sum()
    if self._next < len(self._tokens):
      raise _NotArithmeticError
    return value

  def _take(self, *kinds: str) -> str | None:
    """Consumes the next token and returns its kind, if it is one of these."""
    if self._next == len(self._tokens):
      return None
    kind = self._tokens[self._next].kind
    if kind not in kinds:
      return None
    self._next += 1
    return kind

  def _deeper(self) -> None:
    self._depth += 1
    if self._depth > MAX_DEPTH:
      raise _NotArithmeticError

  def _sum(self) -> Value:
    value = self._product()
    while kind := self._take("plus", "minus"):
      right = self._product()
      amount = right.amount if kind == "plus" else -right.amount
      dollars = value.dollars or right.dollars
      mixed = value.percent != right.percent
      value = _joined(value, right, value.amount + amount, dollars)
      value = dataclasses.replace(value, mixed=value.mixed or mixed)
    return value

  def _product(self) -> Value:
    value = self._factor()
    while kind := self._take("times", "over"):
      right = self._factor()
      if kind == "times":
        dollars = value.dollars or right.dollars
        value = _joined(value, right, value.amount * right.amount, dollars)
        continue
      if right.amount == 0:
        raise _NotArithmeticError
      dollars = value.dollars and not right.dollars
      value = _joined(value, right, value.amount / right.amount, dollars)
      value = dataclasses.replace(value, percent=False)
    return value

  def _factor(self) -> Value:
    if not self._take("sign"):
      return self._power()
    self._deeper()
    value = self._factor()
    self._depth -= 1
    return dataclasses.replace(value, amount=-value.amount)

  def _power(self) -> Value:
    base = self._atom()
    if not self._take("power"):
      return base
    self._deeper()
    exponent = self._factor().amount
    self._depth -= 1
    if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
      raise _NotArithmeticError
    if base.amount == 0 and exponent < 0:
      raise _NotArithmeticError
    return _joined(base, base, base.amount ** int(exponent), base.dollars)

  def _atom(self) -> Value:
    if self._take("open"):
      self._deeper()
      value = self._sum()
      self._depth -= 1
      if not self._take("close"):
        raise _NotArithmeticError
    else:
      dollars = self._take("dollar") is not None
      start = self._next
      if not self._take("number"):
        raise _NotArithmeticError
      value = _number(self._tokens[start].text, dollars)
    if self._take("percent"):
      amount = value.amount / 100
      value = dataclasses.replace(value, amount=amount, percent=True)
    return value


@dataclasses.dataclass(frozen=True)
class _Token:
  kind: str
  text: str


def _tokens(expression: str) -> list[_Token]:
  """Splits an expression into tokens, distinguishing signs from operators."""
  tokens, at = [], 0
  while at < len(expression):
    if expression[at].isspace():
      at += 1
      continue
    match = _TOKEN.match(expression, at)
    if match is None:
      raise _NotArithmeticError
    kind = match.lastgroup
    blank_before = expression[at - 1 : at].isspace()
    blank_after = expression[match.end() : match.end() + 1].isspace()
    if kind == "letter":
      # "3 x 4" and "3x4" multiply; "2x + 3" is algebra.
      if blank_before != blank_after:
        raise _NotArithmeticError
      kind = "times"
    if kind == "minus" and not _ends_operand(tokens):
      if blank_after:
        raise _NotArithmeticError
      kind = "sign"
    tokens.append(_Token(kind, match[0]))
    at = match.end()
  return tokens


def _ends_operand(tokens: list[_Token]) -> bool:
  return bool(tokens) and tokens[-1].kind in ("number", "close", "percent")


def _number(text: str, dollars: bool) -> Value:
  digits = text.replace(",", "")
  if len(digits) > MAX_DIGITS:
    raise _NotArithmeticError
  return Value(fractions.Fraction(digits), dollars, "," in text)


def _joined(
  left: Value, right: Value, amount: fractions.Fraction, dollars: bool
) -> Value:
  if max(amount.numerator.bit_length(), amount.denominator.bit_length()) > (
    MAX_BITS
  ):
    raise _NotArithmeticError
  return Value(
    amount,
    dollars,
    grouped=left.grouped or right.grouped,
    percent=left.percent and right.percent,
    computed=True,
    mixed=left.mixed or right.mixed,
  )
