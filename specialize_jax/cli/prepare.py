"""`specialize prepare`: builds the training dataset from teacher records."""

from __future__ import annotations

import argparse
import functools
import sys
import typing
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cli import logs, parsers, registered_tasks, teacher_records
from specialize_jax.files import paths

DATASETS = {"gsm8k_teacher": "gsm8k", "mini_gsm_teacher": "mini"}
"""The datasets of teachers' samples that our tasks read, and their sources."""

BENCHMARKS = ("gsm8k", "multiarith", "asdiv", "svamp", "bbh")

if typing.TYPE_CHECKING:
  from specialize_jax.datasets import description

_EXAMPLE = """example (records and questions as `specialize demo` leaves them):
  specialize prepare --records=demo_output/world/mini/records \\
    --vocabulary=demo_output/world/mini/student.model --mode=whitespace \\
    --questions=demo_output/world/mini/mini_gsm/train.jsonl \\
    --data_dir=demo_output/world/tfds --dataset_name=mini_gsm_teacher \\
    --report=prepare.json
  specialize prepare --dataset_name=svamp --data_dir=tfds
for your own domain (docs/own_domain.md), whose file specifies the rest:
  specialize prepare --dataset=tickets.yaml --records=records
"""

_MANUAL = paths.INPUT_DIRECTORY.local("TFDS reads these files from a disk")


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize prepare",
    description="Keeps records with correct answers to training questions,"
    " aligns them with the student's tokens, and writes the TFDS dataset that"
    " the teacher tasks read. With the name of a benchmark, builds the dataset"
    " of the benchmark from its authors' files, which are downloaded if"
    " --manual_dir does not have them.",
    epilog=_EXAMPLE,
  )
  teacher_records.add_flags(parser, required=False)
  registered_tasks.add_dataset_flag(parser)
  parser.add_argument(
    "--data_dir",
    metavar="DIR",
    help="the directory of TFDS datasets to write to, for training's"
    " --tfds_data_dir (default with --dataset: tfds/ next to that file, which"
    " is also training's default)",
  )
  parser.add_argument(
    "--dataset_name",
    choices=(*DATASETS, *BENCHMARKS),
    help="the name of the dataset, to which tasks refer (default: that of"
    f" --dataset, or {next(iter(DATASETS))})",
  )
  parser.add_argument(
    "--manual_dir",
    metavar="DIR",
    help="of a benchmark: the folder with its authors' files, as in"
    " DIR/svamp/SVAMP.json",
  )
  parser.add_argument(
    "--questions",
    metavar="FILE.jsonl",
    help="the training questions that the teacher was asked (default: GSM8K's"
    " or the mini world's train.jsonl in the data directory); validation and"
    " test questions are in the files next to it",
  )
  parser.add_argument(
    "--runner",
    metavar="NAME",
    help="align on this Apache Beam runner, such as DirectRunner,"
    " DataflowRunner, FlinkRunner or SparkRunner (default: in this process,"
    " without Beam)",
  )
  parser.add_argument(
    "--runner_options",
    default="",
    metavar="OPTIONS",
    help="the runner's own options, as in --runner_options='--project=P"
    " --region=R'",
  )
  parser.add_argument(
    "--report",
    metavar="FILE.json",
    help="counts of records kept and dropped, and the alignment's coverage",
  )
  logs.add_flags(parser)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Filters and aligns records, and writes the dataset atomically."""
  flags = build_parser().parse_args(argv)
  logs.start(flags)
  paths.check_flags(
    flags,
    {
      "dataset": registered_tasks.DATASET_FILE,
      "records": paths.INPUT_PATH,
      "vocabulary": paths.INPUT_FILE,
      "questions": paths.INPUT_FILE,
      "manual_dir": _MANUAL,
      "data_dir": paths.OUTPUT_DIRECTORY,
      "report": paths.OUTPUT_FILE,
    },
  )
  parsers.check_only_with(
    flags, ["runner_options"], bool(flags.runner), "--runner"
  )
  own = registered_tasks.load_dataset(flags.dataset, flags.imports)
  if own is not None:
    _fill_in(flags, own.dataset)
  elif flags.dataset_name is None:
    flags.dataset_name = next(iter(DATASETS))
  if flags.data_dir is None:
    raise errors.UserError(
      "--data_dir is missing: the dataset is written to this directory"
    )
  if flags.dataset_name not in BENCHMARKS:
    _check_teacher_flags(flags)

  from specialize_jax.files import locks

  with (
    locks.directory(flags.data_dir, "--data_dir", part=flags.dataset_name),
    locks.files({"--report": flags.report}),
  ):
    if flags.dataset_name in BENCHMARKS:
      return _prepare_benchmark(flags)
    return _prepare_teacher(flags, own.dataset if own else None)


def _fill_in(flags: argparse.Namespace, own: description.Dataset) -> None:
  """Sets flags that were not given from a dataset file."""
  if flags.dataset_name is not None:
    raise errors.UserError(
      f"--dataset_name={flags.dataset_name} and --dataset={flags.dataset} both"
      " name what is prepared: give one"
    )
  flags.dataset_name = own.teacher_name
  flags.vocabulary = flags.vocabulary or own.vocabulary.path
  flags.data_dir = flags.data_dir or own.tfds_dir


def _prepare_teacher(
  flags: argparse.Namespace, own: description.Dataset | None
) -> int:
  with registered_tasks.quiet_import():
    from specialize_jax.data import preparation, sources
    from specialize_jax.files import writing
    from specialize_jax.tasks import mixtures

  dataset = own or mixtures.DATASETS[DATASETS[flags.dataset_name]]
  if flags.questions and own is None:
    preparation.check_questions_file(flags.questions)
    try:
      dataset.read_training(flags.questions)
    except errors.UserError as error:
      raise errors.UserError(
        f"--questions={flags.questions} is not a training file of"
        f" {flags.dataset_name} ({error}); questions of a domain of your own"
        " are described by --dataset=FILE.yaml (docs/own_domain.md)"
      ) from error
  if own is None and not flags.questions:
    try:
      dataset.read_training(None)
    except errors.UserError as error:
      raise errors.UserError(
        f"no training questions for {flags.dataset_name}: pass"
        f" --questions=FILE.jsonl, or set {sources.ENVIRONMENT_VARIABLE} to the"
        f" folder that has them ({error})"
      ) from error
  wanted = preparation.Preparation(
    records=flags.records,
    vocabulary=flags.vocabulary,
    mode=flags.mode,
    data_dir=flags.data_dir,
    dataset_name=flags.dataset_name,
    read_questions=functools.partial(dataset.read_training, flags.questions),
    questions_from=_questions_from(flags),
    answer=dataset.in_distribution.answer,
    keep_truncated=flags.keep_truncated,
  )
  if flags.runner:
    with registered_tasks.quiet_import():
      from specialize_jax.data import teacher_builder
    prepared = teacher_builder.prepare(
      wanted,
      teacher_builder.Runner(name=flags.runner, options=flags.runner_options),
    )
  else:
    prepared = preparation.prepare(
      wanted,
      progress=lambda lines: teacher_records.with_progress(lines, "preparing"),
    )
  if flags.report:
    writing.write_json(flags.report, prepared.report)
  print(_summary(prepared.report, prepared.path))
  if prepared.validation_path:
    print(
      f"{prepared.validation_path}: {prepared.report['validation']:,} samples"
      " of validation questions"
    )
  teacher_records.print_coverage(prepared.report)
  return 0


def _questions_from(flags: argparse.Namespace) -> str:
  if flags.dataset:
    return f"--dataset={flags.dataset}"
  if flags.questions:
    return f"--questions={flags.questions}"
  return "the data directory's own training file (or --questions=FILE.jsonl)"


def _summary(report: Mapping[str, typing.Any], path: str) -> str:
  dropped = sum(report["dropped"].values())
  reasons = sorted(report["dropped"].items(), key=lambda one: -one[1])
  why = ", ".join(f"{number:,} for {reason}" for reason, number in reasons)
  return (
    f"{path}: {report['kept']:,} samples of {report['questions']:,} questions"
    f" ({dropped:,} of {report['records']:,} records dropped"
    f"{f': {why}' if why else ''}); "
    f"{report['mode']}: {report['one_to_one']:,} of {report['positions']:,}"
    f" positions one-to-one, {report['one_hot']:,} one-hot,"
    f" {report['masked']:,} masked"
  )


def _prepare_benchmark(flags: argparse.Namespace) -> int:
  """Builds a benchmark's dataset."""
  for name in (
    *("records", "vocabulary", "questions", "report", "keep_truncated"),
    *("mode", "runner", "runner_options"),
  ):
    if name in flags.given:
      raise errors.UserError(
        f"--{name} is for a teacher's data; --dataset_name="
        f"{flags.dataset_name} is built from its authors' files alone"
      )
  with registered_tasks.quiet_import():
    from specialize_jax.data import benchmark_builders

  for folder in benchmark_builders.prepare(
    flags.dataset_name, data_dir=flags.data_dir, manual_dir=flags.manual_dir
  ):
    print(folder)
  return 0


def _check_teacher_flags(flags: argparse.Namespace) -> None:
  """Checks that all necessary flags are given, before any work."""
  for name in ("records", "vocabulary"):
    if not getattr(flags, name):
      raise errors.UserError(
        f"--{name} is missing: --dataset_name={flags.dataset_name} is made of"
        " a teacher's records and a student's vocabulary"
      )
  if flags.manual_dir:
    raise errors.UserError(
      "--manual_dir is for a benchmark's own files; --dataset_name="
      f"{flags.dataset_name} is made of --records"
    )


if __name__ == "__main__":
  from specialize_jax.cli import main as command_line

  sys.exit(command_line.run("prepare", sys.argv[1:]))
