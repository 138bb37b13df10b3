"""One job of `specialize demo --study`, which starts it as its own process."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from specialize_jax.cli import devices, gin_files, parsers, registered_tasks


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the process's flags; a study sets them all."""
  parser = parsers.Parser(prog="specialize demo --study")
  parser.add_argument("--arm", required=True, metavar="NAME")
  parser.add_argument("--seed", required=True, type=int, metavar="N")
  parser.add_argument(
    "--job_dir", required=True, type=pathlib.Path, metavar="DIR"
  )
  for name in ("world", "start"):
    parser.add_argument(f"--{name}_dir", type=pathlib.Path, metavar="DIR")
  devices.add_flags(parser, cpu_devices=1)
  gin_files.add_flags(parser, default_file="runs/study.gin")
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Does one job, or what is left of it."""
  argv = sys.argv[1:] if argv is None else argv
  flags, bindings = gin_files.parse(build_parser(), argv)

  from specialize_jax.study import jobs

  with jobs.attached(flags.job_dir):
    registered_tasks.register(None, None)
    devices.start(flags)

    from specialize_jax.study import arms

    study = configure(flags, bindings)
    if flags.arm == arms.WORLD:
      arms.run_world(study, flags.job_dir, seed=flags.seed)
      return 0
    arm = study.arm(flags.arm)
    arms.run_arm(
      study,
      arm,
      configure_arm(flags, arm.gin_files),
      seed=flags.seed,
      job_dir=flags.job_dir,
      world_dir=flags.world_dir,
      start_dir=flags.start_dir,
    )
  return 0


def configure(flags: argparse.Namespace, bindings: Sequence[str]) -> object:
  """Returns the study of the gin files."""
  from specialize_jax.study import arms

  with gin_files.loaded(flags, bindings):
    return gin_files.configured(arms.Study)()


def configure_arm(flags: argparse.Namespace, files: Sequence[str]) -> object:
  """Returns one arm's experiment; the study sets its directories."""
  from specialize_jax.runs import experiment

  run_flags = argparse.Namespace(**{**vars(flags), "gin_file": list(files)})
  places = ["MODEL_DIR = 'of the arm'", "INITIAL_CHECKPOINT_PATH = None"]
  with gin_files.loaded(run_flags, places):
    return gin_files.configured(experiment.Experiment)()


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("study_job", sys.argv[1:]))
