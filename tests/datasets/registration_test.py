"""A dataset file becomes tasks and mixtures, by the path that ours take."""

import functools
import importlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import seqio
from testdata import own_domain

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import preparation, questions, task_parts
from specialize_jax.datasets import files, registration
from specialize_jax.records import schema, store

FORMATS = [one.name for one in formats.FORMATS]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """A registered domain whose training rows have no rationale."""
  folder = tmp_path_factory.mktemp("own")
  own = files.load(str(own_domain.write(folder)))
  with own_domain.unregistered_after():
    registration.add(own.dataset)
    yield own


def first(name, split):
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    None, split=split, shuffle=False, seed=0
  )
  return next(dataset.as_numpy_iterator())


def write_records(own, folder):
  """A teacher's samples, every third of them wrong by the domain's rule."""
  with store.RecordWriter(folder) as writer:
    for row in own.train:
      said = row.question.answer if row.given_id % 3 else "nowhere"
      words = ["the", " parcel", " is", " so.", " queue:", f" {said}"]
      writer.append(
        schema.TeacherRecord(
          question_id=row.given_id,
          sample=0,
          question=row.question.question,
          gold_answer=row.question.answer,
          text="".join(words),
          steps=tuple(
            schema.TeacherStep(token=w, log_prob=-0.1, top=((w, -0.1),))
            for w in words
          ),
          finish_reason="stop",
          request={},
          # As a grader of numbers would have noted it, for good.
          verdicts={"fixed": not row.given_id % 3},
        )
      )
  return folder


@pytest.fixture(scope="module")
def prepared(own, tmp_path_factory):
  dataset = own.dataset
  return preparation.prepare(
    preparation.Preparation(
      records=str(write_records(own, tmp_path_factory.mktemp("records"))),
      vocabulary=dataset.vocabulary.path,
      mode="marginal",
      data_dir=dataset.tfds_dir,
      dataset_name=dataset.teacher_name,
      read_questions=lambda: dataset.read_training(None),
      answer=dataset.in_distribution.answer,
    )
  )


def test_a_prompt_that_shows_solved_questions_needs_some(own):
  with pytest.raises(errors.UserError, match="run `specialize prepare`"):
    own.dataset.in_distribution.read_demonstrations()


def test_verdicts_are_derived_by_the_domain_s_rule(prepared):
  assert prepared.report["kept"] == 16
  assert prepared.report["dropped"] == {"wrong answer": 8}


def test_every_task_is_written_in_the_domain_s_words(own, prepared):
  del prepared
  for name in FORMATS:
    one = first(f"queues_{name}_v1", "test")
    prompt = one["inputs_pretokenized"].decode()
    chain = name.endswith("chain_of_thought")
    end = "\nthink." if chain else "\nqueue?"
    assert prompt.endswith(f"ticket: test parcel 0 is late.{end}")
    # The teacher's right samples are what in-context prompts show.
    assert prompt.count("ticket:") == (3 if name.startswith("in_") else 1)
    if name == "in_context_chain_of_thought":
      assert prompt.count("the parcel is so. queue: ") == 2
    assert one["answer"] == b"late"
    trained = first(f"queues_teacher_{name}_v1", "train")
    assert trained["inputs_pretokenized"].decode().endswith(end)
    assert bool(trained["teacher_top_mask"].any()) == chain
  kept = f"{own.dataset.tfds_dir}/queues_teacher/{questions.DEMONSTRATIONS}"
  assert len(questions.read_questions(kept)) == 16


def test_mixtures_are_named_as_those_of_our_own_datasets(own):
  del own
  cot = "zero_shot_chain_of_thought_v1"
  members = {
    "queues_specialize": {f"queues_teacher_{name}_v1" for name in FORMATS},
    "queues_validation": {f"queues_{cot}", f"queues_phone_{cot}"},
    "queues_test": {f"queues_{cot}", f"queues_phone_{cot}"},
    "queues_out_of_distribution_validation": {f"queues_phone_{cot}"},
    "queues_general": {
      f"queues_sums_{cot}",
      "queues_sums_zero_shot_answer_only_v1",
    },
  }
  for name, tasks in members.items():
    for version in ("", "_v1"):
      mixture = seqio.get_mixture_or_task(f"{name}{version}")
      assert {task.name for task in mixture.tasks} == tasks
      mixture._check_compatible_features()


def test_the_metric_is_the_domain_s_rule():
  task = seqio.get_mixture_or_task(f"queues_phone_{FORMATS[3]}_v1")
  (metric,) = task.metric_fns
  values = metric(["late", "lost"], ["so queue: late", "lost"])
  assert values["accuracy"] == 0.5
  assert "accuracy_paper_code" not in values
  sums = seqio.get_mixture_or_task(f"queues_sums_{FORMATS[3]}_v1")
  assert sums.metric_fns[0](["2"], ["The answer is 2."])["accuracy"] == 1.0


def test_a_general_set_of_one_split_has_no_other(own):
  assert own.dataset.general[0].splits == ("test",)
  assert json.dumps(own.sizes)


def test_the_same_domain_is_registered_twice_and_another_of_its_name_not(
  own, tmp_path
):
  registration.add(files.load(own.path).dataset)
  # Another rule; the rows of another test set.
  yaml = own_domain.YAML.replace("(?P<answer>[a-z]+)", "(?P<answer>[a-z]*)")
  for number, change in enumerate(
    ({"yaml": yaml}, {"test": own_domain.rows("another", 4)})
  ):
    folder = tmp_path / str(number)
    folder.mkdir()
    shutil.copy(own.dataset.vocabulary.path, folder)
    path = own_domain.write(folder, **change)
    with pytest.raises(errors.UserError, match="is registered already, wit"):
      registration.add(files.load(str(path)).dataset)


def test_a_module_of_ours_that_is_imported_twice_registers_the_same():
  """As a test, or a notebook's autoreload, does it."""
  from specialize_jax.tasks import gsm8k, mini, mixtures

  for module in (gsm8k, mini, mixtures):
    importlib.reload(module)


def test_rates_that_are_functions_are_compared_by_what_they_do(own):
  name = "registration_rates"
  names = seqio.TaskRegistry.names()
  task = next(one for one in names if own.dataset.name in one)
  limited = functools.partial(seqio.mixing_rate_num_examples, maximum=1000)
  again = functools.partial(seqio.mixing_rate_num_examples, maximum=1000)
  other = functools.partial(seqio.mixing_rate_num_examples, maximum=2000)
  registration.add_mixture(name, [(task, limited)])
  registration.add_mixture(name, [(task, again)])
  with pytest.raises(errors.UserError, match="with other rates"):
    registration.add_mixture(name, [(task, other)])
  seqio.MixtureRegistry.remove(name)
  one, five = (lambda task: 1.0), (lambda task: 5.0)
  assert registration._of_rate(one) != registration._of_rate(five)
  assert registration._of_rate(one) == registration._of_rate(lambda task: 1.0)
  nested = [(lambda task: sum(x for x in range(3))) for _ in range(2)]
  assert registration._of_rate(nested[0]) == registration._of_rate(nested[1])
  assert registration._of_rate(np.int64(1)) != registration._of_rate(2)


def test_a_task_of_a_mixture_s_name_is_refused(own):
  del own
  with pytest.raises(errors.UserError, match="a mixture has this name"):
    task_parts.add_once("queues_test", source=None, output_features={})


_IN_BOTH_ORDERS = """
import os, sys
import tensorflow_datasets as tfds

def theirs():
  tfds.core.registered._import_legacy_builders()

def ours():
  from specialize_jax.data import benchmark_builders as builders
  found[:] = [builders.BUILDERS["gsm8k"].__module__]

for order in (theirs, ours), (ours, theirs):
  pid = os.fork()
  if not pid:
    found = []
    for register in order:
      register()
    print(order[0].__name__, *found, flush=True)
    os._exit(0)
  if os.waitpid(pid, 0)[1]:
    sys.exit(f"{order[0].__name__} first fails")
"""


def test_our_builders_and_those_of_tfds_live_in_one_process():
  """TFDS registers its own gsm8k when it is asked for any dataset."""
  done = subprocess.run(
    [sys.executable, "-c", _IN_BOTH_ORDERS],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  ours = "specialize_jax.data.benchmark_builders"
  assert done.stdout.splitlines() == [f"theirs {ours}", f"ours {ours}"]
