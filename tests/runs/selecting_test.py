"""Checkpoints are evaluated once, and the best one is put where all find it."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from absl import logging
from testdata import several_processes, tiny_demo, tiny_world

from specialize_jax.checkpoints import best, manifests, opening
from specialize_jax.cli import main
from specialize_jax.data import identity, sources
from specialize_jax.evaluation import history
from specialize_jax.files import reading, writing
from specialize_jax.runs import choosing, experiment, resuming, selecting
from tasks import mixtures  # noqa: F401 (registers the tasks)

SUFFIX = "_zero_shot_chain_of_thought_v1"
MACROS = {
  "MIXTURE_OR_TASK_NAME": "mini_math_all_validation",
  "TEST_MIXTURE_OR_TASK_NAME": "mini_math_all_test",
  "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 64},
  "EVAL_BATCH_SIZE": 8,
  "MAX_NEW_TOKENS": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  path = tiny_world.build(tmp_path_factory.mktemp("world"))
  yield pathlib.Path(path)
  sources.set_data_dir(None)


@pytest.fixture
def run_dir(trained_run, world, tmp_path):
  """A run of six steps that died after its fourth: it has steps 2 and 4."""
  sources.set_data_dir(world)
  run, _ = trained_run
  directory = shutil.copytree(run.model_dir, tmp_path / "run")
  shutil.rmtree(directory / "checkpoints/6")
  return directory


def flags(world, model_dir, *more):
  return [
    f"--model_dir={model_dir}",
    f"--data_dir={world}",
    *(f"--gin.{name}={value}" for name, value in MACROS.items()),
    *more,
  ]


def last_line(text):
  return json.loads(text.splitlines()[-1])


def test_what_is_missing_is_evaluated_once_and_the_best_can_be_opened(
  world, run_dir, tmp_path, capsys
):
  assert main.run("select", flags(world, run_dir, "--evaluate")) == 0
  out, err = capsys.readouterr()
  assert err.count("on 4 validation sets") == 2
  summary = last_line(out)
  assert summary["step"] in (2, 4)
  assert summary["best"] == str(run_dir / "best")
  assert summary["test_cost"]["estimate"] == pytest.approx(
    sum(_test_accuracy(run_dir, summary["step"])) / 3
    - sum(_test_accuracy(run_dir, summary["in_distribution_step"])) / 3
  )
  values = choosing.evaluated(run_dir)
  assert set(values) == {2, 4}
  assert values[2][f"mini_gsm{SUFFIX}/n"] == 6
  opened = opening.open_checkpoint(run_dir / "best")
  assert opened.step == summary["step"]
  assert (
    opened.fingerprint()
    == (
      opening.open_checkpoint(run_dir / f"checkpoints/{opened.step}")
    ).fingerprint()
  )
  # A second call asks about nothing.
  times = _times(run_dir / "selection")
  assert main.run("select", flags(world, run_dir, "--evaluate")) == 0
  out, err = capsys.readouterr()
  assert "validation sets" not in err
  assert last_line(out) == summary
  assert _times(run_dir / "selection") == times
  # Unless an answer has been corrected since: then steps would be compared by
  # different questions.
  corrected = tmp_path / "corrected"
  shutil.copytree(world, corrected)
  file = corrected / "mini/mini_gsm/validation.jsonl"
  rows = reading.read_rows(file)
  rows[0]["answer"] = str(int(rows[0]["answer"]) + 1)
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert main.run("select", flags(corrected, run_dir, "--evaluate")) == 0
  assert capsys.readouterr().err.count("on 4 validation sets") == 2
  # Other commands take the choice, and it outlives the run's own steps.
  for step in (2, 4):
    shutil.rmtree(run_dir / "checkpoints" / str(step))
  folder = tmp_path / "folder"
  assert not main.run(
    "convert",
    [f"--checkpoint={run_dir}/best", "--to=huggingface", f"--output={folder}"],
  )
  started = experiment.train(
    tiny_demo.run(
      tmp_path / "next",
      initial_checkpoint_path=str(run_dir / "best"),
    )
  )
  assert int(started.step) == tiny_demo.STEPS


@pytest.mark.parametrize(
  ("changes", "hashes", "is_taken"),
  [
    ({}, {}, True),  # a release that saved no hashes of what is evaluated
    ({}, {"mini_math_all_validation": None}, True),
    ({}, {"mini_math_all_test": None}, False),  # of as many questions
    ({}, {"mini_facts_v1": "train"}, False),
    ({"max_new_tokens": 5}, {}, True),
    ({"max_new_tokens": 3}, {}, False),
    ({"task_feature_lengths.inputs": 32}, {}, False),
    # Another evaluation reaches as far, but is of other tasks.
    ({"max_new_tokens": 3, "0.max_new_tokens": 9}, {}, False),
    (None, {}, True),  # a release that saved none
  ],
)
def test_the_run_s_own_values_are_taken_if_it_decoded_likewise(
  run_dir, monkeypatch, changes, hashes, is_taken
):
  validation = tiny_demo.evaluation(
    "mini_math_all_validation", split=None, num_examples=None
  )
  chosen = selecting.Selecting(model_dir=str(run_dir), validation=validation)
  sizes = validation.num_questions()
  row = {f"{task}/n": size for task, size in sizes.items()}
  settings = None
  if changes is not None:
    settings = {
      "evaluations.0.mixture_or_task_name": "others",
      "evaluations.0.task_feature_lengths.inputs": 128,
      "evaluations.1.mixture_or_task_name": "mini_math_all_validation",
      "evaluations.1.max_new_tokens": 4,
      "evaluations.1.task_feature_lengths.inputs": 128,
    }
    settings |= {
      f"evaluations.{name if name[0] == '0' else f'1.{name}'}": value
      for name, value in changes.items()
    }
    settings |= {
      f"evaluated.{name}": value
      for mixture, split in hashes.items()
      for name, value in identity.of_mixture(
        mixture, split or mixture.rpartition("_")[2]
      ).items()
      if name.startswith(("data of", "prompts of"))
    }
  opened = opening.open_checkpoint(run_dir / "checkpoints/2")
  opened = dataclasses.replace(opened, metadata={"settings": settings})
  monkeypatch.setattr(opening, "open_checkpoint", lambda path: opened)
  taken = selecting._evaluated_by_run(chosen, {2: row})
  assert taken == ({2} if is_taken else set())


def _test_accuracy(run_dir, step):
  values = history.read(run_dir / f"selection/test/{step}/metrics.jsonl")[step]
  return [
    values[f"mini_{name}{SUFFIX}/accuracy"]
    for name in ("multiarith", "asdiv", "svamp")
  ]


def _times(directory):
  return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_values_of_checkpoints_that_others_replaced_are_not_compared(run_dir):
  """As of a run that was begun anew in the same directory."""
  name = "mini_gsm_zero_shot_chain_of_thought_v1/accuracy"
  row = {"step": 4, "group": "evaluation", "values": {name: 0.25}}
  with (run_dir / "metrics.jsonl").open("a") as stream:
    stream.write(json.dumps(row) + "\n")
  fingerprint = opening.open_checkpoint(
    run_dir / "checkpoints" / "4"
  ).fingerprint()
  directory = run_dir / choosing.DIRECTORY / "validation" / "4"
  row = {"step": 4, "group": "evaluation", "values": {name: 2.0}}
  best.place(run_dir, 2)  # the old run's, which is no step of this one
  (run_dir / "best/checkpoints/2").rename(run_dir / "best/checkpoints/4")
  writing.write_rows(directory / "metrics.jsonl", [row], sealed=True)
  for checkpoint, expected in (
    (fingerprint, 2.0),
    (opening.fingerprint_of_ours(run_dir / "best/checkpoints/4"), 0.25),
    ("another", 0.25),
  ):
    writing.write_json(
      directory / choosing.MADE_OF, {"checkpoint": checkpoint}, sealed=True
    )
    assert choosing.evaluated(run_dir)[4][name] == expected


def test_the_best_step_is_evaluated_likewise_though_the_run_deleted_it(run_dir):
  """With other settings its old values would be compared with new ones."""
  best.place(run_dir, 2)
  shutil.rmtree(run_dir / "checkpoints" / "2")
  kept = selecting._kept_alone(run_dir)
  assert kept == {2: run_dir / best.NAME}
  chosen = selecting.Selecting(
    model_dir=str(run_dir),
    validation=tiny_demo.evaluation(
      "mini_math_all_validation", split=None, num_examples=None
    ),
  )
  assert selecting._missing(chosen, kept) == [2, 4]
  assert selecting._missing(chosen) == [4]


def test_a_run_that_is_trained_on_is_not_over(trained_run, tmp_path):
  run, _ = trained_run
  directory = shutil.copytree(run.model_dir, tmp_path / "run")
  assert choosing.is_over(directory)
  then, now = ({"settings": {"loop.num_steps": 6}}, {"loop.num_steps": 9})
  resuming.record(directory, 6, then, now)
  assert not choosing.is_over(directory)


def test_steps_that_were_evaluated_on_fewer_questions_are_not_forgotten(
  run_dir, monkeypatch
):
  """As of a selection that was interrupted after the first step."""
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *_: said.append(text))
  task = f"mini_svamp{SUFFIX}"
  more = {f"{task}/accuracy": 0.1, f"{task}/n": 8.0}
  fewer = {f"{task}/accuracy": 0.9, f"{task}/n": 6.0}
  # Nothing else has evaluated step 4.
  chosen = choosing.choose({2: more, 4: fewer}, run_dir, [task])
  assert (chosen.step, len(said)) == (2, 1)
  assert "are not compared" in said[0]
  # The run itself has evaluated both.
  with (run_dir / "metrics.jsonl").open("a") as stream:
    for step, accuracy in ((2, 0.2), (4, 0.9)):
      values = {**fewer, f"{task}/accuracy": accuracy}
      row = {"step": step, "group": "evaluation", "values": values}
      stream.write(json.dumps(row) + "\n")
  chosen = choosing.choose({2: more, 4: fewer}, run_dir, [task])
  assert (chosen.step, len(said)) == (4, 2)
  assert "are compared by the run's own" in said[1]
  # While others are still to be evaluated, the best so far is among those that
  # were: only the step that has just been evaluated can still be kept.
  chosen = choosing.choose(
    {2: more, 4: fewer}, run_dir, [task], is_unfinished=True
  )
  assert (chosen.step, len(said)) == (2, 2)


def test_a_step_of_a_later_run_replaces_one_of_its_number(run_dir, tmp_path):
  # The later run: its step 4 has the parameters of the first one's step 2.
  later = tmp_path / "later"
  shutil.copytree(run_dir / "checkpoints/2", later / "checkpoints/4")
  digests = later / "checkpoints/4/fingerprint/metadata"
  content = json.loads(digests.read_text()) | {"step": 4}
  del content["manifest"]  # as a release saved it that had none
  digests.write_text(json.dumps(content))
  (later / "checkpoints/4" / manifests.NAME).unlink()
  first, second = (
    opening.open_checkpoint(place / "checkpoints/4")
    for place in (run_dir, later)
  )
  assert first.fingerprint() != second.fingerprint()
  for source_dir, expected in ((None, first), (None, first), (later, second)):
    best.place(run_dir, 4, source_dir=source_dir)
    placed = opening.open_checkpoint(run_dir / "best")
    assert placed.fingerprint() == expected.fingerprint()
  assert not list(run_dir.glob(".best*"))


@pytest.mark.slow
def test_it_follows_a_run_that_clears_its_steps_away(world, tmp_path):
  run = several_processes.Run(
    tmp_path, world, num_steps=12, CHECKPOINT_EVERY=3, KEEP=1
  )
  (training,) = run.start(1, 1)
  while not run.model_dir.is_dir():  # which --follow reads
    assert training.poll() is None, run.errors(0)
    time.sleep(0.1)
  process = subprocess.run(
    [sys.executable, "-m", "specialize_jax.cli.main", "select"]
    + flags(world, run.model_dir, "--follow", "--poll_seconds=0.2"),
    cwd=several_processes.ROOT,
    env=os.environ | {"PYTHONPATH": str(several_processes.ROOT)},
    capture_output=True,
    text=True,
    timeout=500,
    check=False,
  )
  assert run.wait([training]) == [0]
  assert process.returncode == 0, process.stderr[-3000:]
  assert run.saved_steps() == [12]
  chosen = last_line(process.stdout)
  values = choosing.evaluated(run.model_dir)
  assert 12 in values
  assert chosen["step"] in values
  assert opening.open_checkpoint(chosen["best"]).step == chosen["step"]
  assert not (run.model_dir / "selection/candidate").exists()


def test_best_is_replaced_by_another_criterion_only_with_move_best(
  world, run_dir, tmp_path, capsys
):
  first = flags(world, run_dir, "--evaluate")
  assert main.run("select", first) == 0
  before = last_line(capsys.readouterr().out)
  kept = (run_dir / "selection.json").read_text()
  other = ("--out_of_distribution", f"mini_asdiv{SUFFIX}")
  output = tmp_path / "other.json"
  argv = [f"--model_dir={run_dir}", *other, f"--output={output}"]
  assert main.run("select", argv) == 0
  out, err = capsys.readouterr()
  step = before["step"]
  assert f"specialize select: {run_dir}/best stays at step {step}," in err
  assert err.rstrip().endswith("give --move_best to replace it by this choice")
  assert last_line(out)["best"] is None
  assert reading.read_json(output)["out_of_distribution"] == [other[1]]
  assert (run_dir / "selection.json").read_text() == kept
  # `--follow` would replace it at every checkpoint: refused before any.
  follow = flags(world, run_dir, "--follow", *other)
  assert main.run("select", follow) == 2
  assert "--follow keeps the best step so far in" in capsys.readouterr().err
  assert main.run("select", [*argv, "--move_best"]) == 0
  moved = last_line(capsys.readouterr().out)
  assert moved["best"] == str(run_dir / "best")
  assert opening.open_checkpoint(run_dir / "best").step == moved["step"]


def test_a_checkpoint_that_the_run_deletes_meanwhile_is_left_out(
  world, run_dir, monkeypatch, capsys
):
  placed = best.place

  def deleted_before(model_dir, step, **arguments):
    if step == 2:
      shutil.rmtree(run_dir / "checkpoints/2")
    return placed(model_dir, step, **arguments)

  monkeypatch.setattr(best, "place", deleted_before)
  waiting = ("--follow", "--poll_seconds=0.1", "--patience_minutes=0.01")
  assert main.run("select", flags(world, run_dir, *waiting)) == 0
  out, err = capsys.readouterr()
  assert "step 2: deleted by the run before it could be evaluated" in err
  assert last_line(out)["step"] == 4


def test_following_a_run_that_died_ends(world, run_dir, capsys):
  waiting = ("--follow", "--poll_seconds=0.1", "--patience_minutes=0.01")
  assert main.run("select", flags(world, run_dir, *waiting)) == 0
  out, err = capsys.readouterr()
  assert "the run has not reached its last step" in err
  step = last_line(out)["step"]
  assert step in (2, 4)
  assert reading.read_rows(run_dir / f"selection/test/{step}/metrics.jsonl")
