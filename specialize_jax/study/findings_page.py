"""Writes a study as a self-contained page and as Markdown."""

import pathlib
from collections.abc import Mapping

from specialize_jax.files import writing
from specialize_jax.reports import blocks, markdown, page
from specialize_jax.study import findings_plots, findings_text

Json = Mapping[str, object]

_CAPTIONS = {
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


def build(
  study_json: str | pathlib.Path, output_html: str | pathlib.Path
) -> None:
  """Writes the page of a study, and the same as Markdown.

  Args:
    study_json: the output of `specialize demo --study`.
    output_html: the page, `NAME.html`; Markdown is written to `NAME.md` and its
      figures to `NAME_figures/`.

  Raises:
    UserError: the study does not exist or is invalid.
  """
  report = document(findings_text.load(study_json))
  output_html = pathlib.Path(output_html)
  writing.write_text(output_html, page.render(report))
  markdown.write(report, output_html.with_suffix(".md"))


def document(study: Json) -> blocks.Document:
  """Builds the report of a study, with one section per finding."""
  return blocks.Document(
    title="The findings in miniature",
    lead=findings_text.lead(study),
    sections=sections(study),
    footer="Made by `specialize demo --study` from written results only; "
    "intervals are 95 %, from a bootstrap over seeds and questions.",
  )


def sections(study: Json, title_prefix: str = "") -> list[blocks.Section]:
  """Builds one section for each finding, in the paper's order.

  Args:
    study: from `findings_text.load`.
    title_prefix: prefix of each title, in a report with other sections.
  """
  drawn = findings_plots.figures(study)
  return [
    blocks.Section(
      name=f"study-{finding.name.replace(' ', '-')}",
      title=f"{title_prefix}{finding.name.capitalize()}: {finding.verdict}",
      blocks=[
        blocks.Text(finding.claim),
        blocks.Text(" ".join(finding.sentences)),
        blocks.Figure(
          name=f"study_{finding.name.replace(' ', '_')}",
          drawn=drawn[finding.name],
          caption=_CAPTIONS[finding.name],
        ),
        blocks.Table(
          head=finding.table[0],
          rows=[blocks.Row(cells) for cells in finding.table[1:]],
        ),
      ],
    )
    for finding in findings_text.findings(study)
  ]
