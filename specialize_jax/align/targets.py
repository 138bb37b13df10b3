"""What alignment takes and gives: teacher tokens in, student targets out."""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherToken:
  """One token that the teacher sampled.

  Attributes:
    spelling: The bytes that it adds to the text; not always whole characters.
    log_prob: Its natural log-probability in nats, -inf for none.
    top: The API's candidates as (spelling, log-probability) in the API's
      order, the sampled token among them or not.
  """

  spelling: bytes
  log_prob: float
  top: tuple[tuple[bytes, float], ...]


@dataclasses.dataclass(frozen=True)
class Group:
  """Teacher tokens and student tokens that stand for each other.

  Attributes:
    teacher: Indices of teacher tokens, rising; empty for none.
    student: Indices of student tokens, rising; empty for none.
  """

  teacher: tuple[int, ...]
  student: tuple[int, ...]


def groups_of(
  teacher_numbers: Sequence[int], student_numbers: Sequence[int]
) -> tuple[Group, ...]:
  """Gives groups from the number of each token's group.

  Example:
    >>> [(g.teacher, g.student) for g in groups_of([0, 1, 1], [0, 2])]
    [((0,), (0,)), ((1, 2), ()), ((), (1,))]
  """
  num_groups = 1 + max([*teacher_numbers[-1:], *student_numbers[-1:]])
  members: list[tuple[list[int], list[int]]] = [
    ([], []) for _ in range(num_groups)
  ]
  for side, numbers in enumerate((teacher_numbers, student_numbers)):
    for index, number in enumerate(numbers):
      members[number][side].append(index)
  return tuple(
    [Group(tuple(teacher), tuple(student)) for teacher, student in members]
  )


def group_numbers(groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
  """Gives the number of each teacher and each student token's group.

  Example:
    >>> teacher, student = group_numbers([Group((0, 1), (0,)), Group((2,), ())])
    >>> teacher.tolist(), student.tolist()
    ([0, 0, 1], [0])
  """
  sides = []
  for name in ("teacher", "student"):
    sizes = [len(getattr(group, name)) for group in groups]
    sides.append(np.repeat(np.arange(len(groups)), sizes))
  return sides[0], sides[1]


class Kind(enum.IntEnum):
  """Where a student position's target comes from.

  A position of characters that the student cannot spell (its unknown piece) is
  masked: it has no target at all, and a loss must give it no weight.
  """

  ONE_HOT = 0
  ONE_TO_ONE = 1
  CHUNK = 2
  MASKED = 3


TAUGHT_KINDS = (Kind.ONE_TO_ONE, Kind.CHUNK)
"""The kinds whose target is the teacher's distribution: mask 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignedTargets:
  """A rationale in student tokens, with what the teacher says of each.

  C is the largest number of candidates of a position; all are here, storage
  may keep fewer.

  Attributes:
    ids_T: int32[T], the student's tokens, end of sequence not among them.
    pieces: The T pieces as the student's vocabulary spells them.
    top_ids_TC: int32[T, C], candidates; an unused slot holds 0 (padding).
    top_log_probs_TC: float64[T, C], in nats; -inf for a candidate whose
      probability the teacher rounds to 0, and in an unused slot.
    mask_T: uint8[T], 1 where the target is the teacher's, 0 where one-hot.
    kinds_T: uint8[T], a `Kind` each.
    classes_T: uint8[T], a `token_classes.TokenClass` each.
    groups: Partition of both token sequences, in order.
    characters_lost: Characters of the text that the pieces do not spell:
      unknown to the student, removed or rewritten by its normalisation.
    mass_offered: The probability that the teacher's tokens name (sampled and
      candidates), summed over its tokens that are not white space.
    mass_kept: The part of it that reaches a target of mask 1.
  """

  ids_T: np.ndarray
  pieces: tuple[str, ...]
  top_ids_TC: np.ndarray
  top_log_probs_TC: np.ndarray
  mask_T: np.ndarray
  kinds_T: np.ndarray
  classes_T: np.ndarray
  groups: tuple[Group, ...]
  characters_lost: int
  mass_offered: float
  mass_kept: float


@dataclasses.dataclass(frozen=True)
class Rejected:
  """A sample that gives no targets.

  Attributes:
    reason: Why, in words that a coverage report counts by.
  """

  reason: str
