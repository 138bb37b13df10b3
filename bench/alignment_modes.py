"""Which kind of targets makes the better student, on the mini world.

Each seed has a world, a general student, and one student for each alignment
mode, trained on the targets of the same records for the same steps. Then the
distance of the targets, and of the students on held-out problems, from the
exact teacher is measured, and their accuracies. Prints means over seeds with
Student's t intervals, differences from `--baseline` computed within a seed, and
writes JSON. A second start resumes where the first one stopped. From the
repository's root:

  python bench/alignment_modes.py --output_dir=modes --output=modes.json
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import seqio
import teacher_distance

from specialize_jax import align, errors
from specialize_jax.align import student
from specialize_jax.cli import devices, gin_files, registered_tasks
from specialize_jax.data import sources
from specialize_jax.evaluation import intervals
from specialize_jax.files import reading, writing
from specialize_jax.mini import stories, student_tokens, styles, world
from specialize_jax.runs import experiment
from specialize_jax.study import demo
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

_PRETRAIN = "experiments/mini/pretrain.gin"
_SPECIALIZE = "experiments/mini/specialize.gin"
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
  _check_settings(comparison, output_dir)
  results = {mode: output_dir / mode / _RESULT for mode in comparison.modes}
  if all(path.is_file() for path in results.values()):
    return {mode: reading.read_json(path) for mode, path in results.items()}
  world.build(output_dir, seed=seed, config=comparison.world)
  sources.set_data_dir(output_dir)
  mini_dir = output_dir / world.DIRECTORY
  tokenizer = student.SentencePieceStudent.from_file(mini_dir / "student.model")
  teacher = student_tokens.StudentTeacher(
    tokenizer,
    end_id=t5_config.EOS_ID,
    mistake_rate=comparison.world.mistake_rate,
    style=styles.find(comparison.world.style),
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
  for mode, path in results.items():
    if not path.is_file():
      error = teacher_distance.target_error(
        mini_dir / "records",
        asked,
        tokenizer,
        teacher,
        mode=mode,
        num_records=comparison.num_records,
      )
      student_is = _train_and_test(
        comparison, mode, path.parent, held_out, start=general, seed=seed
      )
      writing.write_json(path, {"target_error": error, **student_is})
  return {mode: reading.read_json(path) for mode, path in results.items()}


def _check_settings(comparison: Comparison, output_dir: pathlib.Path) -> None:
  """Raises UserError if a directory has results of other settings.

  Modes may be added to it: each has a result of its own.
  """
  settings = dataclasses.asdict(dataclasses.replace(comparison, modes=()))
  now = json.loads(json.dumps(settings, default=repr))
  path = output_dir / "settings.json"
  if path.is_file():
    if reading.read_json(path) != now:
      raise errors.UserError(
        f"{output_dir} has results of other settings: give another --output_dir"
      )
  else:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now, indent=2))


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
  report = demo.prepare_teacher(
    pathlib.Path(sources.data_dir()), mode, tfds_dir=place / "tfds"
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
    "one_to_one": report["one_to_one"] / report["positions"],
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
        "mean": intervals.student_t([one[mode][name] for one in measured]),
        "difference": intervals.student_t(
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


def main(argv):
  """Compares, and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output_dir", required=True, type=pathlib.Path)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--pretrain_steps", type=int, default=1000)
  parser.add_argument("--train_steps", type=int, default=500)
  parser.add_argument("--num_test", type=int, default=300, help="a family")
  parser.add_argument("--num_problems", type=int, default=200, help="a family")
  parser.add_argument("--num_records", type=int, default=1000)
  parser.add_argument(
    "--modes", nargs="+", choices=align.MODES, default=align.MODES
  )
  parser.add_argument("--baseline", default="whitespace")
  parser.add_argument("--output")
  devices.add_flags(parser, cpu_devices=2)
  gin_files.add_flags(parser, default_file="runs/demo.gin")
  flags, bindings = gin_files.parse(parser, argv)
  if len(set(flags.seeds)) < 2:
    parser.error("--seeds: give two or more, for intervals over them")
  if flags.baseline not in flags.modes:
    parser.error(f"--baseline={flags.baseline} is not among --modes")
  registered_tasks.register(None, None)
  devices.start(flags)

  comparison = _comparison(flags, bindings)
  start = time.monotonic()
  seeds = []
  for seed in flags.seeds:
    place = flags.output_dir / f"seed{seed}"
    seeds.append(run_seed(comparison, place, seed=seed))
    print(f"seed {seed}: {time.monotonic() - start:.0f} s", file=sys.stderr)
  summary = summarize(seeds, flags.baseline)
  _print_table(summary, flags.baseline)
  if flags.output:
    result = {
      **{
        k: v
        for k, v in vars(flags).items()
        if k.startswith(("num_", "pretrain_steps", "train_steps"))
      },
      "seeds": flags.seeds,
      "baseline": flags.baseline,
      "seconds": round(time.monotonic() - start),
      "load_average": os.getloadavg()[0],
      "summary": {
        name: {
          mode: {kind: dataclasses.asdict(one) for kind, one in row.items()}
          for mode, row in rows.items()
        }
        for name, rows in summary.items()
      },
    }
    writing.write_text(flags.output, json.dumps(result, indent=2) + "\n")


def _comparison(flags, bindings):
  """Wires the demo's own world and runs, with other numbers of steps."""
  pretraining = _experiment(flags, _PRETRAIN, flags.pretrain_steps)
  specialization = _experiment(
    flags, _SPECIALIZE, flags.train_steps, "INITIAL_CHECKPOINT_PATH = None"
  )
  with gin_files.loaded(flags, bindings):
    whole = gin_files.configured(demo.Demo)(
      pretraining=pretraining, specialization=specialization
    )
  maths = whole.tests[0]
  return Comparison(
    world=whole.world,
    pretraining=pretraining,
    specialization=specialization,
    tests=[dataclasses.replace(maths, num_examples=flags.num_test)],
    modes=flags.modes,
    num_problems=flags.num_problems,
    num_records=flags.num_records,
  )


def _experiment(flags, gin_file, num_steps, *bindings):
  """Configures a run of so many steps, without evaluations on its way."""
  run_flags = argparse.Namespace(**{**vars(flags), "gin_file": [gin_file]})
  placed = [
    "MODEL_DIR = 'of the student'",
    f"TRAIN_STEPS = {num_steps}",
    f"CHECKPOINT_EVERY = {num_steps}",
    *bindings,
  ]
  with gin_files.loaded(run_flags, placed):
    run = gin_files.configured(experiment.Experiment)()
  return dataclasses.replace(
    run,
    evaluations=(),
    loop=dataclasses.replace(run.loop, evaluate_first=False),
  )


def _print_table(summary, baseline):
  print(f"mean over seeds [95 %]; then the difference to {baseline} [95 %]")
  for name, rows in summary.items():
    print(name)
    for mode, row in rows.items():
      mean, apart = row["mean"], row["difference"]
      print(
        f"  {mode:10}"
        f" {mean.estimate:.4f} [{mean.low:.4f}, {mean.high:.4f}]"
        f" {apart.estimate:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
      )


if __name__ == "__main__":
  main(sys.argv[1:])
