import os

import pytest
import seqio

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import sources
from specialize_jax.evaluation import benchmarks
from tasks import mixtures  # noqa: F401 (registers the tasks)


@pytest.fixture(scope="module", autouse=True)
def real():
  try:
    found = os.path.isdir(os.path.join(sources.data_dir(), "gsm8k"))
  except errors.UserError:
    found = False
  if not found:
    pytest.skip("the real data are not here; SPECIALIZE_DATA names them")


def first(name, split):
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    split=split, shuffle=False, seed=0
  )
  return next(dataset.as_numpy_iterator())


@pytest.mark.parametrize("dataset", benchmarks.MATHS)
def test_zero_shot_asks_the_real_question(dataset):
  one = first(f"{dataset}_zero_shot_chain_of_thought_v1", "test")
  prompt = one["inputs_pretokenized"].decode()
  assert prompt.startswith("Q: ")
  assert prompt.endswith("\nLet's think step by step")
  assert one["inputs"][-1] == 1
  assert one["question_id"].decode().startswith(f"{dataset}/")
  assert one["answer"].decode() in one["targets_pretokenized"].decode()


def test_in_context_shows_four_solved_gsm8k_questions():
  one = first("svamp_in_context_chain_of_thought_v1", "validation")
  prompt = one["inputs_pretokenized"].decode()
  assert prompt.count("Q: ") == 5
  assert prompt.count("The answer is") == 4
  assert "<<" not in prompt


@pytest.mark.parametrize("name", ["chain_of_thought", "answer_only"])
def test_bbh_has_27_tasks_with_their_prompts(name):
  mixture = seqio.get_mixture_or_task(f"bbh_{name}_v1")
  assert len(mixture.tasks) == 27
  one = first(f"bbh_boolean_expressions_in_context_{name}_v1", "test")
  prompt = one["inputs_pretokenized"].decode()
  assert prompt.startswith("Evaluate the result of a random Boolean")
  assert prompt.count("Q: ") == 4
  assert one["answer"].decode() == one["targets_pretokenized"].decode()
  assert one["question_id"] == b"bbh/boolean_expressions/0"


@pytest.mark.parametrize(
  ("name", "split", "count"),
  [("math_ood_validation_v1", "validation", 3), ("math_test_v1", "test", 4)],
)
def test_the_evaluation_mixtures_have_their_tasks(name, split, count):
  mixture = seqio.get_mixture_or_task(name)
  assert len(mixture.tasks) == count
  assert all(split in task.splits for task in mixture.tasks)
  assert all(task.metric_fns for task in mixture.tasks)


def test_bbh_as_the_paper_s_code_has_its_own_tasks():
  mixture = seqio.get_mixture_or_task("bbh_answer_only_paper_code_v1")
  assert len(mixture.tasks) == 27
  name = "bbh_boolean_expressions_in_context_answer_only_paper_code_v1"
  prompt = first(name, "test")["inputs_pretokenized"].decode()
  assert "canary" in prompt and prompt.endswith("\nA: the answer is ")
  (metric,) = seqio.get_mixture_or_task(name).metric_fns
  assert metric.grader == "paper_code"


def test_every_real_format_is_registered():
  names = seqio.TaskRegistry.names()
  for dataset in (*benchmarks.MATHS, "gsm8k_teacher"):
    for data_format in formats.FORMATS:
      assert f"{dataset}_{data_format.name}_v1" in names
