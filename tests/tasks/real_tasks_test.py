import os

import pytest
import seqio

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import benchmarks as data
from specialize_jax.data import sources, splits
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


def test_zero_shot_bbh_shows_the_instruction_and_no_demonstration():
  one = first("bbh_snarks_zero_shot_chain_of_thought_v1", "validation")
  prompt = one["inputs_pretokenized"].decode()
  assert prompt.startswith("Determine which of two sentences is sarcastic.")
  assert prompt.count("Q: ") == 1
  assert prompt.endswith("\nA: Let's think step by step.")
  one = first("bbh_snarks_zero_shot_answer_only_v1", "validation")
  assert one["inputs_pretokenized"].decode().endswith("\nA:")


def ids(task, split):
  return set(task.source.columns(split)["question_id"])


def test_bbh_is_tested_whole_and_followed_on_a_quarter():
  sizes = {"validation": 0, "test": 0}
  for task in seqio.get_mixture_or_task("bbh_chain_of_thought").tasks:
    assert ids(task, "validation") < ids(task, "test")
    for split in sizes:
      sizes[split] += len(ids(task, split))
  assert sizes["test"] == 6511  # as its paper says
  assert 0.23 < sizes["validation"] / sizes["test"] < 0.25


@pytest.mark.parametrize("dataset", benchmarks.MATHS)
def test_no_validation_question_is_trained_on_or_tested(dataset):
  task = seqio.get_mixture_or_task(f"{dataset}_zero_shot_answer_only_v1")
  validation, test = ids(task, "validation"), ids(task, "test")
  assert validation and test and not validation & test
  trained = {row.question_id for row in data.read("gsm8k", "train")}
  assert not trained & (validation | test)
  # Nor in other words: the split is by what is asked.
  asked = {
    splits.words_of(question)
    for question in task.source.columns("validation")["question"]
  }
  assert not asked & {
    splits.words_of(row.question) for row in data.read("gsm8k", "train")
  }


@pytest.mark.parametrize(
  ("name", "split", "count"),
  [
    ("math_ood_validation", "validation", 3),
    ("math_all_validation", "validation", 4),
    ("math_all_test", "test", 4),
    ("math_test", "test", 4),
    *(
      (f"{mixture}_{data_format.name}", split, count)
      for mixture, split, count in (
        ("math_ood_validation", "validation", 3),
        ("math_all_test", "test", 4),
      )
      for data_format in formats.FORMATS
    ),
    *(
      (f"bbh_{name}", split, 27)
      for name in (
        "chain_of_thought",
        "answer_only",
        "zero_shot_chain_of_thought",
        "zero_shot_answer_only",
      )
      for split in ("validation", "test")
    ),
  ],
)
def test_an_evaluation_mixture_has_its_tasks_with_and_without_version(
  name, split, count
):
  mixture = seqio.get_mixture_or_task(f"{name}_v1")
  assert len(mixture.tasks) == count
  assert all(split in task.splits for task in mixture.tasks)
  assert all(task.metric_fns for task in mixture.tasks)
  newest = seqio.get_mixture_or_task(name)
  assert newest.rate_per_task_name == mixture.rate_per_task_name


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
