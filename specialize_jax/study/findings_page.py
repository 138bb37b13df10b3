"""Writes a study as a self-contained page and as Markdown."""

import pathlib
from collections.abc import Mapping

from specialize_jax.files import writing
from specialize_jax.reports import blocks, certainty_view, markdown, page
from specialize_jax.study import findings_plots, findings_text

Json = Mapping[str, object]

_CAPTIONS = {
  "gain and price": "Above, test accuracy before and after; whiskers are 95 % "
  "intervals. Below, validation accuracy over the steps of specialization; "
  "thin lines are single seeds.",
  "distribution matching": "Left, the divergence from the teacher on records "
  "of questions that are not trained on, by the same loss for both; right, "
  "accuracy on validation questions. Thin lines are single seeds.",
  "formats": "Mean accuracy of the four maths sets on test questions.",
  "selection": "Validation accuracy of the main arm, seed by seed, and the "
  "step that either rule takes.",
  "scaling": "Test accuracy of each size; lines are least-squares fits over "
  "the logarithm of the number of parameters.",
  "starts": "Test accuracy before and after specialization, of a model that "
  "was instructed and of one that has only read text.",
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
    sections=[*sections(study), *_teacher(study)],
    footer="Made by `specialize demo --study` from written results only; "
    "intervals are 95 %, from a bootstrap over seeds and questions.",
  )


def _teacher(study: Json) -> list[blocks.Section]:
  """Returns a section about the teacher; none if it was not measured."""
  if "certainty" not in study:
    return []
  return [
    blocks.Section(
      name="study-teacher",
      title="How certain the teacher is",
      blocks=certainty_view.blocks_of(study["certainty"]),
    )
  ]


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
      blocks=_blocks(finding, drawn),
    )
    for finding in findings_text.findings(study)
  ]


def _blocks(
  finding: findings_text.Finding, drawn: Mapping[str, str]
) -> list[blocks.Block]:
  made: list[blocks.Block] = [blocks.Text(finding.claim)]
  if finding.sentences:
    made.append(blocks.Text(" ".join(finding.sentences)))
  if finding.name in drawn:
    made.append(
      blocks.Figure(
        name=f"study_{finding.name.replace(' ', '_')}",
        drawn=drawn[finding.name],
        caption=_CAPTIONS[finding.name],
      )
    )
  made += [
    blocks.Table(head=table[0], rows=[blocks.Row(row) for row in table[1:]])
    for table in (finding.tests, finding.table)
    if table
  ]
  return made
