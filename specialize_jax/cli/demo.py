"""`specialize demo`: the whole pipeline on the mini world."""

import argparse
import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Sequence

from specialize_jax import errors
from specialize_jax.cli import (
  demo_study,
  devices,
  flag_types,
  gin_files,
  logs,
  parsers,
  registered_tasks,
)
from specialize_jax.files import paths

_EXAMPLE = """example:
  specialize demo --output_dir=demo_output --seed=0
  specialize demo --study --output_dir=study_output   (an hour or two)
An interrupted demo is resumed when it is started again in its directory.
"""

# Comparisons by name: what is compared, and the gin file that configures it.
_COMPARISONS = {
  "sample_matching": (
    "matching the teacher's samples, not its distribution",
    "losses/sample_matching.gin",
  ),
  "zero_shot": ("zero-shot formats alone", "runs/compare_zero_shot.gin"),
  "in_context": ("in-context formats alone", "runs/compare_in_context.gin"),
}

_OUTPUT = paths.OUTPUT_DIRECTORY.local(
  "its steps go on from files that grow, which no object in a bucket does"
)


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize demo",
    description="Builds a small world of word problems with an exact teacher,"
    " pre-trains a tiny T5, specializes it on the teacher's chains of thought,"
    " and tests it before and after. Needs no download, key or accelerator.",
    epilog=_EXAMPLE,
  )
  parser.add_argument(
    "--output_dir",
    required=True,
    metavar="DIR",
    help="the directory of report.html, results.json and all other outputs",
  )
  parser.add_argument(
    "--seed",
    type=flag_types.whole(0, errors.MAX_SEED),
    default=0,
    metavar="N",
    help="seed of the world, the teacher and both runs (default: 0)",
  )
  devices.add_flags(parser, cpu_devices=2)
  gin_files.add_flags(parser, default_file="runs/demo.gin")
  for run, what in (
    ("pretrain", "the general pre-training"),
    ("specialize", "the specialization"),
  ):
    parser.add_argument(
      f"--{run}_gin_file",
      default=f"experiments/mini/{run}.gin",
      metavar="FILE",
      help=f"the gin file of {what}, as for `specialize train`",
    )
  parser.add_argument(
    "--compare",
    metavar="WHAT",
    help="also specialize the same general model in another way, and compare: "
    f"{', '.join(_COMPARISONS)}, or a gin file that is read after "
    "--specialize_gin_file",
  )
  demo_study.add_flags(parser)
  logs.add_flags(parser)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the demo, and prints its table and the path of the report."""
  argv = sys.argv[1:] if argv is None else argv
  flags, bindings = gin_files.parse(build_parser(), argv)
  logs.start(flags)
  gin_files.check_flags(flags)
  paths.check_flags(
    flags,
    {
      "output_dir": _OUTPUT,
    },
  )
  for run in ("pretrain", "specialize"):
    name = f"{run}_gin_file"
    gin_files.check_files(
      [getattr(flags, name)], flags.gin_search_paths, f"--{name}"
    )
  parsers.check_only_with(
    flags,
    ("pretrain_gin_file", "specialize_gin_file", "cpu_devices"),
    not flags.study,
    "a demo without --study",
  )
  parsers.check_only_with(
    flags, ("num_seeds", "num_workers"), flags.study, "--study"
  )
  if flags.compare is not None:
    _check_comparison(flags)
  from specialize_jax.files import locks

  with locks.directory(flags.output_dir, "--output_dir"):
    if flags.study:
      return demo_study.run(flags, bindings)
    return _demo(flags, bindings)


def _demo(flags: argparse.Namespace, bindings: Sequence[str]) -> int:
  registered_tasks.register(None, None)
  devices.start(flags)

  from specialize_jax.reports import comparison_view, page, results, tables
  from specialize_jax.study import demo

  output_dir = pathlib.Path(flags.output_dir)
  pretraining = _experiment(flags, "pretrain", output_dir)
  specialization = _experiment(
    flags,
    "specialize",
    output_dir,
    f"INITIAL_CHECKPOINT_PATH = {str(output_dir / 'pretrain')!r}",
  )
  compared = {}
  if flags.compare is not None:
    compared = _comparison(flags, output_dir)
    _check_difference(flags.compare, specialization, compared["comparison"])
  with gin_files.loaded(flags, bindings):
    whole_way = gin_files.configured(demo.Demo)(
      pretraining=pretraining, specialization=specialization, **compared
    )
  demo.run(whole_way, output_dir, seed=flags.seed)

  report = output_dir / "report.html"
  page.build(output_dir, report)
  written = results.load(output_dir)
  print(tables.terminal(written))
  if flags.compare is not None:
    print(comparison_view.terminal(written.comparison))
  print(f"\nreport: {report}")
  return 0


def _check_comparison(flags: argparse.Namespace) -> None:
  """Raises UserError if --compare is not possible."""
  if flags.study:
    raise errors.UserError(
      f"--compare={flags.compare}: --study makes its own comparisons; leave"
      " one of the two out"
    )
  if flags.compare in _COMPARISONS:
    return
  if not flags.compare.endswith(".gin"):
    raise errors.UserError(
      f"--compare={flags.compare!r}: expected one of"
      f" {', '.join(_COMPARISONS)}, or a gin file (NAME.gin)"
    )
  gin_files.check_files([flags.compare], flags.gin_search_paths, "--compare")


def _comparison(
  flags: argparse.Namespace, output_dir: pathlib.Path
) -> dict[str, object]:
  """Configures the other specialization, in a directory of its own."""
  words, file = _COMPARISONS.get(
    flags.compare, (f"what {flags.compare} says", flags.compare)
  )
  name = f"compare_{pathlib.PurePath(flags.compare).stem}"
  if flags.compare not in _COMPARISONS:  # a run of its own for what it says
    text = gin_files.read(flags.compare, flags.gin_search_paths)
    name += f"_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
  run = _experiment(
    flags,
    "specialize",
    output_dir,
    f"INITIAL_CHECKPOINT_PATH = {str(output_dir / 'pretrain')!r}",
    name=name,
    more_files=[file],
  )
  return {"comparison": run, "comparison_name": words}


def _check_difference(compare: str, run: object, other: object) -> None:
  """Raises UserError if a run would be compared with itself."""
  if dataclasses.replace(other, model_dir=run.model_dir) == run:
    raise errors.UserError(
      f"--compare={compare} changes nothing of the specialization: its"
      " configuration has that already, or does not use what it sets"
    )


def _experiment(
  flags: argparse.Namespace,
  run: str,
  output_dir: pathlib.Path,
  *bindings: str,
  name: str | None = None,
  more_files: Sequence[str] = (),
) -> object:
  """Configures "pretrain" or "specialize".

  Args:
    flags: the command's flags.
    run: "pretrain" or "specialize".
    output_dir: the parent of the run's directory.
    *bindings: gin bindings, applied after the files.
    name: the name of the run's directory; None for `run`.
    more_files: gin files that are read after the run's own.
  """
  from specialize_jax.runs import experiment

  files = [getattr(flags, f"{run}_gin_file"), *more_files]
  run_flags = argparse.Namespace(**{**vars(flags), "gin_file": files})
  run = name or run
  model_dir = str(output_dir / run)
  placed = [f"MODEL_DIR = {model_dir!r}", f"SEED = {flags.seed}"]
  with gin_files.loaded(run_flags, [*placed, *bindings]):
    return gin_files.configured(experiment.Experiment)()


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("demo", sys.argv[1:]))
