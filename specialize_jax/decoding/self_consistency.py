"""Self-consistency: the answer that most of a prompt's samples agree on.

Wang et al. 2023, "Self-Consistency Improves Chain of Thought Reasoning in
Language Models" (arXiv 2203.11171): sample several rationales, drop them, and
take the majority of their answers, argmax over a of sum_i 1(a_i = a) (section
2, where the plain count does as well as weights by normalised probability).
"""

import dataclasses
import fractions
from collections.abc import Callable, Mapping, Sequence

from specialize_jax.cot import answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
  """How a prompt's samples voted.

  Attributes:
    answer: the winner, as its first voter wrote it; None if nobody voted.
    shares: each answer's share of the votes, the winner first; they sum to 1.
    index: the sample that speaks for the winner: of its voters the one of
      the highest log-probability; of all samples where nobody voted.
  """

  answer: str | None
  shares: Mapping[str, float]
  index: int


def vote(
  texts: Sequence[str],
  log_probs: Sequence[float],
  *,
  extract_fn: Callable[[str], str | None] = answers.extract_number,
) -> Vote:
  """Counts the answers of one prompt's samples.

  Numbers that are equal are one answer however they are written. A sample
  without an answer does not vote. A tie goes to the answer whose voters' log
  probabilities have the larger sum; then to the one that came first.

  Args:
    texts: the samples, at least one.
    log_probs: the log-probability of each whole sample, in nats.
    extract_fn: reads a text's answer; "" and None are none.

  Example: texts that answer "72", "72.0", "70" and nothing give "72" with
  shares {"72": 2/3, "70": 1/3}.
  """
  voters: dict[object, list[int]] = {}
  written: dict[object, str] = {}
  for index, text in enumerate(texts):
    answer = extract_fn(text)
    if not answer:
      continue
    key = _key(answer)
    voters.setdefault(key, []).append(index)
    written.setdefault(key, answer)

  def weight(key: object) -> tuple[int, float]:
    return len(voters[key]), sum(log_probs[i] for i in voters[key])

  # A stable sort: of equals the answer that came first stays first.
  ranking = sorted(voters, key=weight, reverse=True)
  num_votes = sum(map(len, voters.values()))
  speakers = voters[ranking[0]] if ranking else range(len(texts))
  return Vote(
    answer=written[ranking[0]] if ranking else None,
    shares={written[key]: len(voters[key]) / num_votes for key in ranking},
    index=max(speakers, key=lambda i: log_probs[i]),
  )


def _key(answer: str) -> object:
  """What equal answers share: a number's value, else the text."""
  try:
    return fractions.Fraction(answer)
  except (ValueError, ZeroDivisionError):
    return answer
