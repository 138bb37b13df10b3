"""The lines and the bar that a run prints."""

import dataclasses
import io
import json

from specialize_jax.training import loop, narrator
from training import tiny_run


def test_an_evaluation_is_said_with_intervals_and_its_other_values():
  values = {
    "held_out/loss": 1.25,
    "svamp/accuracy": 0.5,
    "svamp/low": 0.25,
    "svamp/high": 0.75,
    "svamp/n": 8.0,
    "svamp/accuracy_paper_code": 0.625,
    "own/accuracy": 1.0,
  }
  assert narrator.accuracy_lines(values) == [
    "svamp           50.0 %  [25.0, 75.0]  of 8",
    "own            100.0 %",
    "held_out/loss  1.25",
  ]


def test_a_terminal_has_one_bar_with_loss_speed_and_time_left():
  screen = io.StringIO()
  screen.isatty = lambda: True
  told = narrator.Narrator(4, stream=screen)
  with told.starts_after(1):
    told.step(2, loss=0.5, rates={"tokens_per_second": 1234.0})
    told.saves(2, "run/checkpoints")
    told.step(3, loss=0.25, rates={})
    bar = told._bar._bar
    assert (bar.initial, bar.n, bar.total) == (1, 3, 4)
    bar.refresh()
  shown = screen.getvalue()
  assert "step 2: saving to run/checkpoints/2\n" in shown
  assert "training:  75%" in shown
  assert "loss 0.2500" in shown
  assert shown.endswith("\r")


def _said(tmp_path, values, **config):
  log = io.StringIO()
  run = tiny_run.loop_run(
    tmp_path, config=config, evaluators=[lambda params, step: values]
  )
  told = narrator.Narrator(config["num_steps"], stream=log)
  tiny_run.finish(dataclasses.replace(run, narrator=told))
  # Without the bar's own lines, which a slow machine has and a fast one lacks.
  lines = log.getvalue().splitlines()
  return [line for line in lines if not line.startswith("training: ")]


def test_a_run_says_its_evaluations_its_saves_and_what_comes_next(tmp_path):
  said = _said(
    tmp_path,
    {"a/accuracy": 0.25},
    num_steps=3,
    eval_every=2,
    checkpoint_every=2,
  )
  events = [line for line in said if "evaluated in" not in line]
  assert len(said) == len(events) + 2
  assert events == [
    "compiling the train step",
    f"step 2: saving to {tmp_path}/checkpoints/2",
    "  a   25.0 %",
    "  the next evaluation is at step 3",
    f"step 3: saving to {tmp_path}/checkpoints/3",
    "  a   25.0 %",
  ]


def test_a_run_says_what_it_drops_at_its_start_and_at_its_end(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(
    tiny_run.Batches, "dropped", lambda self: f"{self.number} dropped"
  )
  said = _said(tmp_path, {}, num_steps=3)
  assert [line for line in said if "dropped" in line] == [
    "1 dropped",
    "3 dropped",
  ]
  assert said.index("1 dropped") < said.index("compiling the train step")
  assert _said(tmp_path, {}, num_steps=3) == []


def test_a_finished_run_says_nothing_of_steps(tmp_path):
  config = {"num_steps": 2}
  tiny_run.finish(tiny_run.loop_run(tmp_path, config=config))
  assert _said(tmp_path, {}, **config) == []
  rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(row)["step"] for row in rows] == [1, 2]


def test_the_next_evaluation_is_the_last_step_at_the_latest():
  config = loop.LoopConfig(num_steps=10, eval_every=4)
  assert [loop._next_due(step, config) for step in (0, 4, 7, 8, 10)] == [
    4,
    8,
    8,
    10,
    None,
  ]
