"""The metric as seqio sees it, and its counts."""

import numpy as np
import pytest
import seqio

from specialize_jax.evaluation import metrics


def test_accuracy_counts_right_answers_with_their_interval():
  predictions = ["The answer is 72."] * 8 + ["The answer is 71."] * 2
  values = metrics.number_accuracy(["72"] * 10, predictions)
  assert values["accuracy"] == 0.8
  assert values["n"] == 10
  assert values["low"] == pytest.approx(0.490, abs=5e-4)
  assert values["high"] == pytest.approx(0.943, abs=5e-4)


def test_exact_answers_are_words_not_numbers():
  predictions = ["So the answer is apple cat dog.", "The answer is cat apple."]
  values = metrics.exact_accuracy(["apple cat dog", "apple cat"], predictions)
  assert values["accuracy"] == 0.5


def test_the_graders_differ_where_the_papers_code_is_wrong():
  ours = metrics.Accuracy(grader="fixed")
  theirs = metrics.Accuracy(grader="paper_code")
  assert ours(["5"], ["The answer is -5."])["accuracy"] == 0.0
  assert ours(["5"], ["The answer is -5."])["accuracy_paper_code"] == 1.0
  assert theirs(["5"], ["The answer is -5."])["accuracy"] == 1.0


@pytest.mark.parametrize("prediction", ["", " ", "The answer is", "a" * 10**5])
def test_malformed_and_endless_outputs_are_wrong(prediction):
  for metric in (metrics.number_accuracy, metrics.exact_accuracy):
    for grader in metrics.GRADERS:
      graded = metrics.Accuracy(rule=metric.rule, grader=grader)
      assert graded(["7"], [prediction])["accuracy"] == 0.0


def test_seqio_takes_it_as_a_metric_on_predictions():
  made = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(
    metrics.number_accuracy, metrics.keep_answer
  )
  assert made.model_output_type == seqio.metrics.ModelOutputType.PREDICTION


def test_only_targets_are_replaced_by_the_bare_answer():
  example = {"answer": np.array(b"1,000")}
  assert metrics.keep_answer("x", example, is_target=True) == "1,000"
  assert metrics.keep_answer("x", example, is_target=False) == "x"
  assert metrics.keep_answer("x", {}, is_target=True) == "x"
  assert metrics.keep_answer("x", {"answer": b"7"}, is_target=True) == "7"
