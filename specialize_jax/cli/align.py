"""`specialize align`: aligns teacher records with a student."""

from __future__ import annotations

import argparse
import json
import math
import sys
import typing
from collections.abc import Iterable, Sequence

from specialize_jax import errors
from specialize_jax.cli import logs, parsers, teacher_records
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from specialize_jax.align import coverage, student, targets
  from specialize_jax.data import aligned_records
  from specialize_jax.records import columnar

_EXAMPLE = """example (records and vocabulary as `specialize demo` leaves them):
  specialize align --records=demo_output/world/mini/records \\
    --vocabulary=demo_output/world/mini/student.model --mode=whitespace \\
    --output=aligned.jsonl --report=coverage.json
"""


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize align",
    description="Aligns a teacher's tokens with a student's, and maps the"
    " teacher's distributions onto the student's pieces. Writes a JSON object"
    " per sample, and a coverage report.",
    epilog=_EXAMPLE,
  )
  teacher_records.add_flags(parser)
  parser.add_argument(
    "--output",
    required=True,
    metavar="FILE.jsonl",
    help="a row per sample: pieces, targets and mask, or why it was rejected",
  )
  parser.add_argument(
    "--report",
    required=True,
    metavar="FILE.json",
    help="counts of positions by kind, and the fraction of teacher mass kept",
  )
  logs.add_flags(parser)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Aligns a store, and writes both files atomically."""
  flags = build_parser().parse_args(argv)
  logs.start(flags)
  paths.check_flags(
    flags,
    {
      "records": paths.INPUT_PATH,
      "vocabulary": paths.INPUT_FILE,
      "output": paths.OUTPUT_FILE,
      "report": paths.OUTPUT_FILE,
    },
  )

  from specialize_jax.files import locks

  with locks.files({"--output": flags.output, "--report": flags.report}):
    return _align_store(flags)


def _align_store(flags: argparse.Namespace) -> int:
  from specialize_jax import align
  from specialize_jax.align import student
  from specialize_jax.data import aligned_records
  from specialize_jax.files import writing
  from specialize_jax.records import store

  align.check_mode(flags.mode)
  tokenizer = student.SentencePieceStudent.from_file(flags.vocabulary)
  records = teacher_records.with_progress(
    store.read_lines(flags.records), "aligning"
  )
  with (
    writing.opened(flags.output) as output,
    writing.opened(flags.report) as report_file,
  ):
    aligner = aligned_records.RowAligner(
      tokenizer, mode=flags.mode, keep_truncated=flags.keep_truncated
    )
    total = _align(records, aligner, tokenizer, output)
    if total.samples == 0:
      raise errors.UserError(
        f"--records={flags.records} holds no record; nothing to align"
      )
    report = {
      "mode": flags.mode,
      "vocabulary": tokenizer.fingerprint,
      **total.report(),
    }
    report_file.write(json.dumps(report, indent=2) + "\n")
  print(_summary(total, flags.mode), file=paths.beside(flags.output))
  if flags.mode == "marginal":
    print(
      "log-likelihood of the texts in nats: the teacher's tokens"
      f" {total.log_prob:,.2f}, the targets {total.target_log_prob:,.2f}, the"
      " teacher's tokens without white space alone"
      f" {total.visible_log_prob:,.2f}",
      file=paths.beside(flags.output),
    )
  teacher_records.print_coverage(report)
  return 0


def _align(
  lines: Iterable[columnar.Line],
  aligner: aligned_records.RowAligner,
  tokenizer: student.SentencePieceStudent,
  output: typing.TextIO,
) -> coverage.Coverage:
  """Writes a row for each record and returns the coverage of all."""
  from specialize_jax.align import coverage, targets
  from specialize_jax.data import aligned_records
  from specialize_jax.records import columnar

  total = coverage.Coverage()
  for batch in aligned_records.batches(lines):
    rows, found = aligner.align(map(columnar.parse, batch))
    total += coverage.Coverage.of_batch(found)
    for one, aligned in zip(rows, found.results(), strict=True):
      row = {"question_id": one.head.question_id, "sample": one.head.sample}
      if isinstance(aligned, targets.Rejected):
        row["rejected"] = aligned.reason
      else:
        row["pieces"] = aligned.pieces
        row["targets"] = _named_targets(aligned, tokenizer)
        row["mask"] = aligned.mask_T.tolist()
      output.write(json.dumps(row) + "\n")
  return total


def _named_targets(
  aligned: targets.AlignedTargets, tokenizer: student.SentencePieceStudent
) -> list[list[list[object]]]:
  """Returns each position's candidates as [piece, probability].

  Rounding to twelve digits restores probabilities that the source rounded.
  """
  return [
    [
      [tokenizer.id_to_piece(index), float(f"{math.exp(log_prob):.12g}")]
      for index, log_prob in zip(ids, log_probs, strict=True)
      if index != 0 or log_prob > -math.inf
    ]
    for ids, log_probs in zip(
      aligned.top_ids_TC.tolist(),
      aligned.top_log_probs_TC.tolist(),
      strict=True,
    )
  ]


def _summary(total: coverage.Coverage, mode: str) -> str:
  positions = max(1, total.positions)
  rejected = sum(total.rejected.values())
  return (
    f"{mode}: {total.samples:,} samples ({rejected:,} rejected),"
    f" {total.positions:,} positions:"
    f" {total.one_to_one / positions:.1%} one-to-one,"
    f" {total.in_chunks / positions:.1%} in chunks,"
    f" {total.one_hot / positions:.1%} one-hot,"
    f" {total.masked / positions:.1%} masked;"
    f" teacher mass kept {total.teacher_mass_kept:.1%};"
    f" {total.characters_lost:,} characters lost"
  )


if __name__ == "__main__":
  from specialize_jax.cli import main as command_line

  sys.exit(command_line.run("align", sys.argv[1:]))
