"""Compares two ways of specializing, in a table."""

from collections.abc import Mapping, Sequence

from specialize_jax.evaluation import intervals
from specialize_jax.files import writing
from specialize_jax.reports import blocks, tables

Json = Mapping[str, object]

_ROLES = {
  "in_distribution": "in distribution",
  "out_of_distribution": "out of distribution",
  "general": "general ability",
}


def blocks_of(comparison: Json) -> list[blocks.Block]:
  """Renders `comparison.json` (see `study.demo`) as blocks.

  Args:
    comparison: the content of the file.
  """
  return [
    blocks.Text(summary(comparison)),
    blocks.Table(
      head=(
        "Accuracy, %",
        "format",
        "specialized",
        comparison["name"],
        "difference",
        "95 % interval",
        "n",
      ),
      rows=[_row(row) for row in comparison["rows"]],
      num_text_columns=2,
    ),
    blocks.Text(
      "The difference is that of the specialized model minus the other, with "
      "an interval from a paired bootstrap over the same questions. Both start "
      "from the same general model, and of each the checkpoint with the best "
      "mean out-of-distribution validation accuracy is tested. One run of each "
      "says nothing about other seeds: `specialize demo --study` does."
    ),
  ]


def summary(comparison: Json) -> str:
  """Describes in a sentence or two where the models differ."""
  steps = comparison["steps"]
  sentences = [
    f"The same specialization but for {comparison['name']} (step "
    f"{steps['second']:,}; the specialized model is of step "
    f"{steps['first']:,})."
  ]
  for row in _leading(comparison["rows"]):
    part = intervals.Interval(**row["difference"])
    ahead = "no difference that this many questions could show"
    if part.low > 0:
      ahead = "the specialized model is ahead"
    elif part.high < 0:
      ahead = "the other model is ahead"
    sentences.append(
      f"{_ROLES[row['role']].capitalize()}: {ahead} "
      f"({tables.points(part.estimate)} points {tables.interval_text(part)})."
    )
  return " ".join(sentences)


def terminal(comparison: Json) -> str:
  """Renders the summary and the rows for a terminal."""
  lines = [f"Compared with {comparison['name']}: {summary(comparison)}"]
  for row in comparison["rows"]:
    part = intervals.Interval(**row["difference"])
    lines.append(
      f"  {tables.row_name(row, _ROLES):44}{tables.percent(row['first']):>6}"
      f"{tables.percent(row['second']):>7}  "
      f"{tables.points(part.estimate):>6} {tables.interval_text(part)}"
    )
  return writing.visible("\n".join(lines))


def _leading(rows: Sequence[Json]) -> list[Json]:
  """Returns a row for each role: its mean, or its only task."""
  return list({row["role"]: row for row in rows}.values())


def _row(row: Json) -> blocks.Row:
  part = intervals.Interval(**row["difference"])
  dataset, data_format = f"mean, {_ROLES[row['role']]}", ""
  if row["task"] is not None:
    dataset, data_format = tables.label(row["task"])
  return blocks.Row(
    [
      dataset,
      data_format,
      tables.percent(row["first"]),
      tables.percent(row["second"]),
      blocks.Cell(tables.points(part.estimate), "", tables.sign(part)),
      tables.interval_text(part),
      f"{row['n']:,}",
    ],
    kind="" if row["task"] else "mean",
  )
