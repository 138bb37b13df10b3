"""What a user meets who brings a domain and modules of their own.

Each is a process, as a user starts it, in a project with a `tasks.py` and a
`gin_configs/` of its own, which are none of ours.
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from faults import started
from testdata import local_teacher, own_domain

from specialize_jax.records import store

ROOT = pathlib.Path(__file__).parents[2]

_OWN_TASKS = """\
import seqio

from specialize_jax.data import sources, task_parts, vocabularies


def f1(targets, predictions):
  return {"f1": 0.5, "note": "no number"}


VOCABULARY = vocabularies.LocatedSentencePieceVocabulary(PATH, extra_ids=0)


def read(split):
  texts = [f"{split} {i}" for i in range(4)]
  return {"inputs": texts, "targets": texts, "question_id": texts}


seqio.TaskRegistry.add(
  "own_task",
  **task_parts.written_prompt(
    sources.TableSource(
      read, splits=["validation", "test"], description="own"
    ),
    VOCABULARY,
  ),
  metric_fns=[f1],
)
"""
_STUDENT = """\
from __gin__ import dynamic_registration
from specialize_jax.runs import experiment
from specialize_jax.t5 import config
include "runs/train.gin"
include "losses/distribution_matching.gin"
config.T5Config:
  vocab_size = 64
  embed_dim = 8
  mlp_dim = 16
  num_heads = 1
  head_dim = 8
  num_encoder_layers = 1
  num_decoder_layers = 1
  mlp_activations = ("relu",)
  tied_head = True
  dropout_rate = 0.0
  dtype = "float32"
TASK_FEATURE_LENGTHS = {"inputs": 128, "targets": 64}
BATCH_SIZE = 8
TRAIN_STEPS = 2
EVALUATIONS = [@a/experiment.Evaluation(), @b/experiment.Evaluation()]
a/experiment.Evaluation.mixture_or_task_name = "queues_validation"
b/experiment.Evaluation.mixture_or_task_name = "own_task"
experiment.Evaluation:
  task_feature_lengths = {"inputs": 64, "targets": 16}
  batch_size = 8
  max_new_tokens = 4
EVAL_EVERY = 2
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
  """A project of a user's, with names that are also ours."""
  place = tmp_path_factory.mktemp("project")
  own_domain.write(place)
  (place / "tasks.py").write_text('NAME = "a user\'s own tasks"\n')
  (place / "gin_configs").mkdir()
  (place / "gin_configs" / "train.gin").write_text("nonsense")
  path = repr(str(place / "spiece.model"))
  (place / "own_tasks.py").write_text(
    f"import tasks\nassert tasks.NAME\nPATH = {path}\n{_OWN_TASKS}"
  )
  (place / "broken.py").write_text("import tasks\n\n1 / 0\n")
  (place / "student.gin").write_text(_STUDENT)
  return place


@pytest.fixture(scope="module")
def run(project):
  """Runs `specialize` in the project; returns status, output and errors.

  Each run is a process of its own, since it registers tasks and imports the
  user's modules. The libraries are imported once for all of them.
  """
  environment = {
    "FAULTS_WARM": "libraries",
    "PYTHONSAFEPATH": "1",
    "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
  }
  with started.Server(environment) as server:

    def run(*argv, cwd=project):
      ended = server.run(argv, cwd=cwd)
      return ended.status, ended.stdout, ended.stderr

    yield run


def test_questions_whose_answers_are_words_are_sent_to_a_dataset_file(run):
  status, _, err = run(
    "teach", "--questions=train.jsonl", "--base_url=http://127.0.0.1:9/v1",
    "--model=m", "--output=store",
  )  # fmt: skip
  assert status == 2
  assert "has no number: give --dataset=FILE.yaml" in err


def test_a_wrong_file_is_told_whole_before_any_request_is_paid_for(
  run, project, tmp_path
):
  wrong = own_domain.YAML.replace("Ticket: {question}", "Ticket:")
  leak = [*own_domain.rows("validation", 3), *own_domain.rows("train", 1)]
  folder = tmp_path / "wrong"
  folder.mkdir()
  (folder / "spiece.model").write_bytes((project / "spiece.model").read_bytes())
  own_domain.write(folder, wrong, validation=leak)
  with local_teacher.started() as url:
    status, _, err = run(
      "teach", "--dataset=queues.yaml", f"--base_url={url}", "--model=m",
      "--output=store", cwd=folder,
    )  # fmt: skip
    assert local_teacher.stats(url)["requests"] == 0
  assert status == 2
  lines = err.strip().splitlines()
  assert lines[0] == (
    "specialize teach: error: --dataset=queues.yaml has 2 mistakes:"
  )
  assert "queues.yaml:9: teacher.prompt has {question} 0 times" in lines[1]
  assert "validation.jsonl:4: validation asks 'train parcel 0 is" in lines[2]
  assert not (folder / "store").exists()


def test_a_response_is_judged_by_the_rule_of_its_dataset(run, project):
  response = {
    "question_id": 0,
    "question": "train parcel 0 is late.",
    "answer": "late",
    "choices": [
      {
        "text": "queue: late",
        "finish_reason": "stop",
        "logprobs": {
          "tokens": ["queue:", " late"],
          "token_logprobs": [-0.1, -0.1],
          "top_logprobs": [{"queue:": -0.1}, {" late": -0.1}],
        },
      }
    ],
  }
  (project / "responses.jsonl").write_text(json.dumps(response) + "\n")
  status, out, err = run(
    "import", "--input=responses.jsonl", "--output=as_numbers"
  )
  assert status == 0, err
  assert "0 of 0 graded are right, 1 not graded" in out
  assert "give --dataset=FILE.yaml" in out
  status, out, err = run(
    "import", "--input=responses.jsonl", "--output=records",
    "--dataset=queues.yaml",
  )  # fmt: skip
  assert status == 0, err
  assert "1 samples, 1 of 1 graded are right" in out


def test_a_module_that_is_not_there_or_fails_is_one_sentence(run, project):
  status, _, err = run("inspect", "--task=own_task", "--import=no_such")
  assert status == 2
  assert err.strip() == (
    "specialize inspect: error: --import=no_such: there is no module no_such,"
    f" neither installed nor in the working directory {project}"
  )
  status, _, err = run("inspect", "--task=own_task", "--import=broken")
  assert status == 2
  assert f"--import=broken fails at {project}/broken.py:3 (ZeroDivi" in err
  assert "Traceback" not in err


def test_predictions_are_scored_by_the_dataset_s_rule(run, project):
  rows = [
    {"prediction": "so queue: late.", "target": "late"},
    {"prediction": "late", "target": "late"},
  ]
  own_domain.write_rows(project / "predictions.jsonl", rows)
  status, out, err = run(
    "score", "--dataset=queues.yaml", "--inputs=predictions.jsonl",
    "--output=graded.jsonl",
  )  # fmt: skip
  assert status == 0, err
  assert json.loads(out.splitlines()[-1])["accuracy"] == 0.5
  status, _, err = run(
    "score", "--dataset=queues.yaml", "--inputs=predictions.jsonl",
    "--output=graded.jsonl", "--task=mail",
  )  # fmt: skip
  assert status == 2
  assert "expected one of queues, queues_phone, phone" in err


@pytest.fixture(scope="module")
def imported(run, project):
  """A record store of a right answer to every training question."""
  rows = own_domain.rows("train", own_domain.SIZES["train"])
  responses = [
    {
      "custom_id": str(number),
      "response": {"body": {"choices": [{
        "text": f"so queue: {row['answer']}",
        "finish_reason": "stop",
        "logprobs": {
          "tokens": ["so", " queue:", f" {row['answer']}"],
          "token_logprobs": [-0.1] * 3,
          "top_logprobs": [
            {"so": -0.1}, {" queue:": -0.1}, {f" {row['answer']}": -0.1}
          ],
        },
      }]}},
    }
    for number, row in enumerate(rows)
  ]  # fmt: skip
  own_domain.write_rows(project / "batch.jsonl", responses)
  status, _, err = run(
    "import", "--dataset=queues.yaml", "--input=batch.jsonl", "--output=batch"
  )
  assert status == 0, err
  return project / "batch"


@pytest.fixture(scope="module")
def prepared(run, imported):
  """What `prepare` printed of it."""
  status, out, err = run(
    "prepare", "--dataset=queues.yaml", f"--records={imported}"
  )
  assert status == 0, err
  return out


def test_rows_need_neither_a_solution_nor_a_rationale_nor_an_id(prepared):
  assert "24 samples of 24 questions (0 of 24 records dropped)" in prepared


def test_questions_that_are_not_gsm8k_s_are_sent_to_a_dataset_file(
  run, imported
):
  status, _, err = run(
    "prepare", f"--records={imported}", "--vocabulary=spiece.model",
    "--questions=train.jsonl", "--data_dir=elsewhere",
  )  # fmt: skip
  assert status == 2
  assert err.strip() == (
    "specialize prepare: error: --questions=train.jsonl is not a training file"
    " of gsm8k_teacher (train.jsonl, row 1: expected an answer that ends in"
    " '#### NUMBER', got 'late'); questions of a domain of your own are"
    " described by --dataset=FILE.yaml (docs/own_domain.md)"
  )


def test_a_verdict_that_was_stored_wrong_is_derived_anew(
  run, project, imported
):
  status, out, err = run(
    "import", "--input=batch.jsonl", "--output=graded_as_numbers",
    "--questions=train.jsonl",
  )  # fmt: skip
  assert status == 2, "it has no numbers, and is not graded as if it had"
  assert "has no number: give --dataset=FILE.yaml" in err
  # A store of an earlier version, whose grader of numbers found none.
  records = list(store.read_records(imported))
  assert all(one.verdicts["fixed"] for one in records)
  with store.RecordWriter(project / "earlier") as writer:
    for one in records:
      writer.append(dataclasses.replace(one, verdicts={"fixed": False}))
  status, out, err = run(
    "prepare", "--dataset=queues.yaml", "--records=earlier",
    "--data_dir=earlier_tfds",
  )  # fmt: skip
  assert status == 0, err
  assert "24 samples of 24 questions (0 of 24 records dropped)" in out


def test_tasks_of_one_s_own_are_shown(run, prepared):
  del prepared
  name = "queues_teacher_in_context_chain_of_thought_v1"
  status, out, err = run("inspect", "--dataset=queues.yaml", f"--task={name}")
  assert status == 0, err
  assert out.startswith(f"{name}, train 0\n")
  shown = re.sub(r"[\s\u2581|]", "", out)
  assert shown.count("ticket:") == 3
  status, out, err = run("inspect", "--import=own_tasks", "--task=own_task")
  assert status == 0, err
  assert out.startswith("own_task, test 0\n")
  status, _, err = run("inspect", f"--task={name}")
  assert status == 2
  assert "--dataset=FILE.yaml" in err


def test_a_report_of_nothing_is_no_empty_page(run, project):
  (project / "empty").mkdir()
  status, _, err = run("report", "--run=empty", "--output=page.html")
  assert status == 2
  assert err.startswith("specialize report: error: --run=empty")
  assert not (project / "page.html").exists()


def test_a_teacher_is_not_asked_gsm8k_s_way(run, project):
  yaml = re.sub("teacher: .*\n", "", own_domain.YAML)
  (project / "unasked.yaml").write_text(yaml)
  status, _, err = run(
    "teach", "--dataset=unasked.yaml", "--base_url=http://127.0.0.1:9/v1",
    "--model=m", "--output=store",
  )  # fmt: skip
  assert status == 2
  assert err.strip() == (
    "specialize teach: error: --dataset=unasked.yaml does not say how the"
    " teacher is asked: add `teacher: {prompt: ...}` with {question} in it, or"
    " give --prompt"
  )


@pytest.fixture(scope="module")
def trained(run, project, prepared):
  """A run of two steps, which also evaluates a task of the user's own."""
  del prepared
  status, _, err = run(
    "train", "--dataset=queues.yaml", "--import=own_tasks",
    "--gin_file=student.gin", "--gin.MODEL_DIR=run",
  )  # fmt: skip
  assert status == 0, err
  return project / "run"


@pytest.mark.slow
def test_a_report_shows_what_a_run_has_and_names_what_it_lacks(trained, run):
  del trained
  status, out, err = run("report", "--run=run", "--dataset=queues.yaml")
  assert status == 0, err
  assert out.strip() == "report: run/report.html"


@pytest.mark.slow
def test_a_run_keeps_what_it_takes_to_use_it(trained, project):
  vocabulary = trained / "vocabulary" / "spiece.model"
  assert vocabulary.read_bytes() == (project / "spiece.model").read_bytes()
  assert "TRAIN_STEPS = 2" in (trained / "config.gin").read_text()
  assert (trained / "dataset.yaml").read_text() == own_domain.YAML
  versions = json.loads((trained / "versions.json").read_text())
  assert versions["jax"] and versions["python"]


@pytest.mark.slow
def test_a_plain_metric_is_evaluated_and_judges_no_prediction(trained, run):
  del trained
  status, out, err = run(
    "eval", "--import=own_tasks", "--gin.CHECKPOINT_PATH=run",
    "--gin.MIXTURE_OR_TASK_NAME=own_task", "--gin.EVAL_OUTPUT_DIR=evaluated",
    '--gin.TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 16}',
    "--gin.MAX_NEW_TOKENS=4", "--gin.EVAL_BATCH_SIZE=4",
  )  # fmt: skip
  assert status == 0, err
  assert out.splitlines()[-2:] == [
    "own_task  f1 0.500",
    '{"own_task": {"f1": 0.5}}',
  ]


@pytest.mark.slow
def test_another_criterion_does_not_move_the_best_checkpoint(trained, run):
  status, out, err = run("select", "--dataset=queues.yaml", "--model_dir=run")
  assert status == 0, err
  assert json.loads(out.splitlines()[-1])["best"] == "run/best"
  before = (trained / "selection.json").read_text()
  argv = ["select", "--model_dir=run", "--metric=f1",
          "--out_of_distribution=own_task"]  # fmt: skip
  status, out, err = run(*argv)
  assert status == 0, err
  assert json.loads(out.splitlines()[-1])["best"] is None
  assert "run/best stays at step 2, selected by accuracy of queues_phone" in err
  assert "give --move_best" in err
  assert (trained / "selection.json").read_text() == before
  status, out, err = run(*argv, "--move_best")
  assert status == 0, err
  assert json.loads((trained / "selection.json").read_text())["metric"] == "f1"


@pytest.mark.slow
def test_a_question_is_written_as_the_student_was_trained(
  trained, run, project
):
  status, _, err = run("convert", "--checkpoint=run", "--output=folder")
  assert status == 0, err
  assert (project / "folder" / "spiece.model").exists()
  asked = [{"question": "new parcel is lost."}]
  own_domain.write_rows(project / "asked.jsonl", asked)
  written = [{"text": "ticket: new parcel is lost.\nthink."}]
  own_domain.write_rows(project / "written.jsonl", written)
  outputs = []
  for checkpoint, name in (("run", "asked"), ("folder", "written")):
    status, _, err = run(
      "generate", f"--checkpoint={checkpoint}", f"--inputs={name}.jsonl",
      f"--outputs={name}_output.jsonl", "--max_new_tokens=4",
    )  # fmt: skip
    assert status == 0, err
    text = (project / f"{name}_output.jsonl").read_text()
    outputs.append(json.loads(text)["output_ids"])
  assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_the_example_goes_from_questions_to_a_folder_and_a_report(tmp_path):
  output = tmp_path / "output"
  python = f"{sys.executable} -m specialize_jax.cli.main"
  (tmp_path / "specialize").write_text(f'#!/bin/bash\nexec {python} "$@"\n')
  (tmp_path / "specialize").chmod(0o755)
  done = subprocess.run(
    [ROOT / "examples" / "own_domain" / "run.sh", output,
     "--gin.TRAIN_STEPS=4", "--gin.WARMUP_STEPS=1",
     "--gin.CHECKPOINT_EVERY=2", "--gin.EVAL_EVERY=2"],
    env={**os.environ, "SPECIALIZE": str(tmp_path / "specialize"),
         "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (output / "folder" / "spiece.model").exists()
  assert (output / "report.html").exists()
  (sorted_,) = (output / "sorted.jsonl").read_text().splitlines()
  assert json.loads(sorted_)["output_ids"]
