"""Compares students trained on the targets of different alignment modes.

The runs of a seed share its mini world, records, initial parameters and order
of batches, and differ in the targets only. `teacher_distance` defines what is
measured beside accuracies.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import seqio
from scipy import stats

from specialize_jax.align import student
from specialize_jax.data import preparation, sources
from specialize_jax.evaluation import intervals
from specialize_jax.files import reading, writing
from specialize_jax.mini import stories, student_tokens, world
from specialize_jax.runs import experiment
from specialize_jax.study import teacher_distance
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

_RESULT = "result.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """The configuration of a comparison.

  Attributes:
    world: size of each seed's world.
    pretraining: trains a seed's general model.
    specialization: distills the teacher into it.
    tests: the evaluations.
    modes: the alignment modes.
    num_problems: number of held-out problems of each family, for the
      divergence.
    solutions_per_problem: number of solutions sampled for each of them.
    num_records: number of records whose targets are compared with the teacher.
  """

  world: world.WorldConfig
  pretraining: experiment.Experiment
  specialization: experiment.Experiment
  tests: Sequence[experiment.Evaluation]
  modes: Sequence[str]
  num_problems: int = 200
  solutions_per_problem: int = 2
  num_records: int = 1000


def run_seed(
  comparison: Comparison, output_dir: pathlib.Path, *, seed: int
) -> dict[str, object]:
  """Builds a seed's world, and trains and measures a student for each mode.

  Completed modes are skipped.

  Args:
    comparison: the configuration; directories and seeds of runs are set here.
    output_dir: the directory of the seed.
    seed: seed of the world, parameters and data.

  Returns:
    For each mode, `{"target_error": number, "one_to_one": share, "divergence":
    {family: [nats per token, for each problem]}, "accuracy": {task: share}}`.
  """
  world.build(output_dir, seed=seed, config=comparison.world)
  sources.set_data_dir(output_dir)
  mini_dir = output_dir / world.DIRECTORY
  tokenizer = student.SentencePieceStudent.from_file(mini_dir / "student.model")
  teacher = student_tokens.StudentTeacher(
    tokenizer,
    end_id=t5_config.EOS_ID,
    mistake_rate=comparison.world.mistake_rate,
  )
  drawn = world.draw_world(seed, comparison.world).maths
  held_out = {
    family: teacher_distance.draw_held_out(
      by_split["test"][: comparison.num_problems],
      tokenizer,
      teacher,
      solutions_per_problem=comparison.solutions_per_problem,
      seed=seed,
    )
    for family, by_split in drawn.items()
  }
  general = output_dir / "pretrain"
  experiment.train(
    dataclasses.replace(
      comparison.pretraining, model_dir=str(general), seed=seed
    )
  )
  asked = {p.question_id: p for p in drawn[stories.FAMILY]["train"]}
  modes = {}
  for mode in comparison.modes:
    place = output_dir / mode
    if not (place / _RESULT).is_file():
      error = teacher_distance.target_error(
        mini_dir / "records",
        asked,
        tokenizer,
        teacher,
        mode=mode,
        num_records=comparison.num_records,
      )
      student_is = _train_and_test(
        comparison, mode, place, held_out, start=general, seed=seed
      )
      writing.write_json(place / _RESULT, {"target_error": error, **student_is})
    modes[mode] = reading.read_json(place / _RESULT)
  return modes


def _train_and_test(
  comparison: Comparison,
  mode: str,
  place: pathlib.Path,
  held_out: Mapping[str, teacher_distance.HeldOut],
  *,
  start: pathlib.Path,
  seed: int,
) -> dict[str, object]:
  """Trains a student on the targets of one mode, and measures it."""
  mini_dir = pathlib.Path(sources.data_dir()) / world.DIRECTORY
  prepared = preparation.prepare(
    preparation.Preparation(
      records=str(mini_dir / "records"),
      vocabulary=str(mini_dir / "student.model"),
      mode=mode,
      data_dir=str(place / "tfds"),
      dataset_name="mini_gsm_teacher",
    )
  )
  run = dataclasses.replace(
    comparison.specialization,
    model_dir=str(place / "run"),
    initial_checkpoint_path=str(start),
    seed=seed,
  )
  seqio.set_tfds_data_dir_override(str(place / "tfds"))
  try:
    state = experiment.train(run)
  finally:
    seqio.set_tfds_data_dir_override(None)
  with run.mesh.placement().entered():
    divergences = {
      family: teacher_distance.divergence(
        network.EncoderDecoder(run.model),
        state.params,
        one,
        solutions_per_problem=comparison.solutions_per_problem,
      )
      for family, one in held_out.items()
    }
  values = experiment.evaluate_checkpoint(
    run.model_dir,
    evaluations=comparison.tests,
    mesh=run.mesh,
    output_dir=place / "predictions",
  )
  return {
    "one_to_one": prepared.report["one_to_one"] / prepared.report["positions"],
    "divergence": divergences,
    "accuracy": {
      name.removesuffix("/accuracy"): value
      for name, value in values.items()
      if name.endswith("/accuracy")
    },
  }


def summarize(
  seeds: Sequence[Mapping[str, Mapping]], baseline: str
) -> dict[str, dict[str, dict[str, intervals.Interval]]]:
  """Computes means over seeds, and differences from a baseline mode.

  The runs of a seed differ in the targets only, so differences are computed
  within each seed. Intervals are Student's t intervals over seeds; with three
  seeds their half-width is 2.5 standard deviations.

  Args:
    seeds: the results of `run_seed` for at least two seeds.
    baseline: the mode that others are compared with.

  Returns:
    `{measure: {mode: {"mean": interval, "difference": interval}}}`.
  """
  measured = [
    {mode: _measures(found) for mode, found in modes.items()} for modes in seeds
  ]
  modes, names = list(seeds[0]), list(measured[0][baseline])
  return {
    name: {
      mode: {
        "mean": student_interval([one[mode][name] for one in measured]),
        "difference": student_interval(
          [one[mode][name] - one[baseline][name] for one in measured]
        ),
      }
      for mode in modes
    }
    for name in names
  }


def _measures(found: Mapping) -> dict[str, float]:
  """Returns the measures of a run by name, and means over families."""
  divergence = {k: float(np.mean(v)) for k, v in found["divergence"].items()}
  accuracy = found["accuracy"]
  return {
    "target_error": found["target_error"],
    **{f"divergence {name}": value for name, value in divergence.items()},
    "divergence, mean": float(np.mean(list(divergence.values()))),
    **{f"accuracy {name}": value for name, value in accuracy.items()},
    "accuracy, mean": float(np.mean(list(accuracy.values()))),
  }


def student_interval(values: Sequence[float]) -> intervals.Interval:
  """Computes the mean and its 95 % Student's t interval.

  mean -+ t sqrt(variance / n), with t the quantile for n - 1 degrees of
  freedom.

  Raises:
    ValueError: there are fewer than two values.
  """
  if len(values) < 2:
    raise ValueError(f"{len(values)} values have no variance; expected 2.")
  mean = float(np.mean(values))
  quantile = stats.t.ppf(0.975, len(values) - 1)
  half = float(quantile * np.std(values, ddof=1) / len(values) ** 0.5)
  return intervals.Interval(mean, mean - half, mean + half)
