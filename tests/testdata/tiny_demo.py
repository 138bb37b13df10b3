"""A demo of a few dozen problems and a few steps: all wired, nothing learnt."""

from specialize_jax.losses import distillation
from specialize_jax.mini import world
from specialize_jax.runs import experiment
from specialize_jax.study import demo
from specialize_jax.t5 import config as t5_config
from specialize_jax.training import loop, optimizer

LENGTHS = {"inputs": 320, "targets": 64}
STEPS = 4
# One task: a mixture of a dozen takes seconds to build, and where the data do
# not matter nothing is learnt from it.
TASK = "mini_facts_v1"


def model(**changes):
  """A T5 of a few thousand parameters."""
  return t5_config.T5Config(
    **{
      "vocab_size": 384,
      "embed_dim": 16,
      "mlp_dim": 16,
      "num_heads": 2,
      "head_dim": 8,
      "num_encoder_layers": 1,
      "num_decoder_layers": 1,
      "mlp_activations": ("gelu", "linear"),
      "tied_head": False,
      "dtype": "float32",
      **changes,
    }
  )


def evaluation(name, **changes):
  """Eight short outputs a task."""
  return experiment.Evaluation(
    **{
      "mixture_or_task_name": name,
      "task_feature_lengths": {"inputs": 128, "targets": 64},
      "batch_size": 8,
      "max_new_tokens": 4,
      "num_examples": 8,
      **changes,
    }
  )


def run(model_dir, mixture=TASK, **changes):
  """A run of a few steps of a task or mixture."""
  return experiment.Experiment(
    **{
      "model_dir": str(model_dir),
      "model": model(),
      "mixture_or_task_name": mixture,
      "task_feature_lengths": LENGTHS,
      "batch_size": 8,
      "loss": distillation.LossConfig(num_chunks=1),
      "optimizer": optimizer.OptimizerConfig(learning_rate=1e-3),
      "loop": loop.LoopConfig(
        num_steps=STEPS, log_every=1, eval_every=2, checkpoint_every=2
      ),
      "keep": None,
      **changes,
    }
  )


WORLD = world.WorldConfig(
  train_size=40,
  out_of_distribution_train_size=20,
  validation_size=10,
  test_size=10,
  general_train_size=20,
  general_validation_size=10,
  general_test_size=10,
  weak_maths_size=20,
  samples_per_question=2,
)


def whole_way(output_dir):
  """The demo over this world, in `output_dir`."""
  maths = [f"mini_{name}" for name in ("gsm", "multiarith", "asdiv", "svamp")]
  in_distribution, *others = (
    f"{name}_zero_shot_chain_of_thought_v1" for name in maths
  )
  # One of the general tasks: each takes a second to read, and is read twice.
  general = "mini_navigate_zero_shot_answer_only_v1"
  return demo.Demo(
    world=WORLD,
    alignment_mode="whitespace",
    pretraining=run(output_dir / "pretrain", TASK),
    specialization=run(
      output_dir / "specialize",
      "mini_specialize_v1",
      initial_checkpoint_path=str(output_dir / "pretrain"),
      evaluations=[evaluation("mini_math_test_v1")],
    ),
    tests=[
      evaluation("mini_math_test_v1", split="test"),
      evaluation(general, split="test"),
    ],
    decoding=evaluation(in_distribution, split="test"),
    tasks=demo.Tasks(
      in_distribution=in_distribution,
      out_of_distribution=others,
      general=[general],
    ),
    comparison=run(
      output_dir / "compare_sample_matching",
      "mini_specialize_v1",
      initial_checkpoint_path=str(output_dir / "pretrain"),
      evaluations=[evaluation("mini_math_test_v1")],
      loss=distillation.LossConfig(objective="sample_matching", num_chunks=1),
    ),
    comparison_name="sample matching",
  )
