"""The aligned targets of many samples, as flat arrays."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np

from specialize_jax.align import growing, student_table, targets

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
  """What alignment gives for a batch of samples.

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
  words: student_table.StudentTable

  @property
  def mask_P(self) -> np.ndarray:  # noqa: N802 (a shape suffix)
    """uint8[P], 1 where the target is the teacher's."""
    return np.isin(self.kinds_P, targets.TAUGHT_KINDS).astype(np.uint8)

  def results(
    self,
  ) -> Iterator[targets.AlignedTargets | targets.Rejected]:
    """Gives what became of each sample of the batch, in order."""
    place = {at: place for place, at in enumerate(self.samples_A.tolist())}
    for sample in range(self.num_samples):
      if sample in place:
        yield self.sample(place[sample])
      else:
        yield targets.Rejected(self.rejected[sample])

  def sample(self, place: int) -> targets.AlignedTargets:
    """Gives one of the A samples."""
    mine = slice(self.offsets[place], self.offsets[place + 1])
    tokens = slice(self.token_offsets[place], self.token_offsets[place + 1])
    used_C = (self.top_log_probs_PC[mine] > -np.inf) | (
      self.top_ids_PC[mine] != 0
    )
    width = max(1, int(used_C.any(axis=0).sum()))
    return targets.AlignedTargets(
      ids_T=self.ids_P[mine],
      pieces=self.words.pieces_of(self.ids_P[mine].tolist()),
      top_ids_TC=self.top_ids_PC[mine, :width],
      top_log_probs_TC=self.top_log_probs_PC[mine, :width],
      mask_T=self.mask_P[mine],
      kinds_T=self.kinds_P[mine],
      classes_T=self.classes_P[mine],
      groups=targets.groups_of(
        self.teacher_group_L[tokens].tolist(),
        self.student_group_P[mine].tolist(),
      ),
      characters_lost=int(self.characters_lost_A[place]),
      mass_offered=float(self.mass_offered_A[place]),
      mass_kept=float(self.mass_kept_A[place]),
    )

  def only(self, kept_A: np.ndarray, rejected: Mapping[int, str]) -> Self:
    """Leaves out samples.

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
    """Puts samples into another order, or leaves some out."""
    counts = np.diff(self.offsets)[order]
    token_counts = np.diff(self.token_offsets)[order]
    at = growing.ragged_index(self.offsets[order], counts)
    token_at = growing.ragged_index(self.token_offsets[order], token_counts)
    return dataclasses.replace(
      self,
      rejected=rejected,
      samples_A=self.samples_A[order],
      offsets=growing.offsets(counts),
      token_offsets=growing.offsets(token_counts),
      teacher_group_L=self.teacher_group_L[token_at],
      **{name: getattr(self, name)[at] for name in _POSITIONS},
      **{name: getattr(self, name)[order] for name in _SAMPLES},
    )
