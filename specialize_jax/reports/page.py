"""One self-contained HTML page from a results directory.

The page needs no network and no script: figures are inline SVG.
"""

import html
import pathlib
from collections.abc import Mapping, Sequence

from specialize_jax.files import writing
from specialize_jax.reports import (
  blocks,
  drawing,
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
    output_html: the page to write, complete or not at all.

  Raises:
    UserError: there is nothing to report, or a file cannot be read.
  """
  writing.write_text(output_html, render(results_lib.load(results_dir)))


def figures(results: results_lib.Results) -> Mapping[str, drawing.Drawing]:
  """Gives every figure that the results allow, by name."""
  return blocks.figures(sections.build(results))


def render(results: results_lib.Results) -> str:
  """Gives the page as HTML text."""
  made = sections.build(results)
  links = "".join(
    f'<a href="#{section.name}">{_link(section.name)}</a>' for section in made
  )
  lead = sections.lead(results)
  above = f'<p class="lead">{html.escape(lead)}</p>' if lead else ""
  footer = html.escape(sections.footer(results))
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>Specialization report</title><style>{stylesheet.CSS}</style>"
    f"</head><body><main><h1>Specialization report</h1>{above}"
    f"{_cards(tables.rows(results))}<nav>{links}</nav>"
    f"{''.join(_section(section) for section in made)}"
    f"<footer>{footer}</footer></main></body></html>\n"
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
