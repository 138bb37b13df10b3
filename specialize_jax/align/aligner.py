"""`Aligner`, the entry point of this package.

All modes share its interface. An aligner caches spellings, words and edit
distances between batches, and clears the caches before they grow large.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from specialize_jax import errors
from specialize_jax.align import (
  alternatives,
  columns,
  dynamic_program,
  marginal,
  tables,
  targets,
  teachers,
  transfer,
)
from specialize_jax.align import coverage as coverage_lib
from specialize_jax.align import layout as layout_lib
from specialize_jax.align import student as student_lib

MODES = ("paper", "whitespace", "chunk", "marginal")

NOT_UNICODE = "the text is not Unicode (a lone surrogate)"
NO_STUDENT_TOKEN = "the text has no student token"

BATCH_SIZE = 1024
"""Samples per call: larger batches are no faster and need more memory."""

_MAX_STRINGS = 1 << 21  # about 0.5 GiB of words and candidates
_MAX_TOKENS = 1 << 24  # the student tokens of these strings


def check_mode(mode: str) -> None:
  """Checks that `mode` is one of `MODES`.

  Raises:
    UserError: it is not.
  """
  if mode not in MODES:
    raise errors.UserError(
      f"mode {mode!r} is unknown; expected one of: {', '.join(MODES)}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
  """The targets of a text, in the form that `specialize_jax.losses` expects.

  For a batch the arrays have a leading axis and are padded with 0.

  Attributes:
    token_ids: int32[T], the student's tokens of the text.
    top_ids: int32[T, C], the distinct candidates of each position; 0 in an
      unused slot.
    top_probs: float32[T, C], their probabilities (not logarithms), 0 in an
      unused slot; each row sums to at most 1. A row of zeros is a position
      without a target, where the student cannot represent the text.
  """

  token_ids: np.ndarray
  top_ids: np.ndarray
  top_probs: np.ndarray


class Alignment(NamedTuple):
  """The result of an aligner: `targets, mask, coverage = aligner(...)`.

  Attributes:
    targets: The target distribution of each student position.
    mask: bool[T] (or [B, T]), true where the target is the teacher's
      distribution; elsewhere the target is one-hot or missing.
    coverage: Counts of positions by the source of their target, and of
      rejected texts by reason.
  """

  targets: Targets
  mask: np.ndarray
  coverage: coverage_lib.Coverage


class Aligner:
  """Converts a teacher's top-k distributions to targets for a student.

  Example: the teacher's tokens are " 1" and "2", the student's is " 12".

    >>> import math, tokenizers
    >>> from specialize_jax import align
    >>> from tokenizers import models, pre_tokenizers
    >>> vocabulary = {c: i for i, c in enumerate("x123\u0120")}
    >>> vocabulary |= {"12": 5, "13": 6, "\u012012": 7, "\u012013": 8}
    >>> merges = [("1", "2"), ("1", "3"), ("\u0120", "12"), ("\u0120", "13")]
    >>> tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
    ...   add_prefix_space=False
    ... )
    >>> student = align.HuggingFaceStudent(tokenizer)
    >>> aligner = align.Aligner(student, mode="marginal")
    >>> half = math.log(0.5)
    >>> targets, mask, coverage = aligner(
    ...   ["x", " 1", "2"],
    ...   [{"x": 0.0}, {" 1": 0.0}, {"2": half, "3": half}],
    ... )
    >>> targets.token_ids.tolist(), targets.top_ids.tolist()
    ([0, 7], [[0, 0], [7, 8]])
    >>> targets.top_probs.tolist(), mask.tolist(), coverage.positions
    ([[1.0, 0.0], [0.5, 0.5]], [True, True], 2)
  """

  def __init__(
    self, student: student_lib.Student, mode: str = "marginal"
  ) -> None:
    """Builds an aligner for a student.

    Args:
      student: A `SentencePieceStudent`, a `HuggingFaceStudent`, or any object
        with the methods of `Student`.
      mode: One of `MODES`.

    Raises:
      UserError: `mode` is unknown.
    """
    check_mode(mode)
    needed = ("vocab_size", "encode_many", "encode_with_spans", "token_bytes")
    if not all(hasattr(student, name) for name in needed):
      raise errors.UserError(
        f"student={type(student).__name__} has no {', '.join(needed)}: wrap a"
        " tokenizer in HuggingFaceStudent, or SentencePieceStudent.from_file"
      )
    self.mode = mode
    self.student = student
    self._clear_caches()

  def _clear_caches(self) -> None:
    self.words = tables.StudentTable(self.student)
    self.table = tables.TeacherTable(self.words)
    self._distances = dynamic_program.DistanceTable()
    self._alternatives = alternatives.Alternatives(self.table, self.words)

  def __call__(
    self,
    tokens: Sequence,
    top_logprobs: Sequence | None = None,
    *,
    token_logprobs: Sequence | None = None,
  ) -> Alignment:
    """Aligns one text or a batch of texts.

    Args:
      tokens: The teacher's tokens of one text, as strings, bytes, or
        `TeacherToken`s; or a list of such lists, one per text.
      top_logprobs: Each token's alternatives with natural log-probabilities, as
        a mapping or as pairs, with or without the sampled token; nested as
        `tokens`. None for `TeacherToken`s, which contain them.
      token_logprobs: The sampled tokens' own log-probabilities, nested as
        `tokens`; None if each is among its alternatives.

    Returns:
      Targets, mask and coverage; for a batch the arrays have a leading axis. A
      rejected text (empty, or not Unicode) has no positions, and
      `coverage.rejected` counts the reason.

    Raises:
      UserError: the arguments are not tokens with log-probabilities.
    """
    if isinstance(tokens, (str, bytes)):
      raise errors.UserError(
        f"tokens={tokens!r} is one string; expected the teacher's tokens"
      )
    single = not len(tokens) or isinstance(
      tokens[0], (str, bytes, targets.TeacherToken)
    )
    nested = [
      [given] if single and given is not None else given
      for given in (tokens, top_logprobs, token_logprobs)
    ]
    batch = self.align([_sample(*one) for one in _in_step(*nested)])
    arrays = _padded(batch)
    if single:
      length = int(batch.offsets[-1])
      arrays = [array[0, :length] for array in arrays]
    token_ids, top_ids, top_probs, mask = arrays
    return Alignment(
      targets=Targets(
        token_ids=token_ids, top_ids=top_ids, top_probs=top_probs
      ),
      mask=mask,
      coverage=coverage_lib.Coverage.of_batch(batch),
    )

  def align(self, samples: Sequence[columns.Sample]) -> targets.TargetBatch:
    """Computes the targets of a batch of samples.

    Args:
      samples: Pairs of the teacher's tokens and the text that they spell.

    Returns:
      One target per student token of each sample, or the reason why a sample
      is rejected: its text is empty or not Unicode, or (`marginal`) the teacher
      assigns probability 0 to a sampled token.

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
    self._clear_full_caches()
    aligned = self._align([samples[place] for place in places.tolist()])
    return aligned.placed(places, len(samples), rejected)

  def _align(self, samples: Sequence[columns.Sample]) -> targets.TargetBatch:
    """Aligns samples whose tokens are known to spell their text."""
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
    """Aligns samples given as flat lists; see `columns.from_strings`.

    The texts must be valid Unicode and equal their joined tokens.
    """
    self._clear_full_caches()
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
    """Aligns samples given as columns.

    Args:
      teacher: Samples, with token spellings as row numbers of `self.table`.
    """
    return self._transfer(self.batch_of(teacher))

  def align_texts(
    self, texts: Sequence[str], spellings: Sequence[Sequence[bytes]]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Aligns tokens by their characters alone, without distributions.

    Args:
      texts: The texts.
      spellings: The teacher's tokens of each text, which spell it.

    Returns:
      The group number of each teacher token and of each student token,
      counted from 0 in every text; all texts are concatenated.
    """
    teacher = columns.tokens_alone(texts, spellings, self.table)
    places = columns.places(teacher, self.table, self.words)
    student = columns.student_columns(texts, places.whole_B, self.words)
    return layout_lib.grouped(
      teacher, places.visible_L, student, words=self.words
    )

  def batch_of(self, teacher: columns.TeacherColumns) -> transfer.Batch:
    """Encodes the texts, and groups the tokens of both sides."""
    places = columns.places(teacher, self.table, self.words)
    student = columns.student_columns(teacher.texts, places.whole_B, self.words)
    layout = layout_lib.lay(
      teacher,
      places.visible_L,
      student,
      word_start_id=self.words.word_start_id,
    )
    distinct_KL = transfer.distinct(teacher)
    if self.mode != "paper":  # which teaches their letters, as the paper's code
      distinct_KL &= ~self.table.is_special.values[teacher.top_rows_KL]
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
    """Applies the mode's rule, and collects its results."""
    found = transfer.one_hot_where_all_underflow(batch, self._rule(batch))
    found = transfer.masked(batch, found)
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
      log_prob_A=transfer.per_sample(
        batch.teacher.log_probs_L, batch.teacher.offsets
      ),
      visible_log_prob_A=transfer.per_sample(
        np.where(batch.places.visible_L > 0, batch.teacher.log_probs_L, 0.0),
        batch.teacher.offsets,
      ),
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

  def _clear_full_caches(self) -> None:
    too_many = len(self.words) + len(self.table) > _MAX_STRINGS
    if too_many or len(self.words.ids) > _MAX_TOKENS:
      self._clear_caches()
    if self._distances.is_full:
      self._distances = dynamic_program.DistanceTable()


def _in_step(
  tokens: Sequence, tops: Sequence | None, log_probs: Sequence | None
) -> Iterator[tuple[Sequence, Sequence | None, Sequence | None]]:
  """Zips the texts of a batch with their log-probabilities."""
  for name, given in (("top_logprobs", tops), ("token_logprobs", log_probs)):
    if given is not None and len(given) != len(tokens):
      raise errors.UserError(
        f"{name} is of {len(given)} texts and tokens of {len(tokens)}"
      )
  nothing = [None] * len(tokens)
  return zip(tokens, tops or nothing, log_probs or nothing, strict=True)


def _sample(
  tokens: Sequence, tops: Sequence | None, log_probs: Sequence | None
) -> columns.Sample:
  """Builds a sample from the arguments of one text."""
  if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Sequence):
    raise errors.UserError(
      f"tokens of a text are {tokens!r}: expected a sequence of str or bytes"
      " (for ids: align.from_ids)"
    )
  if len(tokens) and isinstance(tokens[0], targets.TeacherToken):
    found = list(tokens)
  elif tops is None and len(tokens):
    raise errors.UserError(
      "top_logprobs is missing: expected the alternatives of each token"
    )
  else:
    found = teachers.from_strings(tokens, tops or [], token_logprobs=log_probs)
  spelled = b"".join([token.spelling for token in found])
  return found, spelled.decode("utf-8", errors="surrogateescape")


def _padded(batch: targets.TargetBatch) -> list[np.ndarray]:
  """Pads a batch's positions to rows of equal length.

  Returns:
    int32[B, T] tokens, int32[B, T, C] candidates, float32[B, T, C] their
    probabilities and bool[B, T] the mask; 0 after each row's end.
  """
  lengths = np.zeros(batch.num_samples, np.int64)
  lengths[batch.samples_A] = np.diff(batch.offsets)
  shape = batch.num_samples, int(lengths.max(initial=0))
  used_BT = np.arange(shape[1]) < lengths[:, None]
  probs_PC = np.exp(batch.top_log_probs_PC)
  probs_PC /= np.maximum(1.0, probs_PC.sum(axis=1, keepdims=True))
  # A candidate of probability 0 may precede others: the sampled token's.
  width = 1 + int(np.flatnonzero((probs_PC > 0).any(axis=0)).max(initial=0))
  padded = []
  for values, dtype in (
    (batch.ids_P, np.int32),
    (batch.top_ids_PC[:, :width], np.int32),
    (probs_PC[:, :width], np.float32),
    (batch.mask_P, bool),
  ):
    array = np.zeros((*shape, *values.shape[1:]), dtype)
    array[used_BT] = values
    padded.append(array)
  return padded
