"""The arms of a study: training runs, repeated for each seed.

All arms of a seed share a mini world of that seed, so that arms differ only in
what defines them: they see the same questions and teacher samples, and the same
batches if they have the same mixture.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import seqio

from specialize_jax import errors
from specialize_jax.data import example_stream, sources
from specialize_jax.files import writing
from specialize_jax.mini import world
from specialize_jax.runs import choosing, experiment
from specialize_jax.study import demo, jobs

WORLD = "world"
SELECTED, IN_DISTRIBUTION = "selected", "in_distribution"
"""The two rules of checkpoint selection, both of which are tested."""

_WORLD_COST = 30.0  # in seconds of processor time, as the costs of arms
_VERSION = 2  # of what a job computes; jobs of another version are repeated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """A training run of a study, and its tests.

  Attributes:
    name: unique within the study.
    gin_files: its gin files, as for `specialize train`.
    starts_from: the arm whose last parameters it starts from; None for random
      initialization.
    tests: evaluations of the selected checkpoint and of the one that
      in-distribution selection chooses.
    cost: approximate seconds of processor time.
  """

  name: str
  gin_files: Sequence[str]
  starts_from: str | None = None
  tests: Sequence[experiment.Evaluation] = ()
  cost: float = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roles:
  """The roles of arms in the findings.

  Attributes:
    general: the general model.
    specialized: the model specialized from it.
    sample_matching: the same, trained by sample matching.
    formats: arms trained on some formats only, by display name.
    sizes: the general and the specialized model of each size.
    in_context_shares: arms by the share of in-context data in their training,
      from 0 to 1.
    overfitted: the arm that trains for long on few questions, by which
      selection is tested; None for `specialized`.
    raw_start: a model that has only read text, and the model specialized from
      it; None if there is none.
  """

  general: str
  specialized: str
  sample_matching: str
  formats: Mapping[str, str]
  sizes: Sequence[tuple[str, str]]
  in_context_shares: Mapping[float, str] = dataclasses.field(
    default_factory=dict
  )
  overfitted: str | None = None
  raw_start: tuple[str, str] | None = None

  def names(self) -> set[str]:
    """Returns the names of all arms that have a role."""
    pairs = [name for pair in self.sizes for name in pair]
    single = [self.general, self.specialized, self.sample_matching]
    if self.overfitted:
      single.append(self.overfitted)
    return {
      *single,
      *self.formats.values(),
      *self.in_context_shares.values(),
      *(self.raw_start or ()),
      *pairs,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A study.

  Attributes:
    world: size of each seed's mini world.
    alignment_mode: the alignment mode of the targets.
    tasks: the roles of the evaluated tasks.
    in_context: the tasks of the target ability with in-context prompts, the
      in-distribution one first.
    arms: the arms, each after the one that it starts from.
    roles: the roles of arms.
  """

  world: world.WorldConfig
  alignment_mode: str
  tasks: demo.Tasks
  in_context: Sequence[str]
  arms: Sequence[Arm]
  roles: Roles

  def __post_init__(self) -> None:
    """Validates names, order and roles of the arms."""
    known: list[str] = []
    for arm in self.arms:
      if arm.starts_from is not None and arm.starts_from not in known:
        raise errors.UserError(
          f"arm {arm.name!r} starts from {arm.starts_from!r}: expected one of "
          f"the arms before it ({', '.join(known) or 'there is none'})."
        )
      if arm.name in (*known, WORLD):
        raise errors.UserError(f"the study has two arms named {arm.name!r}.")
      known.append(arm.name)
    unknown = sorted(self.roles.names() - set(known))
    if unknown:
      raise errors.UserError(
        f"Roles names {', '.join(unknown)}: expected names of arms "
        f"({', '.join(known)})."
      )

  def arm(self, name: str) -> Arm:
    """Returns the arm with a name."""
    return next(arm for arm in self.arms if arm.name == name)


def job_name(arm: str, seed: int) -> str:
  """Returns the name of the job of an arm or of the world."""
  return f"seed{seed}-{arm}"


def plan(
  study: Study,
  experiments: Mapping[str, experiment.Experiment],
  *,
  seeds: Sequence[int],
  command: Sequence[str],
) -> list[jobs.Job]:
  """Returns the jobs of a study.

  Args:
    study: the study.
    experiments: the experiment of each arm; directory, seed and initial
      checkpoint are set by its job.
    seeds: the seeds; each has one world, and one run of each arm.
    command: the command of a job's process, to which `--arm`, `--seed`,
      `--job_dir`, `--world_dir` and, if the arm starts from another,
      `--start_dir` are appended.

  Returns:
    The jobs, each after those that it needs.
  """
  planned = []
  for seed in seeds:
    built = job_name(WORLD, seed)
    planned.append(
      jobs.Job(
        name=built,
        settings=_jsonable([_VERSION, seed, study.world, study.alignment_mode]),
        command=_Command(command, WORLD, seed),
        cost=_WORLD_COST,
      )
    )
    for arm in study.arms:
      run = experiments[arm.name]
      rates = _rates(run.mixture_or_task_name)
      needs = [built]
      if arm.starts_from:
        needs.append(job_name(arm.starts_from, seed))
      planned.append(
        jobs.Job(
          name=job_name(arm.name, seed),
          settings=_jsonable(
            [_VERSION, _placed(run, seed), rates, arm.tests, study.tasks]
          ),
          command=_Command(command, arm.name, seed),
          needs=needs,
          cost=arm.cost,
        )
      )
  return planned


def run_world(study: Study, job_dir: pathlib.Path, *, seed: int) -> None:
  """Builds a seed's world in `job_dir` and prepares its teacher data."""
  directory = job_dir / WORLD
  world.build(directory, seed=seed, config=study.world)
  report = demo.prepare_teacher(directory, study.alignment_mode)
  writing.write_json(
    job_dir / jobs.RESULT,
    {
      "seed": seed,
      "alignment": report,
      "certainty": demo.measure_teacher(directory),
    },
  )


def run_arm(
  study: Study,
  arm: Arm,
  run: experiment.Experiment,
  *,
  seed: int,
  job_dir: pathlib.Path,
  world_dir: pathlib.Path,
  start_dir: pathlib.Path | None,
) -> None:
  """Trains an arm, resuming if it was interrupted, and tests it.

  Writes `run/` (see `experiment.train`), `predictions/RULE/STEP/TASK.jsonl`
  and, last, the result: {"arm", "seed", "num_params", "steps": {RULE: step},
  "selection", "tests": {RULE: {task: {"accuracy", ...}}}}.

  Args:
    study: the study.
    arm: the arm.
    run: the experiment of the arm.
    seed: seed of parameters and data.
    job_dir: the directory of the job.
    world_dir: the directory of the seed's world job.
    start_dir: the directory of the job of the arm it starts from.
  """
  sources.set_data_dir(world_dir / WORLD)
  run = dataclasses.replace(
    _placed(run, seed),
    model_dir=os.fspath(job_dir / "run"),
    initial_checkpoint_path=os.fspath(start_dir / "run") if start_dir else None,
  )
  state = experiment.train(run)
  steps = {SELECTED: int(state.step)}
  chosen = None
  if run.evaluations:
    chosen = choosing.choose(
      choosing.evaluated(run.model_dir),
      run.model_dir,
      study.tasks.out_of_distribution,
      study.tasks.in_distribution,
    )
    steps = {
      SELECTED: chosen.step,
      IN_DISTRIBUTION: chosen.in_distribution_step,
    }
  evaluate = experiment.CheckpointEvaluator(arm.tests, mesh=run.mesh)
  tests = {
    rule: demo.test(
      evaluate,
      pathlib.Path(run.model_dir) / "checkpoints" / str(step),
      job_dir / "predictions" / rule,
    )
    for rule, step in steps.items()
    if rule == SELECTED or step != steps[SELECTED]
  }
  writing.write_json(
    job_dir / jobs.RESULT,
    {
      "arm": arm.name,
      "seed": seed,
      "num_params": sum(x.size for x in jax.tree.leaves(state.params)),
      "steps": steps,
      "selection": chosen.as_json() if chosen else None,
      "tests": tests,
    },
  )


def _placed(run: experiment.Experiment, seed: int) -> experiment.Experiment:
  """Returns the run without directories, with the seed set."""
  return dataclasses.replace(
    run, model_dir="", initial_checkpoint_path=None, seed=seed
  )


@dataclasses.dataclass(frozen=True)
class _Command:
  """Builds a job's command line from directories."""

  start: Sequence[str]
  arm: str
  seed: int

  def __call__(
    self, job_dir: pathlib.Path, needs: Mapping[str, pathlib.Path]
  ) -> list[str]:
    flags = [f"--arm={self.arm}", f"--seed={self.seed}", f"--job_dir={job_dir}"]
    for name, place in needs.items():
      is_world = name == job_name(WORLD, self.seed)
      flags.append(f"--{'world' if is_world else 'start'}_dir={place}")
    return [*self.start, *flags]


def _rates(mixture_or_task_name: str) -> object:
  """Returns a mixture's tasks and rates, which its name does not imply."""
  provider = example_stream.find_provider(mixture_or_task_name)
  if not isinstance(provider, seqio.Mixture):
    return provider.name
  return {
    name: getattr(rate, "__qualname__", rate)
    for name, rate in provider.rate_per_task_name.items()
  }


def _jsonable(value: object) -> object:
  """Converts dataclasses to JSON-serializable values, for hashing."""
  if dataclasses.is_dataclass(value):
    fields = dataclasses.fields(value)
    return {f.name: _jsonable(getattr(value, f.name)) for f in fields}
  if isinstance(value, Mapping):
    return {str(key): _jsonable(part) for key, part in value.items()}
  if isinstance(value, Sequence) and not isinstance(value, str):
    return [_jsonable(part) for part in value]
  if value is None or isinstance(value, str | int | float):
    return value
  raise TypeError(f"{value!r} is not a setting: expected plain data.")
