"""Input and output types of alignment: teacher tokens and student targets."""

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np

from specialize_jax.align import tables


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
  """Teacher tokens and student tokens of the same characters.

  Attributes:
    teacher: Indices of teacher tokens, rising; empty for none.
    student: Indices of student tokens, rising; empty for none.
  """

  teacher: tuple[int, ...]
  student: tuple[int, ...]


def groups_of(
  teacher_numbers: Sequence[int], student_numbers: Sequence[int]
) -> tuple[Group, ...]:
  """Returns groups from the number of each token's group.

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
  """Returns the number of each teacher and each student token's group.

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
  """A rationale in student tokens, with the target of each.

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
  """A sample without targets.

  Attributes:
    reason: Why, in words that a coverage report counts by.
  """

  reason: str


_POSITIONS = (
  "ids_P",
  "top_ids_PC",
  "top_log_probs_PC",
  "kinds_P",
  "classes_P",
  "student_group_P",
)
_SAMPLES = ("characters_lost_A", "mass_offered_A", "mass_kept_A")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetBatch:
  """The targets of a batch of samples.

  A counts the samples that have targets, P their student positions one sample
  after another, L their teacher tokens likewise; C is the largest number of
  candidates of a position. The arrays are as those of `AlignedTargets`.

  Attributes:
    num_samples: Samples of the batch, rejected ones included.
    rejected: Why, for each sample that has no targets.
    samples_A: int64[A], the place of each in the batch, rising.
    offsets: int64[A + 1], where each sample's positions begin.
    token_offsets: int64[A + 1], where its teacher tokens begin.
    ids_P: int32[P].
    top_ids_PC: int32[P, C].
    top_log_probs_PC: float64[P, C].
    kinds_P: uint8[P].
    classes_P: uint8[P].
    teacher_group_L: int64[L], the number of each token's group in its sample.
    student_group_P: int64[P], the same.
    characters_lost_A: int64[A].
    mass_offered_A: float64[A].
    mass_kept_A: float64[A].
    words: Spells the student's ids.
  """

  num_samples: int
  rejected: Mapping[int, str]
  samples_A: np.ndarray
  offsets: np.ndarray
  token_offsets: np.ndarray
  ids_P: np.ndarray
  top_ids_PC: np.ndarray
  top_log_probs_PC: np.ndarray
  kinds_P: np.ndarray
  classes_P: np.ndarray
  teacher_group_L: np.ndarray
  student_group_P: np.ndarray
  characters_lost_A: np.ndarray
  mass_offered_A: np.ndarray
  mass_kept_A: np.ndarray
  words: tables.StudentTable

  @property
  def mask_P(self) -> np.ndarray:  # noqa: N802 (a shape suffix)
    """uint8[P], 1 where the target is the teacher's."""
    return np.isin(self.kinds_P, TAUGHT_KINDS).astype(np.uint8)

  def results(
    self,
  ) -> Iterator[AlignedTargets | Rejected]:
    """Yields the targets of each sample, or why it has none, in order."""
    place = {at: place for place, at in enumerate(self.samples_A.tolist())}
    for sample in range(self.num_samples):
      if sample in place:
        yield self.sample(place[sample])
      else:
        yield Rejected(self.rejected[sample])

  def sample(self, place: int) -> AlignedTargets:
    """Returns one of the A samples."""
    mine = slice(self.offsets[place], self.offsets[place + 1])
    tokens = slice(self.token_offsets[place], self.token_offsets[place + 1])
    used_C = (self.top_log_probs_PC[mine] > -np.inf) | (
      self.top_ids_PC[mine] != 0
    )
    width = max(1, int(used_C.any(axis=0).sum()))
    return AlignedTargets(
      ids_T=self.ids_P[mine],
      pieces=self.words.pieces_of(self.ids_P[mine].tolist()),
      top_ids_TC=self.top_ids_PC[mine, :width],
      top_log_probs_TC=self.top_log_probs_PC[mine, :width],
      mask_T=self.mask_P[mine],
      kinds_T=self.kinds_P[mine],
      classes_T=self.classes_P[mine],
      groups=groups_of(
        self.teacher_group_L[tokens].tolist(),
        self.student_group_P[mine].tolist(),
      ),
      characters_lost=int(self.characters_lost_A[place]),
      mass_offered=float(self.mass_offered_A[place]),
      mass_kept=float(self.mass_kept_A[place]),
    )

  def only(self, kept_A: np.ndarray, rejected: Mapping[int, str]) -> Self:
    """Returns the batch with only some of its samples.

    Args:
      kept_A: bool[A], which stay.
      rejected: Why, for those that do not.
    """
    if kept_A.all():
      return self
    return self._arranged(
      np.flatnonzero(kept_A), rejected={**self.rejected, **rejected}
    )

  def placed(
    self,
    places: np.ndarray,
    num_samples: int,
    rejected: Mapping[int, str],
  ) -> Self:
    """Renumbers the batch's samples as some of a larger one's."""
    return dataclasses.replace(
      self,
      num_samples=num_samples,
      samples_A=places[self.samples_A],
      rejected={
        **{int(places[at]): why for at, why in self.rejected.items()},
        **rejected,
      },
    )

  def _arranged(self, order: np.ndarray, rejected: Mapping[int, str]) -> Self:
    """Returns the samples at the given places, in that order."""
    counts = np.diff(self.offsets)[order]
    token_counts = np.diff(self.token_offsets)[order]
    at = tables.ragged_index(self.offsets[order], counts)
    token_at = tables.ragged_index(self.token_offsets[order], token_counts)
    return dataclasses.replace(
      self,
      rejected=rejected,
      samples_A=self.samples_A[order],
      offsets=tables.offsets(counts),
      token_offsets=tables.offsets(token_counts),
      teacher_group_L=self.teacher_group_L[token_at],
      **{name: getattr(self, name)[at] for name in _POSITIONS},
      **{name: getattr(self, name)[order] for name in _SAMPLES},
    )
