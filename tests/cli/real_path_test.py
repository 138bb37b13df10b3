"""The whole way on real input: 40 samples of code-davinci-002, T5's pieces."""

import json

import pytest
from testdata import real_files

from specialize_jax.cli import main
from specialize_jax.data import sources


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("tfds")
  data = real_files.find()
  status = main.main(
    [
      "prepare",
      f"--records={data}/codex/gsm8k_train_0.json",
      f"--vocabulary={data}/tokenizers/t5_spiece.model",
      f"--questions={data}/gsm8k/train.jsonl",
      f"--data_dir={directory}",
      "--dataset_name=gsm8k_teacher",
      f"--report={directory}/report.json",
    ]
  )
  assert status == 0
  yield directory
  sources.set_data_dir(None)
  import seqio

  seqio.set_tfds_data_dir_override(None)


def test_every_real_sample_is_kept(tfds_dir):
  report = json.loads((tfds_dir / "report.json").read_text())
  assert (report["records"], report["kept"]) == (40, 40)
  assert report["one_to_one"] / report["positions"] > 0.97


@pytest.mark.slow
def test_the_kl_falls_and_all_four_test_sets_are_evaluated(tfds_dir, tmp_path):
  common = [
    f"--data_dir={real_files.find()}",
    f"--tfds_data_dir={tfds_dir}",
  ]
  assert not main.main(
    [
      "train",
      "--gin_file=experiments/tiny_gsm8k.gin",
      *common,
      f"--gin.MODEL_DIR={tmp_path}/run",
      "--gin.TRAIN_STEPS=30",
    ]
  )
  lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  kl = [json.loads(line)["values"]["loss_kl"] for line in lines]
  assert len(kl) == 30
  assert sum(kl[-5:]) < 0.5 * sum(kl[:5])
  assert not main.main(
    [
      "eval",
      *common,
      f"--gin.CHECKPOINT_PATH={tmp_path}/run",
      "--gin.MIXTURE_OR_TASK_NAME=math_test_v1",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 256, 'targets': 64}",
      "--gin.MAX_NEW_TOKENS=8",
      "--gin.NUM_EXAMPLES=8",
      "--gin.EVAL_BATCH_SIZE=8",
      f"--gin.EVAL_OUTPUT_DIR={tmp_path}/eval",
    ]
  )
  written = sorted(path.name for path in (tmp_path / "eval/30").iterdir())
  assert written == [
    f"{name}_zero_shot_chain_of_thought_v1{suffix}"
    for name in ("asdiv", "gsm8k", "multiarith", "svamp")
    for suffix in (".jsonl", ".outputs.jsonl", ".outputs.jsonl.progress")
  ]
