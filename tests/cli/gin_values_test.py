"""Every value that gin binds has its parameter's type, or is named."""

import argparse
import re
import typing

import pytest

from specialize_jax import errors
from specialize_jax.cli import gin_files, gin_values
from specialize_jax.runs import experiment
from tasks import mixtures  # noqa: F401 (what the gin files name)


def configure(*argv):
  """The experiment of the mini world's pretraining, with overrides."""
  parser = argparse.ArgumentParser()
  gin_files.add_flags(parser, default_file="experiments/mini/pretrain.gin")
  flags, bindings = gin_files.parse(parser, ["--gin.MODEL_DIR=run", *argv])
  with gin_files.loaded(flags, bindings) as text:
    return gin_files.configured(experiment.Experiment)(), text


@pytest.mark.parametrize(
  ("argument", "model_dir"),
  [
    ("--gin.MODEL_DIR=2024", "2024"),
    ("--gin.MODEL_DIR=1e5", "1e5"),
    ("--gin.MODEL_DIR=1_0", "1_0"),
    ("--gin.MODEL_DIR=runs/a b", "runs/a b"),
    ("--gin.MODEL_DIR='runs/a b'", "runs/a b"),
    ('--gin.MODEL_DIR="runs/a b"', "runs/a b"),
    ('--gin.MODEL_DIR=\\"runs/a b\\"', "runs/a b"),
    ("--gin.MODEL_DIR=gs://bucket/run", "gs://bucket/run"),
    ("--gin.MODEL_DIR=~/run", "~/run"),
    ("--gin.MODEL_DIR=[a](@b", "[a](@b"),
  ],
)
def test_a_path_needs_no_quotes_and_may_be_a_number(argument, model_dir):
  configured, text = configure(argument)
  assert configured.model_dir == model_dir
  assert f"MODEL_DIR = {model_dir!r}" in text


@pytest.mark.parametrize(
  "argument",
  [
    "--gin.LEARNING_RATE=1",
    "--gin.EVAL_EVERY=None",
    "--gin.KEEP=None",
    "--gin.T5Config.mlp_activations=['relu']",
    "--gin.T5Config.attention_block_sizes=[32, 32]",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 64}",
    "--gin.Experiment.loss=@distillation.LossConfig()",
    "--gin.BEST_METRICS=['a/accuracy']",
    "--gin.SEED=0",
  ],
)
def test_what_a_parameter_takes_is_taken(argument):
  configure(argument)


@pytest.mark.parametrize(
  ("argument", "sentence"),
  [
    ("TRAIN_STEPS='2'", "--gin.TRAIN_STEPS='2' .*expected a whole number"),
    ('TRAIN_STEPS="2"', "--gin.TRAIN_STEPS='2' .*expected a whole number"),
    ("TRAIN_STEPS=1e1", "expected a whole number: write 10"),
    ("TRAIN_STEPS=2.5", "--gin.TRAIN_STEPS=2.5 .*expected a whole number"),
    ("TRAIN_STEPS=True", "--gin.TRAIN_STEPS=True .*expected a whole number"),
    ("TRAIN_STEPS=two", "--gin.TRAIN_STEPS='two' .*expected a whole number"),
    ("TRAIN_STEPS=None", "--gin.TRAIN_STEPS=None .*LoopConfig.num_steps"),
    ("TRAIN_STEPS=", "--gin.TRAIN_STEPS='' .*expected a whole number"),
    ("TRAIN_STEPS=0", r"expected at least 1 .*\(TRAIN_STEPS sets"),
    ("TRAIN_STEPS=-3", r"expected at least 1 .*\(TRAIN_STEPS sets"),
    ("TRAIN_STEPS=99999999999999999999", "at most 2147483647"),
    ("MODEL_DIR=", "--gin.MODEL_DIR='' .*it is empty"),
    ("MODEL_DIR=' '", "--gin.MODEL_DIR=' ' .*it is empty"),
    ("MODEL_DIR=None", "--gin.MODEL_DIR=None .*expected text"),
    ("MODEL_DIR=['a']", "--gin.MODEL_DIR=.*expected text"),
    ('MODEL_DIR="run', "the quotation mark that opens the value is not closed"),
    ("INITIAL_CHECKPOINT_PATH=", "--gin.INITIAL_CHECKPOINT_PATH=.*is empty"),
    ("TASK_FEATURE_LENGTHS={inputs: 64}", 'such as {"inputs": 512}'),
    (
      "TASK_FEATURE_LENGTHS={'inputs': '64'}",
      "'inputs', '64': expected a whol",
    ),
    ("TASK_FEATURE_LENGTHS={'inputs': 64}", 'has no "targets"'),
    ("TASK_FEATURE_LENGTHS={'inputs': 0, 'targets': 1}", "at least 1"),
    ("TASK_FEATURE_LENGTHS=64", "expected a mapping"),
    (
      "TASK_FEATURE_LENGTHS={'inputs': 1, 'targets': 1, 'target': 1}",
      'has "target": expected',
    ),
    ("TRAIN_STEPS=1, 2", r"--gin.TRAIN_STEPS=\(1, 2\) .*a whole number"),
    ("TRAIN_STEPS={1, 2}", "--gin.TRAIN_STEPS='{1, 2}' .*a whole number"),
    ("TRAIN_STEPS=...", r"--gin.TRAIN_STEPS='\.\.\.' .*a whole number"),
    ("TRAIN_STEPS=@", "--gin.TRAIN_STEPS='@' .*a whole number"),
    ("TRAIN_STEPS=%NOPE", "TRAIN_STEPS=%NOPE: no gin file of this run sets a"),
    ("TRAIN_STEPS=%SEEED", "did you mean SEED"),
    ("Experiment.seed=[%NOPE]", r"Experiment.seed=%NOPE: no gin file of this"),
    ("train_steps=10", "no gin file of this run has a macro.*TRAIN_STEPS"),
    ("TRAIN_STEPS=@nope()", r"^--gin.TRAIN_STEPS=@nope\(\) cannot be bound"),
    ("T5Config.no_such=1", "^--gin.T5Config.no_such=1 cannot be bound"),
    ("Nothing.x=1", "^--gin.Nothing.x=1 cannot be bound"),
    ("BATCH_SIZE=99999999999999999999", "at most 2147483647"),
    ("LEARNING_RATE=nan", "--gin.LEARNING_RATE='nan' .*expected a number"),
    ("LEARNING_RATE=1e999", "expected a finite number"),
    ("LEARNING_RATE=-1", "expected more than 0.*LEARNING_RATE sets"),
    ("LEARNING_RATE='1e-3'", "--gin.LEARNING_RATE='1e-3' .*expected a number"),
    ("WARMUP_STEPS=-1", "expected at least 0"),
    ("BATCH_SIZE=0", "expected at least 1"),
    ("SEED=-1", "expected at least 0 and at most 4294967295"),
    ("EVALUATIONS=x", "expected a list of @Evaluation"),
    ("EVALUATIONS=['x']", "of its element 'x': expected @Evaluation"),
    ("BEST_METRICS=x", "expected a list of text"),
    ("Experiment.pack='False'", "--gin.Experiment.pack='False' .*True or Fal"),
    ("experiment.Experiment.pack=1", "--gin.experiment.Experiment.pack=1 "),
    ("Experiment.loss=@distillation.LossConfig", "is not called: write"),
    ("Experiment.mesh=@config.T5Config()", "expected @MeshShape"),
    ("OptimizerConfig.schedule=linear", "'constant' or 'cosine' or 'rsqrt'"),
    ("OptimizerConfig.beta2=1.5", "expected at least 0.0 and less than 1.0"),
    ("T5Config.attention_block_sizes=(3,)", r"\(a whole number, a whole numb"),
    ("T5Config.mlp_activations=relu", "expected a list of text"),
    ("T5Config.dtype='1 2'", "T5Config.dtype is '1 2', and must be a floating"),
    ("T5Config.dtype=1e-3", "T5Config.dtype is '1e-3', and must be a floating"),
    ("T5Config.embed_dim=99999999999999999999", "at most 2147483647"),
    ("T5Config.layer_norm_epsilon=-1", "must be at least 0"),
    ("LossConfig.num_chunks=99999999999999999999", "at most 2147483647"),
    (
      "OptimizerConfig.name=@experiment.MeshShape()",
      "expected 'adamw' or 'adafactor'",
    ),
  ],
)
def test_a_value_of_another_type_is_named_as_it_was_written(argument, sentence):
  with pytest.raises(errors.UserError) as error:
    configure(f"--gin.{argument}")
  assert re.search(sentence, str(error.value)), str(error.value)
  assert "\n" not in str(error.value)
  assert "In call to" not in str(error.value)


def test_annotations_that_say_nothing_at_run_time_are_passed_over():
  class Protocol(typing.Protocol):
    def act(self):
      """Acts."""

  def unresolved(value: "OnlyForATypeChecker") -> None:  # noqa: F821
    """Takes anything."""

  assert gin_values._hints(unresolved) == {}
  assert gin_values._problem_of_plain(3, Protocol) is None
  assert gin_values._takes(Protocol, int)
  assert gin_values._problem_of_plain(3, str) is not None


def test_a_macro_of_a_file_is_named_without_a_flag(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text('STEPS = "2"\nTRAIN_STEPS = %STEPS\n')
  with pytest.raises(errors.UserError, match=r"^STEPS='2' is not possible"):
    configure("--gin_file=experiments/mini/pretrain.gin", f"--gin_file={path}")
