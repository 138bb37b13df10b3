"""`specialize demo --study` at toy size: real processes, killed and gone on."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

_ARM = """
from __gin__ import dynamic_registration
from specialize_jax.runs import experiment
from specialize_jax.t5 import config
include "experiments/mini/{name}.gin"
include "models/mini_width_32.gin"
config.T5Config.num_encoder_layers = 1
config.T5Config.num_decoder_layers = 1
TRAIN_STEPS = 6
WARMUP_STEPS = 2
CHECKPOINT_EVERY = 2
{more}
"""
_EVALUATED = """
EVAL_EVERY = 2
EVALUATIONS = [@maths/experiment.Evaluation()]
maths/experiment.Evaluation.num_examples = 4
experiment.Evaluation.batch_size = 8
experiment.Evaluation.max_new_tokens = 4
"""
_STUDY = """
from __gin__ import dynamic_registration
from specialize_jax.mini import world
from specialize_jax.study import arms
from specialize_jax.runs import experiment
include "runs/study.gin"
world.WorldConfig:
  train_size = 40
  out_of_distribution_train_size = 20
  validation_size = 8
  test_size = 8
  general_train_size = 20
  general_validation_size = 4
  general_test_size = 4
  weak_maths_size = 20
experiment.Evaluation.batch_size = 8
experiment.Evaluation.max_new_tokens = 4
arms.Study.arms = [
  @general/arms.Arm(), @gain_and_price/arms.Arm(), @sample_matching/arms.Arm()
]
arms.Roles:
  formats = {"four formats": "gain_and_price",
             "zero-shot only": "gain_and_price",
             "in-context only": "gain_and_price"}
  in_context_shares = {}
  raw_start = None
  sizes = [("general", "gain_and_price"), ("general", "gain_and_price")]
general/arms.Arm.gin_files = ["general.gin"]
gain_and_price/arms.Arm.gin_files = ["gain_and_price.gin"]
sample_matching/arms.Arm:
  gin_files = ["sample_matching.gin"]
  tests = [@maths/experiment.Evaluation()]
"""


@pytest.fixture
def directory(tmp_path):
  for name, more in (
    ("general", ""),
    ("gain_and_price", _EVALUATED),
    ("sample_matching", _EVALUATED),
  ):
    (tmp_path / f"{name}.gin").write_text(_ARM.format(name=name, more=more))
  (tmp_path / "tiny_study.gin").write_text(_STUDY)
  return tmp_path


def start(directory, *flags):
  paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "specialize_jax.cli.main", "demo", "--study"),
      *("--output_dir=out", "--gin_file=tiny_study.gin", "--num_seeds=2"),
      *flags,
    ],
    cwd=directory,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finished(directory):
  return {
    path.parent.name.rpartition("-")[0]
    for path in directory.glob("out/jobs/*/result.json")
  }


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_and_tells_five_findings(directory):
  study = start(directory, "--num_workers=2")
  deadline = time.monotonic() + 900
  while len(finished(directory)) < 3:
    assert time.monotonic() < deadline
    assert study.poll() is None, study.communicate()[1]
    time.sleep(0.2)
  study.send_signal(signal.SIGKILL)
  study.communicate()
  before = {
    path: path.stat().st_mtime_ns
    for path in directory.glob("out/jobs/*/result.json")
  }

  study = start(directory, "--num_workers=2")
  printed, log = study.communicate(timeout=900)
  assert study.returncode == 0, log
  assert f"[{len(before)}/8] {len(before)} jobs were done before" in log
  assert "[8/8]" in log
  assert all(path.stat().st_mtime_ns == at for path, at in before.items())
  result = json.loads((directory / "out/study.json").read_text())
  assert result["seeds"] == [0, 1]
  assert result["cost"]["cpu_seconds"] > 0
  assert len(re.findall(r"^\d\. ", printed, re.MULTILINE)) == 5
  page = (directory / "out/study.html").read_text()
  assert page.count("<svg") == 5
  # Both objectives saw the same batches.
  targets = [
    [
      json.loads(line)["values"]["num_target_tokens"]
      for line in metrics.read_text().splitlines()
      if '"train"' in line
    ]
    for arm in ("gain_and_price", "sample_matching")
    for metrics in directory.glob(f"out/jobs/seed0-{arm}-*/run/metrics.jsonl")
  ]
  assert len(targets) == 2
  assert targets[0] == targets[1]


def test_counts_that_cannot_be_are_refused(directory):
  study = start(directory, "--num_workers=0")
  _, log = study.communicate(timeout=120)
  assert study.returncode == 2
  assert "--num_workers: '0' is not possible" in log
