"""`specialize report`: tables, figures and a page from written results."""

import argparse
from collections.abc import Sequence

from specialize_jax.cli import parsers
from specialize_jax.files import paths

_EXAMPLE = """example (after `specialize demo --output_dir=demo_output`):
  specialize report --results_dir=demo_output --output=report.html
"""


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize report",
    description="Builds one self-contained HTML page from a results directory:"
    " it opens without network, prints well, and leaves out, with a sentence,"
    " what the directory does not hold.",
    epilog=_EXAMPLE,
  )
  parser.add_argument(
    "--results_dir",
    required=True,
    metavar="DIR",
    help="what `specialize demo` wrote: results.json, the runs' metrics.jsonl,"
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


def main(argv: Sequence[str] | None = None) -> int:
  """Builds the page, prints the main table and where the page is."""
  flags = build_parser().parse_args(argv)
  paths.check_flags(
    flags,
    {
      "results_dir": paths.INPUT_DIRECTORY,
      "output": paths.OUTPUT_FILE,
      "figures_dir": paths.OUTPUT_DIRECTORY,
      "markdown": paths.OUTPUT_FILE,
    },
  )

  from etils import epath

  from specialize_jax.files import writing
  from specialize_jax.reports import blocks, markdown, page, tables
  from specialize_jax.reports import results as results_lib
  from specialize_jax.study import findings_page

  results = results_lib.load(flags.results_dir)
  output = flags.output or results.directory / "report.html"
  more = (
    findings_page.sections(results.study, title_prefix="Study: ")
    if results.study
    else []
  )
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
