"""A run whose MODEL_DIR is in a bucket is written as one on a disk is."""

import pathlib

import pytest
from testdata import tiny_demo, tiny_world

from specialize_jax.checkpoints import opening
from specialize_jax.data import sources
from specialize_jax.files import reading
from specialize_jax.runs import experiment
from tasks import mixtures  # noqa: F401  (registers every task)

_TASK = "mini_svamp_zero_shot_chain_of_thought_v1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  yield pathlib.Path(tiny_world.build(tmp_path_factory.mktemp("world")))
  sources.set_data_dir(None)


@pytest.mark.slow
def test_a_run_is_trained_and_evaluated_into_a_bucket(
  bucket, world, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  run_dir = f"{bucket}/run"
  sources.set_data_dir(world)
  experiment.train(
    tiny_demo.run(
      run_dir,
      "mini_pretrain_v1",
      evaluations=[
        tiny_demo.evaluation(_TASK, split="validation", num_examples=4)
      ],
    )
  )
  rows = reading.read_rows(f"{run_dir}/predictions/4/{_TASK}.jsonl")
  assert len(rows) == 4
  steps = [row["step"] for row in reading.read_rows(f"{run_dir}/metrics.jsonl")]
  assert steps == [1, 2, 2, 3, 4, 4]
  assert opening.open_checkpoint(run_dir).step == 4
  assert not list(tmp_path.iterdir())
