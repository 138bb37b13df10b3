"""Classes of student tokens: numbers, operators, words, line starts."""

import enum

import numpy as np

from specialize_jax.align import student as student_lib

_OPERATORS = frozenset("+-*/=<>%^×÷−·")


class TokenClass(enum.IntEnum):
  """The class of a student token, by which coverage is reported.

  The first token of a line is a line start, whatever its text; `OTHER` is
  punctuation, currency signs, and what the student cannot spell.
  """

  LINE_START = 0
  NUMBER = 1
  OPERATOR = 2
  WORD = 3
  OTHER = 4


NAMES = {
  TokenClass.LINE_START: "line_starts",
  TokenClass.NUMBER: "numbers",
  TokenClass.OPERATOR: "operators",
  TokenClass.WORD: "words",
  TokenClass.OTHER: "other",
}
"""The names of the classes in reports."""


def of_piece(piece: str) -> TokenClass:
  """Classifies a piece by its text; the result is never a line start.

  Example:
    >>> [of_piece(p).name for p in ("\u258112", "/2", "=", "\u2581If", ".")]
    ['NUMBER', 'NUMBER', 'OPERATOR', 'WORD', 'OTHER']
  """
  core = piece.replace(student_lib.WORD_START, "")
  if any(character.isdigit() for character in core):
    return TokenClass.NUMBER
  if core and _OPERATORS.issuperset(core):
    return TokenClass.OPERATOR
  if any(character.isalpha() for character in core) and core[0] != "<":
    return TokenClass.WORD
  return TokenClass.OTHER


def of_tokens(
  piece_classes_T: np.ndarray, starts_T: np.ndarray, line_starts: np.ndarray
) -> np.ndarray:
  """Returns each token's class.

  Args:
    piece_classes_T: uint8[T], the class of each token's piece.
    starts_T: int[T], the visible byte at which each token begins; if several
      begin at one byte (a separate word start), only the first is a line start.
    line_starts: bool[bytes + 1], whether a line begins at each visible byte.

  Returns:
    uint8[T], a `TokenClass` each.
  """
  first_T = np.ones(len(starts_T), bool)
  first_T[1:] = starts_T[1:] != starts_T[:-1]
  starts_line_T = line_starts[starts_T] & first_T
  return np.where(
    starts_line_T, np.uint8(TokenClass.LINE_START), piece_classes_T
  )


def line_starts(text: str, ranks: np.ndarray) -> np.ndarray:
  r"""Marks the visible bytes at which lines begin.

  Args:
    text: The text.
    ranks: `tables.visible_ranks(text)`.

  Returns:
    bool[visible bytes + 1]; the first entry is always set.

  Example: "a\nbc" begins a line at "a" and at "b".
    >>> line_starts("a\nbc", np.array([0, 1, 1, 2, 3])).tolist()
    [True, True, False, False]
  """
  starts = np.zeros(int(ranks[-1]) + 1, bool)
  starts[0] = True
  newlines = np.frombuffer(text.encode("utf-8"), np.uint8) == ord("\n")
  starts[ranks[1:][newlines]] = True
  return starts
