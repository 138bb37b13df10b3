"""Laying two token sequences on each other: plain, readable, the oracle.

Two ways: the paper's dynamic program over edit distances, and the one over
the characters that both sequences spell. Faster forms are held to these.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from specialize_jax.align import student as student_lib
from specialize_jax.align import targets

_DIAGONAL, _UP, _LEFT = range(3)
_IS_ASCII_SPACE = np.array([b < 128 and chr(b).isspace() for b in range(256)])


@functools.lru_cache(maxsize=1 << 18)
def token_distance(teacher_token: str, piece: str) -> int:
  r"""Gives the paper's c: edits from one token to the other, spaces ignored.

  Only the blank is taken from the teacher's token, not newlines (FranxYao/
  FlanT5-CoT-Specialization: notebooks/dev_align_codex_to_flan_t5_dtw.ipynb,
  `dist_fn`).

  Example:
    >>> token_distance(" clips", "\u2581clips"), token_distance("\n", "a")
    (0, 1)
  """
  return Levenshtein.distance(
    teacher_token.replace(" ", ""), piece.replace(student_lib.WORD_START, "")
  )


def distances(strings: Sequence[str], pieces: Sequence[str]) -> np.ndarray:
  """Gives c for each teacher token and each student piece, float64[L, T]."""
  return np.array(
    [[token_distance(string, piece) for piece in pieces] for string in strings],
    np.float64,
  )


def warping_path(cost_LT: np.ndarray) -> list[tuple[int, int]]:
  """Gives the cheapest monotone path through a cost matrix.

  f(i, j) = c(i, j) + min{f(i-1, j), f(i, j-1), f(i-1, j-1)}, f(0, 0) = c(0, 0)
  (the paper, section 3; its code leads back from the last cell and, of equal
  ways, takes the diagonal, then up (i-1), then left (j-1)).

  Args:
    cost_LT: [L, T], L teacher tokens by T student tokens, none of them 0.

  Returns:
    Cells (i, j) from (0, 0) to (L-1, T-1).

  Example:
    >>> warping_path(np.array([[0, 1, 1], [1, 0, 0]]))
    [(0, 0), (1, 1), (1, 2)]
  """
  num_rows, num_columns = cost_LT.shape
  total = np.full((num_rows + 1, num_columns + 1), np.inf)
  total[0, 0] = 0
  for i in range(num_rows):
    for j in range(num_columns):
      total[i + 1, j + 1] = cost_LT[i, j] + min(
        total[i, j + 1], total[i + 1, j], total[i, j]
      )
  i, j = num_rows - 1, num_columns - 1
  path = [(i, j)]
  while i > 0 or j > 0:
    ways = total[i, j], total[i, j + 1], total[i + 1, j]
    move = int(np.argmin(ways))  # the first of equals: diagonal, up, left
    i -= move in (_DIAGONAL, _UP)
    j -= move in (_DIAGONAL, _LEFT)
    path.append((i, j))
  return path[::-1]


def path_groups(path: Sequence[tuple[int, int]]) -> tuple[targets.Group, ...]:
  """Joins the cells of a path that share a row or a column.

  Example:
    >>> [(g.teacher, g.student) for g in path_groups([(0, 0), (1, 1), (1, 2)])]
    [((0,), (0,)), ((1,), (1, 2))]
  """
  groups = []
  teacher: list[int] = []
  student: list[int] = []
  for i, j in path:
    if teacher and i != teacher[-1] and j != student[-1]:
      groups.append(targets.Group(tuple(teacher), tuple(student)))
      teacher, student = [], []
    if not teacher or i != teacher[-1]:
      teacher.append(i)
    if not student or j != student[-1]:
      student.append(j)
  groups.append(targets.Group(tuple(teacher), tuple(student)))
  return tuple(groups)


def visible_ranks(text: str) -> np.ndarray:
  """Counts the bytes of non-space characters before each byte.

  Returns:
    int32[bytes + 1]; the last entry is the number of all visible bytes.

  Example:
    >>> visible_ranks("a b").tolist()
    [0, 1, 1, 2]
  """
  encoded = np.frombuffer(text.encode("utf-8"), np.uint8)
  visible = ~_IS_ASCII_SPACE[encoded]
  wide = {c for c in set(text) if c.isspace() and not c.isascii()}
  if wide:
    begins = np.flatnonzero(encoded & 0xC0 != 0x80)  # 10xxxxxx goes on
    for begin, character in zip(begins.tolist(), text, strict=True):
      if character in wide:
        visible[begin : begin + len(character.encode("utf-8"))] = False
  return np.concatenate([[0], np.cumsum(visible)]).astype(np.int32)


def token_spans(spellings: Sequence[bytes]) -> list[tuple[int, int]]:
  """Gives the bytes of the text that each token covers, as (start, end)."""
  ends = np.cumsum([0, *map(len, spellings)]).tolist()
  return list(zip(ends[:-1], ends[1:], strict=True))


def character_groups(
  teacher_spans: Sequence[tuple[int, int]],
  student_spans: Sequence[tuple[int, int]],
) -> tuple[targets.Group, ...]:
  """Cuts both sequences wherever both have a token boundary.

  A teacher token that covers nothing at such a cut (white space alone) is a
  group of its own without student tokens. A student token that covers nothing
  (a word start alone, say) belongs to the group after it; those after the
  last group are one without teacher tokens. Without any student token the
  teacher's are all one group.

  Args:
    teacher_spans: What each of L tokens covers, as (start, end) in visible
      bytes; they tile the text.
    student_spans: The same for T tokens of the same text.

  Example: " a bc" against "▁", "a", "▁b", "c" for the teacher's " a", " bc".
    >>> groups = character_groups(
    ...   [(0, 1), (1, 3)], [(0, 0), (0, 1), (1, 2), (2, 3)]
    ... )
    >>> [(g.teacher, g.student) for g in groups]
    [((0,), (0, 1)), ((1,), (2, 3))]
  """
  if not student_spans:
    return (targets.Group(tuple(range(len(teacher_spans))), ()),)
  groups = []
  i = j = 0
  while i < len(teacher_spans):
    if teacher_spans[i][0] == teacher_spans[i][1]:
      groups.append(targets.Group((i,), ()))
      i += 1
      continue
    first_i, first_j = i, j
    teacher_end, student_end = teacher_spans[i][1], -1
    i += 1
    while student_end != teacher_end:
      if student_end < teacher_end:
        student_end = student_spans[j][1]
        j += 1
      else:
        teacher_end = teacher_spans[i][1]
        i += 1
    groups.append(
      targets.Group(tuple(range(first_i, i)), tuple(range(first_j, j)))
    )
  if j < len(student_spans):  # these cover nothing, after the last group
    rest = tuple(range(j, len(student_spans)))
    groups.append(targets.Group((), rest))
  return tuple(groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laid:
  """A sample with both token sequences laid on the same text.

  Attributes:
    tokens: The teacher's L tokens.
    text: What they spell.
    encoding: The same text in the student's T tokens.
    groups: Partition of both sequences by characters.
    matches: The groups of one token each. The student may spell the word start
      with a token of its own before the piece ("▁", "a" for " a"), which
      covers no character, and then is part of the match.
    blank: Whether each teacher token is white space alone.
    after_space: Whether white space, or the text's start, precedes each.
  """

  tokens: Sequence[targets.TeacherToken]
  text: str
  encoding: student_lib.Encoding
  groups: tuple[targets.Group, ...]
  matches: tuple[targets.Group, ...]
  blank: tuple[bool, ...]
  after_space: tuple[bool, ...]


def lay(
  tokens: Sequence[targets.TeacherToken],
  text: str,
  student: student_lib.StudentTokenizer,
) -> Laid:
  """Lays both token sequences over the same non-space characters."""
  encoding = student.encode_with_spans(text)
  ranks = visible_ranks(text)
  byte_spans = token_spans([token.spelling for token in tokens])
  teacher_spans = [(int(ranks[s]), int(ranks[e])) for s, e in byte_spans]
  student_spans = [(int(ranks[s]), int(ranks[e])) for s, e in encoding.spans]
  if student_spans:  # what the student drops at the end goes to its last
    student_spans[-1] = student_spans[-1][0], int(ranks[-1])
  groups = character_groups(teacher_spans, student_spans)
  # A byte is white space where it does not raise the rank.
  space = np.concatenate([[True], np.diff(ranks) == 0])
  return Laid(
    tokens=tokens,
    text=text,
    encoding=encoding,
    groups=groups,
    matches=_one_to_one(groups, encoding.pieces, student_spans),
    blank=tuple(start == end for start, end in teacher_spans),
    after_space=tuple(bool(space[start]) for start, _ in byte_spans),
  )


def _one_to_one(
  groups: Sequence[targets.Group],
  pieces: Sequence[str],
  student_spans: Sequence[tuple[int, int]],
) -> tuple[targets.Group, ...]:
  """Finds where one student token covers just what one teacher token does.

  Another token than a word start before it spells part of the same
  characters, which then are no match.
  """
  matches = []
  for group in groups:
    if len(group.teacher) != 1 or not group.student:
      continue
    *before, last = group.student
    apart = [pieces[j] for j in before] in ([], [student_lib.WORD_START])
    covers = student_spans[last][0] < student_spans[last][1]
    if apart and covers:
      matches.append(group)
  return tuple(matches)
