"""A study as one self-contained page, and as Markdown with its figures."""

import html
import pathlib
from collections.abc import Mapping, Sequence

from specialize_jax.files import writing
from specialize_jax.reports import study_plots, study_text, stylesheet

Json = Mapping[str, object]


def build(
  study_json: str | pathlib.Path, output_html: str | pathlib.Path
) -> None:
  """Writes the page of a study, complete or not at all.

  Args:
    study_json: what `specialize demo --study` wrote.
    output_html: the page; `study.md` and a figure of each finding as SVG go
      beside it.

  Raises:
    UserError: there is no such study.
  """
  study = study_text.load(study_json)
  output_html = pathlib.Path(output_html)
  writing.write_text(output_html, render(study))
  writing.write_text(output_html.with_suffix(".md"), study_text.markdown(study))


def render(study: Json) -> str:
  """Gives the page as HTML text."""
  drawn = study_plots.figures(study)
  found = study_text.findings(study)
  links = "".join(
    f'<a href="#{_anchor(f.name)}">{f.name.capitalize()}</a>' for f in found
  )
  sections = "".join(_section(f, drawn[f.name]) for f in found)
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    "<title>The findings in miniature</title>"
    f"<style>{stylesheet.CSS}</style></head><body><main>"
    "<h1>The findings in miniature</h1>"
    f'<p class="lead">{html.escape(study_text.lead(study))}</p>'
    f"<nav>{links}</nav>{sections}"
    "<footer>Made by <code>specialize demo --study</code> from written results "
    "only; intervals are 95 %, from a bootstrap over seeds and questions."
    "</footer></main></body></html>\n"
  )


def _section(finding: study_text.Finding, svg: str) -> str:
  head, *rows = finding.table
  return (
    f'<section id="{_anchor(finding.name)}">'
    f"<h2>{finding.name.capitalize()}: {finding.verdict}</h2>"
    f"<p><em>{html.escape(finding.claim)}</em></p>"
    f"<p>{html.escape(' '.join(finding.sentences))}</p>"
    f"<figure>{svg}<figcaption>{CAPTIONS[finding.name]}</figcaption></figure>"
    '<div class="scroll"><table><thead>'
    f"{_line('th', head)}</thead><tbody>"
    f"{''.join(_line('td', row) for row in rows)}</tbody></table></div>"
    "</section>"
  )


def _line(tag: str, cells: Sequence[str]) -> str:
  content = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
  return f"<tr>{content}</tr>"


def _anchor(name: str) -> str:
  return name.replace(" ", "-")


CAPTIONS = {
  "gain and price": "Above, test accuracy before and after; whiskers are 95 % "
  "intervals. Below, validation accuracy over the steps of specialization; "
  "thin lines are single seeds.",
  "distribution matching": "Left, the cross-entropy of the teacher's text in "
  "the batches of training, which are the same for both; right, accuracy on "
  "validation questions. Thin lines are single seeds.",
  "formats": "Mean accuracy of the four maths sets on test questions.",
  "selection": "Validation accuracy of the main arm, seed by seed, and the "
  "step that either rule takes.",
  "scaling": "Test accuracy of each size; lines are least-squares fits over "
  "the logarithm of the number of parameters.",
}
