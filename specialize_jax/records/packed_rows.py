"""Packs the targets of aligned samples compactly.

A row is one sample: the number of its question, and for each position the
teacher's candidates and their log-probabilities, in three byte strings, little
endian:

  flags      uint8, one per position: bit 0 where the target is the teacher's
             distribution (the mask), bit 1 where the target is the first
             candidate, bits 2 to 4 the number of candidates, 0 to 5, bit 5
             at the last position of a sample that was cut off: no
             end-of-sequence target follows it
  ids        for each position its target, unless it is the first candidate, and
             its candidates; uint16, or uint32 for a vocabulary of more than
             65,536 (the number of bytes shows which: flags count the ids)
  log_probs  float16: the log-probabilities of the candidates, in nats

A position with five candidates takes 21 bytes, a one-hot one 5. In `whitespace`
mode the mean over 10,350 synthetic samples of 100 tokens is 15.8 bytes
(`bench/prepare.py`), to which the row's header adds 1. Compressing rows with
zlib would make that 14.1, at a cost of 16 microseconds per row when reading:
half of the bytes are log-probabilities, which compress badly.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from specialize_jax.records import schema

MASK_BIT = 1
OWN_BIT = 2
COUNT_SHIFT = 2
COUNT_MASK = 7
TRUNCATED_BIT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
  """The target positions of several rows, concatenated.

  P is the total number of positions.

  Attributes:
    lengths: int64[N], number of positions of each of the N rows.
    target_ids: int32[P].
    top_ids: uint16[P, 5] or uint32[P, 5] (`id_dtype`), used slots first; an
      unused slot holds 0.
    top_log_probs: float16[P, 5], in nats; -inf in an unused slot.
    mask: uint8[P], 1 where the target is the teacher's distribution.
  """

  lengths: np.ndarray
  target_ids: np.ndarray
  top_ids: np.ndarray
  top_log_probs: np.ndarray
  mask: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedRow:
  """A sample as it is stored.

  Attributes:
    question: the number of its question in the training file, from 0.
    sample: index of the sample among those of the question.
    flags: see the module docstring, as for `ids` and `log_probs`.
  """

  question: int
  sample: int
  flags: bytes
  ids: bytes
  log_probs: bytes


def id_dtype(vocab_size: int) -> type[np.unsignedinteger]:
  """Returns the dtype that holds every id of a vocabulary."""
  return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def pack(
  positions: Positions,
  *,
  questions: Sequence[int],
  samples: Sequence[int],
  truncated: Sequence[bool] | None = None,
) -> list[PackedRow]:
  """Packs rows.

  Args:
    positions: the positions of N rows.
    questions: the question numbers of the rows.
    samples: the sample numbers of the rows.
    truncated: which of the N rows end without an end-of-sequence target; None
      for none of them.

  Raises:
    ValueError: a target does not fit the dtype of the candidates' ids.
  """
  dtype = positions.top_ids.dtype
  largest = int(positions.target_ids.max(initial=0))
  if largest > np.iinfo(dtype).max:
    raise ValueError(f"target id {largest} among candidates of {dtype}")
  used = positions.top_log_probs > -np.inf
  counts = used.sum(axis=1)
  own = (counts > 0) & (positions.top_ids[:, 0] == positions.target_ids)
  flags = (
    (counts << COUNT_SHIFT) | (own * OWN_BIT) | (positions.mask * MASK_BIT)
  ).astype(np.uint8)
  row_ends = np.cumsum(positions.lengths)
  if truncated is not None:
    cut = np.array(truncated, bool) & (positions.lengths > 0)
    flags[row_ends[cut] - 1] |= TRUNCATED_BIT
  # A column before the candidates for targets that are not the first candidate.
  written = np.column_stack([~own, used])
  ids = np.column_stack([positions.target_ids, positions.top_ids])[written]
  id_ends = dtype.itemsize * _at(row_ends, counts + ~own)
  log_prob_ends = 2 * _at(row_ends, counts)
  parts = zip(
    _split(flags.tobytes(), row_ends),
    _split(ids.astype(dtype.newbyteorder("<")).tobytes(), id_ends),
    _split(
      positions.top_log_probs[used].astype("<f2").tobytes(), log_prob_ends
    ),
    strict=True,
  )
  return [
    PackedRow(
      question=int(question),
      sample=int(sample),
      flags=row_flags,
      ids=row_ids,
      log_probs=row_log_probs,
    )
    for question, sample, (row_flags, row_ids, row_log_probs) in zip(
      questions, samples, parts, strict=True
    )
  ]


def _at(row_ends: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Sums the counts of all positions before each row's end."""
  return np.concatenate([[0], np.cumsum(counts)])[row_ends]


def _split(content: bytes, ends: np.ndarray) -> list[bytes]:
  bounds = [0, *ends.tolist()]
  return [
    content[start:end]
    for start, end in zip(bounds[:-1], bounds[1:], strict=True)
  ]


def unpack(
  flags: Sequence[bytes], ids: Sequence[bytes], log_probs: Sequence[bytes]
) -> Positions:
  """Returns the positions of several rows from the bytes of `pack`.

  Args:
    flags: the flags of each row.
    ids: the token ids of each row.
    log_probs: the log-probabilities of each row.
  """
  lengths = np.array([len(row) for row in flags], np.int64)
  flags_P = np.frombuffer(b"".join(flags), np.uint8)  # noqa: N806
  counts = (flags_P >> COUNT_SHIFT) & COUNT_MASK
  own = (flags_P & OWN_BIT) != 0
  used = np.arange(schema.NUM_CANDIDATES) < counts[:, None]
  written = np.column_stack([~own, used])
  content = b"".join(ids)
  is_wide = len(content) > 2 * int(written.sum())
  all_ids = np.zeros(written.shape, np.uint32 if is_wide else np.uint16)
  all_ids[written] = np.frombuffer(content, "<u4" if is_wide else "<u2")
  top_log_probs = np.full(used.shape, -np.inf, np.float16)
  top_log_probs[used] = np.frombuffer(b"".join(log_probs), "<f2")
  return Positions(
    lengths=lengths,
    target_ids=np.where(own, all_ids[:, 1], all_ids[:, 0]).astype(np.int32),
    top_ids=all_ids[:, 1:],
    top_log_probs=top_log_probs,
    mask=flags_P & MASK_BIT,
  )
