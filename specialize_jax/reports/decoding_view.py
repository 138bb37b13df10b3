"""The ways of decoding beside each other, as a table of a page."""

import html
from collections.abc import Mapping

from specialize_jax.evaluation import intervals
from specialize_jax.reports import tables

Json = Mapping[str, object]


def table(decoding: Json) -> str:
  """Gives `decoding.json` (see `study.decoding_comparison`) as HTML.

  Args:
    decoding: its content; the first way is what the others are compared to.
  """
  dataset, data_format = tables.label(decoding["task"])
  first, *others = decoding["ways"]
  lines = [_line(way) for way in decoding["ways"]]
  raised = [way["name"] for way in others if way["difference"]["low"] > 0]
  lowered = [way["name"] for way in others if way["difference"]["high"] < 0]
  open_ = [w["name"] for w in others if w["name"] not in raised + lowered]
  sentences = [
    f"{html.escape(_listed(names))} {verdict}."
    for names, verdict in (
      (raised, "raised its accuracy"),
      (lowered, "lowered its accuracy"),
      (open_, "made no difference that this many questions could show"),
    )
    if names
  ]
  return (
    f"<p>The specialized model on {html.escape(dataset)} "
    f"({html.escape(data_format)}, {decoding['n']} questions), decoded in "
    f"several ways. Beside {html.escape(first['name'])} decoding: "
    f"{' '.join(sentences)}</p>"
    '<div class="scroll"><table><thead><tr><th>Accuracy, %</th>'
    "<th>accuracy</th><th>difference</th><th>95 % interval</th>"
    f"<th>seconds</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
    "</div><p>Intervals of a difference come from a paired bootstrap over the "
    "questions; those of an accuracy are Wilson's.</p>"
  )


def _line(way: Json) -> str:
  accuracy = (
    f"{tables.percent(way['accuracy'])} <small>{tables.percent(way['low'])}–"
    f"{tables.percent(way['high'])}</small>"
  )
  difference, interval, sign = "", "", ""
  if way["difference"]:
    part = intervals.Interval(**way["difference"])
    difference = tables.points(part.estimate)
    interval = tables.interval_text(part)
    sign = "up" if part.low > 0 else "down" if part.high < 0 else ""
  return (
    f"<tr><td>{html.escape(way['name'])}</td><td>{accuracy}</td>"
    f'<td class="{sign}">{difference}</td><td>{interval}</td>'
    f"<td>{way['seconds']:.1f}</td></tr>"
  )


def _listed(names: list[str]) -> str:
  """Example: "a", "a and b", "a, b and c"."""
  *most, last = names
  return f"{', '.join(most)} and {last}" if most else last
