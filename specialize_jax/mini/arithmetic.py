"""The little arithmetic that the mini world's people know.

Every sum in the mini world is one of a few hundred *facts*, so that a
student of a million parameters can learn all of them in minutes.
"""

import functools

LARGEST = 20
"""No right intermediate result is larger."""

OPERATIONS = ("+", "-", "*", "/")

_LARGEST_ADDEND = 10
_FACTORS = range(2, 6)
_MULTIPLICANDS = range(2, 11)
_NEAR_MISSES = ((1, 0.4), (-1, 0.4), (10, 0.1), (-10, 0.1))


def apply(operation: str, left: int, right: int) -> int:
  """Gives `left operation right`, a whole number that is never negative.

  A wrong earlier number may lead outside the facts: a half is rounded down
  and a difference below nothing is nothing.
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
  """Says whether a sum is one of the facts.

  Sums and differences move by at most 10 (a sum in either order), products
  are of a small table, and quotients are halves of even numbers.
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
  """Lists every fact as `(operation, left, right)`, in a fixed order."""
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
  """Gives the wrong numbers that may stand in for a value.

  Returns:
    Pairs of a wrong number, never negative, and its weight; the weights sum
    to one. One more or one less are the likely slips, ten the rarer ones.

  Example:
    >>> near_misses(4)
    ((5, 0.4444444444444445), (3, 0.4444444444444445), (14, 0.1111111111111111))
  """
  possible = [(value + by, w) for by, w in _NEAR_MISSES if value + by >= 0]
  total = sum(weight for _, weight in possible)
  return tuple((wrong, weight / total) for wrong, weight in possible)
