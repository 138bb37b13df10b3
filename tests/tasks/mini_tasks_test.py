import importlib.util
import os
import subprocess
import sys

import pytest
import seqio
from testdata import tiny_world

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import sources
from tasks import mini, mixtures


def examples(name, split, count=None, seed=0):
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    split=split, shuffle=False, seed=seed
  )
  if count is not None:
    dataset = dataset.take(count)
  return list(dataset.as_numpy_iterator())


def test_importing_the_mixtures_needs_no_file():
  code = "import tasks.mixtures, seqio; print(len(seqio.TaskRegistry.names()))"
  environment = {**os.environ, "SPECIALIZE_DATA": "/nowhere"}
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert int(done.stdout) > 30


def test_importing_twice_registers_once():
  before = seqio.TaskRegistry.names()
  for module in (mini, mixtures):
    # As a module of its own: gin knows the functions of the first one.
    spec = importlib.util.find_spec(module.__name__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
  assert seqio.TaskRegistry.names() == before


@pytest.mark.parametrize("data_format", formats.FORMATS, ids=lambda f: f.name)
def test_an_evaluated_example_has_the_format_s_wording(world, data_format):
  row = tiny_world.read(f"{world}/mini/mini_svamp/test.jsonl")[2]
  one = examples(f"mini_svamp_{data_format.name}_v1", "test", 3)[2]
  prompt = one["inputs_pretokenized"].decode()
  assert prompt.endswith(formats.render_question(row["question"], data_format))
  shown = mini.NUM_DEMONSTRATIONS if data_format.in_context else 0
  assert prompt.count("Q: ") == shown + 1
  assert one["targets_pretokenized"].decode() == formats.render_target(
    data_format, row["rationale"], row["answer"]
  )
  assert one["question_id"].decode() == "mini_svamp/test/2"
  assert one["answer"].decode() == row["answer"]
  vocabulary = mini.VOCABULARY
  assert one["inputs"][-1] == one["targets"][-1] == vocabulary.eos_id
  assert (
    vocabulary.decode(one["targets"][:-1].tolist()) == row["rationale"]
    or not data_format.chain_of_thought
  )


@pytest.mark.parametrize("task", mini.GENERAL)
def test_general_tasks_are_evaluated_and_pretrained_on(world, task):
  name = "zero_shot_chain_of_thought_v1"
  assert len(examples(f"{task}_{name}", "test")) == 6
  trained = examples(f"{task}_pretrain_{name}", "train", 1)[0]
  assert trained["teacher_top_ids"].shape == (len(trained["targets"]), 5)
  assert (trained["teacher_top_ids"][:, 0] == trained["targets"]).all()
  assert (trained["teacher_top_probs"].sum(axis=1) == 1).all()
  assert not trained["teacher_top_mask"].any()


def test_weak_maths_is_written_in_each_row_s_own_format(world):
  first, second = examples("mini_weak_maths_v1", "train", 2)
  assert first["inputs_pretokenized"] == b"Q: What is 0 + 1? A:"
  assert first["targets_pretokenized"] == b"The answer is 1"
  assert second["inputs_pretokenized"].endswith(b"think step by step")
  assert second["targets_pretokenized"] == b"1 + 1 = 2. The answer is 2."


@pytest.mark.parametrize("data_format", formats.FORMATS, ids=lambda f: f.name)
def test_weak_maths_can_be_pretrained_on_in_every_format(world, data_format):
  one = examples(f"mini_weak_maths_{data_format.name}_v1", "train", 1)[0]
  prompt = one["inputs_pretokenized"].decode()
  assert prompt.endswith(formats.render_question("What is 0 + 1?", data_format))
  shown = mini.NUM_DEMONSTRATIONS if data_format.in_context else 0
  assert prompt.count("Q: ") == shown + 1
  assert one["targets_pretokenized"].decode() == formats.render_target(
    data_format, "0 + 1 = 1. The answer is 1.", "1"
  )


def test_abilities_of_the_general_model_are_rates():
  name = mixtures.mini_pretrain(
    name="all_abilities_test",
    weak_maths_chain_of_thought_rate=1.0,
    weak_maths_in_context_rate=2.0,
  )
  mixture = seqio.get_mixture_or_task(name)
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates["mini_weak_maths_zero_shot_chain_of_thought_v1"] == 1.0
  assert rates["mini_weak_maths_in_context_answer_only_v1"] == 2.0
  default = seqio.get_mixture_or_task("mini_pretrain_v1")
  assert not any("weak_maths_in_context" in t.name for t in default.tasks)


@pytest.mark.parametrize(
  "name",
  [
    "mini_math_ood_validation_v1",
    "mini_math_all_test_v1",
    "mini_math_test_v1",
    "mini_general_v1",
    "mini_general_in_context_answer_only_v1",
    "mini_pretrain_v1",
  ],
)
def test_a_mixture_s_tasks_agree(name):
  mixture = seqio.get_mixture_or_task(name)
  mixture._check_compatible_features()
  assert all(mixture.get_rate(task) > 0 for task in mixture.tasks)


def test_rates_are_arguments_and_a_mixture_never_changes():
  name = mixtures.mini_pretrain(name="more_text_test", text_rate=7.0)
  mixture = seqio.get_mixture_or_task(name)
  text = seqio.get_mixture_or_task("mini_text_span_corruption_v1")
  assert mixture.get_rate(text) == 7.0
  assert mixtures.mini_pretrain(name=name, text_rate=7.0) == name
  with pytest.raises(errors.UserError, match="other rates"):
    mixtures.mini_pretrain(name=name, text_rate=8.0)


def test_a_rate_of_zero_leaves_a_task_out():
  name = mixtures.mini_pretrain(name="no_text_test", text_rate=0.0)
  names = [task.name for task in seqio.get_mixture_or_task(name).tasks]
  assert "mini_text_span_corruption_v1" not in names


def test_a_mixture_without_any_rate_is_an_error():
  with pytest.raises(errors.UserError, match="'none_test' is empty"):
    mixtures.add_mixture("none_test", [("mini_weak_maths_v1", 0.0)])


def test_a_missing_file_is_named_with_the_way_out(tmp_path):
  sources.set_data_dir(tmp_path)
  try:
    with pytest.raises(errors.UserError, match="--data_dir"):
      examples("mini_gsm_zero_shot_answer_only_v1", "test")
  finally:
    sources.set_data_dir(None)
