"""A user's mistake is one sentence and status 2, and nothing is written."""

import json
import shutil
import time

import pytest
from testdata import several_processes, tiny_demo, tiny_gin, tiny_world

from specialize_jax.cli import main
from specialize_jax.data import sources
from tasks import mixtures  # noqa: F401  (registers every task)

_TINY = (
  """
from __gin__ import dynamic_registration
from specialize_jax.t5 import config
from tasks import mixtures

include "runs/train.gin"

MIXTURE_OR_TASK_NAME = "mini_facts_v1"
TASK_FEATURE_LENGTHS = {"inputs": 64, "targets": 64}
TRAIN_STEPS = 2
BATCH_SIZE = 8
"""
  + tiny_gin.MODEL
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  yield tiny_world.build(tmp_path_factory.mktemp("world"))
  sources.set_data_dir(None)


@pytest.fixture
def train(tmp_path, data_dir, capsys):
  """Runs `specialize train` and gives its status and its last words."""
  gin_file = tmp_path / "tiny.gin"
  gin_file.write_text(_TINY)
  model_dir = tmp_path / "model"

  def run(*argv, model_dir=model_dir):
    status = main.main(
      [
        "train",
        f"--gin_file={gin_file}",
        f"--data_dir={data_dir}",
        f"--gin.MODEL_DIR={model_dir}",
        *argv,
      ]
    )
    return status, capsys.readouterr().err.strip()

  run.model_dir = model_dir
  return run


@pytest.mark.parametrize(
  ("argument", "named"),
  [
    ("--gin.TRAIN_STEP=3", "TRAIN_STEPS"),
    ("--gin.MIXTURE_OR_TASK_NAME=mini_pretrian_v1", "mini_pretrain_v1"),
    ("--gin_file=no_such_file.gin", "no_such_file.gin"),
    ("--gin.INITIAL_CHECKPOINT_PATH=/no/such/run", "/no/such/run"),
    ("--gin.DATA_AXIS=3", "8 devices"),
    ("--gin.T5Config.num_heads=0", "num_heads"),
    ("--gin.BATCH_SIZE=0", "batch"),
  ],
)
def test_a_run_that_cannot_be_writes_nothing(train, argument, named):
  status, error = train(argument)
  assert status == 2
  assert error.startswith("specialize train: error: ")
  assert "\n" not in error
  assert named in error
  assert not list(train.model_dir.glob("**/*"))


def test_an_empty_mixture_is_an_error(train, tmp_path):
  gin_file = tmp_path / "empty.gin"
  gin_file.write_text(
    "from __gin__ import dynamic_registration\n"
    "from tasks import mixtures\n"
    "MIXTURE_OR_TASK_NAME = @mixtures.specialize()\n"
    "mixtures.specialize:\n"
    "  name = 'empty_by_gin'\n"
    "  dataset = 'mini_gsm'\n"
    "  in_context_answer_only = 0\n"
    "  in_context_chain_of_thought = 0\n"
    "  zero_shot_answer_only = 0\n"
    "  zero_shot_chain_of_thought = 0\n"
  )
  status, error = train(f"--gin_file={gin_file}")
  assert status == 2
  assert "mixture 'empty_by_gin' is empty" in error
  assert not train.model_dir.exists()


def test_a_checkpoint_directory_of_another_model_is_kept(
  train, trained_run, tmp_path
):
  other, _ = trained_run
  model_dir = shutil.copytree(other.model_dir, tmp_path / "other")
  before = sorted(path.name for path in model_dir.glob("checkpoints/*"))
  status, error = train(
    "--gin.TRAIN_STEPS=9", "--gin.T5Config.mlp_dim=24", model_dir=model_dir
  )
  assert status == 2
  assert "mlp" in error
  after = sorted(path.name for path in model_dir.glob("checkpoints/*"))
  assert before == after


def test_eval_names_a_task_that_is_near(tmp_path, data_dir, capsys):
  status = main.main(
    [
      "eval",
      f"--data_dir={data_dir}",
      f"--gin.CHECKPOINT_PATH={tmp_path}",
      "--gin.MIXTURE_OR_TASK_NAME=mini_math_tset_v1",
      f"--gin.TASK_FEATURE_LENGTHS={json.dumps({'inputs': 64, 'targets': 8})}",
      f"--gin.EVAL_OUTPUT_DIR={tmp_path / 'eval'}",
    ]
  )
  assert status == 2
  assert not (tmp_path / "eval").exists()
  assert "checkpoint" in capsys.readouterr().err


def test_a_save_that_fails_later_ends_the_run_and_its_process(
  tmp_path, data_dir
):
  """The directory is lost while the run goes on, as a disk may be."""
  run = several_processes.Run(
    tmp_path,
    data_dir,
    num_steps=10**6,
    CHECKPOINT_EVERY=40,
    MIXTURE_OR_TASK_NAME=tiny_demo.TASK,
  )
  (process,) = run.start(1, 1)
  run.wait_for_step(process, 40)
  while not run.saved_steps():
    assert process.poll() is None, run.errors(0)
    time.sleep(0.02)
  assert run.saved_steps() == [40]  # no save is under way
  checkpoints = run.model_dir / "checkpoints"
  checkpoints.rename(tmp_path / "elsewhere")
  checkpoints.write_text("in the way")
  # Less than the 300 s that Orbax's threads wait for one another. Ten of them
  # are the command's own patience; the rest is room for a loaded machine.
  assert run.wait([process], seconds=150) == [1]
  assert f"could not be saved in {checkpoints}" in run.errors(0)
  assert run.rows()[-1]["step"] < 10**6
