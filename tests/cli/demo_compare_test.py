"""`specialize demo --compare`: what it runs, and what it refuses."""

import pathlib

import pytest
import seqio

from specialize_jax import errors
from specialize_jax.cli import demo, gin_files
from specialize_jax.data import example_stream
from tasks import mixtures  # noqa: F401  (registers every task)


def configured(*argv):
  """The specialization, and the other one, in the directory `out`."""
  flags, _ = gin_files.parse(demo.build_parser(), ["--output_dir=out", *argv])
  output_dir = pathlib.Path("out")
  start = f"INITIAL_CHECKPOINT_PATH = {str(output_dir / 'pretrain')!r}"
  main = demo._experiment(flags, "specialize", output_dir, start)
  return main, demo._comparison(flags, output_dir)["comparison"]


def formats_of(run):
  provider = example_stream.find_provider(run.mixture_or_task_name)
  return {task.name for task in seqio.get_subtasks(provider)}


def test_sample_matching_differs_in_its_objective_alone():
  main, other = configured("--compare=sample_matching")
  assert other.loss.objective == "sample_matching" != main.loss.objective
  assert other.model_dir == "out/compare_sample_matching"
  assert other.initial_checkpoint_path == main.initial_checkpoint_path
  assert other.mixture_or_task_name == main.mixture_or_task_name
  assert (other.loop, other.optimizer) == (main.loop, main.optimizer)


@pytest.mark.parametrize("kind", ["zero_shot", "in_context"])
def test_a_kind_of_prompt_alone_differs_in_its_mixture_alone(kind):
  main, other = configured(f"--compare={kind}")
  assert len(formats_of(main)) == 4
  assert len(formats_of(other)) == 2
  assert all(kind in name for name in formats_of(other))
  assert (other.loss, other.loop) == (main.loss, main.loop)


def test_a_gin_file_is_read_after_the_specializations(tmp_path):
  (tmp_path / "shorter.gin").write_text("TRAIN_STEPS = 7\n")
  main, other = configured(f"--compare={tmp_path}/shorter.gin")
  assert other.loop.num_steps == 7 != main.loop.num_steps
  assert other.model_dir.startswith("out/compare_shorter_")
  # What the file says is trained anew, not found finished.
  (tmp_path / "shorter.gin").write_text("TRAIN_STEPS = 8\n")
  _, changed = configured(f"--compare={tmp_path}/shorter.gin")
  assert changed.model_dir != other.model_dir


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--compare=samples"], "expected one of sample_matching, zero_shot"),
    (["--compare=none.gin"], "none.gin"),
    (["--compare=zero_shot", "--study"], "makes its own comparisons"),
  ],
)
def test_what_cannot_be_compared_is_refused_before_anything(
  argv, message, tmp_path
):
  output_dir = tmp_path / "out"
  with pytest.raises(errors.UserError, match=message) as caught:
    demo.main([f"--output_dir={output_dir}", *argv])
  assert "--compare" in str(caught.value)
  assert not output_dir.exists()


def test_what_changes_nothing_is_refused(tmp_path):
  """A file whose bindings the specialization does not use."""
  (tmp_path / "same.gin").write_text("# Nothing.\n")
  main, same = configured(f"--compare={tmp_path}/same.gin")
  with pytest.raises(errors.UserError, match="changes nothing of the special"):
    demo._check_difference("same.gin", main, same)
  demo._check_difference("x", main, configured("--compare=zero_shot")[1])
