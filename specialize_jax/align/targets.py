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
    spelling: The bytes that it adds to the text, not always whole characters.
    log_prob: Its log-probability in nats; -inf if the probability is 0.
    top: The API's candidates as (spelling, log-probability) pairs in the API's
      order, with or without the sampled token.
  """

  spelling: bytes
  log_prob: float
  top: tuple[tuple[bytes, float], ...]


@dataclasses.dataclass(frozen=True)
class Group:
  """Teacher tokens and student tokens that cover the same characters.

  Attributes:
    teacher: Indices of teacher tokens, ascending; may be empty.
    student: Indices of student tokens, ascending; may be empty.
  """

  teacher: tuple[int, ...]
  student: tuple[int, ...]


def groups_of(
  teacher_numbers: Sequence[int], student_numbers: Sequence[int]
) -> tuple[Group, ...]:
  """Builds groups from the group number of each token.

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
  """Returns the group number of each teacher and each student token.

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
  """The source of a student position's target.

  A position of characters that the student cannot spell (its unknown piece) is
  masked: it has no target, and must have loss weight 0.
  """

  ONE_HOT = 0
  ONE_TO_ONE = 1
  CHUNK = 2
  MASKED = 3


TAUGHT_KINDS = (Kind.ONE_TO_ONE, Kind.CHUNK)
"""The kinds whose target is the teacher's distribution: mask 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignedTargets:
  """A rationale in student tokens, with the target of each token.

  C is the largest number of candidates of a position. All candidates are
  included; stored rows may contain fewer.

  Attributes:
    ids_T: int32[T], the student's tokens, without an end-of-sequence token.
    pieces: The T pieces as the student's vocabulary writes them.
    top_ids_TC: int32[T, C], candidates; 0 (padding) in an unused slot.
    top_log_probs_TC: float64[T, C], in nats; -inf for a candidate whose
      probability the teacher rounds to 0, and in an unused slot.
    mask_T: uint8[T], 1 where the target is the teacher's distribution, 0 where
      it is one-hot or missing.
    kinds_T: uint8[T], the `Kind` of each position.
    classes_T: uint8[T], the `token_classes.TokenClass` of each position.
    groups: A partition of both token sequences, in order.
    characters_lost: The number of characters that the pieces do not spell:
      unknown to the student, or removed or rewritten by its normalization.
    mass_offered: The probability of the sampled tokens and candidates, but
      for special tokens, summed over teacher tokens that are not white space.
    mass_kept: The part of it that is part of a target with mask 1.
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
    reason: The reason, by which coverage reports count rejected samples.
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
_SAMPLES = (
  "characters_lost_A",
  "mass_offered_A",
  "mass_kept_A",
  "log_prob_A",
  "visible_log_prob_A",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetBatch:
  """The targets of a batch of samples.

  A is the number of samples that have targets, P the number of their student
  positions (concatenated), L that of their teacher tokens, and C the largest
  number of candidates of a position. The arrays are those of `AlignedTargets`.

  Attributes:
    num_samples: The number of samples of the batch, rejected ones included.
    rejected: The reason for each rejected sample, by its index in the batch.
    samples_A: int64[A], the index in the batch of each other sample, ascending.
    offsets: int64[A + 1], the index of each sample's first position.
    token_offsets: int64[A + 1], the index of its first teacher token.
    ids_P: int32[P].
    top_ids_PC: int32[P, C].
    top_log_probs_PC: float64[P, C].
    kinds_P: uint8[P].
    classes_P: uint8[P].
    teacher_group_L: int64[L], the group of each teacher token, numbered from 0
      in every sample.
    student_group_P: int64[P], the group of each student token.
    characters_lost_A: int64[A].
    mass_offered_A: float64[A].
    mass_kept_A: float64[A].
    log_prob_A: float64[A], the teacher's log-probability of the text, summed
      over all tokens, in nats.
    visible_log_prob_A: float64[A], the same without white-space tokens.
    words: The student's table, for the pieces of its ids.
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
  log_prob_A: np.ndarray
  visible_log_prob_A: np.ndarray
  words: tables.StudentTable

  @property
  def mask_P(self) -> np.ndarray:  # noqa: N802 (a shape suffix)
    """uint8[P], 1 where the target is the teacher's."""
    return np.isin(self.kinds_P, TAUGHT_KINDS).astype(np.uint8)

  def results(
    self,
  ) -> Iterator[AlignedTargets | Rejected]:
    """Yields each sample's targets, or the reason for its rejection."""
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
      kept_A: bool[A], the samples to keep.
      rejected: The reason for each of the others.
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
    """Returns the batch as part of a larger one.

    Args:
      places: The index in the larger batch of each sample of this one.
      num_samples: The number of samples of the larger batch.
      rejected: The reasons for the larger batch's other rejected samples.
    """
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
    """Returns the samples with the given indices, in that order."""
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
