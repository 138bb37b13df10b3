"""The arithmetic of the mini world.

Every calculation in the mini world is one of a few hundred *facts*, so that a
student of a million parameters can learn all of them in minutes.
"""

import functools

LARGEST = 20
"""Largest correct intermediate result."""

OPERATIONS = ("+", "-", "*", "/")

_LARGEST_ADDEND = 10
_FACTORS = range(2, 6)
_MULTIPLICANDS = range(2, 11)
_NEAR_MISSES = ((1, 0.4), (-1, 0.4), (10, 0.1), (-10, 0.1))


def apply(operation: str, left: int, right: int) -> int:
  """Computes `left operation right`, a non-negative integer.

  A wrong earlier result may lead outside the facts; then quotients are rounded
  down and negative differences are zero.
  """
  if operation == "+":
    return left + right
  if operation == "-":
    return max(left - right, 0)
  if operation == "*":
    return left * right
  if operation == "/":
    return left // right
  raise ValueError(
    f"operation={operation!r} is not one of {', '.join(OPERATIONS)}"
  )


def is_fact(operation: str, left: int, right: int) -> bool:
  """Returns whether a calculation is one of the facts.

  In sums and differences the smaller addend or the subtrahend is at most 10,
  products are of a small table, and quotients are halves of even numbers.
  """
  if operation == "+":
    low, high = sorted((left, right))
    return 1 <= low <= _LARGEST_ADDEND and low + high <= LARGEST
  if operation == "-":
    return 1 <= right <= _LARGEST_ADDEND and right <= left <= LARGEST
  if operation == "*":
    return (
      left in _FACTORS and right in _MULTIPLICANDS and left * right <= LARGEST
    )
  return right == 2 and 2 <= left <= LARGEST and left % 2 == 0


@functools.cache
def facts() -> tuple[tuple[str, int, int], ...]:
  """Returns every fact as `(operation, left, right)`, in a fixed order."""
  numbers = range(1, LARGEST + 1)
  return tuple(
    (operation, left, right)
    for operation in OPERATIONS
    for left in numbers
    for right in numbers
    if is_fact(operation, left, right)
  )


@functools.cache
def near_misses(value: int) -> tuple[tuple[int, float], ...]:
  """Returns the wrong numbers that may replace a correct value.

  Returns:
    Pairs of a wrong, non-negative number and its probability; the probabilities
    sum to one. Errors by one are likely, errors by ten are rare.

  Example:
    >>> near_misses(4)
    ((5, 0.4444444444444445), (3, 0.4444444444444445), (14, 0.1111111111111111))
  """
  possible = [(value + by, w) for by, w in _NEAR_MISSES if value + by >= 0]
  total = sum(weight for _, weight in possible)
  return tuple((wrong, weight / total) for wrong, weight in possible)
