"""`specialize prepare`: teacher records to the dataset that training reads."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence

from specialize_jax import errors

if typing.TYPE_CHECKING:
  from specialize_jax.align import coverage
  from specialize_jax.data import aligned_records, record_filter
  from specialize_jax.records import schema

DATASETS = ("gsm8k_teacher", "mini_gsm_teacher")

_EXAMPLE = """example (records and questions as `specialize demo` leaves them):
  specialize prepare --records=demo_output/world/mini/records \\
    --vocabulary=demo_output/world/mini/student.model --mode=whitespace \\
    --questions=demo_output/world/mini/mini_gsm/train.jsonl \\
    --data_dir=demo_output/world/tfds --dataset_name=mini_gsm_teacher \\
    --report=prepare.json
"""


def build_parser() -> argparse.ArgumentParser:
  """Gives the command's flags."""
  parser = argparse.ArgumentParser(
    prog="specialize prepare",
    description="Keeps the records whose answer is right and whose question"
    " may be trained on, aligns them to the student's tokens, and writes the"
    " TFDS dataset that the teacher tasks read.",
    epilog=_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--records",
    required=True,
    metavar="PATH",
    help="a record store, a .jsonl file of records, or the paper's released"
    " JSON list of samples",
  )
  parser.add_argument(
    "--vocabulary",
    required=True,
    metavar="SPIECE",
    help="the student's SentencePiece model, such as T5's spiece.model",
  )
  parser.add_argument(
    "--mode",
    default="whitespace",
    metavar="paper|whitespace|chunk|marginal",
    help="what a student token learns from the teacher (default: whitespace)",
  )
  parser.add_argument(
    "--data_dir",
    required=True,
    metavar="DIR",
    help="the folder of TFDS datasets to write to (what training finds by"
    " --tfds_data_dir)",
  )
  parser.add_argument(
    "--dataset_name",
    default=DATASETS[0],
    choices=DATASETS,
    help=f"whose tasks will read it (default: {DATASETS[0]})",
  )
  parser.add_argument(
    "--questions",
    metavar="FILE.jsonl",
    help="the training questions that the teacher was asked (default: GSM8K's"
    " or the mini world's train.jsonl in the data directory); validation and"
    " test questions are told by it and by the files beside it",
  )
  parser.add_argument(
    "--report",
    metavar="FILE.json",
    help="counts of records kept and dropped, and the alignment's coverage",
  )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Filters, aligns and writes; the dataset appears whole or not at all."""
  flags = build_parser().parse_args(argv)
  _check_report(flags.report)

  from specialize_jax.align import coverage, sample, student
  from specialize_jax.data import aligned_records, record_filter
  from specialize_jax.records import store, tfds_builder

  sample.check_mode(flags.mode)
  tokenizer = student.StudentTokenizer.from_file(flags.vocabulary)
  questions_path = flags.questions or _default_questions(flags.dataset_name)
  index = _index(flags.dataset_name, questions_path)

  tally = _Tally(covered=coverage.Coverage())
  records = _with_progress(store.read_records(flags.records))
  right = record_filter.right_training_records(
    tally.count(records), index, tally.dropped
  )
  aligned = aligned_records.align_records(
    right, tokenizer, mode=flags.mode, coverage_fn=tally.add_coverage
  )
  try:
    path = tfds_builder.write(
      tally.rows(aligned),
      data_dir=flags.data_dir,
      name=flags.dataset_name,
      metadata={
        tfds_builder.FINGERPRINT: tokenizer.fingerprint,
        "mode": flags.mode,
      },
    )
  except errors.UserError as error:
    if tally.kept:
      raise
    raise _nothing_kept(flags.records, questions_path, tally) from error
  report = tally.report(mode=flags.mode, vocabulary=tokenizer.fingerprint)
  if flags.report:
    _write_whole(flags.report, json.dumps(report, indent=2) + "\n")
  print(_summary(report, path))
  return 0


class _Tally:
  """What became of the records, counted as they pass."""

  def __init__(self, covered: coverage.Coverage) -> None:
    self.covered = covered
    self.dropped: collections.Counter[str] = collections.Counter()
    self.num_records = 0
    self.kept = 0
    self._questions: set[str] = set()

  def count(
    self, records: Iterable[schema.TeacherRecord]
  ) -> Iterator[schema.TeacherRecord]:
    for record in records:
      self.num_records += 1
      yield record

  def add_coverage(self, one: coverage.Coverage) -> None:
    self.covered += one

  def rows(
    self,
    aligned: Iterable[schema.AlignedRow | aligned_records.Rejection],
  ) -> Iterator[schema.AlignedRow]:
    """Lets rows pass and counts rejections by their reason."""
    from specialize_jax.records import schema

    for one in aligned:
      if isinstance(one, schema.AlignedRow):
        self.kept += 1
        self._questions.add(str(one.question_id))
        yield one
      else:
        self.dropped[f"not alignable: {one.reason}"] += 1

  def report(self, **settings: str) -> dict[str, object]:
    return {
      **settings,
      "records": self.num_records,
      "kept": self.kept,
      "questions": len(self._questions),
      "dropped": dict(sorted(self.dropped.items())),
      **self.covered.report(),
    }


def _default_questions(dataset_name: str) -> str:
  from specialize_jax.data import sources

  relative = {
    "gsm8k_teacher": "gsm8k/train.jsonl",
    "mini_gsm_teacher": "mini/mini_gsm/train.jsonl",
  }[dataset_name]
  try:
    return sources.find(relative)
  except errors.UserError as error:
    raise errors.UserError(
      f"no training questions for {dataset_name}: pass --questions=FILE.jsonl,"
      f" or set {sources.ENVIRONMENT_VARIABLE} to a folder with {relative}"
    ) from error


def _index(dataset_name: str, path: str) -> record_filter.QuestionIndex:
  """Reads what may be trained on and what may not."""
  from specialize_jax.data import benchmarks, questions, record_filter

  if not os.path.isfile(path):
    raise errors.UserError(
      f"--questions={path} does not exist: expected a file of questions, one"
      " JSON object a line"
    )
  if dataset_name == "gsm8k_teacher":
    return record_filter.gsm8k_index(benchmarks.read_gsm8k(path, "train"))
  held_out = []
  for split in ("validation", "test"):
    beside = pathlib.Path(path).with_name(f"{split}.jsonl")
    if beside.is_file():
      held_out += questions.read_questions(str(beside))
  return record_filter.QuestionIndex(questions.read_questions(path), held_out)


def _nothing_kept(
  records_path: str, questions_path: str, tally: _Tally
) -> errors.UserError:
  if not tally.num_records:
    return errors.UserError(
      f"--records={records_path} holds no record; nothing to prepare"
    )
  why = ", ".join(f"{n} {reason}" for reason, n in tally.dropped.most_common())
  return errors.UserError(
    f"--records={records_path}: none of the {tally.num_records} records can be"
    f" trained on ({why}); check that --questions={questions_path} is the file"
    " that the teacher was asked from"
  )


def _summary(report: Mapping[str, typing.Any], path: str) -> str:
  dropped = sum(report["dropped"].values())
  return (
    f"{path}: {report['kept']:,} samples of {report['questions']:,} questions"
    f" ({dropped:,} of {report['records']:,} records dropped); "
    f"{report['mode']}: {report['one_to_one']:,} of {report['positions']:,}"
    f" positions one-to-one, {report['one_hot']:,} one-hot"
  )


def _check_report(path: str | None) -> None:
  """Fails before the work where the report could not be written after it."""
  if path is not None and pathlib.Path(path).is_dir():
    raise errors.UserError(
      f"--report={path} is a directory; give a file's name"
    )


def _write_whole(path: str, content: str) -> None:
  file = pathlib.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  unfinished = file.with_name(f".{file.name}.{os.getpid()}.unfinished")
  unfinished.write_text(content, encoding="utf-8")
  unfinished.replace(file)


def _with_progress(
  records: Iterable[schema.TeacherRecord],
) -> Iterator[schema.TeacherRecord]:
  """Shows on standard error how many records have passed, and how fast."""
  from rich import console, progress

  columns = (
    progress.TextColumn("read {task.completed:,} records"),
    progress.TimeElapsedColumn(),
    progress.SpinnerColumn(),
  )
  screen = console.Console(stderr=True)
  with progress.Progress(*columns, console=screen, transient=True) as bar:
    yield from bar.track(records, total=None)


if __name__ == "__main__":
  from specialize_jax.cli import main as command_line

  sys.exit(command_line.run("prepare", sys.argv[1:]))
