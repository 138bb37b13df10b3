"""`specialize train` says what it does, and what it would do."""

import json
import logging
import re
import signal
import subprocess
import sys
import time

import pytest
from absl import logging as absl_logging
from testdata import tiny_gin, tiny_world

from specialize_jax.cli import main
from specialize_jax.data import sources

_TINY = (
  """
from __gin__ import dynamic_registration
from specialize_jax.t5 import config
from specialize_jax.runs import experiment

include "runs/train.gin"

MIXTURE_OR_TASK_NAME = "mini_facts_v1"
TASK_FEATURE_LENGTHS = {"inputs": 64, "targets": 64}
TRAIN_STEPS = 4
BATCH_SIZE = 8
WARMUP_STEPS = 1
CHECKPOINT_EVERY = 2
EVAL_EVERY = 2
METRIC_WRITERS = ()
EVALUATIONS = [@experiment.Evaluation()]
experiment.Evaluation:
  mixture_or_task_name = "mini_svamp_zero_shot_chain_of_thought_v1"
  task_feature_lengths = {"inputs": 64}
  batch_size = 8
  max_new_tokens = 4
"""
  + tiny_gin.MODEL
)


# Where tests run in the background, Ctrl-C is ignored, by their children too.
_FROM_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from specialize_jax.cli import main
main.console()
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
  """The arguments of a tiny run; MODEL_DIR is still to be given."""
  place = tmp_path_factory.mktemp("world")
  data_dir = tiny_world.build(place)
  (place / "tiny.gin").write_text(_TINY)
  yield ["train", f"--gin_file={place}/tiny.gin", f"--data_dir={data_dir}"]
  sources.set_data_dir(None)


@pytest.fixture
def train(arguments, tmp_path, capsys):
  """Runs the command; returns its status, its output and what it said."""

  def run(*argv):
    model_dir = f"--gin.MODEL_DIR={tmp_path}/run"
    status = main.main([*arguments, model_dir, *argv])
    output = capsys.readouterr()
    return status, output.out, output.err

  run.model_dir = tmp_path / "run"
  return run


def test_a_run_says_what_it_is_what_it_finds_and_what_is_best(train):
  status, _, said = train()
  assert status == 0
  task = "mini_svamp_zero_shot_chain_of_thought_v1"
  for line in (
    r"devices      8 x cpu \(cpu\), mesh data=8, fsdp=1, model=1",
    r"model        [\d,]+ parameters in float32, computing in bfloat16",
    r"data         mini_facts_v1, batches of 8 rows, 64 \+ 64 tokens each, "
    "packed",
    rf"evaluations  {task}",
    r"start  random parameters of seed 0; steps 1 to 4, an evaluation every 2 "
    "steps, a checkpoint every 2 steps",
    r"step 2: evaluated in \d+ (s|min)",
    rf"  {task}  +\d+\.\d %  \[\d+\.\d, \d+\.\d\]  of 6",
    r"  the next evaluation is at step 4",
    rf"step 2: saving to {train.model_dir}/checkpoints/2",
    r"finished step 4 after \d+ (s|min)",
    rf"best checkpoint: step \d, {train.model_dir}/checkpoints/\d \(mean "
    r"out-of-distribution validation accuracy \d+\.\d %\)",
  ):
    assert re.search(f"^{line}$", said, re.MULTILINE), (line, said)
  for noise in ("TensorFlow", "tensorflow", "WARNING", "XLA"):
    assert noise not in said

  status, _, error = train(
    "--dry_run",
    f"--gin.MODEL_DIR={train.model_dir}/other",
    f"--gin.INITIAL_CHECKPOINT_PATH={train.model_dir}",
    "--gin.T5Config.mlp_dim=24",
  )
  assert status == 2
  assert "mlp" in error
  _, _, again = train()
  assert "start  already finished at step 4 (TRAIN_STEPS is 4)\n" in again
  assert "compiling" not in again
  _, _, longer = train("--gin.TRAIN_STEPS=5")
  assert "start  resumed at step 4; steps 5 to 5, " in longer


def test_a_dry_run_shows_the_batch_as_text_and_writes_nothing(train):
  status, shown, _ = train("--dry_run")
  assert status == 0
  assert re.search(r"^state +0\.00 GiB a device", shown, re.MULTILINE)
  assert re.search(r"^first batch +\d+ examples, ", shown, re.MULTILINE)
  assert re.search(
    r"^questions +6: mini_svamp_zero_shot_chain_of_thought_v1$",
    shown,
    re.MULTILINE,
  )
  assert re.search(
    r"^row 0, example 1\n  inputs \(\d+ tokens\): .*step by step\n"
    r"  targets \(\d+ tokens\): .*The answer is \d+\.$",
    shown,
    re.MULTILINE,
  )
  assert not train.model_dir.exists()


def test_examples_that_are_too_long_are_told(train):
  lengths = '--gin.TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 11}'
  _, shown, _ = train("--dry_run", lengths)
  assert re.search(
    r"^dropped +\d+ of \d+ examples dropped as longer than TASK_FEATURE_LENGT",
    shown,
    re.MULTILINE,
  )


def test_evaluations_that_are_never_due_are_told(train):
  _, shown, _ = train("--dry_run", "--gin.EVAL_EVERY=None")
  assert re.search(r"^evaluations .*, but never, since EVAL_EVERY", shown, re.M)


def test_rows_of_the_model_that_no_token_uses_are_told(train):
  status, shown, _ = train("--dry_run", "--gin.T5Config.vocab_size=1024")
  assert status == 0
  (tokens, unused) = re.search(
    r"^vocabulary +(\d+) tokens, (\d+) fewer than T5Config.vocab_size=1,024: ",
    shown,
    re.MULTILINE,
  ).groups()
  assert int(tokens) + int(unused) == 1024


def test_a_dry_run_finds_what_a_run_would_stop_at(train):
  for argument, named in (
    ("--gin.INITIAL_CHECKPOINT_PATH=/no/such/run", "/no/such/run"),
    ("--gin.MIXTURE_OR_TASK_NAME=mini_fcats_v1", "mini_facts_v1"),
    ("--gin.DATA_AXIS=3", "8 devices"),
    ('--gin.METRIC_WRITERS=["neptune"]', "'neptune'"),
  ):
    status, shown, error = train("--dry_run", argument)
    assert (status, shown) == (2, "")
    assert named in error


def test_the_configuration_is_printed_with_every_override(train):
  status, shown, _ = train("--print_config", "--gin.TRAIN_STEPS=77")
  assert status == 0
  assert re.search(r"^ *TRAIN_STEPS = 77$", shown, re.MULTILINE)
  assert "T5Config.embed_dim = 16" in shown
  assert not train.model_dir.exists()


def test_the_log_level_is_that_of_every_library(train):
  names = ("", "absl", "jax")
  before = {name: logging.getLogger(name).level for name in names}
  try:
    status, _, _ = train("--print_config", "--log_level=info")
    levels = [logging.getLogger(n).getEffectiveLevel() for n in names]
  finally:
    for name, level in before.items():
      logging.getLogger(name).setLevel(level)
    absl_logging.set_verbosity("warning")
  assert (status, levels) == (0, [logging.INFO] * 3)


def test_a_dry_run_says_what_a_slice_needs_for_the_run(train):
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  status, shown, _ = train("--dry_run", "--topology=v5e:2x2")
  assert status == 0
  _, found, needs = shown.partition("on v5e:2x2 (4 chips), by its compiler")
  assert found
  assert "data=4" in needs
  assert not train.model_dir.exists()


def test_a_topology_without_a_dry_run_is_refused(train):
  status, _, error = train("--topology=v5e:4x4")
  assert status == 2
  assert "--topology=v5e:4x4 goes with --dry_run" in error


def test_help_lists_the_macros_of_the_files_that_are_given(arguments, capsys):
  with pytest.raises(SystemExit):
    main.main([*arguments, "--help"])
  shown = capsys.readouterr().out
  assert "\n  TRAIN_STEPS = 4 " in shown
  assert "\n  MODEL_DIR = required " in shown
  assert "  OptimizerConfig.learning_rate\n" in shown


@pytest.mark.slow  # the loop's own test is quick; this one is the command's
def test_ctrl_c_saves_the_step_and_ends_with_130(arguments, tmp_path):
  """As a process: a signal and its status are one."""
  process = subprocess.Popen(
    [
      *(sys.executable, "-c", _FROM_A_TERMINAL, *arguments),
      f"--gin.MODEL_DIR={tmp_path}/run",
      "--gin.TRAIN_STEPS=1000000",
      "--gin.EVALUATIONS=()",
      "--gin.EVAL_EVERY=None",
      "--gin.CHECKPOINT_EVERY=None",
    ],
    stderr=subprocess.PIPE,
    text=True,
  )
  metrics = tmp_path / "run" / "metrics.jsonl"
  deadline = time.monotonic() + 240
  while not metrics.exists() or not metrics.read_text():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=120)
  assert process.returncode == 130
  saved = re.search(r"interrupted: saved step ([\d,]+) of 1,000,000", said)
  assert saved, said
  step = int(saved[1].replace(",", ""))
  assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == [
    str(step)
  ]
  rows = [json.loads(line) for line in metrics.read_text().splitlines()]
  assert rows[-1]["step"] <= step
  assert "Traceback" not in said
