"""Groups teacher and student tokens that cover the same characters.

A group ends wherever both sides have a token boundary. (The tests compare this
vectorized form with a readable one.) The visible bytes of all samples are
concatenated, with an extra place after each sample for tokens at its end that
cover no bytes.
"""

import dataclasses

import numpy as np

from specialize_jax.align import columns as columns_lib
from specialize_jax.align import tables, token_classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Groups of both sides of a batch.

  Attributes:
    start_L: int64[L], the place at which each teacher token begins.
    start_P: int64[P], the place at which each student token begins.
    slot_B: int64[B], the place at which each sample begins.
    num_places: The number of places.
    own_L: bool[L], whether a token is white space that forms a group without
      student tokens.
    inside_L: int64, the indices of all other tokens.
    chunk_L: int64[L], the number of each token's chunk, increasing over the
      whole batch; for white space of `own_L`, that of the next chunk.
    chunk_P: int64[P], the number of each student token's chunk.
    num_teacher: int64, the number of teacher tokens of each chunk.
    num_student: int64, the number of student tokens of each chunk.
    match_teacher_M: int64[M], the teacher token of each one-to-one match.
    match_student_M: int64[M], the last student token of each match.
    match_apart_M: bool[M], whether that token is preceded, in the match, by a
      separate word-start token.
  """

  start_L: np.ndarray
  start_P: np.ndarray
  slot_B: np.ndarray
  num_places: int
  own_L: np.ndarray
  inside_L: np.ndarray
  chunk_L: np.ndarray
  chunk_P: np.ndarray
  num_teacher: np.ndarray
  num_student: np.ndarray
  match_teacher_M: np.ndarray
  match_student_M: np.ndarray
  match_apart_M: np.ndarray


def lay(
  teacher: columns_lib.TeacherColumns,
  visible_L: np.ndarray,
  student: columns_lib.StudentColumns,
  *,
  word_start_id: int,
) -> Layout:
  """Splits both sequences wherever both have a token boundary.

  Args:
    teacher: The teacher's side.
    visible_L: The number of visible bytes that each of its tokens covers.
    student: The student's side.
    word_start_id: The id of the student's word-start token; -1 if none.
  """
  slot_B = tables.offsets(student.visible_bytes_B + 1)
  num_places, slot_B = int(slot_B[-1]), slot_B[:-1]
  start_L = _starts(visible_L, teacher.offsets, teacher.sample_L, slot_B)
  start_P = _starts(
    student.visible_P, student.offsets, student.sample_P, slot_B
  )
  # A chunk ends where both sides have a boundary, and begins with each sample.
  ends = np.zeros(num_places, np.uint8)
  ends[start_P + student.visible_P] = 1
  cuts = np.zeros(num_places, np.uint8)
  cuts[start_L + visible_L] = 1
  cuts &= ends
  cuts[slot_B] = 1
  chunk = np.cumsum(cuts, dtype=np.int32)
  chunk_L, chunk_P = chunk[start_L] - 1, chunk[start_P] - 1
  num_chunks = int(chunk[-1]) if num_places else 0

  own_L = (visible_L == 0) & (cuts[start_L] == 1)
  inside_L = np.flatnonzero(~own_L)
  num_teacher = np.bincount(chunk_L[inside_L], minlength=num_chunks)
  num_student = np.bincount(chunk_P, minlength=num_chunks)
  # A match is one teacher token, and one student token or a word-start token
  # and another.
  single = np.flatnonzero(
    (num_teacher == 1) & (num_student > 0) & (num_student <= 2)
  )
  match_student = np.cumsum(num_student)[single] - 1
  match_teacher = inside_L[np.cumsum(num_teacher)[single] - 1]
  apart = num_student[single] == 2
  before = student.ids_P[np.maximum(match_student - 1, 0)] == word_start_id
  matched = (student.visible_P[match_student] > 0) & (~apart | before)
  return Layout(
    start_L=start_L,
    start_P=start_P,
    slot_B=slot_B,
    num_places=num_places,
    own_L=own_L,
    inside_L=inside_L,
    chunk_L=chunk_L,
    chunk_P=chunk_P,
    num_teacher=num_teacher,
    num_student=num_student,
    match_teacher_M=match_teacher[matched],
    match_student_M=match_student[matched],
    match_apart_M=apart[matched],
  )


def group_numbers(
  layout: Layout,
  teacher: columns_lib.TeacherColumns,
  student: columns_lib.StudentColumns,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the number of each token's group, from 0 in every sample.

  Each chunk is a group, and so is each white-space token without student
  tokens. Student tokens without a teacher token, at a sample's end, form the
  last group.

  Returns:
    int64[L] for the teacher's tokens and int64[P] for the student's.
  """
  own_L, chunk_L, inside_L = layout.own_L, layout.chunk_L, layout.inside_L
  new_L = own_L.copy()
  new_L[:1] = True
  new_L[1:] |= own_L[:-1] | (chunk_L[1:] != chunk_L[:-1])
  before_B = tables.offsets(new_L)[teacher.offsets]
  group_L = np.cumsum(new_L) - (before_B[:-1] + 1)[teacher.sample_L]
  group_of_chunk = np.full(len(layout.num_teacher), -1, np.int64)
  group_of_chunk[chunk_L[inside_L]] = group_L[inside_L]
  group_P = group_of_chunk[layout.chunk_P]
  if len(group_P) and group_P.min() < 0:
    num_groups_B = np.diff(before_B)
    group_P = np.where(group_P < 0, num_groups_B[student.sample_P], group_P)
  return group_L, group_P


def grouped(
  teacher: columns_lib.TeacherColumns,
  visible_L: np.ndarray,
  student: columns_lib.StudentColumns,
  *,
  words: tables.StudentTable,
) -> tuple[np.ndarray, np.ndarray]:
  """Computes the layout of both sides and returns its `group_numbers`."""
  layout = lay(teacher, visible_L, student, word_start_id=words.word_start_id)
  return group_numbers(layout, teacher, student)


def _starts(
  visible: np.ndarray,
  offsets: np.ndarray,
  sample: np.ndarray,
  slot_B: np.ndarray,
) -> np.ndarray:
  """Returns the place at which each token begins."""
  before = tables.offsets(visible)
  shift_B = slot_B - before[offsets[:-1]]
  return before[:-1] + shift_B[sample]


def classes(
  layout: Layout,
  teacher: columns_lib.TeacherColumns,
  places: columns_lib.Places,
  student: columns_lib.StudentColumns,
  *,
  table: tables.TeacherTable,
  words: tables.StudentTable,
) -> np.ndarray:
  """Returns the `TokenClass` of each student token, uint8[P]."""
  line_starts = np.zeros(layout.num_places, bool)
  line_starts[layout.slot_B] = True
  before_L = table.line_before.values[teacher.rows_L]
  after_L = table.line_after.values[teacher.rows_L]
  line_starts[layout.start_L[before_L]] = True
  line_starts[(layout.start_L + places.visible_L)[after_L]] = True
  for index, starts in places.odd_line_starts.items():
    slot = layout.slot_B[index]
    line_starts[slot : slot + len(starts)] = starts
  return token_classes.of_tokens(
    words.piece_classes[student.ids_P], layout.start_P, line_starts
  )
