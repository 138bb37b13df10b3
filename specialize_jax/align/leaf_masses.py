"""From the leaves of many trees to a distribution a position, in arrays.

Computes what `marginal.from_leaves` defines. Weights underflow over a long
text, so that only ratios of weights are ever exponentiated.
"""

import dataclasses

import numpy as np

from specialize_jax.align import batched_transfer, growing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaves:
  """Leaves of all samples; see `marginal.Leaf`.

  Attributes:
    rows: The place of each among all positions; every sample has one more
      than it has student tokens.
    own_ids: The student's token of its own there; -1 for none.
    log_weights: In nats.
  """

  rows: np.ndarray
  own_ids: np.ndarray
  log_weights: np.ndarray


def from_leaves(
  batch: batched_transfer.Batch, leaves: Leaves
) -> tuple[np.ndarray, np.ndarray]:
  """Computes what `marginal.from_leaves` defines."""
  student = batch.student
  num_rows = len(student.ids_P) + len(batch.teacher.texts)
  log_mass = _log_mass(leaves, student.offsets, num_rows)
  row_P = np.arange(len(student.ids_P)) + student.sample_P
  stays_P = log_mass[row_P + 1] - log_mass[row_P]
  at_end = np.zeros(num_rows, bool)
  at_end[student.offsets[1:] + np.arange(len(batch.teacher.texts))] = True
  has_own = np.flatnonzero((leaves.own_ids >= 0) & ~at_end[leaves.rows])
  # Those of one position and token are one candidate, of the first's rank.
  key = leaves.rows[has_own] * batch.words.student.vocab_size
  key += leaves.own_ids[has_own]
  unique, first, inverse = np.unique(
    key, return_index=True, return_inverse=True
  )
  rows = unique // batch.words.student.vocab_size
  probs = np.bincount(
    inverse,
    np.exp(leaves.log_weights[has_own] - log_mass[leaves.rows[has_own]]),
    minlength=len(unique),
  )
  order = np.lexsort((first, rows))
  order = order[probs[order] > 0]
  rows, probs = rows[order], probs[order]
  own_ids = leaves.own_ids[has_own[first[order]]]
  sample_of_row = np.repeat(
    np.arange(len(batch.teacher.texts)), np.diff(student.offsets) + 1
  )
  position = rows - sample_of_row[rows]
  # The sampled token has slot 0 but where its own probability underflows.
  stays = np.exp(stays_P) > 0
  counts = np.bincount(position, minlength=len(student.ids_P))
  rank = np.arange(len(rows)) - growing.offsets(counts)[position]
  slot = rank + stays[position]
  num_slots = int((counts + stays).max(initial=1))
  ids_PC = np.zeros((len(student.ids_P), num_slots), np.int32)
  log_probs_PC = np.full(ids_PC.shape, -np.inf)
  ids_PC[stays, 0] = student.ids_P[stays]
  log_probs_PC[stays, 0] = np.log(np.exp(stays_P[stays]))
  ids_PC[position, slot] = own_ids
  log_probs_PC[position, slot] = np.log(probs)
  return ids_PC, log_probs_PC


def _log_mass(leaves: Leaves, offsets: np.ndarray, num_rows: int) -> np.ndarray:
  """Gives log M of every row: the weight that parts there or later."""
  largest = np.full(num_rows, -np.inf)
  np.maximum.at(largest, leaves.rows, leaves.log_weights)
  scaled = np.exp(leaves.log_weights - largest[leaves.rows])
  sums = np.bincount(leaves.rows, scaled, minlength=num_rows)
  with np.errstate(divide="ignore"):
    log_mass = np.where(sums > 0, largest + np.log(sums), -np.inf)
  # From each sample's last row back, all samples a step at a time.
  sizes = np.diff(offsets) + 1
  order = np.argsort(-sizes, kind="stable")
  last = (growing.offsets(sizes)[1:] - 1)[order]
  for step in range(1, int(sizes.max(initial=1))):
    going = last[: np.searchsorted(-sizes[order], -step, side="left")]
    here = going - step
    log_mass[here] = np.logaddexp(log_mass[here], log_mass[here + 1])
  return log_mass
