"""docs/t5x.md is true: its commands run, one after the other, on a tiny demo.

The student is random and the runs are two steps long: what is tested is that
nothing but models, mixtures, lengths, steps and directories has to be given.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf
from testdata import tiny_world

import specialize_jax.tasks.mixtures  # noqa: F401  (registers the tasks)
from specialize_jax.checkpoints import manager, opening
from specialize_jax.cli import prepare
from specialize_jax.data import sources

pytestmark = pytest.mark.t5x

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "t5x.md"
_BLOCK = re.compile(
  r"<!-- needs: (T5X|T5X and Beam) -->\n```sh\n(.*?)```", re.DOTALL
)
_TASK = "mini_gsm_teacher_zero_shot_chain_of_thought_v1"
# Of the page's runs: how much smaller they are here, and that the tiny world
# has no answer worth decoding 64 tokens for.
_SMALLER = {
  r"TRAIN_STEPS=1150\b": "TRAIN_STEPS=852 --gin.EVAL_PERIOD=2"
  " --gin.EVAL_STEPS=1",
  r"TRAIN_STEPS=100\b": "TRAIN_STEPS=2 --gin.WARMUP_STEPS=1"
  " --gin.EVALUATIONS='()'",
  r"checkpoint_1150\b": "checkpoint_852",
  r'"targets": 64\b': '"targets": 24',
  r'"inputs": 256\b': '"inputs": 512',  # its words are many tokens
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
  """A directory with `demo_output/`, as the page's commands find it."""
  place = tmp_path_factory.mktemp("t5x")
  world = tiny_world.build(place / "demo_output/world")
  tiny_world.write_records(world, f"{world}/mini/records")
  prepare.main(
    [
      f"--records={world}/mini/records",
      f"--vocabulary={world}/mini/student.model",
      f"--questions={world}/mini/mini_gsm/train.jsonl",
      f"--data_dir={world}/tfds",
      "--dataset_name=mini_gsm_teacher",
    ]
  )
  _write_student(place / "demo_output/pretrain")
  (place / "gin_configs").symlink_to(ROOT / "gin_configs")
  return place


def _write_student(path):
  """A random student of the demo's size and steps, as a run of ours."""
  import argparse
  import dataclasses

  import jax

  from specialize_jax.checkpoints import name_table
  from specialize_jax.cli import gin_files
  from specialize_jax.runs import experiment

  flags = argparse.Namespace(
    gin_file=["experiments/mini/pretrain.gin"], gin_search_paths=""
  )
  with gin_files.loaded(flags, [f"MODEL_DIR = {str(path)!r}"]):
    run = gin_files.configured(experiment.Experiment)()
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: np.float32(0.05 * rng.normal(size=leaf.shape)),
    name_table.abstract_params(run.model),
  )
  with manager.CheckpointManager(path / "checkpoints") as steps:
    steps.save(
      run.loop.num_steps,
      {"params": params},
      b"",
      {"model": dataclasses.asdict(run.model), "config": "", "version": ""},
    )


def blocks(needs):
  return [
    text for one, text in _BLOCK.findall(PAGE.read_text()) if one == needs
  ]


def run(block, place):
  for old, new in _SMALLER.items():
    block = re.sub(old, new, block)
  binary = pathlib.Path(sys.executable).parent
  done = subprocess.run(
    ["bash", "-euc", f"export SPECIALIZE_DATA=demo_output/world\n{block}"],
    cwd=place,
    env={
      **os.environ,
      "PATH": f"{binary}{os.pathsep}{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
      "XLA_FLAGS": "--xla_backend_optimization_level=0",
    },
    capture_output=True,
    text=True,
    check=False,
    timeout=1800,
  )
  assert done.returncode == 0, f"{block}\n{done.stderr[-4000:]}"
  return done.stdout


def test_the_page_s_commands_run_one_after_the_other(demo):
  train, evaluate, back = blocks("T5X")
  assert [train.count("python -m t5x."), evaluate.count("python -m t5x.")] == [
    1,
    2,
  ]
  run(train, demo)
  of_run = opening.open_checkpoint(demo / "t5x_run")
  assert (of_run.kind, of_run.step) == ("t5x", 852)
  assert of_run.moments().count == 852
  events = list((demo / "t5x_run/training_eval").rglob("events.*"))
  assert events  # the teacher on validation questions

  printed = run(evaluate, demo)
  scored = json.loads(printed.strip().splitlines()[-1])
  assert scored["n"] == 6
  (metrics,) = (demo / "t5x_eval/inference_eval").glob(
    "mini_gsm_zero_shot_chain_of_thought_v1-metrics.jsonl"
  )
  measured = json.loads(metrics.read_text().splitlines()[-1])
  assert measured["accuracy"] == pytest.approx(
    100 * scored["accuracy"], abs=1e-3
  ) or (measured["accuracy"] == pytest.approx(scored["accuracy"], abs=1e-3))

  run(back, demo)
  rows = [json.loads(x) for x in (demo / "further/metrics.jsonl").open()]
  held_out = [
    row["values"]["held_out/loss_kl"]
    for row in rows
    if row["group"] == "evaluation"
  ]
  # What T5X measured after its last step, with the parameters that it saved.
  assert held_out[0] == pytest.approx(last_kl(demo / "t5x_run"), rel=1e-4)
  shutil.rmtree(demo / "further")


def test_a_task_that_seqio_cached_trains_as_it_does_without_a_cache(demo):
  pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
  (block,) = blocks("T5X and Beam")
  cache, train = block.split("python -m t5x.train", maxsplit=1)
  run(cache, demo)
  assert (demo / "t5x_cache" / _TASK / "COMPLETED").exists()
  check_cached_examples(demo)
  if not (demo / "t5x_start").exists():  # where the other test has not run
    run(
      "specialize convert --checkpoint=demo_output/pretrain --to=t5x"
      " --output=t5x_start",
      demo,
    )
  run(f"python -m t5x.train{train}", demo)
  assert opening.open_checkpoint(demo / "t5x_cached_run").step == 852


def check_cached_examples(demo):
  """Cached and uncached examples of both splits are equal, in some order."""
  task = seqio.get_mixture_or_task(_TASK)
  sources.set_data_dir(demo / "demo_output/world")
  seqio.add_global_cache_dirs([str(demo / "t5x_cache")])
  for split in ("train", "validation"):
    cached, fresh = (
      {
        example["example_id"]: example
        for example in task.get_dataset(
          None, split=split, shuffle=False, use_cached=use_cached
        ).as_numpy_iterator()
      }
      for use_cached in (True, False)
    )
    assert cached.keys() == fresh.keys()
    assert fresh
    for name, example in fresh.items():
      for feature in task.output_features:
        value, expected = cached[name][feature], example[feature]
        assert np.asarray(value).dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(value, expected, err_msg=feature)


def last_kl(model_dir):
  """The last divergence that t5x.train measured on validation records."""
  values = {
    event.step: float(tf.make_ndarray(value.tensor))
    for file in (model_dir / "training_eval" / _TASK).glob("events.*")
    for event in tf.compat.v1.train.summary_iterator(str(file))
    for value in event.summary.value
    if value.tag == "distillation/kl"
  }
  return values[max(values)]
