"""Computes the student's next-token distributions from the teacher's tree.

A teacher record defines a tree of texts. With p_i the probability of the
sampled token at teacher step i, and p_ik that of candidate a_k, its leaves are

  the sampled text         with weight  p_1 ... p_L
  (text before i) + a_k    with weight  p_1 ... p_{i-1} p_ik
  mass outside the top k   with weight  p_1 ... p_{i-1} (1 - p_i - sum_k p_ik)

Tokenized by the student, the text of a leaf diverges from the sampled text at
some position. A leaf that ends before it diverges is assigned to the position
at which it ends, and mass outside the top k to the position at which the text
before step i ends. With M_j the weight of all leaves that diverge at position j
or later (and of the sampled text), the target at position j is

  the sampled token              M_{j+1} / M_j
  the token of a diverging leaf  its weight / M_j     (leaves that diverge at j)

and what remains is missing mass. The product of M_{j+1} / M_j telescopes to the
teacher's likelihood of the text, and a one-to-one position with no re-segmented
neighbor receives the same target as in the paper. The text after a candidate is
unknown: like the paper, this rule assumes that a token ends with the candidate.

If the sampled token is only white space, a candidate that is only white space
counts as the sampled token if the student tokenizes the whole text identically
with either: T5 does not distinguish a newline from a space between two words.
No other candidate is merged: "48+" and "48 +" are different texts. The
likelihood of the student's tokens is therefore between that of all teacher
tokens and that of the teacher tokens that are not white space.

Weights underflow over a long text, so all computation is in log space.
"""

import dataclasses

import numpy as np

from specialize_jax.align import tables, targets, transfer

NO_PROBABILITY = "the teacher gives a sampled token probability 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Steps:
  """Teacher steps, with equivalent white space merged into the sampled token.

  Attributes:
    log_probs_L: float64[L], the log-probability of the sampled token, including
      candidates merged with it.
    others_KL: bool[K, L], whether a candidate is a different text with positive
      probability.
    other_probs_KL: float64[K, L], their probabilities, 0 for all others.
    rests_L: float64[L], the probability mass outside the top k.
    before_L: float64[L], the log-probability of all previous tokens of the
      sample.
  """

  log_probs_L: np.ndarray
  others_KL: np.ndarray
  other_probs_KL: np.ndarray
  rests_L: np.ndarray
  before_L: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Leaves:
  """Leaves of all samples.

  Attributes:
    rows: The position at which each leaf diverges; a sample with T student
      tokens has T + 1 positions, and those of all samples are concatenated.
    own_ids: The leaf's student token at that position; -1 if none.
    log_weights: Natural logarithms of the weights.
  """

  rows: np.ndarray
  own_ids: np.ndarray
  log_weights: np.ndarray


def marginal_rule(
  batch: transfer.Batch,
) -> transfer.Transferred:
  """Computes targets by the `marginal` rule; see the module's docstring.

  A candidate that is white space or part of a character, or whose first
  character the student cannot spell, is part of no target. A sample is rejected
  if one of its tokens has probability 0, since no weight remains after it.
  """
  teacher, student = batch.teacher, batch.student
  steps = _merged_steps(batch)
  leaves, unplaced_L = _leaves(batch, steps)
  ids_PC, log_probs_PC = _from_leaves(batch, leaves)
  named_L = np.where(batch.places.visible_L == 0, 0.0, 1.0 - steps.rests_L)
  lost_L = np.where(_is_masked(batch), np.exp(steps.log_probs_L), 0.0)
  impossible = np.unique(teacher.sample_L[steps.log_probs_L == -np.inf])
  matched_P = np.zeros(len(student.ids_P), bool)
  matched_P[batch.matches.student_M] = True
  apart = batch.matches.student_M[batch.matches.apart_M]
  matched_P[apart - 1] = True
  return transfer.Transferred(
    ids_PC=ids_PC,
    log_probs_PC=log_probs_PC,
    kinds_P=np.where(
      matched_P,
      np.uint8(targets.Kind.ONE_TO_ONE),
      np.uint8(targets.Kind.CHUNK),
    ),
    kept_B=transfer.per_sample(named_L - unplaced_L - lost_L, teacher.offsets),
    rejected=dict.fromkeys(impossible.tolist(), NO_PROBABILITY),
  )


def _merged_steps(batch: transfer.Batch) -> _Steps:
  teacher = batch.teacher
  same_KL = batch.alternatives.same_white_space(
    teacher, batch.student, batch.places, batch.distinct_KL
  )
  probs_KL = batch.top_probs_KL
  merged_L = np.where(same_KL, probs_KL, 0.0).sum(axis=0)
  other_probs_KL = np.where(same_KL, 0.0, probs_KL)
  total_L = np.maximum(
    1.0, batch.probs_L + merged_L + other_probs_KL.sum(axis=0)
  )
  other_probs_KL = other_probs_KL / total_L
  with np.errstate(divide="ignore"):
    log_probs_L = np.log((batch.probs_L + merged_L) / total_L)
  as_given_L = (merged_L == 0) & (total_L == 1)
  log_probs_L = np.where(
    as_given_L, teacher.log_probs_L, np.minimum(0.0, log_probs_L)
  )
  named_L = np.exp(log_probs_L) + other_probs_KL.sum(axis=0)
  # A token of probability 0 would make later sums NaN. Its sample is rejected,
  # so any finite value will do.
  finite_L = np.maximum(log_probs_L, -1e6)
  before = tables.offsets(np.zeros(len(finite_L))).astype(np.float64)
  np.cumsum(finite_L, out=before[1:])
  before_L = before[:-1] - before[teacher.offsets[:-1]][teacher.sample_L]
  return _Steps(
    log_probs_L=log_probs_L,
    others_KL=other_probs_KL > 0,
    other_probs_KL=other_probs_KL,
    rests_L=np.maximum(0.0, 1.0 - named_L),
    before_L=before_L,
  )


def _is_masked(batch: transfer.Batch) -> np.ndarray:
  """Returns which tokens cover only masked positions, bool[L]."""
  layout, student = batch.layout, batch.student
  known_P = student.ids_P != batch.words.student.unknown_id
  if known_P.all():
    return np.zeros(len(batch.teacher.rows_L), bool)
  num_known = np.bincount(
    layout.chunk_P, known_P, minlength=len(layout.num_teacher)
  )
  return (batch.places.visible_L > 0) & (num_known[layout.chunk_L] == 0)


def _leaves(batch: transfer.Batch, steps: _Steps) -> tuple[_Leaves, np.ndarray]:
  """Lists all leaves: sampled texts, candidates, and mass outside the top k.

  Returns:
    The leaves; and float64[L], the probability of each teacher token's
    candidates that is part of no target.
  """
  teacher, student = batch.teacher, batch.student
  others_LK = steps.others_KL.T.copy()
  others = np.flatnonzero(others_LK)  # over the flat [L, K]
  token = np.repeat(
    np.arange(len(others_LK)), np.count_nonzero(others_LK, axis=1)
  )
  read = batch.read(token, teacher.top_rows_KL.T.ravel()[others])
  position, unknown_id = read.at_N, batch.words.student.unknown_id
  own_ids = np.where(read.own_N == unknown_id, -1, read.own_N)
  probs = steps.other_probs_KL.T.ravel()[others]
  lost = own_ids < 0
  masked_P = student.ids_P == unknown_id
  if masked_P.any():
    within = position < student.offsets[teacher.sample_L[token] + 1]
    lost |= within & np.append(masked_P, False)[position]
  lost &= batch.places.visible_L[token] > 0
  unplaced_L = np.bincount(
    token[lost], probs[lost], minlength=len(teacher.rows_L)
  )
  rest = np.flatnonzero(steps.rests_L > 0)
  has_text = np.flatnonzero(np.diff(teacher.offsets) > 0)
  last = teacher.offsets[has_text + 1] - 1
  sample = np.concatenate(
    [has_text, teacher.sample_L[token], teacher.sample_L[rest]]
  )
  positions = np.concatenate(
    [student.offsets[has_text + 1], position, batch.known.rest_L[rest]]
  )
  leaves = _Leaves(
    rows=positions + sample,
    own_ids=np.concatenate(
      [
        np.full(len(has_text), -1, np.int64),
        own_ids,
        np.full(len(rest), -1, np.int64),
      ]
    ),
    log_weights=np.concatenate(
      [
        steps.before_L[last] + np.maximum(steps.log_probs_L[last], -1e6),
        steps.before_L[token] + np.log(probs),
        steps.before_L[rest] + np.log(steps.rests_L[rest]),
      ]
    ),
  )
  return leaves, unplaced_L


def _from_leaves(
  batch: transfer.Batch, leaves: _Leaves
) -> tuple[np.ndarray, np.ndarray]:
  """Computes each position's distribution from the leaves.

  Only ratios of weights are exponentiated.

  Returns:
    int32[P, C] ids, the sampled token first, and float64[P, C] their
    log-probabilities.
  """
  student = batch.student
  num_rows = len(student.ids_P) + len(batch.teacher.texts)
  log_mass = _log_mass(leaves, student.offsets, num_rows)
  row_P = np.arange(len(student.ids_P)) + student.sample_P
  stays_P = log_mass[row_P + 1] - log_mass[row_P]
  at_end = np.zeros(num_rows, bool)
  at_end[student.offsets[1:] + np.arange(len(batch.teacher.texts))] = True
  has_own = np.flatnonzero((leaves.own_ids >= 0) & ~at_end[leaves.rows])
  rows, own_ids = leaves.rows[has_own], leaves.own_ids[has_own]
  probs = np.exp(leaves.log_weights[has_own] - log_mass[rows])
  order = np.argsort(rows, kind="stable")  # nearly in order already
  rows, own_ids, probs = rows[order], own_ids[order], probs[order]
  # Merge leaves of the same position and token, in the place of the first.
  first = _first_of_equals(rows, own_ids)
  probs = np.bincount(first, probs, minlength=len(rows))
  kept = np.flatnonzero(probs > 0)
  rows, own_ids, probs = rows[kept], own_ids[kept], probs[kept]
  sample_of_row = np.repeat(
    np.arange(len(batch.teacher.texts)), np.diff(student.offsets) + 1
  )
  position = rows - sample_of_row[rows]
  # The sampled token is in slot 0, unless its probability underflows.
  stays = np.exp(stays_P) > 0
  counts = np.bincount(position, minlength=len(student.ids_P))
  rank = np.arange(len(rows)) - tables.offsets(counts)[position]
  slot = rank + stays[position]
  num_slots = int((counts + stays).max(initial=1))
  ids_PC = np.zeros((len(student.ids_P), num_slots), np.int32)
  log_probs_PC = np.full(ids_PC.shape, -np.inf)
  ids_PC[stays, 0] = student.ids_P[stays]
  log_probs_PC[stays, 0] = np.log(np.exp(stays_P[stays]))
  ids_PC[position, slot] = own_ids
  log_probs_PC[position, slot] = np.log(probs)
  return ids_PC, log_probs_PC


def _first_of_equals(rows: np.ndarray, own_ids: np.ndarray) -> np.ndarray:
  """Returns, for each entry, the index of the first with the same row and id.

  All pairs of entries of a row are compared, since a row has few.

  Args:
    rows: int64[N], ascending.
    own_ids: int64[N].
  """
  first = np.arange(len(rows))
  for distance in range(1, len(rows)):
    same_row = rows[distance:] == rows[:-distance]
    if not same_row.any():
      break
    same_row &= own_ids[distance:] == own_ids[:-distance]
    equal = np.flatnonzero(same_row)
    first[equal + distance] = np.minimum(first[equal + distance], equal)
  return first


def _log_mass(
  leaves: _Leaves, offsets: np.ndarray, num_rows: int
) -> np.ndarray:
  """Computes log M_j of every row: the weight that diverges at j or later."""
  largest = np.full(num_rows, -np.inf)
  np.maximum.at(largest, leaves.rows, leaves.log_weights)
  scaled = np.exp(leaves.log_weights - largest[leaves.rows])
  sums = np.bincount(leaves.rows, scaled, minlength=num_rows)
  with np.errstate(divide="ignore"):
    log_mass = np.where(sums > 0, largest + np.log(sums), -np.inf)
  # A reverse cumulative sum over each sample, vectorized over samples.
  sizes = np.diff(offsets) + 1
  order = np.argsort(-sizes, kind="stable")
  last = (tables.offsets(sizes)[1:] - 1)[order]
  for step in range(1, int(sizes.max(initial=1))):
    going = last[: np.searchsorted(-sizes[order], -step, side="left")]
    here = going - step
    log_mass[here] = np.logaddexp(log_mass[here], log_mass[here + 1])
  return log_mass
