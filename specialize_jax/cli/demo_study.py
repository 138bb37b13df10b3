"""`specialize demo --study`: the paper's findings in miniature."""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Sequence

from specialize_jax.cli import flag_types, registered_tasks, study_job

DEFAULT_FILE = "runs/study.gin"


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a study."""
  group = parser.add_argument_group("the study")
  group.add_argument(
    "--study",
    action="store_true",
    help="run the paper's findings in miniature instead, on several "
    f"worlds (gin: {DEFAULT_FILE})",
  )
  group.add_argument(
    "--num_seeds",
    type=flag_types.whole(1),
    default=3,
    metavar="N",
    help="number of worlds, with seeds from --seed on (default: 3)",
  )
  group.add_argument(
    "--num_workers",
    type=flag_types.whole(1),
    default=os.cpu_count(),
    metavar="N",
    help="number of concurrent runs, each on one core, or on a GPU with an "
    "equal share of its memory (default: the number of cores)",
  )


def run(flags: argparse.Namespace, bindings: Sequence[str]) -> int:
  """Runs the missing parts of the study, and prints its results.

  Raises:
    UserError: a flag or a gin file is not possible.
  """
  start = time.monotonic()
  registered_tasks.register(None, None)

  from specialize_jax.files import writing
  from specialize_jax.study import (
    arms,
    findings,
    findings_page,
    findings_text,
    jobs,
  )

  flags.default_gin_file = DEFAULT_FILE
  study = study_job.configure(flags, bindings)
  experiments = {
    arm.name: study_job.configure_arm(flags, arm.gin_files)
    for arm in study.arms
  }
  seeds = range(flags.seed, flags.seed + flags.num_seeds)
  output_dir = pathlib.Path(flags.output_dir)
  planned = arms.plan(
    study, experiments, seeds=seeds, command=_command(flags, bindings)
  )
  os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.fspath(output_dir / "compiled")
  )
  # Or the first process would take three quarters of a GPU's memory.
  os.environ.setdefault(
    "XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / flags.num_workers:.3f}"
  )
  places = jobs.run(planned, output_dir / "jobs", num_workers=flags.num_workers)
  result = findings.collect(study, places, seeds, directory=output_dir / "jobs")
  writing.write_json(output_dir / "study.json", result)
  report = output_dir / "study.html"
  findings_page.build(output_dir / "study.json", report)
  print(findings_text.terminal(result))
  minutes = (time.monotonic() - start) / 60
  print(f"\nreport: {report} ({minutes:.1f} min)")
  return 0


def _command(flags: argparse.Namespace, bindings: Sequence[str]) -> list[str]:
  """A job's process reads the very gin files and overrides of the study."""
  overrides = [
    f"--gin.{name}={value}"
    for name, value in (binding.split(" = ", 1) for binding in bindings)
  ]
  return [
    sys.executable,
    "-P",  # no module of the working directory's, whatever its name
    "-m",
    "specialize_jax.cli.study_job",
    *(f"--gin_file={file}" for file in flags.gin_file or ()),
    f"--gin_search_paths={flags.gin_search_paths}",
    *overrides,
  ]
