"""From teacher records to aligned rows: offline, in batches.

Aligned rows are derived data: five candidates a position, ids in 16 bits and
log-probabilities in half precision, rebuilt at will for another student.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from specialize_jax import errors
from specialize_jax.align import (
  batched,
  coverage,
  sample,
  student,
  target_batch,
  targets,
)
from specialize_jax.records import schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
  """A record that gives no row.

  Attributes:
    question_id: As in the record.
    sample: As in the record.
    reason: Why.
  """

  question_id: str | int
  sample: int
  reason: str


def align_record(
  record: schema.TeacherRecord,
  tokenizer: student.StudentTokenizer,
  *,
  mode: str,
) -> targets.AlignedTargets | targets.Rejected:
  """Aligns one record, all candidates kept.

  In `paper` mode a sample that did not end by itself, or whose steps do not
  begin with the prompt's tail where the source should have it, is rejected,
  as the paper's code does.

  Raises:
    UserError: there is no such mode, or the record's tokens do not spell its
      text.
  """
  sample.check_mode(mode)
  schema.check_spelling(record)
  reason = _paper_rejects(record) if mode == "paper" else None
  if reason is not None:
    return targets.Rejected(reason)
  tokens = [_teacher_token(step) for step in record.steps]
  return sample.align_sample(tokens, record.text, student=tokenizer, mode=mode)


def align_in_batches(
  records: Iterable[schema.TeacherRecord], aligner: batched.Aligner
) -> Iterator[tuple[list[schema.TeacherRecord], target_batch.TargetBatch]]:
  """Aligns records, many at a time.

  Yields:
    Records, and what `align_record` says of each.

  Raises:
    UserError: a record's tokens do not spell its text.
  """
  remaining = iter(records)
  while batch := list(itertools.islice(remaining, batched.BATCH_SIZE)):
    rejected = {}
    for place, record in enumerate(batch):
      schema.check_spelling(record)
      reason = _paper_rejects(record) if aligner.mode == "paper" else None
      if reason is not None:
        rejected[place] = reason
    places = [place for place in range(len(batch)) if place not in rejected]
    aligned = aligner.align(
      [
        (
          [_teacher_token(step) for step in batch[place].steps],
          batch[place].text,
        )
        for place in places
      ]
    )
    yield (
      batch,
      aligned.placed(np.array(places, np.int64), len(batch), rejected),
    )


def _paper_rejects(record: schema.TeacherRecord) -> str | None:
  """Tells why the paper's code has no use for a sample, if it has none."""
  if record.finish_reason != "stop":
    return f"paper: the sample ended by {record.finish_reason!r}, not by 'stop'"
  if record.request.get("prompt_tail") == []:
    return "paper: the prompt's tail is missing"
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


def to_row(
  record: schema.TeacherRecord, aligned: targets.AlignedTargets
) -> schema.AlignedRow:
  """Packs an aligned record for storage.

  A position keeps its target's own candidate and the most probable others,
  five in all. Mass above 1, which the API's rounding makes in `paper` mode, is
  scaled to 1, and log-probabilities are rounded down to half precision, so
  that no position's mass exceeds 1.

  Raises:
    UserError: an id does not fit 16 bits.
  """
  largest = int(aligned.top_ids_TC.max(initial=0))
  if largest > np.iinfo(np.uint16).max:
    raise errors.UserError(
      f"the vocabulary has a piece of id {largest}; aligned rows hold ids up"
      f" to {np.iinfo(np.uint16).max}; use a vocabulary of at most 65,536"
    )
  ids_TC, log_probs_TC = _largest_candidates(
    aligned.ids_T, aligned.top_ids_TC, aligned.top_log_probs_TC
  )
  mass_T1 = np.exp(log_probs_TC).sum(axis=1, keepdims=True)
  log_probs_TC = log_probs_TC - np.log(np.maximum(mass_T1, 1.0))
  return schema.AlignedRow(
    question_id=record.question_id,
    sample=record.sample,
    question=record.question,
    answer=record.gold_answer,
    rationale=record.text,
    target_ids=aligned.ids_T,
    top_ids=ids_TC.astype(np.uint16),
    top_log_probs=round_down(log_probs_TC),
    mask=aligned.mask_T,
  )


def _largest_candidates(
  ids_T: np.ndarray, top_ids_TC: np.ndarray, top_log_probs_TC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Picks five candidates a position: the target's own, then by size.

  Returns:
    int32[T, 5] ids and float64[T, 5] log-probabilities; an unused slot, or
    one whose candidate has no probability, holds 0 and -inf.
  """
  num_positions, num_candidates = top_ids_TC.shape
  own_TC = (top_ids_TC == ids_T[:, None]) & (top_log_probs_TC > -np.inf)
  rank_TC = np.where(own_TC, 1.0, top_log_probs_TC)  # log-probs are <= 0
  order_TC = np.argsort(-rank_TC, axis=1, kind="stable")
  kept = min(num_candidates, schema.NUM_CANDIDATES)
  shape = num_positions, schema.NUM_CANDIDATES
  ids = np.zeros(shape, np.int32)
  log_probs = np.full(shape, -np.inf)
  ids[:, :kept] = np.take_along_axis(top_ids_TC, order_TC, axis=1)[:, :kept]
  log_probs[:, :kept] = np.take_along_axis(top_log_probs_TC, order_TC, axis=1)[
    :, :kept
  ]
  ids[log_probs == -np.inf] = 0
  return ids, log_probs


def round_down(log_probs: np.ndarray) -> np.ndarray:
  """Casts to float16, towards minus infinity.

  Example:
    >>> float(round_down(np.array([-0.1]))[0]) <= -0.1
    True
  """
  with np.errstate(over="ignore"):
    rounded = log_probs.astype(np.float16)
  above = rounded.astype(np.float64) > log_probs
  lower = np.nextafter(rounded, np.float16(-np.inf))
  return np.where(above, lower, rounded)


def align_records(
  records: Iterable[schema.TeacherRecord],
  tokenizer: student.StudentTokenizer,
  *,
  mode: str,
  coverage_fn: Callable[[coverage.Coverage], None] = lambda _: None,
) -> Iterator[schema.AlignedRow | Rejection]:
  """Aligns records, many at a time.

  Args:
    records: Teacher records.
    tokenizer: The student's tokenizer.
    mode: One of `sample.MODES`.
    coverage_fn: Is given each batch's coverage; their sum is the report's.

  Yields:
    For each record its row, or why there is none.

  Raises:
    UserError: as `align_record` and `to_row`.
  """
  aligner = batched.Aligner(tokenizer, mode=mode)
  for batch, aligned in align_in_batches(records, aligner):
    coverage_fn(coverage.Coverage.of_batch(aligned))
    for record, result in zip(batch, aligned.results(), strict=True):
      if isinstance(result, targets.Rejected):
        yield Rejection(
          question_id=record.question_id,
          sample=record.sample,
          reason=result.reason,
        )
      else:
        yield to_row(record, result)
