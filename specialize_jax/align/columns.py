"""Batches of samples as flat arrays, one column per property.

B is the number of samples of a batch, L the number of teacher tokens of all
samples (concatenated), P that of student tokens, and K the number of candidates
of a teacher token.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from specialize_jax.align import tables, targets, token_classes

MAX_CANDIDATES = 100
"""The most candidates of a step; of more, the most probable are kept.

Alignment needs no more. Candidates are compared in pairs, and every step of a
batch has as many slots as the step with the most candidates. The mass of those
dropped belongs to the tail.
"""

Sample = tuple[Sequence[targets.TeacherToken], str]
"""The teacher's tokens, and the text that they spell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherColumns:
  """The teacher's side of a batch.

  Attributes:
    texts: The B texts.
    offsets: int64[B + 1], the index of each sample's first token.
    sample_L: int64[L], the sample of each token.
    rows_L: int64[L], the row of each sampled token in the teacher's table.
    log_probs_L: float64[L], log-probabilities in nats.
    top_rows_KL: int64[K, L], the candidates' rows; -1 in an unused slot.
    top_log_probs_KL: float64[K, L], in nats; -inf in an unused slot.
  """

  texts: Sequence[str]
  offsets: np.ndarray
  sample_L: np.ndarray
  rows_L: np.ndarray
  log_probs_L: np.ndarray
  top_rows_KL: np.ndarray
  top_log_probs_KL: np.ndarray


def teacher_columns(
  samples: Sequence[Sample], table: tables.TeacherTable
) -> TeacherColumns:
  """Flattens samples, whose tokens must spell their texts."""
  tokens = list(itertools.chain.from_iterable(some for some, _ in samples))
  tops = [token.top for token in tokens]
  pairs = list(itertools.chain.from_iterable(tops))
  return from_strings(
    [text for _, text in samples],
    [len(some) for some, _ in samples],
    [token.spelling for token in tokens],
    log_probs=[token.log_prob for token in tokens],
    top_counts=[len(top) for top in tops],
    top_spellings=[spelling for spelling, _ in pairs],
    top_log_probs=[log_prob for _, log_prob in pairs],
    table=table,
  )


def from_strings(
  texts: Sequence[str],
  counts: Sequence[int],
  spellings: Sequence[bytes],
  *,
  log_probs: Sequence[float],
  top_counts: Sequence[int],
  top_spellings: Sequence[bytes],
  top_log_probs: Sequence[float],
  table: tables.TeacherTable,
) -> TeacherColumns:
  """Builds columns from flat lists of strings.

  Args:
    texts: The B texts.
    counts: The number of tokens of each text.
    spellings: The L sampled tokens.
    log_probs: Their log-probabilities, in nats.
    top_counts: The number of candidates of each of the L tokens.
    top_spellings: The candidates of all tokens, concatenated; of each token the
      `MAX_CANDIDATES` most probable are kept.
    top_log_probs: Their log-probabilities, in nats.
    table: The table in which the spellings are looked up.
  """
  counts = np.asarray(counts, np.int64)
  top_counts = np.asarray(top_counts, np.int64)
  if top_counts.max(initial=0) > MAX_CANDIDATES:
    kept = _most_probable(top_counts, np.asarray(top_log_probs, np.float64))
    top_spellings = [top_spellings[index] for index in kept]
    top_log_probs = [top_log_probs[index] for index in kept]
    top_counts = np.minimum(top_counts, MAX_CANDIDATES)
  rows_L = table.look_up(spellings)
  top_rows = table.look_up(top_spellings)
  num_candidates = int(top_counts.max(initial=0))
  shape = num_candidates, len(rows_L)
  if (top_counts == num_candidates).all():  # the usual case
    top_rows_KL = top_rows.reshape(shape[::-1]).T.copy()
    top_log_probs_KL = (
      np.asarray(top_log_probs, np.float64).reshape(shape[::-1]).T.copy()
    )
  else:
    rank = tables.ragged_index(np.zeros(len(rows_L), np.int64), top_counts)
    token = np.repeat(np.arange(len(rows_L)), top_counts)
    top_rows_KL = np.full(shape, -1, np.int64)
    top_log_probs_KL = np.full(shape, -np.inf)
    top_rows_KL[rank, token] = top_rows
    top_log_probs_KL[rank, token] = top_log_probs
  return TeacherColumns(
    texts=texts,
    offsets=tables.offsets(counts),
    sample_L=np.repeat(np.arange(len(counts)), counts),
    rows_L=rows_L,
    log_probs_L=np.asarray(log_probs, np.float64),
    top_rows_KL=top_rows_KL,
    top_log_probs_KL=top_log_probs_KL,
  )


def _most_probable(top_counts: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
  """Returns the indices of each step's most probable candidates, in order."""
  token = np.repeat(np.arange(len(top_counts)), top_counts)
  order = np.lexsort((-log_probs, token))
  rank = tables.ragged_index(np.zeros(len(top_counts), np.int64), top_counts)
  return np.sort(order[rank < MAX_CANDIDATES])


def tokens_alone(
  texts: Sequence[str],
  spellings: Sequence[Sequence[bytes]],
  table: tables.TeacherTable,
) -> TeacherColumns:
  """Builds columns from tokens without probabilities."""
  counts = np.fromiter(map(len, spellings), np.int64, len(spellings))
  rows_L = table.look_up(list(itertools.chain.from_iterable(spellings)))
  return TeacherColumns(
    texts=texts,
    offsets=tables.offsets(counts),
    sample_L=np.repeat(np.arange(len(counts)), counts),
    rows_L=rows_L,
    log_probs_L=np.zeros(len(rows_L)),
    top_rows_KL=np.zeros((0, len(rows_L)), np.int64),
    top_log_probs_KL=np.zeros((0, len(rows_L))),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentColumns:
  """The student's side of a batch.

  Attributes:
    offsets: int64[B + 1], the index of each sample's first token.
    sample_P: int64[P], the sample of each token.
    ids_P: int64[P], the tokens.
    visible_P: int64[P], the number of visible bytes that each covers.
    visible_bytes_B: int64[B], the number of visible bytes of each text.
    lost_B: int64[B], the number of characters of each text that no piece
      spells.
    word_local_B: bool[B], whether each text was tokenized word by word; any
      other text counts as a single word.
    word_offsets: int64[B + 1], the index of each sample's first word.
    words_W: int64[W], the words, as rows of the student's table.
  """

  offsets: np.ndarray
  sample_P: np.ndarray
  ids_P: np.ndarray
  visible_P: np.ndarray
  visible_bytes_B: np.ndarray
  lost_B: np.ndarray
  word_local_B: np.ndarray
  word_offsets: np.ndarray
  words_W: np.ndarray


def student_columns(
  texts: Sequence[str], whole_B: np.ndarray, words: tables.StudentTable
) -> StudentColumns:
  """Encodes texts, word by word where that yields the same tokens.

  Args:
    texts: The B texts.
    whole_B: bool[B], whether a text must not be split at its white space.
    words: The student's table, which caches the words.
  """
  split = [text.split() if words.word_local else [] for text in texts]
  counts_B = np.fromiter(map(len, split), np.int64, len(split))
  whole_B = whole_B | (counts_B == 0) | (not words.word_local)
  places = words.look_up(list(itertools.chain.from_iterable(split)))
  sample = np.repeat(np.arange(len(texts)), counts_B)
  whole_B[sample[~words.plain.values[places]]] = True
  if whole_B.any():
    kept = ~whole_B[sample]
    whole = np.flatnonzero(whole_B)
    whole_places = words.look_up([texts[index] for index in whole])
    counts_B[whole] = 1
    order = np.argsort(np.concatenate([sample[kept], whole]), kind="stable")
    places = np.concatenate([places[kept], whole_places])[order]
  word_offsets = tables.offsets(counts_B)
  token_counts_W = tables.offsets(words.counts.values[places])
  offsets = token_counts_W[word_offsets]
  ids_P, visible_P = words.tokens_of(places)

  def total(column: tables.Column) -> np.ndarray:
    return np.diff(tables.offsets(column.values[places])[word_offsets])

  return StudentColumns(
    offsets=offsets,
    sample_P=np.repeat(np.arange(len(texts)), np.diff(offsets)),
    ids_P=ids_P,
    visible_P=visible_P,
    visible_bytes_B=total(words.visible_bytes),
    lost_B=total(words.lost),
    word_local_B=~whole_B,
    word_offsets=word_offsets,
    words_W=places,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
  """The positions of the teacher's tokens in their texts.

  Attributes:
    visible_L: int64[L], the number of visible bytes that each token covers.
    after_space_L: bool[L], whether a token follows white space or begins its
      text.
    mid_character_L: bool[L], whether a token begins within a character.
    whole_B: bool[B], whether a text must not be split at its white space.
    odd_line_starts: `token_classes.line_starts` by sample, for samples whose
      tokens cannot be described out of context (a token is part of a character,
      for example).
  """

  visible_L: np.ndarray
  after_space_L: np.ndarray
  mid_character_L: np.ndarray
  whole_B: np.ndarray
  odd_line_starts: dict[int, np.ndarray]


def places(
  teacher: TeacherColumns,
  table: tables.TeacherTable,
  words: tables.StudentTable,
) -> Places:
  """Computes the positions of the teacher's tokens in their texts."""
  rows_L = teacher.rows_L
  visible_L = table.visible.values[rows_L]
  after_space_L = np.ones(len(rows_L), bool)
  after_space_L[1:] = table.ends_space.values[rows_L[:-1]]
  firsts = teacher.offsets[:-1]
  after_space_L[firsts[firsts < len(rows_L)]] = True
  found = Places(
    visible_L=visible_L,
    after_space_L=after_space_L,
    mid_character_L=np.zeros(len(rows_L), bool),
    whole_B=np.zeros(len(teacher.texts), bool),
    odd_line_starts={},
  )
  odd = np.unique(teacher.sample_L[table.odd.values[rows_L]])
  for index in odd.tolist():
    _fill_from_text(found, teacher, index, table=table, words=words)
  return found


def _fill_from_text(
  found: Places,
  teacher: TeacherColumns,
  index: int,
  *,
  table: tables.TeacherTable,
  words: tables.StudentTable,
) -> None:
  """Fills in the places of a sample whose tokens depend on their context."""
  text = teacher.texts[index]
  mine = slice(teacher.offsets[index], teacher.offsets[index + 1])
  sizes = [len(table.spellings[r]) for r in teacher.rows_L[mine].tolist()]
  bounds = np.cumsum([0, *sizes])
  ranks = tables.visible_ranks(text, words.student.keeps_white_space)
  found.visible_L[mine] = np.diff(ranks[bounds])
  space = np.concatenate([[True], np.diff(ranks) == 0])
  found.after_space_L[mine] = space[bounds[:-1]]
  # A byte within a character is 10xxxxxx.
  encoded = np.frombuffer(text.encode("utf-8") + b"\0", np.uint8)
  found.mid_character_L[mine] = encoded[bounds[:-1]] & 0xC0 == 0x80
  parted = words.is_parted_by_space(text)
  found.whole_B[index] = 0 in sizes or not parted
  found.odd_line_starts[index] = token_classes.line_starts(text, ranks)
