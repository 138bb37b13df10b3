"""Aligns teacher records with a student, offline and in batches.

Aligned rows have five candidates per position, with ids in 16 bits (32 for
large vocabularies) and log-probabilities in half precision. They are derived
data, which can be rebuilt from the records for another student.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np

from specialize_jax import align
from specialize_jax.align import special_tokens, student, targets
from specialize_jax.records import columnar, packed_rows, schema

# Powers and bases of numbers, and fractions of one character beside a number.
# Not those of a unit or of a name alone, such as m² and x₁.
_RAISED_CHARACTERS = (
  "[\u00b2\u00b3\u00b9\u2070\u2074-\u2079\u207a\u207b"  # exponents
  "\u2080-\u208b"  # subscripts
  "\u00bc-\u00be\u2150-\u215f\u2189]"  # fractions
)
_RAISED = re.compile(
  rf"(?<=[\d)\]}}|]){_RAISED_CHARACTERS}+|{_RAISED_CHARACTERS}+(?=\d)"
)


def align_record(
  record: schema.TeacherRecord,
  tokenizer: student.SentencePieceStudent,
  *,
  mode: str,
  keep_truncated: bool = False,
) -> targets.AlignedTargets | targets.Rejected:
  """Aligns one record, keeping all candidates.

  As in the paper's code, `paper` mode always rejects a sample whose finish
  reason is not "stop", or whose steps lack the end of the prompt that records
  of its source begin with.

  Args:
    record: The record.
    tokenizer: The student's tokenizer.
    mode: One of `align.MODES`.
    keep_truncated: Whether to align samples that are not finished answers,
      instead of rejecting them.

  Returns:
    The targets, or the reason why the record is rejected.

  Raises:
    UserError: `mode` is unknown, or the record's tokens do not spell its text.
  """
  align.check_mode(mode)
  schema.check_spelling(record)
  reason = _rejects(
    record,
    record.text,
    len(record.steps),
    mode=mode,
    keep_truncated=keep_truncated,
    tokenizer=tokenizer,
  )
  if reason is not None:
    return targets.Rejected(reason)
  tokens = [_teacher_token(step) for step in record.steps]
  aligner = align.Aligner(tokenizer, mode=mode)
  (result,) = aligner.align([(tokens, record.text)]).results()
  return result


class RowAligner:
  """Aligns the rows of a record store in batches.

  The result for each row is that of `align_record`.

  Attributes:
    aligner: The aligner.
  """

  def __init__(
    self,
    tokenizer: student.SentencePieceStudent,
    *,
    mode: str,
    keep_truncated: bool = False,
  ) -> None:
    """Builds an aligner for a student.

    Args:
      tokenizer: The student's tokenizer.
      mode: One of `align.MODES`.
      keep_truncated: Whether to align samples that are not finished answers,
        instead of rejecting them.

    Raises:
      UserError: `mode` is unknown.
    """
    self.aligner = align.Aligner(tokenizer, mode=mode)
    self._keep_truncated = keep_truncated

  def align(
    self, rows: Iterable[columnar.Row]
  ) -> tuple[list[columnar.Row], targets.TargetBatch]:
    """Aligns rows.

    Args:
      rows: The rows; preferably a generator, since their steps are not kept.

    Returns:
      The rows without their steps and lines, and the targets of each.

    Raises:
      UserError: a record is incomplete, or its tokens do not spell its text.
    """
    collector = columnar.StepCollector()
    kept, places, rejected = [], [], {}
    for place, row in enumerate(rows):
      reason = self._rejects(row)
      if reason is None:
        collector.add(row)
        places.append(place)
      else:
        rejected[place] = reason
      kept.append(
        dataclasses.replace(
          row, steps=(), line=dataclasses.replace(row.line, text="")
        )
      )
    steps = collector.columns()
    aligned = self.aligner.align_strings(
      [kept[place].text for place in places],
      steps.counts,
      steps.spellings,
      log_probs=steps.log_probs,
      top_counts=steps.top_counts,
      top_spellings=steps.top_spellings,
      top_log_probs=steps.top_log_probs,
    )
    return kept, aligned.placed(np.array(places, np.int64), len(kept), rejected)

  def _rejects(self, row: columnar.Row) -> str | None:
    """Returns why a row cannot be aligned, or None."""
    reason = _rejects(
      row.head,
      row.text,
      len(row.steps),
      mode=self.aligner.mode,
      keep_truncated=self._keep_truncated,
      tokenizer=self.aligner.student,
    )
    if reason is not None:
      return reason
    try:
      row.text.encode("utf-8")
    except UnicodeEncodeError:
      return align.NOT_UNICODE
    return None


def batches(rows: Iterable[columnar.Line]) -> Iterator[list[columnar.Line]]:
  """Groups lines into batches of `align.BATCH_SIZE`."""
  remaining = iter(rows)
  while batch := list(itertools.islice(remaining, align.BATCH_SIZE)):
    yield batch


def _rejects(
  record: schema.TeacherRecord | schema.RecordHead,
  text: str,
  num_steps: int,
  *,
  mode: str,
  keep_truncated: bool,
  tokenizer: student.SentencePieceStudent,
) -> str | None:
  """Returns why a sample cannot be used, or None."""
  if mode == "paper":
    if not schema.has_stopped(record.finish_reason):
      return (
        f"paper: the sample ended by {record.finish_reason[:40]!r}, not by"
        " 'stop'"
      )
    if record.request.get("prompt_tail") == []:
      return "paper: the prompt's tail is missing"
  unfinished = None
  if not keep_truncated:
    unfinished = schema.why_unfinished(record, num_steps)
  misread = None if mode == "paper" else _why_misread(text, tokenizer)
  return unfinished or special_tokens.why_not_text(text) or misread


def _why_misread(
  text: str, tokenizer: student.SentencePieceStudent
) -> str | None:
  """Returns which number a text becomes another by, to the student; or None.

  A tokenizer that normalizes by NFKC, as T5's, reads "5\u00b2" as "52".
  """
  for found in () if text.isascii() else _RAISED.findall(text):
    written = tokenizer.normalize(found).strip("\u2581 ")
    if written != found:
      return (
        f"its text holds {found!r}, which the student's tokenizer writes as"
        f" {written!r}"
      )
  return None


def _teacher_token(step: schema.TeacherStep) -> targets.TeacherToken:
  given = step.top_bytes or (None,) * len(step.top)
  return targets.TeacherToken(
    spelling=step.spelling,
    log_prob=step.log_prob,
    top=tuple(
      (
        token.encode("utf-8", errors="surrogatepass")
        if spelling is None
        else spelling,
        log_prob,
      )
      for (token, log_prob), spelling in zip(step.top, given, strict=True)
    ),
  )


def to_positions(batch: targets.TargetBatch) -> packed_rows.Positions:
  """Converts a batch's targets to the form in which they are stored.

  At most five candidates of a position are stored: the target token and the
  most probable others. A masked position, of characters that the student cannot
  spell, has none. In `paper` mode an API's rounding can make the probabilities
  sum to more than 1, in which case they are scaled; log-probabilities are
  rounded down to half precision, so that the sum stays at most 1.
  """
  ids_PC, log_probs_PC = _largest_candidates(
    batch.ids_P, batch.top_ids_PC, batch.top_log_probs_PC
  )
  mass_P1 = np.exp(log_probs_PC).sum(axis=1, keepdims=True)
  log_probs_PC = log_probs_PC - np.log(np.maximum(mass_P1, 1.0))
  # A candidate that is used has a log-probability that half precision has too.
  log_probs_PC = np.where(
    log_probs_PC > -np.inf, np.maximum(log_probs_PC, _LOWEST), log_probs_PC
  )
  return packed_rows.Positions(
    lengths=np.diff(batch.offsets),
    target_ids=batch.ids_P,
    top_ids=ids_PC.astype(packed_rows.id_dtype(batch.words.student.vocab_size)),
    top_log_probs=round_down(log_probs_PC),
    mask=batch.mask_P,
  )


_LOWEST = float(np.finfo(np.float16).min)


def _largest_candidates(
  ids_P: np.ndarray, top_ids_PC: np.ndarray, top_log_probs_PC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Selects five candidates per position: the target, then by probability.

  Args:
    ids_P: int[P], the target tokens.
    top_ids_PC: int[P, C], all candidates.
    top_log_probs_PC: float[P, C], their log-probabilities, in nats.

  Returns:
    int32[P, 5] ids and float64[P, 5] log-probabilities; 0 and -inf in a slot
    that is unused or whose candidate has probability 0.
  """
  num_positions, num_candidates = top_ids_PC.shape
  own_PC = (top_ids_PC == ids_P[:, None]) & (top_log_probs_PC > -np.inf)
  rank_PC = np.where(own_PC, 1.0, top_log_probs_PC)  # log-probs are <= 0
  order_PC = np.argsort(-rank_PC, axis=1, kind="stable")
  kept = min(num_candidates, schema.NUM_CANDIDATES)
  shape = num_positions, schema.NUM_CANDIDATES
  ids = np.zeros(shape, np.int32)
  log_probs = np.full(shape, -np.inf)
  ids[:, :kept] = np.take_along_axis(top_ids_PC, order_PC, axis=1)[:, :kept]
  log_probs[:, :kept] = np.take_along_axis(top_log_probs_PC, order_PC, axis=1)[
    :, :kept
  ]
  ids[log_probs == -np.inf] = 0
  return ids, log_probs


def round_down(log_probs: np.ndarray) -> np.ndarray:
  """Casts to float16, rounding toward minus infinity.

  Example:
    >>> float(round_down(np.array([-0.1]))[0]) <= -0.1
    True
  """
  with np.errstate(over="ignore"):
    rounded = log_probs.astype(np.float16)
    lower = np.nextafter(rounded, np.float16(-np.inf))
  return np.where(rounded.astype(np.float64) > log_probs, lower, rounded)
