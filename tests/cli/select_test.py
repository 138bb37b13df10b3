"""`specialize select` reads a run's metrics and writes its choice."""

import json

import pytest

from specialize_jax.cli import main
from specialize_jax.files import seals
from specialize_jax.runs import choosing, selecting

SUFFIX = "_zero_shot_chain_of_thought_v1"


def _run_dir(tmp_path, curves):
  rows = [
    {
      "step": 100 * (index + 1),
      "group": "evaluation",
      "values": {f"{name}{SUFFIX}/accuracy": v[index] for name, v in curves},
    }
    for index in range(len(curves[0][1]))
  ]
  rows.insert(0, {"step": 1, "group": "train", "values": {"loss": 2.0}})
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "metrics.jsonl").write_text(text)


CURVES = (
  ("mini_gsm", [0.2, 0.5, 0.9]),
  ("mini_multiarith", [0.2, 0.6, 0.3]),
  ("mini_asdiv", [0.2, 0.5, 0.4]),
  ("mini_svamp", [0.2, 0.4, 0.2]),
  ("mini_navigate", [0.9, 0.5, 0.1]),
)


def test_the_choice_is_printed_and_written(tmp_path, capsys):
  _run_dir(tmp_path, CURVES)
  assert main.run("select", [f"--model_dir={tmp_path}"]) == 0
  out = capsys.readouterr().out
  summary = json.loads(out.splitlines()[-1])
  assert summary["step"] == 200
  assert summary["in_distribution_step"] == 300
  assert summary["checkpoint"] == str(tmp_path / "checkpoints" / "200")
  assert "best in distribution" in out
  written = json.loads((tmp_path / "selection.json").read_text())
  assert written["step"] == 200
  assert written["in_distribution"] == f"mini_gsm{SUFFIX}"


def test_tasks_can_be_named(tmp_path, capsys):
  _run_dir(tmp_path, CURVES)
  flags = [
    f"--model_dir={tmp_path}",
    f"--out_of_distribution=mini_navigate{SUFFIX}",
    f"--output={tmp_path / 'choice.json'}",
  ]
  assert main.run("select", flags) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 100
  assert (tmp_path / "choice.json").exists()
  assert not (tmp_path / "selection.json").exists()


def test_the_end_of_a_run_names_the_best_by_the_tasks_that_decide(tmp_path):
  _run_dir(tmp_path, CURVES)
  named = choosing.best_in_words(tmp_path)
  assert named.startswith("best checkpoint: step 200, ")
  own = choosing.best_in_words(tmp_path, (), [f"mini_navigate{SUFFIX}"])
  assert own.startswith("best checkpoint: step 100, ")
  _run_dir(tmp_path, CURVES[4:])
  named = choosing.best_in_words(tmp_path)
  assert f"(evaluated: mini_navigate{SUFFIX}): `specialize select" in named


def test_what_a_user_can_mend_is_one_sentence(tmp_path, capsys):
  assert main.run("select", [f"--model_dir={tmp_path}"]) == 2
  assert "there is no" in capsys.readouterr().err
  _run_dir(tmp_path, CURVES[4:])
  assert main.run("select", [f"--model_dir={tmp_path}"]) == 2
  assert "has no validation accuracy of" in capsys.readouterr().err
  flags = [f"--model_dir={tmp_path}", "--out_of_distribution=navigate"]
  assert main.run("select", flags) == 2
  error = capsys.readouterr().err
  assert "was never evaluated" in error
  assert "`specialize select --evaluate`" in error


def test_a_test_of_the_same_choice_is_kept(tmp_path):
  _run_dir(tmp_path, CURVES)
  path = tmp_path / "selection.json"
  assert main.run("select", [f"--model_dir={tmp_path}"]) == 0
  test = {
    "mean": 0.4,
    "in_distribution_mean": 0.3,
    "cost": {"estimate": 0.1, "low": 0.0, "high": 0.2},
  }
  written = {**json.loads(path.read_text()), "test": test}
  written.pop(seals.FIELD)
  path.write_text(json.dumps(written))
  assert main.run("select", [f"--model_dir={tmp_path}"]) == 0
  assert json.loads(path.read_text())["test"] == test
  tasks = f"--out_of_distribution=mini_asdiv{SUFFIX}"  # the same step
  assert main.run("select", [f"--model_dir={tmp_path}", tasks]) == 0
  assert json.loads(path.read_text())["test"] is None


def test_the_step_kept_in_distribution_is_not_replaced_by_a_worse_one(
  tmp_path, monkeypatch
):
  """Though the run has deleted it, which --follow looks at as it trains."""
  _run_dir(tmp_path, CURVES)
  places = {"best": 200, "best_in_distribution": 300}
  monkeypatch.setattr(choosing, "steps_of", lambda model_dir: [100])
  monkeypatch.setattr(
    choosing.best, "step_in", lambda model_dir, name="best": places.get(name)
  )
  chosen = choosing.choose(choosing.evaluated(tmp_path), tmp_path)
  assert (chosen.step, chosen.in_distribution_step) == (200, 300)
  assert chosen.in_distribution_accuracy == 0.9
  assert chosen.in_distribution_mean == pytest.approx(0.3)


def test_values_without_their_metrics_are_not_taken_for_evaluated(tmp_path):
  place = tmp_path / "selection" / "validation" / "3"
  place.mkdir(parents=True)
  (place / "made_of.json").write_text("{}")
  assert selecting._written(None, {}, tmp_path, "validation", 3) is None


def test_a_task_does_not_count_twice(tmp_path, capsys):
  _run_dir(tmp_path, CURVES)
  task = f"mini_asdiv{SUFFIX}"
  flags = [f"--model_dir={tmp_path}", f"--out_of_distribution={task}, {task}"]
  assert main.run("select", flags) == 2
  assert f"names {task} twice" in capsys.readouterr().err
