"""Flags, progress and a table for commands that read teacher records."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterable, Iterator, Mapping

if typing.TYPE_CHECKING:
  from specialize_jax.records import columnar

_KINDS = {
  "one_to_one": "one-to-one",
  "in_chunks": "in chunks",
  "one_hot": "one-hot",
  "masked": "masked",
}


def add_flags(
  parser: argparse.ArgumentParser, *, required: bool = True
) -> None:
  """Adds the flags for the records, the student and the alignment."""
  parser.add_argument(
    "--records",
    required=required,
    metavar="PATH",
    help="a record store, a .jsonl file of records, or the paper's released"
    " JSON list of samples",
  )
  parser.add_argument(
    "--vocabulary",
    required=required,
    metavar="SPIECE",
    help="the student's SentencePiece model, such as T5's spiece.model",
  )
  parser.add_argument(
    "--mode",
    default="marginal",
    metavar="paper|whitespace|chunk|marginal",
    help="the alignment mode, which defines targets (default: marginal)",
  )
  parser.add_argument(
    "--keep_truncated",
    action="store_true",
    help="keep truncated samples, as targets without an end of sequence"
    " (default: they are dropped and counted)",
  )


def with_progress(
  records: Iterable[columnar.Line], title: str
) -> Iterator[columnar.Line]:
  """Shows how many records have passed.

  Args:
    records: passed on one by one.
    title: the title of the progress bar, such as "aligning".
  """
  from specialize_jax.terminal import progress

  with progress.Progress(None, "records", title=title) as bar:
    for record in records:
      yield record
      bar.advance()


def print_coverage(report: Mapping[str, typing.Any]) -> None:
  """Prints the share of positions of each kind by the class of token.

  Args:
    report: from `Coverage.report`.
  """
  from rich import box, console, table

  shown = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
  shown.add_column("student tokens")
  shown.add_column("positions", justify="right")
  for title in _KINDS.values():
    shown.add_column(title, justify="right")
  for name, counts in {**report["by_class"], "all": report}.items():
    positions = counts["positions"]
    shown.add_row(
      name.replace("_", " "),
      f"{positions:,}",
      *(f"{counts[kind] / max(1, positions):.1%}" for kind in _KINDS),
    )
  screen = console.Console(highlight=False)
  screen.print(shown)
  for reason, count in report["rejected"].items():
    screen.print(f"rejected {count:,}: {reason}", markup=False, soft_wrap=True)
