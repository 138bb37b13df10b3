"""Counts of what an alignment transferred and lost; counts can be added."""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Self

import numpy as np

from specialize_jax.align import targets, token_classes

Counts = tuple[tuple[int, ...], ...]
_NOTHING = tuple((0,) * len(targets.Kind) for _ in token_classes.TokenClass)

_REPORTED = {
  "one_to_one": targets.Kind.ONE_TO_ONE,
  "in_chunks": targets.Kind.CHUNK,
  "one_hot": targets.Kind.ONE_HOT,
  "masked": targets.Kind.MASKED,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coverage:
  """Counts over samples; the counts of two sets of samples can be added.

  Positions are student positions of samples that were not rejected. A position
  is one-to-one if its target comes from a single teacher token; in a chunk if
  its target comes from a group of several tokens; one-hot if it has no teacher
  distribution; and masked if the student cannot spell its characters.

  Attributes:
    samples: All samples, rejected ones included.
    rejected: The number of rejected samples by reason.
    positions_by_class: Positions; a row per `TokenClass`, a column per `Kind`.
    teacher_mass_offered: The probability of the sampled tokens and their
      candidates, summed over teacher tokens that are not white space.
    teacher_mass: The part of it that became part of a target.
    characters_lost: Characters that the student's pieces do not spell.
    samples_with_lost_characters: Samples that have any.
    log_prob: The teacher's log-probability of the texts, of all tokens, in
      nats.
    visible_log_prob: The same, of the tokens that are not white space.
    target_log_prob: The log-probability that the targets give to the texts'
      own student tokens. In `marginal` it lies between the other two.
  """

  samples: int = 0
  rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)
  positions_by_class: Counts = _NOTHING
  teacher_mass_offered: float = 0.0
  teacher_mass: float = 0.0
  characters_lost: int = 0
  samples_with_lost_characters: int = 0
  log_prob: float = 0.0
  visible_log_prob: float = 0.0
  target_log_prob: float = 0.0

  @classmethod
  def of_batch(cls, batch: targets.TargetBatch) -> Self:
    """Counts the samples of a batch."""
    return cls(
      samples=batch.num_samples,
      rejected=dict(collections.Counter(batch.rejected.values())),
      positions_by_class=_counts(batch.classes_P, batch.kinds_P),
      teacher_mass_offered=float(batch.mass_offered_A.sum()),
      teacher_mass=float(batch.mass_kept_A.sum()),
      characters_lost=int(batch.characters_lost_A.sum()),
      samples_with_lost_characters=int((batch.characters_lost_A > 0).sum()),
      log_prob=float(batch.log_prob_A.sum()),
      visible_log_prob=float(batch.visible_log_prob_A.sum()),
      target_log_prob=float(_own_log_probs(batch).sum()),
    )

  def __add__(self, other: Self) -> Self:
    sums = {
      field.name: getattr(self, field.name) + getattr(other, field.name)
      for field in dataclasses.fields(self)
      if field.name not in ("rejected", "positions_by_class")
    }
    rejected = collections.Counter(self.rejected)
    rejected.update(other.rejected)
    return type(self)(
      **sums,
      rejected=dict(rejected),
      positions_by_class=tuple(
        tuple(a + b for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in zip(
          self.positions_by_class, other.positions_by_class, strict=True
        )
      ),
    )

  def _num(self, kind: targets.Kind) -> int:
    return sum(counts[kind] for counts in self.positions_by_class)

  @property
  def positions(self) -> int:
    """The number of positions."""
    return sum(map(sum, self.positions_by_class))

  @property
  def one_to_one(self) -> int:
    """Positions whose target is the distribution of one teacher token."""
    return self._num(targets.Kind.ONE_TO_ONE)

  @property
  def in_chunks(self) -> int:
    """Positions whose target comes from a group of several tokens."""
    return self._num(targets.Kind.CHUNK)

  @property
  def one_hot(self) -> int:
    """Positions with a one-hot target."""
    return self._num(targets.Kind.ONE_HOT)

  @property
  def masked(self) -> int:
    """Positions without a target, those of the student's unknown piece."""
    return self._num(targets.Kind.MASKED)

  @property
  def teacher_mass_kept(self) -> float:
    """The fraction of the teacher's probability that is part of a target."""
    if self.teacher_mass_offered == 0:
      return 0.0
    return self.teacher_mass / self.teacher_mass_offered

  def report(self) -> dict[str, object]:
    """Returns the report that `specialize align` writes, as JSON values."""
    return {
      "samples": self.samples,
      "rejected": dict(sorted(self.rejected.items())),
      "positions": self.positions,
      "one_to_one": self.one_to_one,
      "in_chunks": self.in_chunks,
      "one_hot": self.one_hot,
      "masked": self.masked,
      "by_class": {
        name: {
          "positions": sum(self.positions_by_class[number]),
          **{
            kind: self.positions_by_class[number][column]
            for kind, column in _REPORTED.items()
          },
        }
        for number, name in token_classes.NAMES.items()
      },
      "teacher_mass_kept": self.teacher_mass_kept,
      "teacher_mass_offered": self.teacher_mass_offered,
      "characters_lost": self.characters_lost,
      "samples_with_lost_characters": self.samples_with_lost_characters,
      "log_likelihood": {
        name: value if math.isfinite(value) else None
        for name, value in (
          ("all_tokens", self.log_prob),
          ("targets", self.target_log_prob),
          ("without_white_space", self.visible_log_prob),
        )
      },
    }


def _own_log_probs(batch: targets.TargetBatch) -> np.ndarray:
  """Returns the targets' log-probabilities of the texts' own tokens, [P]."""
  own_PC = batch.top_ids_PC == batch.ids_P[:, None]
  log_probs_PC = np.where(own_PC, batch.top_log_probs_PC, -np.inf)
  masked_P = batch.kinds_P == targets.Kind.MASKED
  return np.where(masked_P, 0.0, log_probs_PC.max(axis=1, initial=-np.inf))


def _counts(classes_T: np.ndarray, kinds_T: np.ndarray) -> Counts:
  shape = len(token_classes.TokenClass), len(targets.Kind)
  flat = np.bincount(
    classes_T.astype(np.int64) * shape[1] + kinds_T,
    minlength=shape[0] * shape[1],
  )
  return tuple(map(tuple, flat.reshape(shape).tolist()))
