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
tokens and that of the teacher tokens that are not white space, plus the weight
of candidates that spell the rest of the text themselves.

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
  """Leaves of all samples: sampled texts, then candidates, then the rests.

  Attributes:
    rows_N: The position at which each leaf diverges; a sample with T student
      tokens has T + 1 positions, and those of all samples are concatenated.
    log_weights_N: Natural logarithms of the weights.
    candidates: Which of the leaves are candidates.
    own_ids: The student token of each candidate at that position; -1 if none.
  """

  rows_N: np.ndarray
  log_weights_N: np.ndarray
  candidates: slice
  own_ids: np.ndarray


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
  merged_L = np.zeros(len(teacher.rows_L))
  if same_KL.any():
    merged_L = np.where(same_KL, probs_KL, 0.0).sum(axis=0)
    probs_KL = np.where(same_KL, 0.0, probs_KL)
  total_L = np.maximum(1.0, batch.probs_L + merged_L + probs_KL.sum(axis=0))
  over = np.flatnonzero(total_L > 1)
  if len(over):
    probs_KL = probs_KL.copy()
    probs_KL[:, over] /= total_L[over]
  changed = np.flatnonzero((merged_L != 0) | (total_L != 1))
  log_probs_L = teacher.log_probs_L.copy()
  with np.errstate(divide="ignore"):
    log_probs_L[changed] = np.minimum(
      0.0,
      np.log((batch.probs_L + merged_L)[changed] / total_L[changed]),
    )
  named_L = np.exp(log_probs_L) + probs_KL.sum(axis=0)
  # A token of probability 0 would make later sums NaN. Its sample is rejected,
  # so any finite value will do.
  finite_L = np.maximum(log_probs_L, -1e6)
  before = tables.offsets(np.zeros(len(finite_L))).astype(np.float64)
  np.cumsum(finite_L, out=before[1:])
  before_L = before[:-1] - before[teacher.offsets[:-1]][teacher.sample_L]
  return _Steps(
    log_probs_L=log_probs_L,
    others_KL=probs_KL > 0,
    other_probs_KL=probs_KL,
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
  position, own_ids = read.at_N, read.own_N
  probs = steps.other_probs_KL.T.ravel()[others]
  masked_P = student.ids_P == batch.words.student.unknown_id
  own_ids[own_ids == batch.words.student.unknown_id] = -1
  lost = own_ids < 0
  if masked_P.any():
    within = np.flatnonzero(np.append(masked_P, False)[position])
    ends = student.offsets[teacher.sample_L[token[within]] + 1]
    lost[within] |= position[within] < ends
  lost = np.flatnonzero(lost)
  lost = lost[batch.places.visible_L[token[lost]] > 0]
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
    rows_N=positions + sample,
    log_weights_N=np.concatenate(
      [
        steps.before_L[last] + np.maximum(steps.log_probs_L[last], -1e6),
        steps.before_L[token] + np.log(probs),
        steps.before_L[rest] + np.log(steps.rests_L[rest]),
      ]
    ),
    candidates=slice(len(has_text), len(has_text) + len(token)),
    own_ids=own_ids,
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
  num_positions = len(student.ids_P)
  num_rows = num_positions + len(batch.teacher.texts)
  log_mass = _log_mass(leaves, student.offsets, num_rows)
  row_P = np.arange(num_positions) + student.sample_P
  stays_P = np.diff(log_mass)[row_P]
  position_of_row = np.full(num_rows, -1)  # stays -1 where a text ends
  position_of_row[row_P] = np.arange(num_positions)
  rows, own_ids = leaves.rows_N[leaves.candidates], leaves.own_ids
  position = position_of_row[rows]
  has_own = np.flatnonzero((own_ids >= 0) & (position >= 0))
  # Sort by position; candidates are nearly in order already.
  order = has_own[np.argsort(position[has_own], kind="stable")]
  position, own_ids = position[order], own_ids[order]
  log_weights = leaves.log_weights_N[leaves.candidates][order]
  probs = np.exp(log_weights - log_mass[rows[order]])
  # Merge leaves of the same position and token, in the place of the first.
  first = _first_of_equals(position, own_ids)
  probs = np.bincount(first, probs, minlength=len(first))
  kept = np.flatnonzero(probs > 0)
  position, own_ids, probs = position[kept], own_ids[kept], probs[kept]
  # The sampled token is in slot 0, unless its probability underflows.
  stays = np.exp(stays_P) > 0
  counts = np.bincount(position, minlength=num_positions)
  rank = np.arange(len(position)) - tables.offsets(counts)[position]
  num_slots = int((counts + stays).max(initial=1))
  slot = position * num_slots + rank + stays[position]
  ids_PC = np.zeros((num_positions, num_slots), np.int32)
  log_probs_PC = np.full(ids_PC.shape, -np.inf)
  ids_PC[stays, 0] = student.ids_P[stays]
  log_probs_PC[stays, 0] = np.log(np.exp(stays_P[stays]))
  ids_PC.ravel()[slot] = own_ids
  log_probs_PC.ravel()[slot] = np.log(probs)
  return ids_PC, log_probs_PC


def _first_of_equals(position: np.ndarray, own_ids: np.ndarray) -> np.ndarray:
  """Returns, for each entry, the index of the first with the same two values.

  All pairs of entries of a position are compared, since it has few.

  Args:
    position: int64[N], ascending.
    own_ids: int64[N], less than 2 ** 32.
  """
  key = position << 32 | own_ids
  first = np.arange(len(key))
  for distance in range(1, int(np.bincount(position).max(initial=1))):
    equal = np.flatnonzero(key[distance:] == key[:-distance])
    first[equal + distance] = np.minimum(first[equal + distance], equal)
  return first


def _log_mass(
  leaves: _Leaves, offsets: np.ndarray, num_rows: int
) -> np.ndarray:
  """Computes log M_j of every row: the weight that diverges at j or later."""
  rows_N, log_weights_N = leaves.rows_N, leaves.log_weights_N
  largest = np.full(num_rows, -np.inf)
  np.maximum.at(largest, rows_N, log_weights_N)
  scaled = np.exp(log_weights_N - largest[rows_N])
  sums = np.bincount(rows_N, scaled, minlength=num_rows)
  with np.errstate(divide="ignore"):
    log_mass = np.where(sums > 0, largest + np.log(sums), -np.inf)
  # A reverse cumulative sum over each sample, vectorized over samples: at each
  # step, over those that are longer than it.
  sizes = np.diff(offsets) + 1
  order = np.argsort(-sizes, kind="stable")
  last = (tables.offsets(sizes)[1:] - 1)[order]
  steps = np.arange(1, int(sizes.max(initial=1)))
  num_longer = np.searchsorted(-sizes[order], -steps, side="left")
  for step, count in zip(steps.tolist(), num_longer.tolist(), strict=True):
    here = last[:count] - step
    log_mass[here] = np.logaddexp(log_mass[here], log_mass[here + 1])
  return log_mass
