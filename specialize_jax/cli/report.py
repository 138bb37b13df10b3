"""`specialize report`: tables, figures and a page from written results."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence

from specialize_jax import errors
from specialize_jax.cli import parsers, registered_tasks
from specialize_jax.cot import formats
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from etils import epath

_EXAMPLE = """examples (after `specialize demo --output_dir=demo_output`):
  specialize report --results_dir=demo_output --output=report.html
of any run, with what `specialize eval` wrote before and after it:
  specialize report --run=demo_output/specialize \\
    --before=demo_output/predictions/before \\
    --after=demo_output/predictions/after
"""


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize report",
    description="Builds a self-contained HTML page from the files of a demo or "
    "a training run. It needs no network, is printable, and lists missing "
    "files with the commands that write them.",
    epilog=_EXAMPLE,
  )
  parser.add_argument(
    "--run",
    metavar="DIR",
    help="the MODEL_DIR of a training run, finished or not",
  )
  parser.add_argument(
    "--before",
    metavar="EVAL_DIR",
    help="with --run: EVAL_OUTPUT_DIR of `specialize eval` on the general "
    "model",
  )
  parser.add_argument(
    "--after",
    metavar="EVAL_DIR",
    help="with --run: the same on the specialized model",
  )
  registered_tasks.add_dataset_flag(parser)
  parser.add_argument(
    "--results_dir",
    metavar="DIR",
    help="the directory of a demo: results.json, the runs' metrics.jsonl,"
    " predictions, selection.json, alignment.json",
  )
  parser.add_argument(
    "--output",
    metavar="FILE.html",
    help="the page (default: DIR/report.html)",
  )
  parser.add_argument(
    "--figures_dir",
    metavar="DIR",
    help="also write each figure as an SVG and a PNG file, and the main table "
    "as table.md, to this directory",
  )
  parser.add_argument(
    "--markdown",
    metavar="FILE.md",
    help="also write the whole report as Markdown, its figures as PNG and SVG "
    "in FILE_figures/",
  )
  return parser


def _roles(flags: argparse.Namespace) -> dict[str, object]:
  """Returns which tasks of a dataset file are in and out of distribution."""
  own = registered_tasks.load_dataset(flags.dataset, flags.imports)
  if own is None:
    return {}
  shown = formats.ZERO_SHOT_CHAIN_OF_THOUGHT
  dataset = own.dataset
  return {
    "in_distribution": dataset.in_distribution.task(shown),
    "out_of_distribution": [
      one.task(shown) for one in dataset.out_of_distribution
    ],
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Builds the page, prints the main table and where the page is."""
  flags = build_parser().parse_args(argv)
  paths.check_flags(
    flags,
    {
      "results_dir": paths.INPUT_DIRECTORY,
      "run": paths.INPUT_DIRECTORY,
      "before": paths.INPUT_DIRECTORY,
      "after": paths.INPUT_DIRECTORY,
      "dataset": registered_tasks.DATASET_FILE,
      "output": paths.OUTPUT_FILE,
      "figures_dir": paths.OUTPUT_DIRECTORY,
      "markdown": paths.OUTPUT_FILE,
    },
  )

  if (flags.run is None) == (flags.results_dir is None):
    raise errors.UserError(
      "give either --run=DIR, the MODEL_DIR of a run, or --results_dir=DIR, "
      "what `specialize demo` wrote."
    )
  parsers.check_only_with(
    flags,
    ("before", "after", "dataset", "import"),
    flags.run is not None,
    "--run=DIR, the MODEL_DIR of a run,",
  )

  from etils import epath

  from specialize_jax.files import locks

  directory = epath.Path(flags.run or flags.results_dir)
  output = flags.output or directory / "report.html"
  if flags.markdown and paths.is_stream(flags.markdown):
    raise errors.UserError(
      f"--markdown={flags.markdown} is a stream, and its figures are files"
      " beside it: give a file"
    )
  outputs = {"--output": output, "--markdown": flags.markdown}
  # Its lock is next to it: a directory of figures holds figures only.
  outputs["--figures_dir"] = flags.figures_dir
  with locks.files(outputs):
    return _report(flags, epath.Path(output))


def _report(flags: argparse.Namespace, output: epath.Path) -> int:
  from etils import epath

  from specialize_jax.files import writing
  from specialize_jax.reports import blocks, markdown, page, tables
  from specialize_jax.reports import results as results_lib
  from specialize_jax.study import findings_page, findings_text

  if flags.run is not None:
    results = results_lib.load_run(
      flags.run, before=flags.before, after=flags.after, **_roles(flags)
    )
  else:
    results = results_lib.load(flags.results_dir)
  more = []
  if results.study:
    study = findings_text.load(epath.Path(flags.results_dir) / "study.json")
    more = findings_page.sections(study, title_prefix="Study: ")
  report = page.document(results, more)
  writing.write_text(output, page.render(report))
  if flags.figures_dir:
    figures_dir = epath.Path(flags.figures_dir)
    markdown.write_figures(blocks.figures(report.sections), figures_dir)
    writing.write_text(figures_dir / "table.md", tables.markdown(results))
  if flags.markdown:
    markdown.write(report, flags.markdown)
  if results.before and results.after:
    print(tables.terminal(results))
  print(f"report: {output}")
  if flags.markdown:
    print(f"markdown: {flags.markdown}")
  return 0
