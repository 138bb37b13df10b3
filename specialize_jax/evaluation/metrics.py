"""The metric that seqio tasks carry: graded accuracy with its interval.

A task names its metric and its postprocessor:

  seqio.TaskRegistry.add(
    "gsm8k_zero_shot_chain_of_thought_v1",
    ...,
    postprocess_fn=metrics.keep_answer,
    metric_fns=[metrics.number_accuracy],
  )

Its examples carry `question_id` and the bare `answer` beside the features,
so that what is graded against never passes through a vocabulary (T5's, for
one, has no curly brackets).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax.cot import answers
from specialize_jax.evaluation import intervals

GRADERS: tuple[answers.Grader, ...] = ("fixed", "paper_code")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
  """A seqio metric function that grades and counts.

  seqio tells what a metric needs by the names of its arguments, so
  `__call__` takes `targets` and `predictions`, both text.

  Attributes:
    kind: what an answer is; see `specialize_jax.cot.answers.grade`.
    grader: whose rule decides.
    chain_of_thought: whether the prompt asks for one, which only the paper's
      rule for words looks at; None where it is not known.
  """

  kind: answers.Kind = "number"
  grader: answers.Grader = "fixed"
  chain_of_thought: bool | None = None

  def __call__(
    self, targets: Sequence[str], predictions: Sequence[str]
  ) -> Mapping[str, float]:
    """Gives the share of right answers with its 95 % Wilson interval.

    Args:
      targets: the gold answers, bare ("72") or as a sentence.
      predictions: the model's texts, in the same order.

    Returns:
      `accuracy`, `low` and `high` from 0 to 1, and `n`, the number graded;
      and `accuracy_GRADER` by every grader, this metric's own included.
    """
    pairs = list(zip(predictions, targets, strict=True))
    verdicts = [self.verdicts(*pair) for pair in pairs]
    return {
      **summarize([row[self.grader] for row in verdicts]),
      **by_grader(verdicts),
    }

  def grade(self, prediction: str, target: str) -> answers.Verdict:
    """Grades one prediction by this metric's rule."""
    return answers.grade(
      prediction,
      target,
      kind=self.kind,
      grader=self.grader,
      chain_of_thought=self.chain_of_thought,
    )

  def verdicts(self, prediction: str, target: str) -> dict[str, bool]:
    """Gives what every grader says of one prediction, by its name."""
    return {
      grader: dataclasses.replace(self, grader=grader)
      .grade(prediction, target)
      .correct
      for grader in GRADERS
    }


number_accuracy = Accuracy(kind="number")
exact_accuracy = Accuracy(kind="exact")


def summarize(verdicts: Sequence[bool]) -> Mapping[str, float]:
  """Counts verdicts: `accuracy`, `n`, and the 95 % interval `low`, `high`.

  Example: eight right of ten give `{"accuracy": 0.8, "n": 10, "low": 0.490,
  "high": 0.943}`.
  """
  interval = intervals.wilson(sum(map(bool, verdicts)), len(verdicts))
  return {
    "accuracy": interval.estimate,
    "n": len(verdicts),
    "low": interval.low,
    "high": interval.high,
  }


def by_grader(verdicts: Sequence[Mapping[str, bool]]) -> Mapping[str, float]:
  """Gives the accuracy by each grader, as `accuracy_GRADER`.

  Example: `[{"fixed": False, "paper_code": True}]` gives
  `{"accuracy_fixed": 0.0, "accuracy_paper_code": 1.0}`.
  """
  return {
    f"accuracy_{grader}": summarize([row[grader] for row in verdicts])[
      "accuracy"
    ]
    for grader in GRADERS
  }


def keep_answer(
  decoded: str,
  example: Mapping[str, np.ndarray | str | bytes] | None = None,
  is_target: bool = False,
) -> str:
  """Replaces the decoded target by the example's own bare answer.

  A seqio postprocessor: it is called for every target and every prediction,
  and leaves predictions as they are.

  Args:
    decoded: the text that the vocabulary gave back.
    example: the task's example, with a string feature `answer`.
    is_target: whether `decoded` is the target.

  Returns:
    The text to grade, or to grade against.
  """
  if not is_target or example is None or "answer" not in example:
    return decoded
  return as_text(example["answer"])


def as_text(value: np.ndarray | str | bytes) -> str:
  """Reads a string feature, which TensorFlow hands over as bytes."""
  if isinstance(value, np.ndarray):
    value = value.item()
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)
