"""Every student position's distribution, by the teacher's tree of texts.

A record is a tree. With p_i the probability of the sampled token at teacher
step i and p_ik that of candidate a_k, its leaves are

  the sampled text         of weight  p_1 ... p_L
  (text before i) + a_k    of weight  p_1 ... p_{i-1} p_ik
  the unseen rest at i     of weight  p_1 ... p_{i-1} (1 - p_i - sum_k p_ik)

Each known leaf, in the student's tokens, parts from the sampled text's tokens
at a first position; a leaf that ends without parting, and an unseen rest,
belong to the position where their known text ends. With M_j the weight of all
leaves that part at j or later, the sampled text included, position j gives

  the sampled token             M_{j+1} / M_j
  the own token of a leaf       its weight / M_j      (leaves that part at j)

and the rest is missing mass. The product of M_{j+1} / M_j telescopes to the
teacher's likelihood of the text, and a one-to-one position whose neighbours
no leaf re-segments gets the paper's rule. What would follow a candidate is
unknown: its text is taken to end a piece there, as the paper takes it too.
Candidates that differ from the sampled token in white space alone are the
same text to the student and count as the sampled token.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from specialize_jax.align import reference, targets, transfer
from specialize_jax.align import student as student_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
  """A text that the teacher weighed, or the unseen rest of a step.

  Attributes:
    position: The first student position at which it parts, T for none.
    own_id: The student's token of its own there; None for none.
    log_weight: The log of its weight in nats.
  """

  position: int
  own_id: int | None
  log_weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """One teacher step, white-space variants merged.

  Attributes:
    log_prob: Of the sampled token, what is merged with it included.
    others: The other candidates as (spelling, probability).
    rest: The probability of what the teacher does not name.
  """

  log_prob: float
  others: tuple[tuple[bytes, float], ...]
  rest: float


def merged_step(token: targets.TeacherToken) -> Step:
  """Merges what differs from the sampled token in white space alone.

  Probabilities that sum to more than 1, by the API's rounding, are scaled.

  Example:
    >>> half = math.log(0.5)
    >>> step = merged_step(
    ...   targets.TeacherToken(
    ...     spelling=b" +",
    ...     log_prob=half,
    ...     top=((b"+", math.log(0.25)), (b"x", math.log(0.125))),
    ...   )
    ... )
    >>> round(math.exp(step.log_prob), 6), len(step.others), step.rest
    (0.75, 1, 0.125)
  """
  sampled = math.exp(token.log_prob)
  merged = 0.0
  others = []
  for spelling, log_prob in transfer.distinct(token):
    if _same_but_for_space(spelling, token.spelling):
      merged += math.exp(log_prob)
    elif log_prob > -math.inf:
      others.append((spelling, math.exp(log_prob)))
  total = max(1.0, math.fsum([sampled, merged, *(prob for _, prob in others)]))
  others = tuple((spelling, prob / total) for spelling, prob in others)
  log_prob = token.log_prob
  if merged > 0 or total > 1:
    log_prob = min(0.0, math.log((sampled + merged) / total))
  named = math.fsum([math.exp(log_prob), *(prob for _, prob in others)])
  return Step(log_prob=log_prob, others=others, rest=max(0.0, 1.0 - named))


def _same_but_for_space(left: bytes, right: bytes) -> bool:
  try:
    return left.decode("utf-8").strip() == right.decode("utf-8").strip()
  except UnicodeDecodeError:
    return False


def marginal_rule(
  laid: reference.Laid, student: student_lib.StudentTokenizer
) -> targets.Transferred | targets.Rejected:
  """Gives each student position the distribution that the tree implies.

  A candidate that is white space or part of a character ends its text without
  a token of its own, and reaches no target.

  Returns:
    The targets; or why there are none: the teacher gives a sampled token
    probability 0, so that the tree has no weight beyond it.
  """
  steps = tuple(merged_step(token) for token in laid.tokens)
  if any(step.log_prob == -math.inf for step in steps):
    return targets.Rejected("the teacher gives a sampled token probability 0")
  leaves, unplaced = _leaves(laid, steps, student)
  matched = {j for match in laid.matches for j in match.student}
  result = [
    targets.Target(
      candidates=candidates,
      kind=targets.Kind.ONE_TO_ONE if j in matched else targets.Kind.CHUNK,
    )
    for j, candidates in enumerate(from_leaves(laid.encoding.ids, leaves))
  ]
  named = math.fsum(
    1.0 - step.rest
    for step, blank in zip(steps, laid.blank, strict=True)
    if not blank
  )
  return targets.Transferred(
    targets=tuple(result), groups=laid.groups, mass_kept=named - unplaced
  )


def from_leaves(
  ids: Sequence[int], leaves: Sequence[Leaf]
) -> list[dict[int, float]]:
  """Turns leaves into one distribution a position.

  Weights underflow over a long text, so all is done in logs: only ratios of
  weights are ever exponentiated.

  Args:
    ids: The sampled text's T student tokens.
    leaves: All leaves of the tree; the sampled text has position T.

  Returns:
    Probability by student id at each position, the sampled token first.

  Example: p = 1/2 for the sampled token, 1/4 for another, 1/4 unseen.
    >>> quarter = math.log(0.25)
    >>> (target,) = from_leaves(
    ...   [7],
    ...   [
    ...     Leaf(position=1, own_id=None, log_weight=math.log(0.5)),
    ...     Leaf(position=0, own_id=9, log_weight=quarter),
    ...     Leaf(position=0, own_id=None, log_weight=quarter),
    ...   ],
    ... )
    >>> {index: round(prob, 9) for index, prob in target.items()}
    {7: 0.5, 9: 0.25}
  """
  length = len(ids)
  parting: list[list[Leaf]] = [[] for _ in range(length + 1)]
  for leaf in leaves:
    parting[leaf.position].append(leaf)
  log_mass = np.full(length + 2, -np.inf)  # log M_j; nothing parts after T
  for j in range(length, -1, -1):
    weights = [leaf.log_weight for leaf in parting[j]]
    log_mass[j] = np.logaddexp.reduce([log_mass[j + 1], *weights])
  result = []
  for j, sampled_id in enumerate(ids):
    candidates = {sampled_id: math.exp(log_mass[j + 1] - log_mass[j])}
    for leaf in parting[j]:
      if leaf.own_id is not None:
        prob = math.exp(leaf.log_weight - log_mass[j])
        candidates[leaf.own_id] = candidates.get(leaf.own_id, 0.0) + prob
    result.append({index: p for index, p in candidates.items() if p > 0})
  return result


def _leaves(
  laid: reference.Laid,
  steps: Sequence[Step],
  student: student_lib.StudentTokenizer,
) -> tuple[list[Leaf], float]:
  """Lists the tree's leaves and sums what reaches no target."""
  ids = laid.encoding.ids
  text = laid.text.encode("utf-8")
  leaves = []
  unplaced = 0.0
  start, log_weight = 0, 0.0
  for i, (token, step) in enumerate(zip(laid.tokens, steps, strict=True)):
    for spelling, prob in step.others:
      position, own_id = _parting(laid, text[:start], spelling, student)
      log_leaf = log_weight + math.log(prob)
      leaves.append(Leaf(position=position, own_id=own_id, log_weight=log_leaf))
      if own_id is None and not laid.blank[i]:
        unplaced += prob
    if step.rest > 0:
      end = _position_at(laid.encoding.spans, start)
      log_rest = log_weight + math.log(step.rest)
      leaves.append(Leaf(position=end, own_id=None, log_weight=log_rest))
    log_weight += step.log_prob
    start += len(token.spelling)
  sampled = Leaf(position=len(ids), own_id=None, log_weight=log_weight)
  return [sampled, *leaves], unplaced


def _parting(
  laid: reference.Laid,
  prefix: bytes,
  spelling: bytes,
  student: student_lib.StudentTokenizer,
) -> tuple[int, int | None]:
  """Finds where prefix + spelling parts from the sampled text, and its token.

  A spelling that leaves a character unfinished is as unknown as an unseen
  rest, and belongs where the prefix ends.
  """
  ids, spans = laid.encoding.ids, laid.encoding.spans
  try:
    leaf = (prefix + spelling).decode("utf-8")
  except UnicodeDecodeError:
    return _position_at(spans, len(prefix)), None
  leaf_ids = student.encode_ids(leaf)
  for position, own_id in enumerate(leaf_ids):
    if position == len(ids) or ids[position] != own_id:
      return position, own_id
  return len(leaf_ids), None


def _position_at(spans: Sequence[tuple[int, int]], num_bytes: int) -> int:
  """Counts the student tokens that lie whole in the text's first bytes."""
  for position, (start, end) in enumerate(spans):
    if start >= num_bytes or end > num_bytes:
      return position
  return len(spans)
