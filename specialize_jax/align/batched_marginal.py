"""The distribution that the teacher's trees imply, for many samples at once.

Computes what `marginal` defines, for samples whose student tokens are those
of their words. A leaf then touches one word: it parts from the sampled text
where the tokens of `known part of the word + candidate` part from the word's
own, and a word's tokens are looked up. Weights underflow, so that all is done
in logs, as there.
"""

import dataclasses

import numpy as np

from specialize_jax.align import (
  batched_transfer,
  growing,
  leaf_masses,
  student_table,
  targets,
  teacher_table,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Steps:
  """Teacher tokens with white-space variants merged; see `marginal.Step`.

  Attributes:
    log_probs_L: Of the sampled token, what is merged with it included.
    others_KL: bool, whether a candidate is another text of some probability.
    other_probs_KL: Their probabilities, 0 for the rest.
    rests_L: The probability of what the teacher does not name.
    before_L: The log-probability of all tokens before, in the same sample.
  """

  log_probs_L: np.ndarray
  others_KL: np.ndarray
  other_probs_KL: np.ndarray
  rests_L: np.ndarray
  before_L: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known:
  """Where the known text before each teacher token ends, in student tokens.

  Attributes:
    rest_L: The student token (over the batch) that an unseen rest belongs to.
    base_L: The first student token of the word that the text ends in; of the
      word that follows where it ends with a word.
    stems_L: What is known of that word, by `WordParts.stems`; -1 for
      nothing.
  """

  rest_L: np.ndarray
  base_L: np.ndarray
  stems_L: np.ndarray


class WordParts:
  """Remembers the strings that words and candidates are joined to."""

  def __init__(
    self, table: teacher_table.TeacherTable, words: student_table.StudentTable
  ) -> None:
    self._table = table
    self._words = words
    self._stem_spellings: list[bytes] = []
    self._stem_places = growing.Column(np.int64)
    self._stem_numbers = growing.Numbering()
    self._joined = growing.Column(np.int64)
    self._joined_numbers = growing.Numbering()
    self._candidates = growing.Column(np.int64)

  def stems(self, words: np.ndarray, num_bytes: np.ndarray) -> np.ndarray:
    """Numbers words cut after some bytes."""
    numbers = self._stem_numbers.of(
      zip(words.tolist(), num_bytes.tolist(), strict=True)
    )
    cuts = [
      self._words.strings[word].encode("utf-8")[:cut]
      for word, cut in self._stem_numbers.take_new()
    ]
    self._stem_spellings += cuts
    # Those that end within a character are joined only, never looked up.
    texts = [spelling.decode("utf-8", errors="ignore") for spelling in cuts]
    self._stem_places.extend(self._words.look_up(texts))
    return numbers

  def stem_places(self, stems: np.ndarray) -> np.ndarray:
    """Gives stems of whole characters as places in the student's table."""
    return self._stem_places.values[stems]

  def joined(self, stems: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Gives stems with candidates after them, in the student's table.

    Returns:
      Places; -1 where the two do not spell whole characters.
    """
    width = len(self._table)
    unique, inverse = np.unique(stems * width + rows, return_inverse=True)
    numbers = self._joined_numbers.of(
      zip((unique // width).tolist(), (unique % width).tolist(), strict=True)
    )
    texts = []
    for stem, row in self._joined_numbers.take_new():
      spelling = self._stem_spellings[stem] + self._table.spellings[row]
      try:
        texts.append(spelling.decode("utf-8"))
      except UnicodeDecodeError:
        texts.append(None)
    found = iter(self._words.look_up([t for t in texts if t is not None]))
    self._joined.extend([-1 if text is None else next(found) for text in texts])
    return self._joined.values[numbers][inverse]

  def candidates(self, rows: np.ndarray) -> np.ndarray:
    """Gives candidates by themselves, as places in the student's table."""
    new = range(len(self._candidates), len(self._table))
    texts = [self._table.texts[row] or "" for row in new]
    self._candidates.extend(self._words.look_up(texts))
    return self._candidates.values[rows]


def marginal_rule(
  batch: batched_transfer.Batch, parts: WordParts
) -> batched_transfer.Transferred:
  """Computes what `marginal.marginal_rule` defines.

  All samples must be word-local.
  """
  teacher, student = batch.teacher, batch.student
  steps = _merged_steps(batch)
  known = _known(batch, parts)
  leaves, unplaced_L = _leaves(batch, steps, known, parts)
  ids_PC, log_probs_PC = leaf_masses.from_leaves(batch, leaves)
  named_L = np.where(batch.places.visible_L == 0, 0.0, 1.0 - steps.rests_L)
  impossible = np.unique(teacher.sample_L[steps.log_probs_L == -np.inf])
  matched_P = np.zeros(len(student.ids_P), bool)
  matched_P[batch.layout.match_student_M] = True
  apart = batch.layout.match_student_M[batch.layout.match_apart_M]
  matched_P[apart - 1] = True
  return batched_transfer.Transferred(
    ids_PC=ids_PC,
    log_probs_PC=log_probs_PC,
    kinds_P=np.where(
      matched_P,
      np.uint8(targets.Kind.ONE_TO_ONE),
      np.uint8(targets.Kind.CHUNK),
    ),
    kept_B=batched_transfer.per_sample(named_L - unplaced_L, teacher.offsets),
    rejected=dict.fromkeys(
      impossible.tolist(), "the teacher gives a sampled token probability 0"
    ),
  )


def _merged_steps(batch: batched_transfer.Batch) -> _Steps:
  teacher, core = batch.teacher, batch.table.core.values
  core_L = core[teacher.rows_L]
  core_KL = core[teacher.top_rows_KL]
  same_KL = batch.distinct_KL & (core_KL == core_L) & (core_L >= 0)
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
  # A sum of impossible tokens only spoils its own sample, which is rejected.
  finite_L = np.maximum(log_probs_L, -1e6)
  before = growing.offsets(np.zeros(len(finite_L))).astype(np.float64)
  np.cumsum(finite_L, out=before[1:])
  before_L = before[:-1] - before[teacher.offsets[:-1]][teacher.sample_L]
  return _Steps(
    log_probs_L=log_probs_L,
    others_KL=other_probs_KL > 0,
    other_probs_KL=other_probs_KL,
    rests_L=np.maximum(0.0, 1.0 - named_L),
    before_L=before_L,
  )


def _known(batch: batched_transfer.Batch, parts: WordParts) -> _Known:
  """Finds where each known text ends."""
  layout, student, words = batch.layout, batch.student, batch.words
  # How many student tokens end by a place. One that covers nothing begins a
  # word, and ends with the word's first byte at the latest.
  ends_P = layout.start_P + np.maximum(student.visible_P, 1)
  ended = np.cumsum(np.bincount(ends_P, minlength=layout.num_places + 1))
  after_L = batch.places.after_space_L
  ended_L = ended[layout.start_L]
  word_bytes_W = words.visible_bytes.values[student.words_W]
  sample_W = np.repeat(
    np.arange(len(batch.teacher.texts)), np.diff(student.word_offsets)
  )
  start_W = growing.offsets(word_bytes_W)[:-1] + sample_W
  base_W = growing.offsets(words.counts.values[student.words_W])[:-1]
  begins = np.zeros(layout.num_places, np.int64)
  begins[start_W] = 1
  word = np.cumsum(begins) - 1
  inside = np.flatnonzero(~after_L)
  word_of = word[layout.start_L[inside] - 1]
  base_L = ended_L.copy()
  base_L[inside] = base_W[word_of]
  stems_L = np.full(len(after_L), -1, np.int64)
  stems_L[inside] = parts.stems(
    student.words_W[word_of], layout.start_L[inside] - start_W[word_of]
  )
  # White space before a word is its first token's, which then may be whole.
  begins_L = batch.table.begins_space.values[batch.teacher.rows_L]
  visible_P = np.append(student.visible_P, 1)
  apart_L = after_L & ~begins_L & (visible_P[ended_L] == 0)
  firsts = batch.teacher.offsets[:-1]
  apart_L[firsts[firsts < len(apart_L)]] = False  # no white space before it
  return _Known(rest_L=ended_L + apart_L, base_L=base_L, stems_L=stems_L)


def _leaves(
  batch: batched_transfer.Batch,
  steps: _Steps,
  known: _Known,
  parts: WordParts,
) -> tuple[leaf_masses.Leaves, np.ndarray]:
  """Lists all leaves in the order of `marginal`, step by step.

  Returns:
    The leaves, and for each teacher token what reaches no target.
  """
  teacher, student = batch.teacher, batch.student
  token, k = np.nonzero(steps.others_KL.T)
  position, own_ids = _parting(batch, known, parts, token, k)
  probs = steps.other_probs_KL[k, token]
  lost = (own_ids < 0) & (batch.places.visible_L[token] > 0)
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
    [student.offsets[has_text + 1], position, known.rest_L[rest]]
  )
  leaves = leaf_masses.Leaves(
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


def _parting(
  batch: batched_transfer.Batch,
  known: _Known,
  parts: WordParts,
  token: np.ndarray,
  k: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds where candidates part from the sampled text, and their tokens.

  Returns:
    The student token (over the batch) that each parts at, and the id of its
    own there; -1 for none.
  """
  table, student = batch.table, batch.student
  rows = batch.teacher.top_rows_KL[k, token]
  ends = student.offsets[batch.teacher.sample_L[token] + 1]
  place = np.zeros(len(rows), np.int64)
  at = known.base_L[token]
  own = np.full(len(rows), -1, np.int64)
  whole = table.whole.values[rows]
  stems = known.stems_L[token]
  within = batch.places.mid_character_L[token]
  alone = whole & (stems < 0)
  place[alone] = parts.candidates(rows[alone])
  # A candidate that parts words leaves the known part a word of its own.
  splits = table.begins_space.values[rows] & ~table.odd.values[rows]
  splits &= (stems >= 0) & ~within
  joined = (stems >= 0) & ~splits & (whole | within)
  place[joined] = parts.joined(stems[joined], rows[joined])
  compared = (alone | joined) & (place >= 0)
  # What leaves a character unfinished is as unknown as an unseen rest.
  unknown = ~(compared | splits)
  at[unknown] = known.rest_L[token[unknown]]
  if splits.any():
    stem_at, stem_own = _first_difference(
      batch, parts.stem_places(stems[splits]), at[splits], ends[splits]
    )
    at[splits], own[splits] = stem_at, stem_own
    goes_on = splits & (own < 0)
    place[goes_on] = parts.candidates(rows[goes_on])
    compared |= goes_on
  at[compared], own[compared] = _first_difference(
    batch, place[compared], at[compared], ends[compared]
  )
  return at, own


def _first_difference(
  batch: batched_transfer.Batch,
  places: np.ndarray,
  at: np.ndarray,
  ends: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Compares strings' tokens with the sampled text's from `at` on.

  Returns:
    Where each differs first and its own token there; where the string's
    tokens are used up, the place after them and -1.
  """
  words = batch.words
  starts, counts = words.starts.values[places], words.counts.values[places]
  ids_P = np.append(batch.student.ids_P, -1)
  own = np.full(len(places), -1, np.int64)
  position = at.copy()
  active = np.flatnonzero(counts > 0)
  step = 0
  while len(active):
    mine = words.ids.values[starts[active] + step]
    here = position[active]
    parts_here = (here == ends[active]) | (ids_P[here] != mine)
    own[active[parts_here]] = mine[parts_here]
    active = active[~parts_here]
    position[active] += 1
    step += 1
    active = active[counts[active] > step]
  return position, own
