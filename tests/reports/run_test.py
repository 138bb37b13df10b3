"""`specialize report --run`: a page from whatever a run has."""

import json
import shlex
import shutil

import pytest

from specialize_jax import errors
from specialize_jax.cli import main
from specialize_jax.files import seals
from specialize_jax.reports import page, plots, tables
from specialize_jax.reports import results as results_lib

OWN = "triage_queue_v1"


def _evaluation(place, task, accuracy, n=10, **more):
  place.mkdir(parents=True)
  values = {f"{task}/accuracy": accuracy, f"{task}/n": n, **more}
  row = {"step": 7, "group": "evaluation", "values": values}
  (place / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  rows = [
    {
      "question_id": f"{task}/{i}",
      "prompt": "Q: Which queue?\nA:",
      "prediction": f"It is <b> {i}.",
      "target": "billing",
      "correct": i < accuracy * n,
    }
    for i in range(n)
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (place / "7").mkdir()
  (place / "7" / f"{task}.jsonl").write_text(text)
  return place


def _run(place, rows):
  place.mkdir()
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (place / "metrics.jsonl").write_text(text)
  return place


@pytest.fixture
def run(tmp_path):
  """A run of one's own domain that has been evaluated once."""
  train = [
    {"step": step, "group": "train", "values": {"loss": 4.0 / step}}
    for step in (1, 10, 20)
  ]
  evaluated = {"step": 20, "group": "evaluation", "values": {}}
  evaluated["values"] = {f"{OWN}/accuracy": 0.5, f"{OWN}/n": 8.0}
  return _run(tmp_path / "run", [*train, evaluated])


def _page(run, **sides):
  results = results_lib.load_run(run, **sides)
  return results, page.render(page.document(results))


def test_a_run_alone_shows_its_curves_and_the_commands_for_the_rest(run):
  _, shown = _page(run)
  assert "The run has done 20 steps; its loss went from 4 to 0.2." in shown
  assert 'id="training"' in shown
  assert "Validation accuracy on each task" in shown
  assert f"--gin.CHECKPOINT_PATH={run} " in shown
  assert (
    f"specialize report --run={run} --before={run}/before --after={run}/after"
  ) in shown
  assert "results.json" not in shown
  assert "--gin.MIXTURE_OR_TASK_NAME=TEST_SETS" in shown
  (run / "dataset.yaml").write_text("name: queues")
  _, shown = _page(run)
  assert "specialize eval --dataset=FILE.yaml --gin.CHECKPOINT_PATH" in shown
  assert "specialize report --dataset=FILE.yaml --run=" in shown
  assert "TEST_SETS" not in shown


def test_a_run_that_has_only_begun_names_what_makes_each_part(tmp_path):
  run = _run(tmp_path / "run", [])
  _, shown = _page(run)
  for command in (
    f"specialize train --gin_file={run}/config.gin --data_dir=DATA"
    f" --gin.MODEL_DIR={run}",
    f"specialize select --model_dir={run} --evaluate",
    "specialize align --records=RECORDS",
  ):
    assert command in shown


def test_commands_can_be_pasted_whatever_a_directory_is_called(tmp_path):
  run = _run(tmp_path / "my runs; rm x", [])
  commands = [
    one for part in results_lib.load_run(run).hints.values() for one in part
  ]
  assert commands
  for command in commands:
    words = shlex.split(command.partition("  # ")[0])
    assert not {"rm", "runs;", "x"} & set(words)
    assert any(str(run) in word for word in words)


def test_one_side_alone_is_a_table_and_the_other_a_command(run, tmp_path):
  after = _evaluation(tmp_path / "after", OWN, 0.8)
  results, shown = _page(run, after=after)
  assert results.after == {OWN: {"accuracy": 0.8, "n": 10}}
  assert "after specialization" in shown
  assert "80.0" in shown
  assert f"--gin.EVAL_OUTPUT_DIR={run}/before" in shown
  assert f"--gin.EVAL_OUTPUT_DIR={run}/after" not in shown
  assert "It is &lt;b&gt; 0." in shown


def test_the_run_s_own_predictions_are_not_called_those_after_another(
  run, tmp_path
):
  own = _evaluation(tmp_path / "own", OWN, 0.5)
  shutil.copytree(own / "7", run / "predictions" / "20")
  before = _evaluation(tmp_path / "before", OWN, 0.2)
  _, shown = _page(run, before=before)
  assert "From the validation sets of the run itself." in shown
  assert "Right answers." in shown
  assert "Wrong before" not in shown


def test_the_predictions_of_the_last_step_are_shown(run, tmp_path):
  for step in (900, 1000):
    place = run / "predictions" / str(step)
    shutil.copytree(_evaluation(tmp_path / str(step), OWN, 0.5) / "7", place)
    path = place / f"{OWN}.jsonl"
    path.write_text(path.read_text().replace("<b>", f"<b{step}>"))
  results = results_lib.load_run(run)
  (rows,) = (shown[OWN] for shown in results.predictions.values() if shown)
  assert all("<b1000>" in json.dumps(row) for row in rows)


def test_of_several_steps_that_were_tested_the_selected_one_is_shown(
  run, tmp_path
):
  after = _evaluation(tmp_path / "after", OWN, 0.8)
  rows = [json.loads((after / "metrics.jsonl").read_text())]
  rows.append(rows[0] | {"step": 9, "values": {f"{OWN}/accuracy": 0.2}})
  rows[1]["values"][f"{OWN}/n"] = 10
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (after / "metrics.jsonl").write_text(text)
  shutil.copytree(after / "7", after / "9")
  path = after / "9" / f"{OWN}.jsonl"
  path.write_text(path.read_text().replace("<b>", "<b9>"))
  with pytest.raises(errors.UserError, match="of the steps 7, 9: give an EVAL"):
    results_lib.load_run(run, after=after)
  selection = {
    "step": 7,
    "out_of_distribution": [OWN],
    "in_distribution": OWN,
    "in_distribution_step": 7,
    "mean": 0.5,
  }
  (run / "selection.json").write_text(seals.sealed(json.dumps(selection)))
  results = results_lib.load_run(run, after=after)
  assert results.after[OWN]["accuracy"] == 0.8
  assert "<b9>" not in json.dumps(results.predictions["after"][OWN])


def test_both_sides_are_compared_question_by_question(run, tmp_path):
  before = _evaluation(tmp_path / "before", OWN, 0.2)
  after = _evaluation(tmp_path / "after", OWN, 0.8)
  _, shown = _page(run, before=before, after=after)
  assert "Other tasks" in shown
  assert "paired bootstrap" in shown
  assert "+60.0" in shown
  assert "specialize eval" not in shown


def test_the_selection_says_what_is_in_and_out_of_distribution(run, tmp_path):
  selection = {
    "step": 20,
    "mean": 0.5,
    "out_of_distribution": ["far_v1"],
    "in_distribution": "near_zero_shot_answer_only_v1",
    "in_distribution_step": None,
  }
  (run / "selection.json").write_text(json.dumps(selection))
  more = {
    f"{task}/{kind}": 0.5 if kind == "accuracy" else 10
    for task in (
      "near_zero_shot_answer_only_v1",
      "near_in_context_chain_of_thought_v2",
      "broad_v1",
    )
    for kind in ("accuracy", "n")
  }
  after = _evaluation(tmp_path / "after", "far_v1", 0.8, **more)
  with pytest.raises(errors.UserError, match="of the steps 7, not of 20, the"):
    results_lib.load_run(run, after=after)
  (run / "selection.json").write_text(json.dumps({**selection, "step": 7}))
  results = results_lib.load_run(run, after=after)
  assert results.out_of_distribution == ("far_v1",)
  assert results.in_distribution == "near_zero_shot_answer_only_v1"
  assert results.general == ("broad_v1", OWN)
  assert results.other == ("near_in_context_chain_of_thought_v2",)


def test_a_run_and_its_evaluations_have_the_rows_of_the_demo_s_table(
  results_dir,
):
  for when in ("before", "after"):
    values = json.loads((results_dir / "results.json").read_text())[when]
    row = {
      f"{task}/{name}": value
      for task, entry in values.items()
      for name, value in entry.items()
    }
    row = {"step": 900, "group": "evaluation", "values": row}
    place = results_dir / "predictions" / when / "metrics.jsonl"
    place.write_text(json.dumps(row) + "\n")
  shutil.copy(results_dir / "selection.json", results_dir / "specialize")
  ours = results_lib.load_run(
    results_dir / "specialize",
    before=results_dir / "predictions" / "before",
    after=results_dir / "predictions" / "after",
  )
  theirs = results_lib.load(results_dir)
  rows = [
    {row.task: row for row in tables.rows(results) if row.task}
    for results in (ours, theirs)
  ]
  assert rows[0] == rows[1]
  assert len(rows[0]) == 12


def test_the_command_writes_the_page_beside_the_run(run, capsys):
  assert main.run("report", [f"--run={run}"]) == 0
  assert capsys.readouterr().out == f"report: {run}/report.html\n"
  assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ("--run={}", "--run={} has no metrics.jsonl: expected the MODEL_DIR"),
    ("--run={}/run --before={}", "--before={} has no metrics.jsonl"),
    ("--results_dir={}/run", "give it as --run={}/run"),
    ("", "give either --run=DIR"),
    ("--run={}/run --results_dir={}", "give either --run=DIR"),
    ("--results_dir={} --after={}", "--after goes with --run"),
  ],
)
def test_what_cannot_be_reported_is_one_sentence(
  run, tmp_path, capsys, argv, message
):
  before = sorted(tmp_path.rglob("*"))
  argv = argv.replace("{}", str(tmp_path)).split()
  assert main.run("report", argv) == 2
  error = capsys.readouterr().err
  assert message.replace("{}", str(tmp_path)) in error
  assert error.count("\n") == 1
  assert sorted(tmp_path.rglob("*")) == before


def test_a_loss_below_zero_and_one_that_is_no_number_are_drawn(tmp_path):
  rows = [
    {"step": step, "group": "train", "values": {"loss": loss}}
    for step, loss in enumerate([0.5, -0.5, float("nan"), -1.0], start=1)
  ]
  results = results_lib.load_run(_run(tmp_path / "run", rows))
  assert results.specialization[3] == {}
  assert plots.loss_curves(results)


def test_what_no_task_compares_is_shown_side_by_side(run, tmp_path):
  before = _evaluation(tmp_path / "before", OWN, 0.2)
  after = _evaluation(tmp_path / "after", "far_v1", 0.8)
  _, shown = _page(run, before=before, after=after)
  assert "No task was evaluated both before and after." in shown
  assert "before specialization" in shown
  assert "after specialization" in shown


def test_a_question_of_one_side_was_not_wrong_on_the_other(run, tmp_path):
  before = _evaluation(tmp_path / "before", OWN, 0.2)
  path = before / "7" / f"{OWN}.jsonl"
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
  after = _evaluation(tmp_path / "after", OWN, 0.8)
  _, shown = _page(run, before=before, after=after)
  assert "Wrong before, right after." not in shown


def test_the_metric_of_the_selection_is_named(results_dir):
  path = results_dir / "selection.json"
  chosen = json.loads(path.read_text())
  chosen |= {"metric": "bleu", "mean": 27.3, "in_distribution_mean": 26.0}
  chosen.pop(seals.FIELD, None)
  path.write_text(json.dumps(chosen))
  shown = page.render(page.document(results_lib.load(results_dir), []))
  assert "chosen by the mean bleu" in shown
  assert "with a mean of 27.300" in shown
  assert "at a cost of 1.300 of" in shown
  assert "out-of-distribution validation bleu" in shown
