"""The whole way on the mini world: from a teacher's records to a verdict.

Every step is what a real run does, with the same code: only the teacher is a
grammar, the datasets are small, and the general model is trained here, since
there is no checkpoint to start from. Every step can be resumed: a demo that
is started again in the same directory goes on where it stopped.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from specialize_jax.align import student
from specialize_jax.align import targets as alignment
from specialize_jax.data import aligned_records, preparation, sources
from specialize_jax.files import writing
from specialize_jax.mini import world
from specialize_jax.records import schema, store
from specialize_jax.runs import choosing, experiment
from specialize_jax.study import decoding_comparison

NUM_STAGES = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
  """What is evaluated, and in which role.

  Attributes:
    in_distribution: the task of the family that the teacher was asked about.
    out_of_distribution: tasks of the same ability in other words.
    general: tasks of the abilities that are given up.
  """

  in_distribution: str
  out_of_distribution: Sequence[str]
  general: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
  """What the demo does, at what size.

  Attributes:
    world: size of the mini world.
    alignment_mode: how the teacher's tokens are laid on the student's.
    pretraining: makes the general model.
    specialization: distills the teacher into it.
    tests: the final evaluation, before and after.
    decoding: of the in-distribution task, decoded in several ways.
    tasks: the roles of what is evaluated.
  """

  world: world.WorldConfig
  alignment_mode: str
  pretraining: experiment.Experiment
  specialization: experiment.Experiment
  tests: Sequence[experiment.Evaluation]
  decoding: experiment.Evaluation
  tasks: Tasks


def world_dir(output_dir: pathlib.Path | str) -> pathlib.Path:
  """Where the demo keeps its world: the data directory of its tasks."""
  return pathlib.Path(output_dir) / "world"


def run(demo: Demo, output_dir: pathlib.Path | str, *, seed: int) -> None:
  """Goes the whole way and writes the results that a report is built from.

  Writes `results.json` (design: before, after, roles, seconds, memory),
  `selection.json`, `alignment.json`, `alignment_example.json`,
  `decoding.json` (see `decoding_comparison`), the runs
  `pretrain/` and `specialize/`, and `predictions/{before,after}`.

  Args:
    demo: what to do; its experiments' directories are the demo's own.
    output_dir: where to.
    seed: of the world.

  Raises:
    UserError: the directory holds another demo, or a name is unknown.
  """
  start = time.monotonic()
  output_dir = pathlib.Path(output_dir)
  with _stage(1, "building the mini world and asking its teacher"):
    world.build(world_dir(output_dir), seed=seed, config=demo.world)
    sources.set_data_dir(world_dir(output_dir))
  with _stage(2, "aligning the teacher's tokens with the student's"):
    _align(demo, output_dir)
  with _stage(3, "pre-training a general T5"):
    experiment.train(demo.pretraining)
  with _stage(4, "specializing it on the teacher's chains of thought"):
    experiment.train(demo.specialization)
  with _stage(5, "selecting by held-out out-of-distribution mean"):
    step = _select(demo, output_dir)
  with _stage(6, "testing before and after"):
    predictions = output_dir / "predictions"
    general = pathlib.Path(demo.pretraining.model_dir)
    specialized = pathlib.Path(demo.specialization.model_dir) / "checkpoints"
    before, after = (
      test(
        checkpoint,
        evaluations=demo.tests,
        mesh=demo.specialization.mesh,
        output_dir=predictions / when,
      )
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
  writing.write_json(
    output_dir / "results.json",
    {
      "before": before,
      "after": after,
      **dataclasses.asdict(demo.tasks),
      "seconds": round(time.monotonic() - start, 1),
      "peak_rss_gib": round(_peak_rss_gib(), 3),
      "seed": seed,
      "step": step,
    },
  )


def prepare_teacher(directory: pathlib.Path, mode: str) -> dict[str, object]:
  """Builds the dataset that the teacher tasks read of a world.

  Args:
    directory: the world's; the dataset goes to `tfds/` in it.
    mode: how the teacher's tokens are laid on the student's.

  Returns:
    What became of the records, and the alignment's coverage.
  """
  mini_dir = directory / "mini"
  prepared = preparation.prepare(
    preparation.Preparation(
      records=str(mini_dir / "records"),
      vocabulary=str(mini_dir / "student.model"),
      mode=mode,
      data_dir=str(directory / "tfds"),
      dataset_name="mini_gsm_teacher",
      questions=str(mini_dir / "mini_gsm" / "train.jsonl"),
    )
  )
  return prepared.report


def test(
  checkpoint: pathlib.Path,
  *,
  evaluations: Sequence[experiment.Evaluation],
  mesh: experiment.MeshShape,
  output_dir: pathlib.Path,
) -> dict[str, dict[str, float]]:
  """Tests one checkpoint: `{task: {"accuracy", "n", "low", "high"}}`.

  See `experiment.evaluate_checkpoint`, which writes the predictions.
  """
  values = experiment.evaluate_checkpoint(
    checkpoint, evaluations=evaluations, mesh=mesh, output_dir=output_dir
  )
  tasks: dict[str, dict[str, float]] = {}
  for name, value in values.items():
    task, _, kind = name.rpartition("/")
    tasks.setdefault(task, {})[kind] = value
  return tasks


def _align(demo: Demo, output_dir: pathlib.Path) -> None:
  """Prepares the teacher's dataset, and writes down how it went."""
  mini_dir = world_dir(output_dir) / "mini"
  report = prepare_teacher(world_dir(output_dir), demo.alignment_mode)
  writing.write_json(output_dir / "alignment.json", report)
  tokenizer = student.StudentTokenizer.from_file(mini_dir / "student.model")
  writing.write_json(
    output_dir / "alignment_example.json",
    _alignment_example(
      store.read_records(mini_dir / "records"), tokenizer, demo.alignment_mode
    ),
  )


def _alignment_example(
  records: Iterator[schema.TeacherRecord],
  tokenizer: student.StudentTokenizer,
  mode: str,
) -> dict[str, object]:
  """The sample among the first hundred where the teacher hesitates most."""
  candidates = [
    (record, aligned)
    for record in itertools.islice(records, 100)
    if record.verdicts.get("fixed")
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


def _select(demo: Demo, output_dir: pathlib.Path) -> int:
  """Chooses the specialization's checkpoint and writes why; gives its step."""
  model_dir = demo.specialization.model_dir
  chosen = choosing.choose(
    choosing.evaluated(model_dir),
    model_dir,
    demo.tasks.out_of_distribution,
    demo.tasks.in_distribution,
  )
  writing.write_json(output_dir / "selection.json", chosen.as_json())
  return chosen.step


@contextlib.contextmanager
def _stage(number: int, what: str) -> Iterator[None]:
  """Says what begins, and how long it took."""
  start = time.monotonic()
  print(f"[{number}/{NUM_STAGES}] {what}", file=sys.stderr, flush=True)
  yield
  seconds = time.monotonic() - start
  print(f"      done in {seconds:.0f} s", file=sys.stderr, flush=True)


def _peak_rss_gib() -> float:
  """The most memory this process has held; Linux counts in KiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
