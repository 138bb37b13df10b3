"""Compares ways of decoding in a table."""

from collections.abc import Mapping

from specialize_jax.evaluation import intervals
from specialize_jax.reports import blocks, tables

Json = Mapping[str, object]


def blocks_of(decoding: Json) -> list[blocks.Block]:
  """Renders `decoding.json` (see `study.decoding_comparison`) as blocks.

  Args:
    decoding: the content of the file; the first way is the baseline.
  """
  dataset, data_format = tables.label(decoding["task"])
  first, *others = decoding["ways"]
  raised = [way["name"] for way in others if way["difference"]["low"] > 0]
  lowered = [way["name"] for way in others if way["difference"]["high"] < 0]
  open_ = [w["name"] for w in others if w["name"] not in raised + lowered]
  sentences = [
    f"{_listed(names)} {verdict}."
    for names, verdict in (
      (raised, "raised its accuracy"),
      (lowered, "lowered its accuracy"),
      (open_, "made no difference that this many questions could show"),
    )
    if names
  ]
  return [
    blocks.Text(
      f"The specialized model on {dataset} ({data_format}, {decoding['n']} "
      f"questions), decoded in several ways. Beside {first['name']} decoding: "
      f"{' '.join(sentences)}"
    ),
    blocks.Table(
      head=(
        "Accuracy, %",
        "accuracy",
        "difference",
        "95 % interval",
        "seconds",
      ),
      rows=[_row(way) for way in decoding["ways"]],
    ),
    blocks.Text(
      "Intervals of a difference come from a paired bootstrap over the "
      "questions; those of an accuracy are Wilson's."
    ),
  ]


def _row(way: Json) -> blocks.Row:
  accuracy = tables.with_bounds(
    intervals.Interval(way["accuracy"], way["low"], way["high"])
  )
  difference, interval = blocks.Cell(""), ""
  if way["difference"]:
    part = intervals.Interval(**way["difference"])
    difference = blocks.Cell(
      tables.points(part.estimate), "", tables.sign(part)
    )
    interval = tables.interval_text(part)
  return blocks.Row(
    [way["name"], accuracy, difference, interval, f"{way['seconds']:.1f}"]
  )


def _listed(names: list[str]) -> str:
  """Joins names, as in "a", "a and b" or "a, b and c"."""
  *most, last = names
  return f"{', '.join(most)} and {last}" if most else last
