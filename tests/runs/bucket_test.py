"""A run whose MODEL_DIR is in a bucket is used as one on a disk is."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath
from testdata import tiny_demo, tiny_world

from specialize_jax.checkpoints import opening
from specialize_jax.cli import main
from specialize_jax.data import sources
from specialize_jax.files import reading
from specialize_jax.runs import experiment
from specialize_jax.training import loop, optimizer
from tasks import mixtures  # noqa: F401  (registers every task)

_TASK = "mini_svamp_zero_shot_chain_of_thought_v1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  yield pathlib.Path(tiny_world.build(tmp_path_factory.mktemp("world")))
  sources.set_data_dir(None)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_trained_selected_evaluated_decoded_and_taken_out(
  bucket, world, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  run_dir = f"{bucket}/run"
  # As few rows as the vocabulary's tokens and their padding: a folder of
  # Hugging Face's holds both.
  model = dataclasses.replace(tiny_demo.model(), vocab_size=256)
  sources.set_data_dir(world)
  experiment.train(
    tiny_demo.run(
      run_dir,
      "mini_pretrain_v1",
      model=model,
      evaluations=[
        tiny_demo.evaluation(_TASK, split="validation", num_examples=4)
      ],
    )
  )
  rows = reading.read_rows(f"{run_dir}/predictions/4/{_TASK}.jsonl")
  assert len(rows) == 4
  steps = [row["step"] for row in reading.read_rows(f"{run_dir}/metrics.jsonl")]
  assert steps == [1, 2, 2, 3, 4, 4]

  assert main.main(["select", f"--model_dir={run_dir}"]) == 0
  chosen = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert chosen["best"] == f"{run_dir}/best"
  assert reading.read_json(f"{run_dir}/selection.json")

  begun = f"{bucket}/begun"
  still = optimizer.OptimizerConfig(learning_rate=1e-30)
  experiment.train(
    tiny_demo.run(
      begun,
      "mini_pretrain_v1",
      model=model,
      initial_checkpoint_path=chosen["best"],
      loop=loop.LoopConfig(num_steps=1, log_every=1, checkpoint_every=1),
      optimizer=still,
    )
  )
  before, after = (
    opening.open_checkpoint(path).params() for path in (chosen["best"], begun)
  )
  jax.tree.map(np.testing.assert_array_equal, before, after)

  arguments = [
    "eval",
    f"--data_dir={world}",
    f"--gin.CHECKPOINT_PATH={run_dir}/best",
    f"--gin.MIXTURE_OR_TASK_NAME={_TASK}",
    '--gin.TASK_FEATURE_LENGTHS={"inputs": 128, "targets": 64}',
    "--gin.MAX_NEW_TOKENS=4",
    "--gin.NUM_EXAMPLES=4",
    f"--gin.EVAL_OUTPUT_DIR={bucket}/eval",
  ]
  assert main.main(arguments) == 0
  predictions = f"{bucket}/eval/{chosen['step']}/{_TASK}.jsonl"
  score = ["score", "--task=svamp", f"--inputs={predictions}"]
  assert main.main([*score, f"--output={bucket}/graded.jsonl"]) == 0
  assert len(reading.read_rows(f"{bucket}/graded.jsonl")) == 4

  pathlib.Path("inputs.jsonl").write_text('{"text": "3 + 4?"}\n')
  arguments = [
    "generate",
    f"--checkpoint={run_dir}",
    f"--vocabulary={world}/mini/student.model",
    "--inputs=inputs.jsonl",
    "--outputs=outputs.jsonl",
    "--max_new_tokens=4",
    "--batch_size=8",
  ]
  assert main.main(arguments) == 0
  assert main.main(["convert", f"--checkpoint={run_dir}", "--output=out"]) == 0
  assert pathlib.Path("out/model.safetensors").exists()

  arguments = ["convert", "--checkpoint=out", f"--output={bucket}/back"]
  assert main.main(arguments) == 0
  assert epath.Path(f"{bucket}/back/checkpoints/0").is_dir()
  assert not list(pathlib.Path().glob("gs:*"))
