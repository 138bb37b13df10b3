"""The whole demo at toy size: every file from which a report is built."""

import dataclasses
import json
import shutil

import pytest
import seqio
from testdata import tiny_demo

from specialize_jax import errors
from specialize_jax.data import sources
from specialize_jax.files import reading, writing
from specialize_jax.reports import page, results
from specialize_jax.runs import experiment
from specialize_jax.study import demo
from specialize_jax.training import optimizer
from tasks import mixtures  # noqa: F401  (registers every task)


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("demo")
  demo.run(tiny_demo.whole_way(directory), directory, seed=3)
  yield directory
  sources.set_data_dir(None)


def test_results_have_every_task_before_and_after(output_dir):
  written = json.loads((output_dir / "results.json").read_text())
  names = {written["in_distribution"], *written["out_of_distribution"]}
  for when in ("before", "after"):
    assert names < set(written[when])
    for values in written[when].values():
      assert 0 <= values["accuracy"] <= 1
      assert values["n"] == 8
  assert set(written["general"]) < set(written["before"])
  assert written["seconds"] > 0
  assert 0 < written["peak_rss_gib"] < 24
  assert written["seed"] == 3


def test_the_step_that_is_tested_is_the_selected_one(output_dir):
  written = json.loads((output_dir / "results.json").read_text())
  selection = json.loads((output_dir / "selection.json").read_text())
  assert written["step"] == selection["step"] in (2, 4)
  assert (output_dir / f"predictions/after/{written['step']}").is_dir()


def test_no_validation_or_test_question_is_trained_on(output_dir):
  mini = output_dir / "world/mini"
  task = seqio.get_mixture_or_task("mini_gsm_teacher_zero_shot_answer_only_v1")
  trained = task.get_dataset(
    sequence_length=None, split="train", shuffle=False, num_epochs=1
  )
  asked = {row["question"].decode() for row in trained.as_numpy_iterator()}
  assert asked
  for path in [*mini.glob("*/validation.jsonl"), *mini.glob("*/test.jsonl")]:
    held_out = {
      json.loads(line)["question"] for line in path.read_text().splitlines()
    }
    assert not asked & held_out


def test_the_report_builds_from_what_was_written(output_dir):
  report = output_dir / "report.html"
  page.build(output_dir, report)
  html = report.read_text()
  assert "mini SVAMP" in html
  certainty = json.loads((output_dir / "certainty.json").read_text())
  assert certainty["num_records"] == 100  # 2 samples of 40 + 10 questions
  assert f"<td>{certainty['entropy']:.3f}</td>" in html
  decoding = json.loads((output_dir / "decoding.json").read_text())
  assert decoding["step"] in (2, 4)
  for way in decoding["ways"]:
    assert f"<td>{way['name']}</td>" in html


def test_another_specialization_is_compared_on_the_same_questions(output_dir):
  compared = json.loads((output_dir / "comparison.json").read_text())
  written = json.loads((output_dir / "results.json").read_text())
  assert compared["name"] == "sample matching"
  assert compared["steps"]["first"] == written["step"]
  names = [row["task"] for row in compared["rows"]]
  assert names == [
    written["in_distribution"],
    *written["out_of_distribution"],
    None,  # their mean
    *written["general"],
  ]
  for row in compared["rows"]:
    apart = row["difference"]
    assert apart["estimate"] == pytest.approx(row["first"] - row["second"])
    assert apart["low"] <= apart["estimate"] <= apart["high"]
    if row["task"]:
      assert row["first"] == written["after"][row["task"]]["accuracy"]
      assert row["n"] == 8
  assert (
    "Beside another specialization" in (output_dir / "report.html").read_text()
  )


def test_what_is_of_another_step_is_not_reported(output_dir, tmp_path):
  """As of a demo that selected again and was interrupted before its tests."""
  place = shutil.copytree(output_dir, tmp_path / "demo")
  whole = results.load(place)
  assert whole.after and whole.decoding and whole.comparison
  selection = json.loads((place / "selection.json").read_text())
  other = {2: 4, 4: 2}[selection["step"]]
  writing.write_json(
    place / "selection.json", {**selection, "step": other}, sealed=True
  )
  left = results.load(place)
  assert not (left.before or left.after or left.decoding or left.comparison)


def test_a_general_model_that_was_trained_on_is_refused(output_dir, tmp_path):
  """By another command than the demo: the specialization began before."""
  place = shutil.copytree(output_dir, tmp_path / "demo")
  whole = tiny_demo.whole_way(place)
  schedule = dataclasses.replace(whole.pretraining.loop, num_steps=6)
  experiment.train(dataclasses.replace(whole.pretraining, loop=schedule))
  with pytest.raises(errors.UserError, match="step 4, which has been trained"):
    demo.run(whole, place, seed=3)


def _files_of(directory):
  return {
    path: path.read_bytes() for path in directory.rglob("*") if path.is_file()
  }


def test_what_a_specialization_began_with_cannot_be_replaced(output_dir):
  """It is refused before anything is written, and the demo is as it was."""
  whole = tiny_demo.whole_way(output_dir)
  schedule = dataclasses.replace(whole.pretraining.loop, num_steps=6)
  longer = dataclasses.replace(
    whole, pretraining=dataclasses.replace(whole.pretraining, loop=schedule)
  )
  others = dataclasses.replace(whole, alignment_mode="marginal")
  faster = dataclasses.replace(
    whole,
    specialization=dataclasses.replace(
      whole.specialization,
      optimizer=optimizer.OptimizerConfig(learning_rate=0.002),
    ),
  )
  before = _files_of(output_dir)
  with pytest.raises(errors.UserError, match="step 4, which would be trained"):
    demo.run(longer, output_dir, seed=3)
  with pytest.raises(errors.UserError, match="MODE=whitespace, which"):
    demo.run(others, output_dir, seed=3)
  with pytest.raises(errors.UserError, match="ended with LEARNING_RATE=0.001"):
    demo.run(faster, output_dir, seed=3)
  assert _files_of(output_dir) == before


def test_a_second_start_resumes_where_the_first_one_stopped(output_dir):
  before = (output_dir / "specialize/metrics.jsonl").read_text()
  written = json.loads((output_dir / "results.json").read_text())
  # As if the selected step had been damaged, and trained again.
  tested = output_dir / "predictions/after/metrics.jsonl"
  rows = reading.read_rows(tested)
  stale = [row | {"checkpoint": "of the first time"} for row in rows]
  writing.write_rows(tested, stale, sealed=True)
  again = tiny_demo.whole_way(output_dir)
  again = dataclasses.replace(again, comparison=None)  # resumed like the rest
  demo.run(again, output_dir, seed=3)
  assert (output_dir / "specialize/metrics.jsonl").read_text() == before
  assert reading.read_rows(tested) == rows
  # Time and memory are still those of the process that did all of it.
  assert json.loads((output_dir / "results.json").read_text()) == written
