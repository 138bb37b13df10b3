"""The rules that transfer the teacher's distributions to student ids.

Targets have one row per student position: slot 0 is the sampled token, and the
candidates follow in the API's order.
"""

import dataclasses
import functools
import math

import numpy as np

from specialize_jax.align import alternatives, dynamic_program, tables, targets
from specialize_jax.align import columns as columns_lib
from specialize_jax.align import layout as layout_lib

_LEAST_LOG_PROB = math.log(5e-324)  # below it a probability is 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matches:
  """One-to-one matches of a batch.

  Attributes:
    teacher_M: int64[M], the teacher token of each match.
    student_M: int64[M], its (last) student token.
    apart_M: bool[M], whether the match also includes a separate word-start
      token before that token.
  """

  teacher_M: np.ndarray
  student_M: np.ndarray
  apart_M: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """The inputs of a transfer rule.

  Attributes:
    teacher: The teacher's side.
    student: The student's side.
    places: The positions of the teacher's tokens in their texts.
    layout: The groups that align teacher and student tokens.
    table: The teacher's spellings.
    words: The student's words.
    probs_L: float64[L], the probabilities of the sampled tokens.
    distinct_KL: bool[K, L], whether a candidate is neither the sampled token
      nor a repetition of an earlier candidate, nor a special token (except in
      `paper` mode).
    top_probs_KL: float64[K, L], the probabilities of distinct candidates, 0 for
      others.
    alternatives: Tokenizes candidates with the student's tokenizer.
  """

  teacher: columns_lib.TeacherColumns
  student: columns_lib.StudentColumns
  places: columns_lib.Places
  layout: layout_lib.Layout
  table: tables.TeacherTable
  words: tables.StudentTable
  probs_L: np.ndarray
  distinct_KL: np.ndarray
  top_probs_KL: np.ndarray
  alternatives: alternatives.Alternatives

  @functools.cached_property
  def known(self) -> alternatives.Known:
    """Student positions at which the text before each teacher token ends."""
    return self.alternatives.known(
      self.teacher, self.student, self.places, self.layout
    )

  @functools.cached_property
  def matches(self) -> Matches:
    """The one-to-one matches of teacher and student tokens."""
    layout, known = self.layout, None
    if not self.words.word_local:
      known = self.known.copied_B
    if known is None or not known.any():
      return Matches(
        teacher_M=layout.match_teacher_M,
        student_M=layout.match_student_M,
        apart_M=layout.match_apart_M,
      )
    # If a sample has the same tokens on both sides, every token is a match.
    sample_M = self.teacher.sample_L[layout.match_teacher_M]
    others = np.flatnonzero(~known[sample_M])
    tokens = np.flatnonzero(known[self.teacher.sample_L])
    positions = np.flatnonzero(known[self.student.sample_P])
    student_M = np.concatenate([layout.match_student_M[others], positions])
    order = np.argsort(student_M, kind="stable")
    no = np.zeros(len(tokens), bool)
    return Matches(
      teacher_M=np.concatenate([layout.match_teacher_M[others], tokens])[order],
      student_M=student_M[order],
      apart_M=np.concatenate([layout.match_apart_M[others], no])[order],
    )

  def single_tokens(
    self,
    token_M: np.ndarray,
    at_M: np.ndarray,
    rows_KM: np.ndarray,
    wanted_KM: np.ndarray,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds the candidates that are exactly one student token.

    See `Alternatives.single_tokens`.
    """
    return self.alternatives.single_tokens(
      self.teacher,
      self.student,
      self.places,
      self.known,
      token_M=token_M,
      at_M=at_M,
      rows_KM=rows_KM,
      wanted_KM=wanted_KM,
    )

  def read(
    self, token_N: np.ndarray, rows_N: np.ndarray
  ) -> alternatives.Reading:
    """Compares candidates with the sampled text, in student tokens.

    Args:
      token_N: int64, the teacher step of each candidate.
      rows_N: int64, the candidate's row in `table`.
    """
    return self.alternatives.read(
      self.teacher,
      self.student,
      self.places,
      self.known,
      token_N=token_N,
      rows_N=rows_N,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transferred:
  """The targets that a rule computes for a batch.

  Attributes:
    ids_PC: int32[P, C], candidates; 0 (padding) in an unused slot.
    log_probs_PC: float64[P, C], in nats; -inf in an unused slot.
    kinds_P: uint8[P], the `targets.Kind` of each position.
    kept_B: float64[B], the teacher's probability that is part of a target with
      mask 1, summed over tokens that are not white space.
    rejected: The reason for each sample that the rule rejects.
    groups: The group numbers of teacher and of student tokens, if the rule
      defines its own groups; None for those of the layout.
  """

  ids_PC: np.ndarray
  log_probs_PC: np.ndarray
  kinds_P: np.ndarray
  kept_B: np.ndarray
  rejected: dict[int, str] = dataclasses.field(default_factory=dict)
  groups: tuple[np.ndarray, np.ndarray] | None = None


def distinct(teacher: columns_lib.TeacherColumns) -> np.ndarray:
  """Returns which candidates are new at their step, bool[K, L].

  A candidate is not new if it equals the sampled token or an earlier candidate.
  """
  rows_KL = teacher.top_rows_KL
  new_KL = (rows_KL != teacher.rows_L) & (rows_KL >= 0)
  for later in range(1, len(rows_KL)):
    for earlier in range(later):
      new_KL[later] &= rows_KL[later] != rows_KL[earlier]
  return new_KL


def mass_offered(batch: Batch) -> np.ndarray:
  """Sums the probabilities of visible tokens and their candidates, float64[B].

  Each step's probabilities are counted as at most 1, since an API's rounding
  may exceed it.
  """
  shares_L = np.minimum(1.0, batch.probs_L + batch.top_probs_KL.sum(axis=0))
  shares_L[batch.places.visible_L == 0] = 0.0
  return per_sample(shares_L, batch.teacher.offsets)


def per_sample(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  """Sums values over each sample; the sum of an empty sample is 0."""
  sample = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
  return np.bincount(sample, values, minlength=len(offsets) - 1)


def whitespace_rule(batch: Batch) -> Transferred:
  """Computes targets by the `whitespace` rule.

  The target of a match is the teacher's distribution; others are one-hot.
  """
  matches, student = batch.matches, batch.student
  ids_SM, second_ids_SA, probs_SM = _paths(batch)
  first_ids, first_probs = sum_by_id(ids_SM, probs_SM)
  first_total = first_probs.sum(axis=0)
  first_probs /= np.maximum(1.0, first_total)
  first_rows = matches.student_M - matches.apart_M
  ids_PC, log_probs_PC = one_hot_rows(student.ids_P, len(ids_SM))
  kinds_P = np.zeros(len(student.ids_P), np.uint8)

  def put(rows: np.ndarray, ids_SM: np.ndarray, probs_SM: np.ndarray) -> None:
    is_given = probs_SM[0] > 0
    if not is_given.all():
      rows = rows[is_given]
      ids_SM, probs_SM = ids_SM[:, is_given], probs_SM[:, is_given]
    put_rows(ids_PC, log_probs_PC, rows, ids_SM, probs_SM)
    kinds_P[rows] = targets.Kind.ONE_TO_ONE

  put(first_rows, first_ids, first_probs)
  # Where the word start is a separate token, the second token's distribution is
  # conditional on it.
  apart = np.flatnonzero(matches.apart_M)
  goes_on = (ids_SM[:, apart] == ids_SM[0, apart]) & (second_ids_SA >= 0)
  second_ids, second_probs = sum_by_id(
    second_ids_SA, np.where(goes_on, probs_SM[:, apart], 0.0)
  )
  second_total = second_probs.sum(axis=0)
  second_probs = np.divide(
    second_probs,
    second_total,
    out=np.zeros_like(second_probs),
    where=second_total > 0,
  )
  put(matches.student_M[apart], second_ids, second_probs)
  first_known = student.ids_P[first_rows] != batch.words.student.unknown_id
  kept_M = np.where(first_known, np.minimum(first_total, 1.0), 0.0)
  sample_M = batch.teacher.sample_L[matches.teacher_M]
  return Transferred(
    ids_PC=ids_PC,
    log_probs_PC=log_probs_PC,
    kinds_P=kinds_P,
    kept_B=np.bincount(sample_M, kept_M, minlength=len(batch.teacher.texts)),
  )


def _paths(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Maps each candidate of a match to student tokens.

  A candidate is mapped to a student token only if it is exactly that token in
  its context: not if it re-segments the text before it, nor if it has several
  tokens. If the student has a separate word start ("\u2581", then the piece), a
  candidate may consist of these two tokens.

  Returns:
    int64[K + 1, M], the id of each candidate's first token; int64[K + 1, A],
    the id of its second token, or -1, for the A matches with a separate word
    start; and float64[K + 1, M], its probability, or 0 if it is mapped to no
    token. Row 0 is the sampled token.
  """
  matches, ids_P = batch.matches, batch.student.ids_P
  match_M, apart_M = matches.teacher_M, matches.apart_M
  base_M = matches.student_M - apart_M
  num_matches = len(match_M)
  shape = len(batch.distinct_KL) + 1, num_matches
  first, probs = np.empty(shape, np.int64), np.empty(shape)
  first[0] = ids_P[base_M]
  probs[0] = batch.probs_L[match_M]
  second = np.full((len(first), np.count_nonzero(apart_M)), -1, np.int64)
  second[0] = ids_P[matches.student_M[apart_M]]

  # Unlike an index, `take` keeps the rows contiguous.
  top_KM = batch.top_probs_KL.take(match_M, axis=1)
  named_KM = top_KM > 0
  rows_KM = batch.teacher.top_rows_KL.take(match_M, axis=1)
  ids_KM, named_KM = batch.single_tokens(
    match_M, np.where(apart_M, -1, base_M), rows_KM, named_KM
  )
  np.maximum(ids_KM, 0, out=first[1:])
  probs[1:] = np.where(ids_KM >= 0, top_KM, 0.0)
  # Compare the others with the sampled text.
  named = np.flatnonzero(named_KM)  # over the flat [K, M], as all below
  k = np.repeat(np.arange(len(top_KM)), np.count_nonzero(named_KM, axis=1))
  m = named - k * num_matches
  read = batch.read(match_M[m], rows_KM.ravel()[named])
  past = read.at_N - base_M[m]  # the number of tokens equal to the sampled ones
  own, remaining = read.own_N, read.remaining_N
  known = own != batch.words.student.unknown_id
  other = (past == 0) & (remaining == 1) & known
  same = (past == 1) & (remaining == 0)
  # Where the word start is a separate token, consider the second token, too.
  apart = np.flatnonzero(apart_M[m])
  if len(apart):
    past, remaining = past[apart], remaining[apart]
    two = (past == 1) & (remaining == 1) & known[apart]
    both = (past == 2) & (remaining == 0)
    same[apart] |= two | both
    into = k[apart] + 1, (np.cumsum(apart_M) - 1)[m[apart]]
    second[into] = np.where(
      two, own[apart], np.where(both, second[0, into[1]], -1)
    )
  for laid, ids in (
    (np.flatnonzero(other), own),
    (np.flatnonzero(same), first[0].take(m)),
  ):
    into = named[laid]
    probs.ravel()[into + num_matches] = top_KM.ravel()[into]
    first.ravel()[into + num_matches] = ids[laid]  # row 0 is the sampled token
  return first, second, probs


def masked(batch: Batch, found: "Transferred") -> "Transferred":
  """Masks every position of the student's unknown piece."""
  at = np.flatnonzero(batch.student.ids_P == batch.words.student.unknown_id)
  if len(at):
    found.ids_PC[at] = 0
    found.log_probs_PC[at] = -np.inf
    found.kinds_P[at] = targets.Kind.MASKED
  return found


def one_hot_where_all_underflow(
  batch: Batch, found: "Transferred"
) -> "Transferred":
  """Replaces targets whose probabilities all underflow by one-hot targets.

  Servers return the log-probability -9999 where they computed none. A position
  of which all values underflow has no distribution to learn.
  """
  # Most positions name the sampled token, in slot 0.
  at = np.flatnonzero(found.log_probs_PC[:, 0] <= _LEAST_LOG_PROB)
  at = at[(found.log_probs_PC[at] <= _LEAST_LOG_PROB).all(axis=1)]
  at = at[np.isin(found.kinds_P[at], targets.TAUGHT_KINDS)]
  if len(at):
    found.ids_PC[at] = 0
    found.log_probs_PC[at] = -np.inf
    found.ids_PC[at, 0] = batch.student.ids_P[at]
    found.log_probs_PC[at, 0] = 0.0
    found.kinds_P[at] = targets.Kind.ONE_HOT
  return found


def sum_by_id(
  ids_SM: np.ndarray, probs_SM: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Merges equal ids of each position, summing their probabilities.

  Args:
    ids_SM: int[S, M], S slots for M positions; in used slots not negative, and
      below 2 ** 31.
    probs_SM: float[S, M]; 0 in an unused slot.

  Returns:
    Distinct ids in order of first occurrence, and their sums; unused slots, 0
    in both arrays, come last.

  Example: ids 7, 9, 7 with probabilities 1/2, 1/4, 1/8.
    >>> ids, probs = sum_by_id(
    ...   np.array([[7], [9], [7]]), np.array([[0.5], [0.25], [0.125]])
    ... )
    >>> ids.T.tolist(), probs.T.tolist()
    ([[7, 9, 0]], [[0.625, 0.25, 0.0]])
  """
  probs_SM = probs_SM.copy()
  used = probs_SM > 0
  # An unused slot is equal to no other one.
  of_slot_S1 = -1 - np.arange(len(ids_SM), dtype=np.int32)[:, None]
  keys_SM = np.where(used, ids_SM.astype(np.int32), of_slot_S1)
  for later in range(1, len(keys_SM)):
    for earlier in range(later):
      at = np.flatnonzero(keys_SM[later] == keys_SM[earlier])
      probs_SM[earlier, at] += probs_SM[later, at]
      probs_SM[later, at] = 0.0
      keys_SM[later, at] = of_slot_S1[later]
  ids, probs = np.zeros(ids_SM.shape, ids_SM.dtype), np.zeros(probs_SM.shape)
  into_M = np.arange(ids_SM.shape[1])  # each position's next slot, flat
  for slot, keys_M in enumerate(keys_SM):
    at = np.flatnonzero(keys_M >= 0)
    into = into_M[at]
    ids.ravel()[into] = ids_SM[slot, at]
    probs.ravel()[into] = probs_SM[slot, at]
    into_M[at] += len(into_M)
  return ids, probs


def one_hot_rows(
  ids_P: np.ndarray, num_slots: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns one-hot targets of all positions.

  Args:
    ids_P: The ids that have probability 1.
    num_slots: C, the number of slots of each position.

  Returns:
    int32[P, C] ids and float64[P, C] log-probabilities.
  """
  ids_PC = np.zeros((len(ids_P), num_slots), np.int32)
  log_probs_PC = np.full(ids_PC.shape, -np.inf)
  ids_PC[:, 0] = ids_P
  log_probs_PC[:, 0] = 0.0
  return ids_PC, log_probs_PC


def put_rows(
  ids_PC: np.ndarray,
  log_probs_PC: np.ndarray,
  rows: np.ndarray,
  ids_SM: np.ndarray,
  probs_SM: np.ndarray,
) -> None:
  """Overwrites the targets of some positions, in place.

  Args:
    ids_PC: The ids of all positions.
    log_probs_PC: Their log-probabilities.
    rows: int64[M], the positions.
    ids_SM: Their new ids.
    probs_SM: Their new probabilities.
  """
  ids_PC[rows] = ids_SM.T
  with np.errstate(divide="ignore"):
    log_probs_PC[rows] = np.log(probs_SM.T)


def chunk_rule(batch: Batch) -> Transferred:
  """Computes targets by the `chunk` rule.

  Matches have the targets of `whitespace_rule`. A chunk is the smallest run of
  text that begins and ends with a token boundary of both sides. With P the
  likelihood of its teacher tokens and n the number of its student tokens (the
  unknown piece not counted), each of these has the target probability P^(1/n).
  """
  layout, teacher = batch.layout, batch.teacher
  matched = whitespace_rule(batch)
  inside_L = layout.inside_L
  chunk_L = layout.chunk_L[inside_L]
  num_teacher = layout.num_teacher
  is_known_P = batch.student.ids_P != batch.words.student.unknown_id
  num_student = np.bincount(
    layout.chunk_P, is_known_P, minlength=len(num_teacher)
  )
  log_likelihood = np.bincount(
    chunk_L, teacher.log_probs_L[inside_L], minlength=len(num_teacher)
  )
  is_match = np.zeros(len(num_teacher), bool)
  is_match[layout.chunk_L[batch.matches.teacher_M]] = True
  share = np.exp(log_likelihood / np.maximum(num_student, 1))
  given = (share > 0) & ~is_match & (num_teacher > 0) & (num_student > 0)
  rows = np.flatnonzero(given[layout.chunk_P])
  with np.errstate(divide="ignore"):
    matched.log_probs_PC[rows, 0] = np.log(share)[layout.chunk_P[rows]]
  matched.kinds_P[rows] = targets.Kind.CHUNK
  kept_L = np.zeros(len(teacher.rows_L))
  taught_L = inside_L[given[chunk_L]]
  kept_L[taught_L] = batch.probs_L[taught_L]
  kept_B = matched.kept_B + per_sample(kept_L, teacher.offsets)
  return dataclasses.replace(matched, kept_B=kept_B)


def paper_rule(
  batch: Batch, distances: dynamic_program.DistanceTable
) -> Transferred:
  """Computes targets by the paper's rule, from the dynamic program."""
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
  teacher_token_P = np.zeros(len(student.ids_P), np.int64)
  # Of a position's cells the first one is kept.
  teacher_token_P[student_cells[::-1]] = teacher_cells[::-1]
  exact_P = table.exact_id.values[teacher.rows_L[teacher_token_P]]
  same_P = exact_P == student.ids_P
  if not batch.words.word_local:  # may be written differently in a vocabulary
    same_P |= batch.known.copied_B[student.sample_P]
  matches = np.flatnonzero(
    (num_cells_P == 1)
    & same_P
    & (student.ids_P != batch.words.student.unknown_id)
  )

  ids_SM, log_probs_SM = _paper_candidates(
    batch, teacher_token_P[matches], matches
  )
  ids_PC, log_probs_PC = one_hot_rows(student.ids_P, len(ids_SM))
  ids_PC[matches] = ids_SM.T
  log_probs_PC[matches] = log_probs_SM.T
  kinds_P = np.zeros(len(student.ids_P), np.uint8)
  kinds_P[matches] = targets.Kind.ONE_TO_ONE
  kept_M = np.exp(log_probs_SM).sum(axis=0)
  teacher_group_L = np.zeros(len(teacher.rows_L), np.int64)
  student_group_P = np.zeros(len(student.ids_P), np.int64)
  group = _path_groups(found)
  teacher_group_L[teacher_cells] = group
  student_group_P[student_cells] = group
  return Transferred(
    ids_PC=ids_PC,
    log_probs_PC=log_probs_PC,
    kinds_P=kinds_P,
    kept_B=np.bincount(
      student.sample_P[matches], kept_M, minlength=len(teacher.texts)
    ),
    groups=(teacher_group_L, student_group_P),
  )


def _path_groups(found: dynamic_program.Paths) -> np.ndarray:
  """Returns the group of each cell; each diagonal step begins a new one."""
  if not len(found.teacher):
    return np.zeros(0, np.int64)
  diagonal = np.zeros(len(found.teacher), np.int64)
  diagonal[1:] = (np.diff(found.teacher) > 0) & (np.diff(found.student) > 0)
  firsts = tables.offsets(found.counts)[:-1]
  diagonal[firsts] = 0
  number = np.cumsum(diagonal)
  return number - np.repeat(number[firsts], found.counts)


def _paper_candidates(
  batch: Batch, tokens_M: np.ndarray, positions_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the sampled token and candidates that are student pieces.

  Of candidates with the same piece the first is kept, even if the API rounds
  its probability to 0.

  Args:
    batch: The batch.
    tokens_M: The teacher token of each match.
    positions_M: The student position of each match.

  Returns:
    Ids and log-probabilities, [K + 1, M]; 0 and -inf in unused slots.
  """
  teacher, table = batch.teacher, batch.table
  rows_SM = np.concatenate(
    [teacher.rows_L[None, tokens_M], teacher.top_rows_KL[:, tokens_M]]
  )
  log_probs_SM = np.concatenate(
    [teacher.log_probs_L[None, tokens_M], teacher.top_log_probs_KL[:, tokens_M]]
  )
  ids_SM = np.where(rows_SM >= 0, table.paper_id.values[rows_SM], -1)
  if not batch.words.word_local:
    own_M = batch.student.ids_P[positions_M]
    ids_SM = np.where(rows_SM == rows_SM[0], own_M, ids_SM)
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
