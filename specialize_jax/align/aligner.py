"""Many samples in, their aligned targets out: the room's entry point.

The four modes behind one interface. What an aligner remembers between batches
(spellings, words, edit distances) makes it fast, and is forgotten before it
grows large.
"""

from collections.abc import Sequence

import numpy as np

from specialize_jax import errors
from specialize_jax.align import (
  alternatives,
  columns,
  dynamic_program,
  marginal,
  tables,
  targets,
  transfer,
)
from specialize_jax.align import layout as layout_lib
from specialize_jax.align import student as student_lib

MODES = ("paper", "whitespace", "chunk", "marginal")

NOT_UNICODE = "the text is not Unicode (a lone surrogate)"
NO_STUDENT_TOKEN = "the text has no student token"

BATCH_SIZE = 1024
"""Samples that are worth a call: more are no faster, and take more memory."""

_MAX_STRINGS = 1 << 21  # about 0.5 GiB of words and candidates
_MAX_TOKENS = 1 << 24  # of these: whole texts have many


def check_mode(mode: str) -> None:
  """Checks a mode's name.

  Raises:
    UserError: there is no such mode.
  """
  if mode not in MODES:
    raise errors.UserError(
      f"mode {mode!r} is unknown; expected one of: {', '.join(MODES)}"
    )


class Aligner:
  """Lays samples on a student's tokens in one mode."""

  def __init__(
    self, student: student_lib.StudentTokenizer, *, mode: str
  ) -> None:
    """Prepares for a student.

    Raises:
      UserError: there is no such mode.
    """
    check_mode(mode)
    self.mode = mode
    self.student = student
    self._forget()

  def _forget(self) -> None:
    self.words = tables.StudentTable(self.student)
    self.table = tables.TeacherTable(self.words)
    self._distances = dynamic_program.DistanceTable()
    self._alternatives = alternatives.Alternatives(self.table, self.words)

  def align(self, samples: Sequence[columns.Sample]) -> targets.TargetBatch:
    """Aligns samples and transfers the teacher's distributions.

    Args:
      samples: The teacher's tokens of each, and the text that they spell.

    Returns:
      One target a student token of each sample; or why there is none: the
      text is empty, or not Unicode, or (`marginal`) the teacher gives a
      sampled token probability 0.

    Raises:
      ValueError: a sample's tokens do not spell its text.
    """
    rejected = {}
    for place, (tokens, text) in enumerate(samples):
      try:
        encoded = text.encode("utf-8")
      except UnicodeEncodeError:
        rejected[place] = NOT_UNICODE
        continue
      if b"".join([token.spelling for token in tokens]) != encoded:
        raise ValueError("the tokens do not spell the text")
    places = np.array(
      [place for place in range(len(samples)) if place not in rejected],
      np.int64,
    )
    self._forget_what_is_too_much()
    aligned = self._align([samples[place] for place in places.tolist()])
    return aligned.placed(places, len(samples), rejected)

  def _align(self, samples: Sequence[columns.Sample]) -> targets.TargetBatch:
    """Aligns samples whose tokens spell their text."""
    return self.align_numbered(columns.teacher_columns(samples, self.table))

  def align_strings(
    self,
    texts: Sequence[str],
    counts: Sequence[int],
    spellings: Sequence[bytes],
    *,
    log_probs: Sequence[float],
    top_counts: Sequence[int],
    top_spellings: Sequence[bytes],
    top_log_probs: Sequence[float],
  ) -> targets.TargetBatch:
    """Aligns samples that are flat already, as `columns.from_strings` has them.

    The texts must be Unicode, and the tokens spell them.
    """
    self._forget_what_is_too_much()
    return self.align_numbered(
      columns.from_strings(
        texts,
        counts,
        spellings,
        log_probs=log_probs,
        top_counts=top_counts,
        top_spellings=top_spellings,
        top_log_probs=top_log_probs,
        table=self.table,
      )
    )

  def align_numbered(
    self, teacher: columns.TeacherColumns
  ) -> targets.TargetBatch:
    """Aligns samples of which the columns are there already.

    Args:
      teacher: Samples whose tokens spell their texts, by `self.table`.
    """
    return self._transfer(self.batch_of(teacher))

  def align_texts(
    self, texts: Sequence[str], spellings: Sequence[Sequence[bytes]]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Lays tokens on each other by their characters, and does no more.

    Args:
      texts: The texts.
      spellings: The teacher's tokens of each, which spell it.

    Returns:
      The number of the group of each teacher and of each student token, from
      0 in every text, all texts one after another.
    """
    teacher = columns.tokens_alone(texts, spellings, self.table)
    places = columns.places(teacher, self.table, self.words)
    student = columns.student_columns(texts, places.whole_B, self.words)
    return layout_lib.grouped(
      teacher, places.visible_L, student, words=self.words
    )

  def batch_of(self, teacher: columns.TeacherColumns) -> transfer.Batch:
    """Encodes the texts and lays both sides on each other."""
    places = columns.places(teacher, self.table, self.words)
    student = columns.student_columns(teacher.texts, places.whole_B, self.words)
    layout = layout_lib.lay(
      teacher,
      places.visible_L,
      student,
      word_start_id=self.words.word_start_id,
    )
    distinct_KL = transfer.distinct(teacher)
    return transfer.Batch(
      teacher=teacher,
      student=student,
      places=places,
      layout=layout,
      table=self.table,
      words=self.words,
      probs_L=np.exp(teacher.log_probs_L),
      distinct_KL=distinct_KL,
      top_probs_KL=np.where(distinct_KL, np.exp(teacher.top_log_probs_KL), 0.0),
      alternatives=self._alternatives,
    )

  def _transfer(self, batch: transfer.Batch) -> targets.TargetBatch:
    """Applies the mode's rule."""
    found = transfer.masked(batch, self._rule(batch))
    groups = found.groups or layout_lib.group_numbers(
      batch.layout, batch.teacher, batch.student
    )
    offered_A = transfer.mass_offered(batch)
    num_samples = len(batch.teacher.texts)
    whole = targets.TargetBatch(
      num_samples=num_samples,
      rejected={},
      samples_A=np.arange(num_samples),
      offsets=batch.student.offsets,
      token_offsets=batch.teacher.offsets,
      ids_P=batch.student.ids_P.astype(np.int32),
      top_ids_PC=found.ids_PC,
      top_log_probs_PC=found.log_probs_PC,
      kinds_P=found.kinds_P,
      classes_P=layout_lib.classes(
        batch.layout,
        batch.teacher,
        batch.places,
        batch.student,
        table=self.table,
        words=self.words,
      ),
      teacher_group_L=groups[0],
      student_group_P=groups[1],
      characters_lost_A=batch.student.lost_B,
      mass_offered_A=offered_A,
      mass_kept_A=np.minimum(found.kept_B, offered_A),
      words=self.words,
    )
    has_token = np.diff(batch.student.offsets) > 0
    rejected = found.rejected | dict.fromkeys(
      np.flatnonzero(~has_token).tolist(), NO_STUDENT_TOKEN
    )
    kept = has_token.copy()
    kept[list(found.rejected)] = False
    return whole.only(kept, rejected)

  def _rule(self, batch: transfer.Batch) -> transfer.Transferred:
    match self.mode:
      case "paper":
        return transfer.paper_rule(batch, self._distances)
      case "whitespace":
        return transfer.whitespace_rule(batch)
      case "chunk":
        return transfer.chunk_rule(batch)
      case "marginal":
        return marginal.marginal_rule(batch)
    raise AssertionError(self.mode)

  def _forget_what_is_too_much(self) -> None:
    too_many = len(self.words) + len(self.table) > _MAX_STRINGS
    if too_many or len(self.words.ids) > _MAX_TOKENS:
      self._forget()
    if self._distances.is_full:
      self._distances = dynamic_program.DistanceTable()
