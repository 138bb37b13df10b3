"""The whole pipeline on the mini world, from teacher records to test results.

Each stage runs the code of a real run, except that the teacher is a grammar,
the datasets are small, and the general model is trained here, as there is no
checkpoint to start from. A demo that is started again in the same directory
resumes where it stopped.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from specialize_jax import errors
from specialize_jax.align import student
from specialize_jax.align import targets as alignment
from specialize_jax.checkpoints import manager as managers
from specialize_jax.checkpoints import opening
from specialize_jax.cot import answer_rules
from specialize_jax.data import aligned_records, preparation, sources
from specialize_jax.evaluation import selection
from specialize_jax.files import locks, reading, writing
from specialize_jax.mini import world
from specialize_jax.records import schema, store
from specialize_jax.runs import choosing, experiment, resuming
from specialize_jax.study import comparison, decoding_comparison
from specialize_jax.teacher import certainty

_NUM_MEASURED = 1000  # of the teacher's samples
# Settings of the loss by which it is another one, not only computed otherwise.
_DEFINING = frozenset(
  f"loss.{name}"
  for name in ("objective", "missing_mass", "masked_out", "z_loss")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
  """The roles of the evaluated tasks.

  Attributes:
    in_distribution: the task of the family of the teacher's questions.
    out_of_distribution: tasks of the same ability from other families.
    general: tasks of general ability.
  """

  in_distribution: str
  out_of_distribution: Sequence[str]
  general: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
  """The configuration of the demo.

  Attributes:
    world: size of the mini world.
    alignment_mode: the alignment mode of the targets.
    pretraining: trains the general model.
    specialization: distills the teacher into it.
    tests: the final evaluations, before and after.
    decoding: the evaluation of ways of decoding, on the in-distribution task.
    tasks: the roles of the evaluated tasks.
    comparison: another specialization from the same general model, to be
      compared; None if there is none.
    comparison_name: what differs in it, in words.
  """

  world: world.WorldConfig
  alignment_mode: str
  pretraining: experiment.Experiment
  specialization: experiment.Experiment
  tests: Sequence[experiment.Evaluation]
  decoding: experiment.Evaluation
  tasks: Tasks
  comparison: experiment.Experiment | None = None
  comparison_name: str = ""

  @property
  def num_stages(self) -> int:
    """The number of stages of a run."""
    return 8 if self.comparison else 7


def world_dir(output_dir: pathlib.Path | str) -> pathlib.Path:
  """Returns the directory of the demo's world, the data directory of tasks."""
  return pathlib.Path(output_dir) / "world"


def run(demo: Demo, output_dir: pathlib.Path | str, *, seed: int) -> None:
  """Runs the demo and writes the results from which a report is built.

  Writes `results.json` (accuracies before and after, roles, and of a demo that
  was not interrupted seconds and memory), `selection.json`, `alignment.json`,
  `alignment_example.json`, `certainty.json` (see `teacher.certainty`),
  `decoding.json` (see `decoding_comparison`), `general.json` (the general
  model's step), the runs `pretrain/` and `specialize/`, and
  `predictions/{before,after}`; with a comparison also its run, its predictions
  and `comparison.json` ({"name", "steps", "rows"}; see `comparison.compare`).

  Args:
    demo: the configuration.
    output_dir: the output directory.
    seed: the seed of the world; those of the runs are in their configurations.

  Raises:
    UserError: the directory holds another demo, or a name is unknown.
  """
  start = time.monotonic()
  output_dir = pathlib.Path(output_dir)
  is_resumed = world_dir(output_dir).exists()
  _check_begun(demo, output_dir)
  _stage = functools.partial(_numbered_stage, demo.num_stages)
  with _stage(1, "building the mini world and asking its teacher"):
    world.build(world_dir(output_dir), seed=seed, config=demo.world)
    sources.set_data_dir(world_dir(output_dir))
  with _stage(2, "aligning the teacher's tokens with the student's"):
    _align(demo, output_dir)
  with _stage(3, "pre-training a general T5"):
    experiment.train(demo.pretraining)
    _keep_general(demo, output_dir)
  with _stage(4, "specializing it on the teacher's chains of thought"):
    experiment.train(demo.specialization)
  with _stage(5, "selecting by held-out out-of-distribution mean"):
    chosen = _select(demo, demo.specialization)
    writing.write_json(
      output_dir / "selection.json", chosen.as_json(), sealed=True
    )
    step = chosen.step
  with _stage(6, "testing before and after"):
    predictions = output_dir / "predictions"
    general = pathlib.Path(demo.pretraining.model_dir)
    specialized = pathlib.Path(demo.specialization.model_dir) / "checkpoints"
    evaluate = experiment.CheckpointEvaluator(
      demo.tests, mesh=demo.specialization.mesh
    )
    before, after = (
      test(evaluate, checkpoint, predictions / when)
      for when, checkpoint in (
        ("before", general),
        ("after", specialized / str(step)),
      )
    )
  with _stage(7, "decoding with a calculator, and by vote of samples"):
    decoding_comparison.compare(
      specialized / str(step),
      evaluation=demo.decoding,
      vocabulary_path=world_dir(output_dir) / "mini" / "student.model",
      output_dir=output_dir,
      mesh=demo.specialization.mesh,
    )
  if demo.comparison:
    with _stage(8, f"the same again but for {demo.comparison_name}"):
      _compare(demo, evaluate, output_dir, step)
  figures = {
    "seconds": round(time.monotonic() - start, 1),
    "peak_rss_gib": round(_peak_rss_gib(), 3),
  }
  if is_resumed:
    figures = _figures_before(output_dir, {"seed": seed, "step": step})
  writing.write_json(
    output_dir / "results.json",
    {
      "before": before,
      "after": after,
      **dataclasses.asdict(demo.tasks),
      **figures,
      "seed": seed,
      "step": step,
    },
    sealed=True,
  )


def _check_begun(demo: Demo, output_dir: pathlib.Path) -> None:
  """Checks, before anything is written, that a demo can go on.

  Raises:
    UserError: a specialization has begun, on other targets or from a general
      model that would be trained on; or a run has ended, with another loss or
      optimizer.
  """
  runs = [demo.specialization, *filter(None, [demo.comparison])]
  for run in (demo.pretraining, *runs):
    _check_ended(run)
  if not any(
    managers.listed_steps(epath.Path(run.model_dir) / "checkpoints")
    for run in runs
  ):
    return
  path, num_steps = output_dir / "general.json", demo.pretraining.loop.num_steps
  known = reading.read_json(path)["step"] if path.is_file() else num_steps
  if known < num_steps:
    raise errors.UserError(
      f"{output_dir} has a specialization of the general model of step"
      f" {known:,}, which would be trained on to step {num_steps:,}: give"
      " another --output_dir"
    )
  mode = _readable(output_dir / "alignment.json").get("mode")
  if mode not in (None, demo.alignment_mode):
    raise errors.UserError(
      f"{output_dir} has a specialization on targets of ALIGNMENT_MODE={mode},"
      f" which those of {demo.alignment_mode} would replace: give another"
      " --output_dir"
    )


def _check_ended(run: experiment.Experiment) -> None:
  """Raises UserError if a run has ended that would now be another one."""
  directory = epath.Path(run.model_dir) / "checkpoints"
  step = max(managers.listed_steps(directory), default=0)
  if step < run.loop.num_steps:
    return  # it goes on with what has changed, and records that
  then = None
  with (
    contextlib.suppress(errors.UserError),  # damaged, and trained again
    managers.CheckpointManager(directory, keep=None) as manager,
  ):
    then = manager.metadata(step).get("settings")
  changed = resuming.differences(then, resuming.settings(run, {}))
  for name, (before, now) in changed.items():
    if name in _DEFINING or (
      name.startswith("optimizer.") and name != "optimizer.num_steps"
    ):
      raise errors.UserError(
        f"{run.model_dir} has ended with {resuming.written(name)}={before},"
        f" which is {now} now: give another --output_dir"
      )


def _figures_before(
  output_dir: pathlib.Path, same: Mapping[str, object]
) -> dict[str, object]:
  """Returns the time and memory of the whole demo, None where unknown.

  A process that did a part of it does not know them.

  Args:
    output_dir: the output directory.
    same: what earlier results must have to be those of the same demo.
  """
  earlier = _readable(output_dir / "results.json")
  is_same = all(earlier.get(name) == value for name, value in same.items())
  return {
    name: earlier.get(name) if is_same else None
    for name in ("seconds", "peak_rss_gib")
  }


def _readable(path: pathlib.Path) -> Mapping[str, object]:
  """Reads a file that is written again; empty if it is not there or damaged."""
  with contextlib.suppress(errors.UserError):
    found = reading.read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
  return {}


def _keep_general(demo: Demo, output_dir: pathlib.Path) -> None:
  """Writes the step of the general model, from which a specialization starts.

  Raises:
    UserError: one has started already, from another step.
  """
  path = output_dir / "general.json"
  step = max(choosing.steps_of(demo.pretraining.model_dir))
  known = reading.read_json(path)["step"] if path.is_file() else step
  # Its steps are listed only then: a damaged one is set aside as it resumes.
  if known != step and choosing.steps_of(demo.specialization.model_dir):
    raise errors.UserError(
      f"{output_dir} has a specialization of the general model of step"
      f" {known:,}, which has been trained on to step {step:,}: give another"
      " --output_dir"
    )
  writing.write_json(path, {"step": step}, sealed=True)


def prepare_teacher(
  directory: pathlib.Path, mode: str, *, tfds_dir: pathlib.Path | None = None
) -> dict[str, object]:
  """Builds the dataset of a world that the teacher tasks read.

  Args:
    directory: the world's directory.
    mode: the alignment mode.
    tfds_dir: where the dataset is written; None for `tfds/` in the world's.

  Returns:
    The report: counts of records, and the coverage of the alignment.
  """
  mini_dir = directory / "mini"
  data_dir = tfds_dir or directory / "tfds"
  wanted = preparation.Preparation(
    records=str(mini_dir / "records"),
    vocabulary=str(mini_dir / "student.model"),
    mode=mode,
    data_dir=str(data_dir),
    dataset_name="mini_gsm_teacher",
    read_questions=functools.partial(
      preparation.questions_of_files,
      str(mini_dir / "mini_gsm" / "train.jsonl"),
    ),
  )
  with locks.directory(data_dir, "--data_dir", part=wanted.dataset_name):
    return preparation.prepare(wanted).report


def measure_teacher(directory: pathlib.Path) -> dict[str, object]:
  """Measures how certain a world's teacher is, by a thousand of its samples.

  Args:
    directory: the world's directory.

  Returns:
    The fields of `certainty.Certainty`.
  """
  records = store.read_records(directory / "mini" / "records")
  return dataclasses.asdict(
    certainty.measure(itertools.islice(records, _NUM_MEASURED))
  )


def test(
  evaluate: experiment.CheckpointEvaluator,
  checkpoint: pathlib.Path,
  output_dir: pathlib.Path,
) -> dict[str, dict[str, float]]:
  """Tests a checkpoint, returning `{task: {"accuracy", "n", "low", "high"}}`.

  See `experiment.CheckpointEvaluator`, which writes the predictions. Values of
  a checkpoint of the same step that was trained again are replaced.
  """
  path = output_dir / "metrics.jsonl"
  if path.is_file():
    _forget_replaced(path, checkpoint)
  values = evaluate(checkpoint, output_dir)
  tasks: dict[str, dict[str, float]] = {}
  for name, value in values.items():
    task, _, kind = name.rpartition("/")
    tasks.setdefault(task, {})[kind] = value
  return tasks


def _forget_replaced(path: pathlib.Path, checkpoint: pathlib.Path) -> None:
  """Removes values of an earlier checkpoint of the same step from a file."""
  # The evaluation compares the digests.
  opened = opening.open_checkpoint(checkpoint, verify=False)
  step, fingerprint = opened.step, opened.fingerprint()
  rows = reading.read_rows(path)
  kept = [
    row
    for row in rows
    if row.get("step") != step or row.get("checkpoint") == fingerprint
  ]
  if len(kept) < len(rows):
    writing.write_rows(path, kept, sealed=True)


def _align(demo: Demo, output_dir: pathlib.Path) -> None:
  """Prepares the teacher's dataset, and writes the report and an example."""
  mini_dir = world_dir(output_dir) / "mini"
  report = prepare_teacher(world_dir(output_dir), demo.alignment_mode)
  writing.write_json(output_dir / "alignment.json", report)
  writing.write_json(
    output_dir / "certainty.json", measure_teacher(world_dir(output_dir))
  )
  tokenizer = student.SentencePieceStudent.from_file(mini_dir / "student.model")
  writing.write_json(
    output_dir / "alignment_example.json",
    _alignment_example(
      store.read_records(mini_dir / "records"), tokenizer, demo.alignment_mode
    ),
  )


def _alignment_example(
  records: Iterator[schema.TeacherRecord],
  tokenizer: student.SentencePieceStudent,
  mode: str,
) -> dict[str, object]:
  """Returns the least likely of the first hundred samples."""
  candidates = [
    (record, aligned)
    for record in itertools.islice(records, 100)
    if answer_rules.NUMBER.finds(record.text, record.gold_answer)
    and isinstance(
      aligned := aligned_records.align_record(record, tokenizer, mode=mode),
      alignment.AlignedTargets,
    )
  ]
  record, aligned = max(
    candidates,
    key=lambda pair: (
      sum(-s.log_prob for s in pair[0].steps) / len(pair[0].steps)
    ),
  )
  return {
    "question": record.question,
    "teacher_tokens": [step.token for step in record.steps],
    "student_pieces": list(aligned.pieces),
    "groups": [[list(g.teacher), list(g.student)] for g in aligned.groups],
    "targets": [
      [
        [tokenizer.id_to_piece(int(i)), float(np.exp(log_prob))]
        for i, log_prob in zip(ids_C, log_probs_C, strict=True)
        if log_prob > -np.inf
      ]
      for ids_C, log_probs_C in zip(
        aligned.top_ids_TC, aligned.top_log_probs_TC, strict=True
      )
    ],
    "mask": aligned.mask_T.tolist(),
  }


def _select(demo: Demo, run: experiment.Experiment) -> selection.Selection:
  """Selects a checkpoint of a specialization."""
  return choosing.choose(
    choosing.evaluated(run.model_dir),
    run.model_dir,
    demo.tasks.out_of_distribution,
    demo.tasks.in_distribution,
  )


def _compare(
  demo: Demo,
  evaluate: experiment.CheckpointEvaluator,
  output_dir: pathlib.Path,
  step: int,
) -> None:
  """Trains, selects and tests the other specialization, and compares it.

  Args:
    demo: the configuration, with a comparison.
    evaluate: the tests of the first specialization.
    output_dir: the demo's.
    step: the selected step of the specialization.
  """
  run = demo.comparison
  experiment.train(run)
  other_step = _select(demo, run).step
  model_dir = pathlib.Path(run.model_dir)
  other = output_dir / "predictions" / model_dir.name
  test(evaluate, model_dir / "checkpoints" / str(other_step), other)
  roles = dataclasses.asdict(demo.tasks)
  writing.write_json(
    output_dir / "comparison.json",
    {
      "name": demo.comparison_name,
      "steps": {"first": step, "second": other_step},
      "rows": comparison.compare(
        output_dir / "predictions" / "after" / str(step),
        other / str(other_step),
        tasks={**roles, "in_distribution": [demo.tasks.in_distribution]},
      ),
    },
  )


@contextlib.contextmanager
def _numbered_stage(num_stages: int, number: int, what: str) -> Iterator[None]:
  """Prints a stage as it begins, and its duration when it ends."""
  start = time.monotonic()
  print(f"[{number}/{num_stages}] {what}", file=sys.stderr, flush=True)
  yield
  seconds = time.monotonic() - start
  print(f"      done in {seconds:.0f} s", file=sys.stderr, flush=True)


def _peak_rss_gib() -> float:
  """Returns the peak memory of this process; Linux reports KiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
