"""Writes the report of a results directory as one self-contained HTML page.

Figures are inline SVG; the page uses neither network nor scripts.
"""

import html
import pathlib
from collections.abc import Sequence

from specialize_jax.files import writing
from specialize_jax.reports import (
  blocks,
  sections,
  stylesheet,
  tables,
)
from specialize_jax.reports import results as results_lib

_CARDS = (
  (tables.IN_DISTRIBUTION, "in"),
  (tables.OUT_OF_DISTRIBUTION, "out"),
  (tables.GENERAL, "general"),
)


def build(
  results_dir: str | pathlib.Path, output_html: str | pathlib.Path
) -> None:
  """Writes the report of a results directory.

  Args:
    results_dir: see `specialize_jax.reports.results`.
    output_html: the page, written atomically.

  Raises:
    UserError: the directory has no results, or a file cannot be read.
  """
  results = results_lib.load(results_dir)
  writing.write_text(output_html, render(document(results)))


def document(
  results: results_lib.Results, more: Sequence[blocks.Section] = ()
) -> blocks.Document:
  """Builds the report of loaded results.

  Args:
    results: a loaded results directory.
    more: additional sections. If there are no results of a run, they are the
      whole report.
  """
  only_more = more and not results.before
  own = [] if only_more else sections.build(results)
  return blocks.Document(
    title="Specialization report",
    lead=sections.lead(results),
    sections=[*own, *more],
    footer=sections.footer(results),
    cards=_cards(tables.rows(results)),
  )


def render(report: blocks.Document) -> str:
  """Renders a report as one HTML page without scripts or external files."""
  title = html.escape(report.title)
  links = "".join(
    f'<a href="#{section.name}">{_link(section.name)}</a>'
    for section in report.sections
  )
  lead = (
    f'<p class="lead">{html.escape(report.lead)}</p>' if report.lead else ""
  )
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{title}</title><style>{stylesheet.CSS}</style>"
    f"</head><body><main><h1>{title}</h1>{lead}"
    f"{report.cards}<nav>{links}</nav>"
    f"{''.join(_section(section) for section in report.sections)}"
    f"<footer>{html.escape(report.footer)}</footer></main></body></html>\n"
  )


def _link(name: str) -> str:
  return name.replace("-", " ").capitalize()


def _section(section: blocks.Section) -> str:
  content = "".join(blocks.to_html(block) for block in section.blocks)
  title = html.escape(section.title)
  return f'<section id="{section.name}"><h2>{title}</h2>{content}</section>'


def _cards(table: Sequence[tables.Row]) -> str:
  cards = []
  for role, css_class in _CARDS:
    row = tables.mean_or_only(table, role)
    if row is None:
      continue
    cards.append(
      f'<div class="card {css_class}"><div class="name">{role}: '
      f'{html.escape(row.label)}</div><div class="value">'
      f"{tables.percent(row.before.estimate)} → "
      f"{tables.percent(row.after.estimate)} <small>%</small></div>"
      f'<div class="change">{sections.change(row)}<br>95 % interval '
      f"{tables.interval_text(row.difference)}</div></div>"
    )
  return f'<div class="cards">{"".join(cards)}</div>' if cards else ""
