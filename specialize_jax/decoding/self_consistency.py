"""Self-consistency: the majority answer of a prompt's samples.

Wang et al. 2023, "Self-Consistency Improves Chain of Thought Reasoning in
Language Models" (arXiv 2203.11171): sample several rationales, drop them, and
take the majority of their answers, argmax over a of sum_i 1(a_i = a) (section
2, where the plain count does as well as weights by normalized probability).
"""

import dataclasses
from collections.abc import Mapping, Sequence

from specialize_jax.cot import answer_rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
  """The vote of a prompt's samples.

  Attributes:
    answer: the winner, as the first sample that voted for it spells it; None
      without votes.
    shares: the share of votes of each answer, the winner first; sums to 1.
    index: index of the sample that represents the winner: the one with the
      highest log-probability among those that voted for it, or among all
      samples without votes.
  """

  answer: str | None
  shares: Mapping[str, float]
  index: int


def vote(
  texts: Sequence[str],
  log_probs: Sequence[float],
  *,
  rule: answer_rules.AnswerRule = answer_rules.NUMBER,
) -> Vote:
  """Counts the answers of a prompt's samples.

  The rule finds an answer and decides which are the same: equal numbers are one
  answer, however they are written. Samples without an answer do not vote. A tie
  goes to the answer whose samples have the larger sum of log-probabilities,
  then to the one that occurred first.

  Example: for texts that answer "72", "72.0", "70" and nothing, the answer is
  "72" with shares {"72": 2/3, "70": 1/3}.

  Args:
    texts: the samples, at least one.
    log_probs: the log-probability of each whole sample, in nats.
    rule: the rule that extracts answers.

  Returns:
    The vote.
  """
  voters: dict[str, list[int]] = {}  # by an answer as it was first written
  written: dict[str, str] = {}  # the key in `voters` of every spelling
  for index, text in enumerate(texts):
    answer = rule.read(text)
    if not answer:
      continue
    if answer not in written:
      same = (key for key in voters if rule.same(answer, key))
      written[answer] = next(same, answer)
    voters.setdefault(written[answer], []).append(index)

  def weight(answer: str) -> tuple[int, float]:
    return len(voters[answer]), sum(log_probs[i] for i in voters[answer])

  # The sort is stable: in a tie, the answer that occurred first stays first.
  ranking = sorted(voters, key=weight, reverse=True)
  num_votes = sum(map(len, voters.values()))
  candidates = voters[ranking[0]] if ranking else range(len(texts))
  return Vote(
    answer=ranking[0] if ranking else None,
    shares={key: len(voters[key]) / num_votes for key in ranking},
    index=max(candidates, key=lambda i: log_probs[i]),
  )
