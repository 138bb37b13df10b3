"""The aligned targets of many samples, as flat arrays."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
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
    return (self.kinds_P != targets.Kind.ONE_HOT).astype(np.uint8)

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


def joined(batches: Sequence[TargetBatch]) -> TargetBatch:
  """Joins batches that hold different samples of the same whole one."""
  width = max(batch.top_ids_PC.shape[1] for batch in batches)
  wide = [_widened(batch, width) for batch in batches]
  names = (*_POSITIONS, *_SAMPLES, "samples_A", "teacher_group_L")
  whole = dataclasses.replace(
    wide[0],
    offsets=_joined_offsets([batch.offsets for batch in wide]),
    token_offsets=_joined_offsets([batch.token_offsets for batch in wide]),
    **{
      name: np.concatenate([getattr(batch, name) for batch in wide])
      for name in names
    },
  )
  rejected = {at: why for b in wide for at, why in b.rejected.items()}
  return whole._arranged(np.argsort(whole.samples_A), rejected)


def _widened(batch: TargetBatch, width: int) -> TargetBatch:
  missing = ((0, 0), (0, width - batch.top_ids_PC.shape[1]))
  return dataclasses.replace(
    batch,
    top_ids_PC=np.pad(batch.top_ids_PC, missing),
    top_log_probs_PC=np.pad(
      batch.top_log_probs_PC, missing, constant_values=-np.inf
    ),
  )


def _joined_offsets(offsets: Sequence[np.ndarray]) -> np.ndarray:
  return growing.offsets(np.concatenate([np.diff(some) for some in offsets]))


def of_results(
  results: Sequence[targets.AlignedTargets | targets.Rejected],
  words: student_table.StudentTable,
) -> TargetBatch:
  """Makes a batch of samples that were aligned one by one."""
  aligned = [r for r in results if isinstance(r, targets.AlignedTargets)]
  width = max((one.top_ids_TC.shape[1] for one in aligned), default=1)
  group_numbers = [targets.group_numbers(one.groups) for one in aligned]

  def column(values: Sequence[np.ndarray], empty: np.ndarray) -> np.ndarray:
    return np.concatenate([empty, *values])

  def widened(values: np.ndarray, fill: float) -> np.ndarray:
    missing = ((0, 0), (0, width - values.shape[1]))
    return np.pad(values, missing, constant_values=fill)

  number, byte = np.zeros(0, np.int64), np.zeros(0, np.uint8)
  return TargetBatch(
    num_samples=len(results),
    rejected={
      at: result.reason
      for at, result in enumerate(results)
      if isinstance(result, targets.Rejected)
    },
    samples_A=np.array(
      [
        at
        for at, result in enumerate(results)
        if isinstance(result, targets.AlignedTargets)
      ],
      np.int64,
    ),
    offsets=growing.offsets(np.array([len(one.ids_T) for one in aligned])),
    token_offsets=growing.offsets(
      np.array([len(teacher) for teacher, _ in group_numbers])
    ),
    ids_P=column([one.ids_T for one in aligned], np.zeros(0, np.int32)),
    top_ids_PC=column(
      [widened(one.top_ids_TC, 0) for one in aligned],
      np.zeros((0, width), np.int32),
    ),
    top_log_probs_PC=column(
      [widened(one.top_log_probs_TC, -np.inf) for one in aligned],
      np.zeros((0, width)),
    ),
    kinds_P=column([one.kinds_T for one in aligned], byte),
    classes_P=column([one.classes_T for one in aligned], byte),
    teacher_group_L=column([teacher for teacher, _ in group_numbers], number),
    student_group_P=column([student for _, student in group_numbers], number),
    characters_lost_A=np.array(
      [one.characters_lost for one in aligned], np.int64
    ),
    mass_offered_A=np.array([one.mass_offered for one in aligned], np.float64),
    mass_kept_A=np.array([one.mass_kept for one in aligned], np.float64),
    words=words,
  )
