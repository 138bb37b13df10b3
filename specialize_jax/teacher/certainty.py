"""Measures how certain a teacher is, from its records.

Matching a teacher's distribution can teach more than matching its samples only
where the distribution is not concentrated on the sampled token. This module
measures how often that is, in figures that are comparable between teachers: a
step is one token of the teacher's, and its candidates are the top 5 that the
API returned.

Example:
  >>> from specialize_jax.records import schema
  >>> step = schema.TeacherStep(
  ...   token="a", log_prob=-0.5, top=(("a", -0.5), ("b", -1.0))
  ... )
  >>> record = schema.TeacherRecord(
  ...   question_id=0,
  ...   sample=0,
  ...   question="",
  ...   gold_answer="",
  ...   text="a",
  ...   steps=(step,),
  ...   finish_reason="stop",
  ...   request={},
  ...   verdicts={},
  ... )
  >>> found = measure([record])
  >>> found.cost, round(found.top_mass, 3), found.none_above_90
  (0.5, 0.974, 1.0)
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.records import schema

# The released probabilities are rounded to 4 decimals: a sampled token of
# probability 0 had less than half of one.
_LEAST_LOG_PROB = math.log(5e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certainty:
  """How certain a teacher is.

  Attributes:
    num_records: Number of samples.
    num_steps: Number of tokens.
    none_above_90: The share of steps with no candidate above 0.9.
    none_above_99: The share of steps with no candidate above 0.99.
    top_mass: The probability mass of the top candidates, per step.
    entropy: The entropy of the top candidates, -sum p log p without
      normalization, in nats per step.
    cost: Minus the log-probability of the sampled token, in nats per step. It
      is below the entropy if the samples are from a lower temperature than the
      log-probabilities.
    right: The share of samples with the right answer; None if no sample has a
      gold answer.
  """

  num_records: int
  num_steps: int
  none_above_90: float
  none_above_99: float
  top_mass: float
  entropy: float
  cost: float
  right: float | None


CODE_DAVINCI_002 = Certainty(
  num_records=40,
  num_steps=1910,
  none_above_90=0.487,
  none_above_99=0.768,
  top_mass=0.967,
  entropy=0.455,
  cost=0.303,
  right=0.638,
)
"""The paper's teacher, by the 40 samples of one question that its authors
released (`bench/calibration.py` measures them), which are all right. `right` is
therefore not measured here: it is the teacher's accuracy on GSM8K.
"""

FIGURES: Mapping[str, str] = {
  "none_above_90": "steps with no candidate above 0.9",
  "none_above_99": "steps with no candidate above 0.99",
  "top_mass": "mass of the top 5",
  "entropy": "entropy of the top 5, nats a token",
  "cost": "cost of the sampled token, nats",
  "right": "samples with the right answer",
}
"""What the figures are called in tables, by field."""

Verdict = Callable[[str, str], bool]
"""Whether the text of a sample has a gold answer."""


def measure(
  records: Iterable[schema.TeacherRecord],
  *,
  is_right: Verdict = answer_rules.NUMBER.finds,
) -> Certainty:
  """Measures a teacher.

  Args:
    records: Its samples, right or wrong.
    is_right: Finds a gold answer in a text; for records with one.

  Raises:
    UserError: There is no record with a token.
  """
  num_records = num_steps = num_graded = 0
  above_90 = above_99 = num_right = 0
  masses, entropies, costs = [], [], []
  for record in records:
    num_records += 1
    if record.gold_answer:
      num_graded += 1
      num_right += is_right(record.text, record.gold_answer)
    for step in record.steps:
      num_steps += 1
      probs = [math.exp(log_prob) for _, log_prob in step.top]
      best = max([*probs, math.exp(step.log_prob)])
      above_90 += best > 0.9
      above_99 += best > 0.99
      masses.append(math.fsum(probs))
      entropies.append(-math.fsum(p * math.log(p) for p in probs if p > 0))
      costs.append(-max(step.log_prob, _LEAST_LOG_PROB))
  if not num_steps:
    raise errors.UserError(
      f"{num_records} teacher records have no token between them: expected"
      " samples with the log-probabilities of their tokens"
    )
  return Certainty(
    num_records=num_records,
    num_steps=num_steps,
    none_above_90=1 - above_90 / num_steps,
    none_above_99=1 - above_99 / num_steps,
    top_mass=math.fsum(masses) / num_steps,
    entropy=math.fsum(entropies) / num_steps,
    cost=math.fsum(costs) / num_steps,
    right=num_right / num_graded if num_graded else None,
  )


def ratios(teacher: Certainty, other: Certainty) -> dict[str, float]:
  """Returns a teacher's figures as shares of another's, where both have one.

  Example: {"entropy": 0.5, ...} for a teacher with half of its entropy.
  """
  found = {}
  for name in FIGURES:
    mine, theirs = getattr(teacher, name), getattr(other, name)
    if mine is not None and theirs:
      found[name] = mine / theirs
  return found
