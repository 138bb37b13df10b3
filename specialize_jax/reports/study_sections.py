"""A study's findings as sections of a report; see `study_text`."""

from collections.abc import Mapping

from specialize_jax.reports import blocks, study_page, study_plots, study_text


def build(study: Mapping[str, object]) -> list[blocks.Section]:
  """Gives one section a finding: matching, formats, scaling and the others.

  Args:
    study: what `study_text.load` gave.
  """
  drawn = study_plots.figures(study)
  return [
    blocks.Section(
      name=f"study-{finding.name.replace(' ', '-')}",
      title=f"Study: {finding.name}: {finding.verdict}",
      blocks=[
        blocks.Text(finding.claim),
        blocks.Text(" ".join(finding.sentences)),
        blocks.Figure(
          name=f"study_{finding.name.replace(' ', '_')}",
          drawn=drawn[finding.name],
          caption=study_page.CAPTIONS[finding.name],
        ),
        blocks.Table(
          head=finding.table[0],
          rows=[blocks.Row(cells) for cells in finding.table[1:]],
        ),
      ],
    )
    for finding in study_text.findings(study)
  ]
