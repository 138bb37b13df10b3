"""Types of numeric flags, for the `type` argument of `add_argument`.

A value out of range is a usage error of its flag, before any work. So is NaN,
which `float` accepts and no comparison rejects.
"""

import argparse
import math
from collections.abc import Callable


def whole(at_least: int, at_most: int | None = None) -> Callable[[str], int]:
  """Returns the type of a whole number within a range.

  Example:
    >>> whole(1)("32")
    32
  """
  limit = "" if at_most is None else f" and at most {at_most}"
  expected = f"expected a whole number of at least {at_least}{limit}"

  def convert(text: str) -> int:
    try:
      value = int(text)
    except ValueError:
      value = at_least - 1
    if value < at_least or (at_most is not None and value > at_most):
      raise argparse.ArgumentTypeError(f"{text!r} is not possible: {expected}")
    return value

  return convert


def real(
  *, above: float = -math.inf, at_least: float = -math.inf
) -> Callable[[str], float]:
  """Returns the type of a finite number within a range.

  Example:
    >>> real(above=0)("0.7")
    0.7
  """
  expected = "expected a finite number"
  if above > -math.inf:
    expected += f" above {above}"
  if at_least > -math.inf:
    expected += f" of at least {at_least}"

  def convert(text: str) -> float:
    try:
      value = float(text)
    except ValueError:
      value = math.nan
    if not (math.isfinite(value) and value > above and value >= at_least):
      raise argparse.ArgumentTypeError(f"{text!r} is not possible: {expected}")
    return value

  return convert
