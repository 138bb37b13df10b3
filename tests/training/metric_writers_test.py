"""Metrics go to every place that is named, and to metrics.jsonl always."""

import json
import sys
import types

import pytest
from etils import epath
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from specialize_jax import errors
from specialize_jax.files import reading, seals
from specialize_jax.training import metric_writers, run_log


def test_a_place_that_is_unknown_or_not_installed_is_one_sentence(monkeypatch):
  with pytest.raises(errors.UserError, match="'neptune': expected some of"):
    metric_writers.check(["neptune"])
  monkeypatch.setattr(
    metric_writers.importlib.util, "find_spec", lambda name: None
  )
  for name in ("wandb", "mlflow"):
    with pytest.raises(errors.UserError, match=f"`pip install '{name}'`"):
      metric_writers.check([name])


def test_rows_after_the_restored_step_and_half_a_line_are_removed(tmp_path):
  rows = [
    json.dumps({"step": n, "group": "train", "values": {"loss": n}}) + "\n"
    for n in (1, 2, 3)
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(rows) + '{"step": 1')
  log = run_log.RunLog(tmp_path, writers=[])
  log.start_after(2)
  log.write(3, "evaluation", {"accuracy": 0.5})
  log.close()
  found = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert seals.FIELD in found[-1]
  (tmp_path / "rows.jsonl").write_text("\n".join(found))
  assert reading.read_rows(tmp_path / "rows.jsonl") == [
    {"step": 1, "group": "train", "values": {"loss": 1}},
    {"step": 2, "group": "train", "values": {"loss": 2}},
    {"step": 3, "group": "evaluation", "values": {"accuracy": 0.5}},
  ]
  assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_reads_what_was_flushed(tmp_path):
  log = run_log.RunLog(tmp_path, writers=["tensorboard"])
  log.start_after(None)
  log.write(3, "train", {"loss": 0.5, "kl/zero_shot": 0.25})
  log.write(4, "evaluation", {"task/accuracy": 1.0})
  log.flush()
  found = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
  found.Reload()
  log.close()
  scalars = {
    tag: [
      (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
      for event in found.Tensors(tag)
    ]
    for tag in found.Tags()["tensors"]
  }
  assert scalars == {
    "train/loss": [(3, 0.5)],
    "train/kl/zero_shot": [(3, 0.25)],
    "evaluation/task/accuracy": [(4, 1.0)],
  }


class Wandb(types.ModuleType):
  """As much of W&B's interface as its documentation has for scalars."""

  def __init__(self):
    super().__init__("wandb")
    self.util = types.SimpleNamespace(generate_id=lambda: "new")
    self.calls = []

  def init(self, **settings):
    self.calls.append(("init", settings))
    return types.SimpleNamespace(
      log=lambda values, step: self.calls.append(("log", step, values)),
      finish=lambda: self.calls.append(("finish",)),
    )


def test_a_run_that_goes_on_is_the_same_run_of_weights_and_biases(
  tmp_path, monkeypatch
):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  for after in (None, 1):
    log = run_log.RunLog(tmp_path, writers=["wandb"])
    log.start_after(after)
    log.write(2, "train", {"loss": 0.5})
    log.close()
    wandb.util.generate_id = None
  settings = {"id": "new", "name": tmp_path.name, "resume": "allow"}
  assert wandb.calls == 2 * [
    ("init", settings),
    ("log", 2, {"train/loss": 0.5}),
    ("finish",),
  ]


def test_a_service_that_fails_ends_no_run(tmp_path, monkeypatch, capsys):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  log = run_log.RunLog(tmp_path, writers=["wandb"])
  log.start_after(None)

  def fail(values, step):
    raise ConnectionError("no network")

  log._writers[1]._run.log = fail
  for number in (1, 2):
    log.write(number, "train", {"loss": 0.5})
  log.flush()
  log.close()
  said = capsys.readouterr().err
  assert said.count("WeightsAndBiases gets no more metrics until") == 1
  assert "(ConnectionError: no network)" in said
  assert [row["step"] for row in reading.read_rows(log.path)] == [1, 2]
  # One that cannot start does, before anything of the log is changed.
  content = log.path.read_bytes()
  wandb.init = fail
  with pytest.raises(errors.UserError, match="'wandb', which cannot be start"):
    run_log.RunLog(tmp_path, writers=["wandb"]).start_after(None)
  assert log.path.read_bytes() == content


def test_a_run_that_goes_on_is_the_same_run_of_mlflow(tmp_path, monkeypatch):
  calls = []
  mlflow = types.ModuleType("mlflow")

  def start_run(run_id, run_name):
    calls.append((run_id, run_name))
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

  mlflow.start_run = start_run
  mlflow.log_metrics = lambda values, step: calls.append((step, values))
  mlflow.end_run = lambda: calls.append("end")
  monkeypatch.setitem(sys.modules, "mlflow", mlflow)
  for after in (None, 1):
    (writer,) = metric_writers.create(
      ["mlflow"], epath.Path(tmp_path), after=after
    )[1:]
    writer.write(3, "evaluation", {"a/accuracy": 1.0})
    writer.close()
  row = (3, {"evaluation/a/accuracy": 1.0})
  assert calls == [(None, tmp_path.name), row, "end", ("r1", None), row, "end"]
