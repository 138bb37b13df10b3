"""The paper's rule for many samples at once, exact to the entry."""

import numpy as np

from specialize_jax.align import (
  batched_transfer,
  dynamic_program,
  growing,
  targets,
)


def paper_rule(
  batch: batched_transfer.Batch, distances: dynamic_program.DistanceTable
) -> batched_transfer.Transferred:
  """Computes what `transfer.paper_rule` defines."""
  teacher, student, table = batch.teacher, batch.student, batch.table
  found = dynamic_program.paths(
    table.lenient.values[teacher.rows_L],
    teacher.offsets,
    student.ids_P,
    student.offsets,
    row_strings=table.lenient_strings,
    column_strings=batch.words.bare_pieces,
    table=distances,
  )
  teacher_cells = found.teacher + np.repeat(
    teacher.offsets[found.samples], found.counts
  )
  student_cells = found.student + np.repeat(
    student.offsets[found.samples], found.counts
  )
  num_cells_P = np.bincount(student_cells, minlength=len(student.ids_P))
  spoken_P = np.zeros(len(student.ids_P), np.int64)
  spoken_P[student_cells[::-1]] = teacher_cells[::-1]  # the first cell stays
  exact_P = table.exact_id.values[teacher.rows_L[spoken_P]]
  matches = np.flatnonzero(
    (num_cells_P == 1)
    & (exact_P == student.ids_P)
    & (student.ids_P != batch.words.student.unknown_id)
  )

  ids_SM, log_probs_SM = _candidates(batch, spoken_P[matches])
  ids_PC, log_probs_PC = batched_transfer.one_hot_rows(
    student.ids_P, len(ids_SM)
  )
  ids_PC[matches] = ids_SM.T
  log_probs_PC[matches] = log_probs_SM.T
  kinds_P = np.zeros(len(student.ids_P), np.uint8)
  kinds_P[matches] = targets.Kind.ONE_TO_ONE
  kept_M = np.exp(log_probs_SM).sum(axis=0)
  teacher_group_L = np.zeros(len(teacher.rows_L), np.int64)
  student_group_P = np.zeros(len(student.ids_P), np.int64)
  group = _groups(found)
  teacher_group_L[teacher_cells] = group
  student_group_P[student_cells] = group
  return batched_transfer.Transferred(
    ids_PC=ids_PC,
    log_probs_PC=log_probs_PC,
    kinds_P=kinds_P,
    kept_B=np.bincount(
      student.sample_P[matches], kept_M, minlength=len(teacher.texts)
    ),
    groups=(teacher_group_L, student_group_P),
  )


def _groups(found: dynamic_program.Paths) -> np.ndarray:
  """Numbers each cell's group: a step along the diagonal begins a new one."""
  if not len(found.teacher):
    return np.zeros(0, np.int64)
  diagonal = np.zeros(len(found.teacher), np.int64)
  diagonal[1:] = (np.diff(found.teacher) > 0) & (np.diff(found.student) > 0)
  firsts = growing.offsets(found.counts)[:-1]
  diagonal[firsts] = 0
  number = np.cumsum(diagonal)
  return number - np.repeat(number[firsts], found.counts)


def _candidates(
  batch: batched_transfer.Batch, tokens_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Gives the sampled token and the API's, each that is a student piece.

  Of equals the first stays. A probability that the API rounds to 0 is listed.

  Returns:
    Ids and log-probabilities [K + 1, M], 0 and -inf in slots that nothing is
    left for.
  """
  teacher, table = batch.teacher, batch.table
  rows_SM = np.concatenate(
    [teacher.rows_L[None, tokens_M], teacher.top_rows_KL[:, tokens_M]]
  )
  log_probs_SM = np.concatenate(
    [teacher.log_probs_L[None, tokens_M], teacher.top_log_probs_KL[:, tokens_M]]
  )
  ids_SM = np.where(rows_SM >= 0, table.paper_id.values[rows_SM], -1)
  used_SM = ids_SM >= 0
  for later in range(1, len(ids_SM)):
    for earlier in range(later):
      used_SM[later] &= ids_SM[later] != ids_SM[earlier]
  slot = np.cumsum(used_SM, axis=0) - 1
  _, column = np.nonzero(used_SM)
  ids, log_probs = np.zeros_like(ids_SM), np.full(ids_SM.shape, -np.inf)
  ids[slot[used_SM], column] = ids_SM[used_SM]
  log_probs[slot[used_SM], column] = log_probs_SM[used_SM]
  return ids, log_probs
