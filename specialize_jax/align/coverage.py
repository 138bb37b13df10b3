"""What an alignment kept and what it lost, as counts that add up."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Self

from specialize_jax.align import targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coverage:
  """Counts over samples; those of two sets of samples add.

  Attributes:
    samples: Samples seen, rejected ones included.
    rejected: Rejected samples by reason.
    positions: Student positions of the samples that were not rejected.
    one_to_one: Positions that one teacher token speaks for.
    in_chunks: Positions that share a group of several tokens, and have the
      teacher's word on it as target.
    one_hot: Positions that the teacher says nothing of.
    teacher_mass_offered: The probability that the teacher's tokens name,
      summed over those that are not white space.
    teacher_mass: The part of it that reached a target.
    characters_lost: Characters that the student's pieces do not spell.
    samples_with_lost_characters: Samples that have any.
  """

  samples: int = 0
  rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)
  positions: int = 0
  one_to_one: int = 0
  in_chunks: int = 0
  one_hot: int = 0
  teacher_mass_offered: float = 0.0
  teacher_mass: float = 0.0
  characters_lost: int = 0
  samples_with_lost_characters: int = 0

  @classmethod
  def of(cls, result: targets.AlignedTargets | targets.Rejected) -> Self:
    """Counts one sample."""
    if isinstance(result, targets.Rejected):
      return cls(samples=1, rejected={result.reason: 1})
    counts = collections.Counter(result.kinds_T.tolist())
    return cls(
      samples=1,
      positions=len(result.ids_T),
      one_to_one=counts[targets.Kind.ONE_TO_ONE],
      in_chunks=counts[targets.Kind.CHUNK],
      one_hot=counts[targets.Kind.ONE_HOT],
      teacher_mass_offered=result.mass_offered,
      teacher_mass=result.mass_kept,
      characters_lost=result.characters_lost,
      samples_with_lost_characters=int(result.characters_lost > 0),
    )

  def __add__(self, other: Self) -> Self:
    sums = {
      field.name: getattr(self, field.name) + getattr(other, field.name)
      for field in dataclasses.fields(self)
      if field.name != "rejected"
    }
    rejected = collections.Counter(self.rejected)
    rejected.update(other.rejected)
    return type(self)(**sums, rejected=dict(rejected))

  @property
  def teacher_mass_kept(self) -> float:
    """The share of the teacher's probability that reached a target."""
    if self.teacher_mass_offered == 0:
      return 0.0
    return self.teacher_mass / self.teacher_mass_offered

  def report(self) -> dict[str, object]:
    """Gives the JSON-able report that `specialize align` writes."""
    return {
      "samples": self.samples,
      "rejected": dict(sorted(self.rejected.items())),
      "positions": self.positions,
      "one_to_one": self.one_to_one,
      "in_chunks": self.in_chunks,
      "one_hot": self.one_hot,
      "teacher_mass_kept": self.teacher_mass_kept,
      "teacher_mass_offered": self.teacher_mass_offered,
      "characters_lost": self.characters_lost,
      "samples_with_lost_characters": self.samples_with_lost_characters,
    }
