r"""Arithmetic in a rationale: finds it, computes it, writes its result.

A model that has written `48 / 2 =` knows what to compute and may still
compute it wrong. `result_of` gives the text that ought to follow the sign, so
that a decoder can force it (Cobbe et al. 2021, arXiv 2110.14168, section 4
and appendix C, do so between `<<` and `>>`; here any sum that stands alone
counts).

The text is a stranger's. It is never evaluated by Python: a recursive descent
over numbers, `+ - * / x ( )`, powers, `%` and `$` computes with exact
fractions, within bounds on the length of the expression, the depth of its
parentheses, the digits of its numbers, its exponents, and the size of every
value on the way. What is out of bounds, or is no arithmetic, or only might be
some, gives None: then the model goes on by itself. A wrong number that is
forced is worse than none, so in doubt there is no result:

    the text ends            | result | why
    -------------------------|--------|----------------------------------
    She has 48 / 2 =         | 24     | white space as before the sign
    <<48/2=                  | 24>>   | GSM8K's mark is closed as well
    3 x $1.50 =              | $4.50  | money has two decimals or none
    1,200 * 3 =              | 3,600  | thousands are set apart if they were
    100% - 40% =             | 60%    | percentages alone give one
    10 / 3 =                 | 3.33   | see `write`
    5 apples + 3 * 2 =       | None   | the sum begins before the word
    20% of 40 + 2 =          | None   | what `of` binds is not clear
    2x + 3 =                 | None   | algebra
    12 =                     | None   | nothing to compute
"""

import dataclasses
import fractions
import re

MAX_CHARACTERS = 160
"""Of an expression; what is longer is no step of a rationale."""

MAX_DEPTH = 16
"""Of parentheses, signs and powers within each other."""

MAX_DIGITS = 30
"""Of a number as it is written."""

MAX_EXPONENT = 64
"""Of a power, either way."""

MAX_BITS = 2048
"""Of the numerator and the denominator of every value on the way."""

MAX_RESULT = 10**15
"""What is not below it is not written."""

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(
  rf"(?P<number>(?:{_NUMBER})(?!\.?\d))|(?P<power>\*\*|\^)"
  r"|(?P<times>[*\u00d7\u22c5\u00b7])|(?P<letter>[xX])"
  r"|(?P<over>[/\u00f7])|(?P<plus>\+)|(?P<minus>[-\u2212])"
  r"|(?P<open>\()|(?P<close>\))|(?P<percent>%)|(?P<dollar>\$)",
  re.ASCII,
)
# The longest stretch before the sign that could be arithmetic, read backwards
# so that its time is linear. An "x" counts where it cannot be a word's: after
# a digit, `)` or `%`, blanks aside.
_BACKWARDS = re.compile(
  r"(?:[\d.,+*/%$()^\u00d7\u22c5\u00b7\u00f7\u2212\s-]"
  r"|[xX](?=[\d)%])|(?<=\s)[xX](?=\s[\d)%]))*",
  re.ASCII,
)
# After these words the stretch is only a part of what is computed.
_BINDS = re.compile(
  r"(?:[\d%]|half|third|quarter|fourth|fifth|tenth)\s+of\s*\Z"
  r"|\b(?:times|by|plus|minus|over|per|divided|multiplied)\s*\Z",
  re.IGNORECASE,
)


class _NotArithmeticError(Exception):
  """The text is none, or leaves the bounds; never leaves this module."""


@dataclasses.dataclass(frozen=True)
class Value:
  """A number and how it was written.

  Attributes:
    amount: exact.
    dollars: whether it is money: the sum or difference with money, its
      multiple, its part, but not its ratio to money.
    grouped: whether a number in it had its thousands set apart.
    percent: whether all of its numbers were percentages, and it is no ratio.
    computed: whether an operator made it.
  """

  amount: fractions.Fraction
  dollars: bool = False
  grouped: bool = False
  percent: bool = False
  computed: bool = False


def result_of(text: str) -> str | None:
  """Gives what ought to follow a text that ends with `=`.

  Args:
    text: what has been written; white space after the sign is passed over.
      Only the last `MAX_CHARACTERS` before the sign are looked at.

  Returns:
    The result, after a blank if there is one before the sign and none after
    it, and before `>>` if the sum began with `<<`. None if the text does not
    end with `=`, or what stands before it is no sum with at least one
    operator that stands alone, divides by zero, or leaves the bounds.

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
  # One more than may be, so that what is too long is seen to be.
  window = before[-(MAX_CHARACTERS + 1) :]
  stretch = _BACKWARDS.match(window[::-1])[0][::-1]
  if len(stretch) > MAX_CHARACTERS:
    return None
  lead = before[: len(before) - len(stretch)]
  expression, marked = stretch.strip(), lead.endswith("<<")
  # A comma or a full stop that ends what comes before is not of the sum.
  if not marked:
    expression = _after_punctuation(expression)
    if _continues(lead, stretch, expression):
      return None
  value = evaluate(expression)
  if value is None or not value.computed or abs(value.amount) >= MAX_RESULT:
    return None
  space = " " if before[-1:].isspace() and written == text else ""
  return f"{space}{write(value)}{'>>' if marked else ''}"


def _after_punctuation(stretch: str) -> str:
  """Drops a sentence's end from the beginning: ". 3 + 4" gives "3 + 4"."""
  parts = re.split(r"(?:^|(?<=\S))[.,]+(?:\s+|\Z)", stretch)
  return parts[-1].strip()


def _continues(lead: str, stretch: str, expression: str) -> bool:
  """Whether an expression is only the end of what is computed."""
  if len(expression) < len(stretch.strip()):
    return False  # it begins after a comma or a full stop
  if lead[-1:].isalnum() and not stretch[:1].isspace():
    return True  # a name such as f(3) or a2
  if lead[-1:] in ("_", "\\", "{", "}", "[", "]", "<", ">", "!"):
    return True
  # An operator after a word joins the word; a sign belongs to its number.
  if re.match(r"[+*/^\u00d7\u22c5\u00b7\u00f7xX%)]|[-\u2212]\s", expression):
    return not re.search(r"[=:]\Z", lead.rstrip())
  return bool(_BINDS.search(lead[-40:] + " "))


def evaluate(expression: str) -> Value | None:
  """Computes an expression exactly.

  The grammar, with the usual precedences; `-` before a number or a
  parenthesis is a sign only where no blank follows it:

      sum      = product (("+" | "-") product)*
      product  = factor (("*" | "x" | "/") factor)*
      factor   = "-" factor | power
      power    = atom ("^" factor)?
      atom     = ("$"? number | "(" sum ")") "%"?

  Returns:
    The value; None if the text is no such expression, divides by zero or
    leaves the module's bounds. Time is bounded by `MAX_CHARACTERS`.

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

  A whole number has no decimals; one that ends within four decimals is
  written whole; any other is rounded, halves away from zero, to two
  decimals, or below one to two significant digits, so that it does not
  vanish. (Of the 23,716 marked results of GSM8K's training solutions none
  has more than three decimals.) Money is rounded to cents, and has two
  decimals or none; what was made of percentages alone is one.

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
  # floor(x + 1/2) in whole numbers: halves go away from zero.
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
  """A recursive descent over the tokens of one expression."""

  def __init__(self, expression: str) -> None:
    self._tokens = _tokens(expression)
    self._next = 0
    self._depth = 0

  def whole(self) -> Value:
    """Reads the whole expression."""
    value = self._sum()
    if self._next < len(self._tokens):
      raise _NotArithmeticError
    return value

  def _take(self, *kinds: str) -> str | None:
    """Takes the next token's kind if it is one of these."""
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
      value = _joined(value, right, value.amount + amount, dollars)
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
  """Cuts an expression up, and tells signs from operators."""
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
  )
