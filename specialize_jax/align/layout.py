"""Groups the tokens of both sides of many samples in a few array operations.

A group ends wherever both sides have a token boundary; the readable form is the
oracle of the tests. The visible bytes of all samples are concatenated, with one
extra place after each sample for tokens at its end that cover no byte.
"""

import dataclasses

import numpy as np

from specialize_jax.align import columns as columns_lib
from specialize_jax.align import tables, token_classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Groups of both sides of a batch.

  Attributes:
    start_L: int64[L], the place where each teacher token begins.
    start_P: int64[P], the place where each student token begins.
    slot_B: int64[B], the place where each sample begins.
    num_places: All places.
    own_L: bool[L], white space that is a group without student tokens.
    inside_L: int64, the tokens that are not.
    chunk_L: int64[L], the number of each token's chunk of text, rising over
      the whole batch; of `own_L` that of the chunk that follows.
    chunk_P: int64[P], the same.
    num_teacher: The teacher tokens of each chunk.
    num_student: The student tokens of each chunk.
    match_teacher_M: int64[M], the teacher token of each match.
    match_student_M: int64[M], the last student token of each match.
    match_apart_M: bool[M], whether a word start of its own precedes it.
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
    visible_L: The visible bytes that each of its tokens covers.
    student: The student's side.
    word_start_id: The student's id of a word start alone; -1 for none.
  """
  slot_B = tables.offsets(student.visible_bytes_B + 1)
  num_places, slot_B = int(slot_B[-1]), slot_B[:-1]
  start_L = _starts(visible_L, teacher.offsets, teacher.sample_L, slot_B)
  start_P = _starts(
    student.visible_P, student.offsets, student.sample_P, slot_B
  )
  # Where both have a boundary a chunk ends; where a sample begins one begins.
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
  # One teacher token; one student token, or two of which the first is a word
  # start alone.
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

  White space of its own is a group, and so is each chunk; what has no teacher
  token, at a sample's end, is the last group.

  Returns:
    int64[L] and int64[P].
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
  """Returns the place where each token begins."""
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
