"""Which questions are held out for validation: fixed, and by their text.

A question's rank is a hash of its words, so the choice depends on neither
the order nor the numbering of a file, and a question that occurs twice is held
out twice.
"""

import hashlib
import re
from collections.abc import Callable, Sequence

from specialize_jax.data import questions

VALIDATION_SIZE = 500
# Datasets with fewer distinct questions hold out a share instead.
_LARGE_ENOUGH = 1000
_SMALL_SHARE = 0.25
# Fixes the choice. 3 is the first number for which each question that
# MultiArith and ASDiv share (60 of them) falls on one side in both.
_SEED = "specialize-jax validation 3"


def words_of(question: str) -> str:
  """Returns a question's words in order: equal for questions that are the same.

  Example:
    >>> words_of(" Tom has  3 cats. How many? ")
    'tom has 3 cats how many'
  """
  return " ".join(re.findall(r"[^\W_]+", question.lower()))


def split_validation(
  rows: Sequence[questions.Question],
  *,
  words_fn: Callable[[str], str] = words_of,
) -> tuple[list[questions.Question], list[questions.Question]]:
  """Splits rows into those held out for validation and the rest.

  500 distinct questions are held out of 1,000 or more, a quarter of fewer.

  Args:
    rows: a dataset, in any order.
    words_fn: maps a question to a key that is equal for equal questions.

  Returns:
    Validation and rest, each in the order of `rows`.
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
