"""Ways of decoding are compared on the same questions, gain or not."""

import json

import numpy as np
import pytest
from decoding import with_calculator_test
from testdata import (
  chain_model,
  tiny_checkpoints,
  tiny_demo,
  tiny_vocabulary,
  tiny_world,
)

from specialize_jax import errors
from specialize_jax.checkpoints import huggingface
from specialize_jax.checkpoints import sources as sources_
from specialize_jax.data import sources
from specialize_jax.decoding import requests
from specialize_jax.evaluation import metrics
from specialize_jax.files import seals
from specialize_jax.study import decoding_comparison
from tasks import mixtures  # noqa: F401  (registers every task)

TASK = "mini_gsm_zero_shot_chain_of_thought_v1"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tiny_world.build(tmp_path_factory.mktemp("world"))
  sources.set_data_dir(path)
  yield path
  sources.set_data_dir(None)


def test_a_model_that_adds_wrongly_gains_by_the_calculator():
  vocabulary = tiny_vocabulary.load()
  model, params = chain_model.make(vocabulary, with_calculator_test.GREEDY_SUM)
  questions = decoding_comparison.Questions(
    asked=[
      requests.Request(number=n, input_ids=np.array([5, 1], np.int32))
      for n in range(20)
    ],
    targets=["10"] * 20,  # the model says 2+8=7
    metric=metrics.number_accuracy,
  )
  evaluation = tiny_demo.evaluation("unread", max_new_tokens=8)
  outcomes = [
    decoding_comparison.decode(
      way,
      model,
      params,
      questions,
      vocabulary=vocabulary,
      evaluation=evaluation,
    )
    for way in (decoding_comparison.GREEDY, decoding_comparison.CALCULATOR)
  ]
  assert outcomes[0].texts == ["2+8=7"] * 20
  greedy, computed = decoding_comparison.rows(outcomes)
  assert (greedy["accuracy"], computed["accuracy"]) == (0.0, 1.0)
  assert greedy["difference"] is None
  difference = computed["difference"]
  assert (difference["estimate"], difference["high"]) == (1.0, 1.0)
  assert 0.8 < difference["low"] < 0.9  # of 20 questions
  assert 0 < greedy["high"] < computed["low"] < 1


def test_ways_of_decoding_are_compared_and_predictions_stored(
  data_dir, tmp_path
):
  config = tiny_demo.model()
  tensors = tiny_checkpoints.random_tensors(config)
  huggingface.write(
    tmp_path / "model", config, sources_.Leaves("memory", tensors)
  )
  result = decoding_comparison.compare(
    tmp_path / "model",
    evaluation=tiny_demo.evaluation(
      TASK, split="test", num_examples=4, batch_size=8
    ),
    vocabulary_path=f"{data_dir}/mini/student.model",
    output_dir=tmp_path / "results",
  )
  stored = json.loads((tmp_path / "results/decoding.json").read_text())
  assert stored.pop(seals.FIELD)
  assert result == stored
  names = [way.name for way in decoding_comparison.WAYS]
  assert [row["name"] for row in result["ways"]] == names
  assert result["n"] == 4
  path = tmp_path / f"results/predictions/decoding/{TASK}.jsonl"
  kept = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(kept) == 4
  assert list(kept[0]["ways"]) == names


def test_a_task_that_cannot_be_graded_is_named(data_dir):
  for task in ("mini_gsm_v0", "mini_facts_v1"):
    with pytest.raises(errors.UserError, match=task):
      decoding_comparison._read(tiny_demo.evaluation(task))
