"""The metric of seqio tasks: accuracy with its confidence interval.

A task is registered with the metric and its postprocessor:

  seqio.TaskRegistry.add(
    "gsm8k_zero_shot_chain_of_thought_v1",
    ...,
    postprocess_fn=metrics.keep_answer,
    metric_fns=[metrics.number_accuracy],
  )

Its examples have `question_id` and the bare `answer` besides the features, so
that the answers to grade against never pass through a vocabulary (T5's, for
example, has no curly brackets).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax import errors
from specialize_jax.cot import answer_rules, answers
from specialize_jax.evaluation import intervals

GRADERS: tuple[answers.Grader, ...] = ("fixed", "paper_code")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
  """A seqio metric function that grades predictions.

  seqio determines what a metric needs by its argument names, so `__call__`
  takes `targets` and `predictions`, both texts.

  Attributes:
    rule: the rule that finds an answer and compares it.
    grader: the grader whose verdict is the accuracy.
    chain_of_thought: whether the prompt asks for a chain of thought, which only
      `paper_code` uses, for words; None if unknown.
  """

  rule: answer_rules.AnswerRule = answer_rules.NUMBER
  grader: answers.Grader = "fixed"
  chain_of_thought: bool | None = None

  def __post_init__(self) -> None:
    """Raises UserError if the grader does not know the rule."""
    if self.grader not in self.rule.graders:
      raise errors.UserError(
        f"the grader {self.grader} does not know answers of the kind"
        f" {self.rule.kind}: expected {' or '.join(self.rule.graders)}"
      )

  def __call__(
    self, targets: Sequence[str], predictions: Sequence[str]
  ) -> Mapping[str, float]:
    """Computes the accuracy with its 95 % Wilson interval.

    Args:
      targets: the gold answers, bare ("72") or as a sentence.
      predictions: the model's texts, in the same order.

    Returns:
      `accuracy`, `low` and `high` in [0, 1]; `n`, the number of predictions;
      and `accuracy_GRADER` for every grader that supports the rule.
    """
    pairs = list(zip(predictions, targets, strict=True))
    verdicts = [self.verdicts(*pair) for pair in pairs]
    return {
      **summarize([row[self.grader] for row in verdicts]),
      **by_grader(verdicts),
    }

  def grade(self, prediction: str, target: str) -> answers.Verdict:
    """Grades a prediction with this metric's grader."""
    return self.rule.grade(
      prediction,
      target,
      grader=self.grader,
      chain_of_thought=self.chain_of_thought,
    )

  def verdicts(self, prediction: str, target: str) -> dict[str, bool]:
    """Returns whether a prediction is correct, by grader."""
    return {
      grader: dataclasses.replace(self, grader=grader)
      .grade(prediction, target)
      .correct
      for grader in self.rule.graders
    }


number_accuracy = Accuracy()
exact_accuracy = Accuracy(rule=answer_rules.AnswerRule(kind="exact"))


def summarize(verdicts: Sequence[bool]) -> Mapping[str, float]:
  """Computes `accuracy`, `n` and the 95 % interval `low`, `high` of verdicts.

  Example: `{"accuracy": 0.8, "n": 10, "low": 0.490, "high": 0.943}` for eight
  of ten correct.
  """
  interval = intervals.wilson(sum(map(bool, verdicts)), len(verdicts))
  return {
    "accuracy": interval.estimate,
    "n": len(verdicts),
    "low": interval.low,
    "high": interval.high,
  }


def by_grader(verdicts: Sequence[Mapping[str, bool]]) -> Mapping[str, float]:
  """Computes the accuracy by each grader, as `accuracy_GRADER`.

  Example: `{"accuracy_fixed": 0.0, "accuracy_paper_code": 1.0}` for
  `[{"fixed": False, "paper_code": True}]`.
  """
  return {
    f"accuracy_{grader}": summarize([row[grader] for row in verdicts])[
      "accuracy"
    ]
    for grader in GRADERS
    if verdicts and grader in verdicts[0]
  }


def keep_answer(
  decoded: str,
  example: Mapping[str, np.ndarray | str | bytes] | None = None,
  is_target: bool = False,
) -> str:
  """Replaces the decoded target by the example's own bare answer.

  A seqio postprocessor, which is called for every target and every prediction.
  It returns predictions unchanged.

  Args:
    decoded: the decoded text.
    example: the task's example, with a string feature `answer`.
    is_target: whether `decoded` is the target.

  Returns:
    The text to grade, or to grade against.
  """
  if not is_target or example is None or "answer" not in example:
    return decoded
  return as_text(example["answer"])


def as_number(value: object) -> float | None:
  """Returns a metric's value as a number; None for text, images and the like.

  Args:
    value: what a seqio metric returns: a number, an array of one, or one of
      `seqio.metrics.Scalar`.
  """
  value = getattr(value, "value", value)
  try:
    return float(np.asarray(value).item())
  except (TypeError, ValueError):
    return None


def as_text(value: np.ndarray | str | bytes) -> str:
  """Converts a string feature, bytes in TensorFlow, to a string."""
  if isinstance(value, np.ndarray):
    value = value.item()
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)
