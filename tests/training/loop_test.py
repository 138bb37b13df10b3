"""The loop writes its log, and survives kills, signals and nan."""

import dataclasses
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from specialize_jax import errors
from specialize_jax.checkpoints import manager
from specialize_jax.files import reading
from specialize_jax.parallel import mesh, placement
from specialize_jax.training import loop, narrator, profiling, run_log, state
from training import crash_run, tiny_run

TESTS = pathlib.Path(__file__).parents[1]


def _rows(model_dir, group="train"):
  rows = reading.read_rows(pathlib.Path(model_dir) / "metrics.jsonl")
  return [row for row in rows if row["group"] == group]


def _losses(model_dir):
  return [(row["step"], row["values"]["loss"]) for row in _rows(model_dir)]


def _start(model_dir, seconds_per_batch):
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "training.crash_run",
      str(model_dir),
      str(seconds_per_batch),
    ],
    cwd=TESTS,
    env=dict(
      os.environ,
      PYTHONPATH=f"{TESTS.parent}:{os.environ.get('PYTHONPATH', '')}",
    ),
    stderr=subprocess.PIPE,
  )


def _wait_for_step(process, model_dir, step):
  """Waits until the row of a step is written."""
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline:
    assert process.poll() is None, process.stderr.read().decode()[-3000:]
    path = pathlib.Path(model_dir) / "metrics.jsonl"
    if path.exists() and f'"step": {step},' in path.read_text():
      return
    time.sleep(0.02)
  raise AssertionError(f"no step {step} within 300 s")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  """A whole run: its directory and last state."""
  model_dir = tmp_path_factory.mktemp("unbroken")
  last_state, _, iterator = crash_run.main(model_dir)
  assert iterator.number == crash_run.NUM_STEPS
  return model_dir, jax.tree.map(np.asarray, last_state)


def _assert_is_the_unbroken_run(model_dir, last_state, unbroken):
  expected_dir, expected_state = unbroken
  assert _losses(model_dir) == _losses(expected_dir)
  jax.tree.map(np.testing.assert_array_equal, last_state, expected_state)


def test_a_killed_run_resumes_to_the_very_same_losses_and_parameters(
  unbroken, tmp_path
):
  process = _start(tmp_path, seconds_per_batch=0.1)
  _wait_for_step(process, tmp_path, 8)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  process.stderr.close()
  with (tmp_path / "metrics.jsonl").open("a") as log:
    log.write('{"step": 9, "group": "tr')  # what a kill in mid-write leaves
  with manager.CheckpointManager(tmp_path / "checkpoints") as saver:
    restart = saver.latest_step()
  assert restart in (3, 6)
  last_state, _, iterator = crash_run.main(tmp_path)
  assert iterator.number == crash_run.NUM_STEPS
  _assert_is_the_unbroken_run(tmp_path, last_state, unbroken)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_still_finishes(unbroken, tmp_path):
  """Moments in mid-save included; each start goes at least to a new step."""
  rng = np.random.default_rng(0)
  for step in (2, 3, 4, 6, 7, 9, 10):
    process = _start(tmp_path, seconds_per_batch=0.02)
    _wait_for_step(process, tmp_path, step)
    time.sleep(rng.uniform(0, 0.05))
    process.kill()
    process.wait()
    process.stderr.close()
  last_state, _, _ = crash_run.main(tmp_path)
  _assert_is_the_unbroken_run(tmp_path, last_state, unbroken)


@pytest.fixture
def handled():
  """Ctrl-C as in a terminal, where tests in the background ignore it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
  ("number", "ending", "status"),
  [
    (signal.SIGTERM, loop.Preempted, 75),
    (signal.SIGINT, loop.Interrupted, 130),
  ],
)
def test_a_signal_saves_and_exits_with_a_status_of_its_own(
  unbroken, tmp_path, number, ending, status, handled
):
  handler = signal.getsignal(number)

  class Terminated(tiny_run.Batches):
    def __next__(self):
      if self.number == 4:
        os.kill(os.getpid(), number)
      return super().__next__()

  original, tiny_run.Batches = tiny_run.Batches, Terminated
  try:
    with pytest.raises(ending) as caught:
      crash_run.main(tmp_path)
  finally:
    tiny_run.Batches = original
  assert (caught.value.code, caught.value.at_step) == (status, 5)
  assert signal.getsignal(number) is handler
  with manager.CheckpointManager(tmp_path / "checkpoints") as saver:
    assert saver.latest_step() == 5
  last_state, _, _ = crash_run.main(tmp_path)
  _assert_is_the_unbroken_run(tmp_path, last_state, unbroken)


def test_a_checkpoint_resumes_on_another_mesh(unbroken, tmp_path):
  """Saved on one device, restored on eight: the same arrays, sharded."""
  expected_dir, expected_state = unbroken
  cube = placement.Placement(mesh=mesh.make_mesh(data=2, fsdp=2, model=2))
  planned = state.abstract(tiny_run.model(), tiny_run.adamw(), cube)
  with manager.CheckpointManager(expected_dir / "checkpoints") as saver:
    found = saver.restore(planned)
  restored = found.state
  assert found.metadata == {"model": "tiny"}
  jax.tree.map(np.testing.assert_array_equal, restored, expected_state)
  head = restored.params["decoder"]["logits_dense"]["kernel"]
  assert head.sharding.shard_shape(head.shape) == (8, 32)


def test_evaluations_rows_and_checkpoints_follow_the_schedule(tmp_path):
  seen = []

  def evaluator(params, step):
    seen.append((step, float(params["decoder"]["decoder_norm"]["scale"][0])))
    return {"task/accuracy": step / 10}

  config = {
    "num_steps": 7,
    "log_every": 3,
    "eval_every": 3,
    "evaluate_first": True,
    "checkpoint_every": 4,
  }
  last = tiny_run.finish(
    tiny_run.loop_run(
      tmp_path,
      config=config,
      evaluators=[evaluator, lambda params, step: {"other/n": 2.0}],
    )
  )
  assert int(last.step) == 7
  assert [step for step, _ in seen] == [0, 3, 6, 7]
  assert seen[0][1] == 1.0 != seen[1][1]
  assert [row["step"] for row in _rows(tmp_path)] == [1, 3, 6, 7]
  values = _rows(tmp_path)[-1]["values"]
  assert {"loss", "token_accuracy", "gradient_norm"} < values.keys()
  assert values["tokens_per_second"] > 0 <= values["data_wait_seconds"]
  row = _rows(tmp_path, "evaluation")[1]
  assert (row["step"], row["group"]) == (3, "evaluation")
  assert row["values"] == {"task/accuracy": 0.3, "other/n": 2.0}
  with manager.CheckpointManager(tmp_path / "checkpoints") as saver:
    assert saver.all_steps() == [4, 7]
  assert list((tmp_path / "tensorboard").glob("events.*"))
  # A finished run that is started again has nothing to do.
  again = tiny_run.finish(
    tiny_run.loop_run(tmp_path, config=config, evaluators=[evaluator])
  )
  assert int(again.step) == 7
  assert len(seen) == 4


@pytest.mark.parametrize("ends", ["evaluating", "asked to"])
@pytest.mark.parametrize("at_step", [4, 6])
def test_an_evaluation_that_was_cut_short_is_made_up_for(
  tmp_path, ends, at_step
):
  """Its step is not lost, and a run that was at its last step has values."""
  config = {
    "num_steps": 6,
    "log_every": 1,
    "eval_every": 2,
    "checkpoint_every": 2,
  }

  def evaluator(params, step):
    if ends == "evaluating" and step == at_step:
      raise MemoryError("taken away")
    return {
      "task/accuracy": float(params["decoder"]["decoder_norm"]["scale"][0])
    }

  class Ended(tiny_run.Batches):
    def __next__(self):
      if ends == "asked to" and self.number == at_step - 1:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().__next__()

  original, tiny_run.Batches = tiny_run.Batches, Ended
  try:
    with pytest.raises((MemoryError, loop.Preempted)):
      tiny_run.finish(
        tiny_run.loop_run(tmp_path, config=config, evaluators=[evaluator])
      )
  finally:
    tiny_run.Batches = original
  ends = "not at all"
  with manager.CheckpointManager(tmp_path / "checkpoints") as saver:
    assert saver.latest_step() == at_step
  whole = tmp_path / "whole"
  for directory in (tmp_path, whole):
    tiny_run.finish(
      tiny_run.loop_run(directory, config=config, evaluators=[evaluator])
    )
  found, expected = (
    [(row["step"], row["values"]) for row in _rows(directory, "evaluation")]
    for directory in (tmp_path, whole)
  )
  assert [step for step, _ in found] == [2, 4, 6]
  assert found == expected


def test_the_best_step_is_kept_though_it_was_saved_before_its_score(tmp_path):
  """As a preempted run saves it; and a second stop forgets no score."""
  config = {
    "num_steps": 6,
    "log_every": 1,
    "eval_every": 1,
    "checkpoint_every": 1,
    "best_metrics": ("a/accuracy",),
  }
  stops = {2, 4}

  def evaluator(params, step):
    if step in stops:
      stops.remove(step)
      os.kill(os.getpid(), signal.SIGTERM)  # the next step is the last
    return {"a/accuracy": {3: 0.9}.get(step, 0.02 * step)}

  def finish():
    tiny_run.finish(
      tiny_run.loop_run(
        tmp_path, config=config, evaluators=[evaluator], keep=1, keep_best=1
      )
    )

  for _ in range(2):
    with pytest.raises(loop.Preempted):
      finish()
  finish()
  with manager.CheckpointManager(tmp_path / "checkpoints") as saver:
    assert saver.all_steps() == [3, 6]


def test_a_profile_beside_an_idle_libtpu_is_refused(monkeypatch):
  """It would end the process by a signal."""
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  profiling.check((1, 2))  # with JAX_PLATFORMS=cpu, as tests run
  platforms = jax.config.jax_platforms
  jax.config.update("jax_platforms", None)
  try:
    with pytest.raises(errors.UserError, match="set JAX_PLATFORMS=cpu"):
      profiling.check((1, 2))
    profiling.check(None)
  finally:
    jax.config.update("jax_platforms", platforms)


def test_steps_to_profile_are_steps_of_the_run():
  with pytest.raises(errors.UserError, match="profile_steps=10,12 is not poss"):
    loop.LoopConfig(num_steps=9, profile_steps=(10, 12))


def test_a_step_is_started_before_the_last_ones_metrics_are_read(tmp_path):
  order = []
  plain = tiny_run.plain_step()

  def train_step(train_state, batch):
    new_state, metrics = plain(train_state, batch)
    order.append(f"start {len([o for o in order if 'start' in o]) + 1}")
    return new_state, metrics

  train_step.lower = plain.lower  # it is compiled before it is called

  class Told(narrator.Narrator):
    def step(self, step, **_):
      order.append(f"read {step}")

  run = tiny_run.loop_run(
    tmp_path, config={"num_steps": 3}, train_step=train_step
  )
  tiny_run.finish(
    dataclasses.replace(run, narrator=Told(num_steps=3, speaks=False))
  )
  assert order == [
    "start 1",
    "start 2",
    "read 1",
    "start 3",
    "read 2",
    "read 3",
  ]


def test_another_models_directory_is_refused_before_the_first_step(
  unbroken, tmp_path
):
  run = loop.Run(
    train_step=tiny_run.plain_step(),
    placement=tiny_run.one_device(),
    manager=manager.CheckpointManager(unbroken[0] / "checkpoints"),
    log=run_log.RunLog(tmp_path),
    config=loop.LoopConfig(num_steps=1),
  )
  with pytest.raises(errors.UserError, match="of another model"):
    loop.resume_or_start(
      run,
      tiny_run.Batches(),
      abstract_state=state.abstract(
        tiny_run.model(mlp_dim=48), tiny_run.adamw(), run.placement
      ),
      initial_state_fn=tiny_run.new_state,
    )
  run.manager.close()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("num_steps", "LoopConfig.num_steps=0 is not possible"),
    ("eval_every", "LoopConfig.eval_every=0 is not possible"),
    ("profile_steps", "profile_steps=3,2 is not possible"),
  ],
)
def test_an_interval_that_is_not_positive_is_refused(name, message):
  with pytest.raises(errors.UserError, match=message):
    value = (3, 2) if name == "profile_steps" else 0
    loop.LoopConfig(**{"num_steps": 1, name: value})
