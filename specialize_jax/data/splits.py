"""Selects validation questions, deterministically and by their text.

Questions are ranked by a hash of their words, so that the selection does not
depend on a file's order or numbering, and all copies of a repeated question are
in the same split.
"""

import hashlib
import re
from collections.abc import Callable, Sequence

from specialize_jax.data import questions

VALIDATION_SIZE = 500
# From datasets with fewer distinct questions, a fraction is held out instead.
_LARGE_ENOUGH = 1000
_SMALL_SHARE = 0.25
# The seed of the selection. 3 is the first number for which each of the 60
# questions that MultiArith and ASDiv share is in the same split of both.
_SEED = "specialize-jax validation 3"


def words_of(question: str) -> str:
  """Normalizes a question to its words, to compare questions.

  Example:
    >>> words_of(" Tom has  3 cats. How many? ")
    'tom has 3 cats how many'
  """
  return " ".join(re.findall(r"[^\W_]+", question.lower()))


def words_and_signs_of(question: str) -> str:
  """Normalizes a question to its words and the signs of its formulas.

  Unlike `words_of`, by which published benchmarks are split, it distinguishes
  questions that differ in a sign alone.

  Example:
    >>> words_and_signs_of("What is 8*2?"), words_and_signs_of("what is 8 / 2")
    ('what is 8 * 2', 'what is 8 / 2')
  """
  return " ".join(
    re.findall(r"[^\W_]+|[-+*/^=<>%!\u00d7\u00f7\u2212]", question.lower())
  )


def split_validation(
  rows: Sequence[questions.Question],
  *,
  words_fn: Callable[[str], str] = words_of,
) -> tuple[list[questions.Question], list[questions.Question]]:
  """Splits rows into those held out for validation and all others.

  Of 1,000 or more distinct questions, 500 are held out; of fewer, a quarter.

  Args:
    rows: A dataset, in any order.
    words_fn: Maps a question to a key that is equal for equal questions.

  Returns:
    The validation rows and the others, each in the order of `rows`.
  """
  words = [words_fn(row.question) for row in rows]
  different = sorted(set(words), key=_rank)
  size = (
    VALIDATION_SIZE
    if len(different) >= _LARGE_ENOUGH
    else int(_SMALL_SHARE * len(different))
  )
  held_out = set(different[:size])
  validation, rest = [], []
  for row, of_row in zip(rows, words, strict=True):
    (validation if of_row in held_out else rest).append(row)
  return validation, rest


def _rank(words: str) -> bytes:
  return hashlib.sha256(f"{_SEED}/{words}".encode()).digest()
