"""Every experiment file says what it claims, and is what it says."""

import pathlib
import re
import shlex

import pytest
import seqio

from specialize_jax.cli import gin_files, plan, select, study_job, train
from specialize_jax.data import example_stream
from specialize_jax.runs import experiment, selecting
from specialize_jax.study import arms
from specialize_jax.t5 import config as t5_config
from specialize_jax.tpu import slices, topology
from tasks import mixtures  # noqa: F401  (registers every task)

CONFIGS = pathlib.Path(__file__).parents[2] / "gin_configs"
FILES = sorted((CONFIGS / "experiments").rglob("*.gin"))
SELECTION = CONFIGS / "experiments/mini/select.gin"
RUNS = [path for path in FILES if path != SELECTION]
PAPER = [path for path in FILES if path.parent.name == "paper"]
MISSING = {  # what a user gives on the command line
  "MODEL_DIR": "run",
  "INITIAL_CHECKPOINT_PATH": "general",
}


def name_of(path):
  return str(path.relative_to(CONFIGS))


def header_of(path):
  """The comment that a file opens with, by field, each on one line."""
  lines = []
  for line in path.read_text().splitlines():
    if not line.startswith("#"):
      break
    lines.append(line.lstrip("# "))
  text = " ".join(lines)
  parts = re.split(r"(Claim|Command|Topology|Time|Hours|Plan): ", text)
  return dict(zip(parts[1::2], parts[2::2], strict=True))


def build(path):
  """The experiment as `specialize train` builds it by the header's command."""
  words = shlex.split(header_of(path)["Command"])
  assert words[:2] == ["specialize", "train"]
  given = [w for w in words[2:] if not w.startswith("--gin.")]
  given += [
    f"--gin.{macro}={value}"
    for macro, value in MISSING.items()
    if any(word.startswith(f"--gin.{macro}=") for word in words)
  ]
  flags, bindings = gin_files.parse(train.build_parser(), given)
  assert flags.gin_file == [name_of(path)]
  with gin_files.loaded(flags, bindings):
    return gin_files.configured(experiment.Experiment)()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_header_says_what_how_where_and_how_long(path):
  header = header_of(path)
  assert {"Claim", "Command", "Topology"} < set(header)
  assert {"Time", "Hours"} & set(header)


def test_the_selection_builds_by_its_own_command():
  words = shlex.split(header_of(SELECTION)["Command"])
  assert words[:2] == ["specialize", "select"]
  flags, bindings = gin_files.parse(select.build_parser(), words[2:])
  assert flags.gin_file == [name_of(SELECTION)]
  with gin_files.loaded(flags, bindings):
    what = gin_files.configured(selecting.Selecting)(
      model_dir=flags.model_dir,
      out_of_distribution=flags.out_of_distribution.split(","),
      in_distribution=flags.in_distribution,
    )
  for evaluation in (what.validation, what.test):
    provider = example_stream.find_provider(evaluation.mixture_or_task_name)
    assert evaluation.split in provider.splits


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_an_experiment_builds_by_its_own_command(path):
  run = build(path)
  example_stream.find_provider(run.mixture_or_task_name)
  for evaluation in run.evaluations:
    provider = example_stream.find_provider(evaluation.mixture_or_task_name)
    assert evaluation.split in provider.splits
  assert run.loop.num_steps == (run.optimizer.num_steps or run.loop.num_steps)


@pytest.mark.parametrize("path", PAPER, ids=name_of)
def test_a_paper_run_s_hours_are_of_the_very_run(path):
  header = header_of(path)
  told = header["Hours"]
  assert re.match(r"\d+(\.\d+)?\b|not planned yet; ", told), told
  run = build(path)
  words = shlex.split(header["Plan"])
  assert words[:2] == ["specialize", "plan"]
  flags = plan.build_parser().parse_args(words[2:])
  slice_ = slices.parse(flags.topology)
  assert slices.parse(header["Topology"].rstrip(". ")) == slice_
  assert (flags.batch_size, flags.train_steps) == (
    run.batch_size,
    run.loop.num_steps,
  )
  lengths = {"inputs": flags.input_length, "targets": flags.target_length}
  assert lengths == dict(run.task_feature_lengths)
  assert (flags.optimizer, flags.remat) == (
    run.optimizer.name,
    run.model.remat_policy,
  )
  mesh = topology.parse_mesh(flags.mesh[0], slice_.num_chips)
  assert mesh == {
    "data": run.mesh.data,
    "fsdp": run.mesh.fsdp,
    "model": run.mesh.model,
  }
  assert _model(f"models/{flags.model}.gin", flags.remat) == run.model


def _model(file, remat):
  flags, bindings = gin_files.parse(
    train.build_parser(), [f"--gin_file={file}"]
  )
  bindings = [*bindings, f"config.T5Config.remat_policy = {remat!r}"]
  with gin_files.loaded(flags, bindings):
    return gin_files.configured(t5_config.T5Config)()


def test_the_paper_s_runs_are_all_sizes_of_both_families():
  models = {build(path).model for path in PAPER}
  named = {path.stem for path in PAPER}
  assert len(models) == 8
  for family in ("flan_t5", "t5_1_0"):
    for size in ("base", "large", "xl", "xxl"):
      assert f"{family}_{size}" in named
  objectives = {build(path).loss for path in PAPER}
  assert len(objectives) == 3  # two distribution matchings and one of samples
  shown = {
    task.name
    for path in PAPER
    for task in seqio.get_subtasks(
      example_stream.find_provider(build(path).mixture_or_task_name)
    )
  }
  assert len(shown) == 4


@pytest.mark.parametrize("file", ["runs/study.gin", "runs/study_large.gin"])
def test_every_arm_of_a_study_is_a_run_that_train_takes(file):
  flags, bindings = gin_files.parse(
    study_job.build_parser(),
    ["--arm=x", "--seed=0", "--job_dir=x", f"--gin_file={file}"],
  )
  study = study_job.configure(flags, bindings)
  runs = {
    arm.name: study_job.configure_arm(flags, arm.gin_files)
    for arm in study.arms
  }
  planned = arms.plan(study, runs, seeds=[0, 1], command=["x"])
  assert len(planned) == 2 * (1 + len(study.arms))
  # What differs between the arms of a comparison, and nothing else.
  main = runs[study.roles.specialized]
  other = runs[study.roles.sample_matching]
  assert main.loss.objective != other.loss.objective
  assert main.loop == other.loop
  assert main.optimizer == other.optimizer
  assert main.mixture_or_task_name == other.mixture_or_task_name
  sizes = [runs[after].model.embed_dim for _, after in study.roles.sizes]
  assert len(set(sizes)) >= 3  # a line fits any two
  assert sizes == sorted(sizes)
  for before, after in study.roles.sizes:
    assert runs[before].model == runs[after].model


def test_the_gin_file_that_a_page_shows_builds(tmp_path):
  page = CONFIGS.parent / "docs" / "own_domain.md"
  (text,) = re.findall(
    r"```python\n(from __gin__ .*?)```", page.read_text(), re.DOTALL
  )
  (tmp_path / "student.gin").write_text(text)
  given = [f"--gin_file={tmp_path}/student.gin", "--gin.MODEL_DIR=run"]
  flags, bindings = gin_files.parse(train.build_parser(), given)
  mixture = {"MIXTURE_OR_TASK_NAME": "tickets_specialize"}
  with gin_files.loaded(flags, bindings, mixture):
    run = gin_files.configured(experiment.Experiment)()
  assert run.mixture_or_task_name == "tickets_specialize"
  assert run.evaluations[0].mixture_or_task_name == "tickets_validation"
