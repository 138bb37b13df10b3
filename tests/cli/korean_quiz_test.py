"""A domain of another kind and script goes the whole way, without Python.

Multiple choice in Korean, answers in JSON, names of files too; the teacher's
tokens end within characters, and the student's vocabulary falls back to bytes.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from testdata import korean_quiz

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
_LENGTHS = '{"inputs": 96, "targets": 48}'
_STUDENT = f"""\
from __gin__ import dynamic_registration
from specialize_jax.losses import distillation
from specialize_jax.runs import experiment
from specialize_jax.t5 import config
from specialize_jax.training import loop
from specialize_jax.training import optimizer
include "runs/train.gin"
include "losses/distribution_matching.gin"
config.T5Config:
  vocab_size = 512
  embed_dim = 96
  mlp_dim = 192
  num_heads = 4
  head_dim = 24
  num_encoder_layers = 2
  num_decoder_layers = 2
  mlp_activations = ("gelu", "linear")
  tied_head = False
  dropout_rate = 0.0
  dtype = "float32"
  scan_layers = False
TASK_FEATURE_LENGTHS = {{"inputs": 256, "targets": 128}}
BATCH_SIZE = 8
TRAIN_STEPS = 120
LEARNING_RATE = 3e-3
WARMUP_STEPS = 30
CHECKPOINT_EVERY = 60
EVAL_EVERY = 60
EVALUATIONS = [@experiment.Evaluation()]
experiment.Evaluation:
  mixture_or_task_name = "quiz_validation"
  task_feature_lengths = {_LENGTHS}
  batch_size = 60
  max_new_tokens = 48
loop.LoopConfig.evaluate_first = True
distillation.LossConfig:
  chunk_axis = "targets"
  num_chunks = 1
optimizer.OptimizerConfig:
  schedule = "cosine"
  final_learning_rate = 1e-4
"""


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
  """The domain's folder, called in Korean with a blank."""
  place = tmp_path_factory.mktemp("domain") / "한국어 퀴즈"
  place.mkdir()
  korean_quiz.write(place)
  (place / "student.gin").write_text(_STUDENT)
  return place


@pytest.fixture(scope="module")
def run(domain):
  """Runs a command in the folder; returns what it printed."""

  def run(*argv):
    done = subprocess.run(
      [sys.executable, "-m", "specialize_jax.cli.main", *argv],
      cwd=domain,
      env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
           "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
      capture_output=True,
      text=True,
      check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout

  return run


@pytest.fixture(scope="module")
def records(domain, run):
  """What the teacher said."""
  process = subprocess.Popen(
    [sys.executable, "-m", "testdata.korean_quiz"],
    cwd=ROOT / "tests",
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    url = f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    said = run(
      "teach", "--dataset=퀴즈.yaml", f"--base_url={url}", "--model=m",
      "--endpoint=chat", "--temperature=1", "--num_samples=4", "--output=기록",
    )  # fmt: skip
  finally:
    process.kill()
    process.wait()
  right = float(re.search(r"([\d.]+)% right", said)[1])
  assert 100 * (1 - 1.5 * korean_quiz.MISTAKE) < right < 100
  return domain / "기록"


def test_from_questions_to_a_folder_and_a_report(records, run, domain):
  dataset = "--dataset=퀴즈.yaml"
  shown = run("inspect", dataset, f"--records={records}", "--html=표본.html")
  assert "�" not in shown, "tokens are parts of characters, and legible"
  said = run("prepare", dataset, f"--records={records}")
  assert "0 one-hot" in said
  run("train", dataset, "--gin_file=student.gin", "--gin.MODEL_DIR=학생")
  run("select", dataset, "--model_dir=학생")
  said = run(
    "eval", dataset, "--gin.CHECKPOINT_PATH=학생/best",
    f"--gin.TASK_FEATURE_LENGTHS={_LENGTHS}", "--gin.MAX_NEW_TOKENS=48",
    "--gin.EVAL_OUTPUT_DIR=뒤",
  )  # fmt: skip
  accuracies = json.loads(said.splitlines()[-1])
  assert accuracies["quiz_zero_shot_chain_of_thought_v1"] > 0.5  # of 0.25
  run("convert", "--checkpoint=학생/best", "--output=폴더")
  assert (domain / "폴더" / "dataset.yaml").exists()
  lines = (domain / "시험.jsonl").read_text().splitlines(keepends=True)
  (domain / "새.jsonl").write_text("".join(lines[:20]))
  # The folder alone says how a question is asked, and what is voted on.
  run(
    "generate", "--checkpoint=폴더", "--inputs=새.jsonl", "--outputs=답.jsonl",
    "--max_new_tokens=48", "--strategy=sample", "--num_samples=3",
    "--self_consistency",
  )  # fmt: skip
  for line in (domain / "답.jsonl").read_text().splitlines():
    row = json.loads(line)
    assert row["voted_answer"] in korean_quiz.LETTERS
  said = run("score", dataset, "--inputs=답.jsonl", "--output=채점.jsonl")
  assert json.loads(said.splitlines()[-1])["accuracy"] > 0.5
  run("report", "--run=학생", "--after=뒤", dataset, "--output=보고서.html")
  assert "정답" in (domain / "보고서.html").read_text()
