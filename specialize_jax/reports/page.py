"""One self-contained HTML page from a results directory.

The page needs no network and no script: figures are inline SVG. A section
whose files are absent says so in one sentence.
"""

import html
import pathlib
from collections.abc import Mapping, Sequence

from specialize_jax.records import whole_file
from specialize_jax.reports import (
  alignment_view,
  decoding_view,
  plots,
  prediction_view,
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
  whole_file.write_text(output_html, render(results_lib.load(results_dir)))


def figures(results: results_lib.Results) -> Mapping[str, str]:
  """Gives every figure that the results allow, by name, as SVG text."""
  table = tables.rows(results)
  example = results.alignment_example
  drawn = {
    "accuracy": plots.accuracy_bars(table) if table else None,
    "training": plots.loss_curves(results),
    "selection": plots.selection_curves(results),
    "general": plots.general_curves(results),
    "coverage": plots.coverage_bars(results.alignment)
    if results.alignment
    else None,
    "alignment": alignment_view.heat_map(example) if example else None,
  }
  return {name: svg for name, svg in drawn.items() if svg is not None}


def render(results: results_lib.Results) -> str:
  """Gives the page as HTML text."""
  table = tables.rows(results)
  drawn = figures(results)
  sections = (
    ("accuracy", "Accuracy before and after", _accuracy(table, drawn)),
    ("decoding", "Ways of decoding", _decoding(results)),
    ("training", "Training", _training(drawn)),
    ("checkpoint", "Which checkpoint", _selection(results, drawn)),
    ("price", "The price in general ability", _general(table, drawn)),
    ("alignment", "What the student is taught", _alignment(results, drawn)),
    ("predictions", "Some predictions", _examples(results)),
  )
  links = "".join(
    f'<a href="#{name}">{name.capitalize()}</a>' for name, _, _ in sections
  )
  body = "".join(
    f'<section id="{name}"><h2>{title}</h2>{content}</section>'
    for name, title, content in sections
  )
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>Specialization report</title><style>{stylesheet.CSS}</style>"
    f"</head><body><main><h1>Specialization report</h1>{_lead(results, table)}"
    f"{_cards(table)}<nav>{links}</nav>{body}{_footer(results)}"
    "</main></body></html>\n"
  )


def _lead(results: results_lib.Results, table: Sequence[tables.Row]) -> str:
  """What came out, in one or two sentences made of the numbers."""
  target = tables.mean_or_only(table, tables.OUT_OF_DISTRIBUTION)
  home = tables.mean_or_only(table, tables.IN_DISTRIBUTION)
  price = tables.mean_or_only(table, tables.GENERAL)
  gains = [
    f"{_change(row)} {where}"
    for row, where in (
      (home, "in distribution"),
      (target, "out of distribution"),
    )
    if row
  ]
  sentences = []
  if gains:
    sentences.append(
      f"Specialization changed accuracy by {' and by '.join(gains)}."
    )
  if price:
    sentences.append(f"General ability changed by {_change(price)}.")
  if results.selection:
    sentences.append(
      f"The checkpoint of step {results.selection['step']:,} was selected by "
      "its mean out-of-distribution validation accuracy."
    )
  return f'<p class="lead">{" ".join(sentences)}</p>' if sentences else ""


def _change(row: tables.Row) -> str:
  return f"{tables.points(row.difference.estimate)} points"


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
      f'<div class="change">{_change(row)}<br>95 % interval '
      f"{tables.interval_text(row.difference)}</div></div>"
    )
  return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _accuracy(table: Sequence[tables.Row], drawn: Mapping[str, str]) -> str:
  if "accuracy" not in drawn:
    return _absent("results.json", "no accuracies before and after")
  paired = all(row.paired for row in table)
  how = (
    "Intervals of a difference come from a paired bootstrap over the questions"
    if paired
    else "Intervals of a difference are Newcombe's, from the two accuracies "
    "alone, where the verdicts on single questions were not kept"
  )
  return (
    f"{_html_table(table)}<p>{how}; those of an accuracy are Wilson's. "
    "n is the number of test questions.</p>"
    + _figure(
      drawn["accuracy"],
      "Accuracy on the test sets, before and after specialization, with 95 % "
      "intervals.",
    )
  )


def _html_table(table: Sequence[tables.Row]) -> str:
  lines, role = [], None
  for row in table:
    if row.role != role:
      role = row.role
      lines.append(f'<tr class="role"><td colspan="7">{role}</td></tr>')
    difference = row.difference
    sign = "up" if difference.low > 0 else "down" if difference.high < 0 else ""
    lines.append(
      f'<tr class="{"" if row.task else "mean"}">'
      f"<td>{html.escape(row.label)}</td>"
      f'<td class="text">{html.escape(row.data_format)}</td>'
      f"<td>{_with_bounds(row.before)}</td><td>{_with_bounds(row.after)}</td>"
      f'<td class="{sign}">{tables.points(difference.estimate)}</td>'
      f"<td>{tables.interval_text(difference)}</td>"
      f"<td>{row.num_examples}</td></tr>"
    )
  return (
    '<div class="scroll"><table><thead><tr><th>Accuracy, %</th>'
    '<th class="text">format</th><th>before</th><th>after</th>'
    "<th>difference</th><th>95 % interval</th><th>n</th></tr></thead>"
    f"<tbody>{''.join(lines)}</tbody></table></div>"
  )


def _with_bounds(part: object) -> str:
  bounds = f"{tables.percent(part.low)}–{tables.percent(part.high)}"
  return f"{tables.percent(part.estimate)} <small>{bounds}</small>"


def _decoding(results: results_lib.Results) -> str:
  if not results.decoding:
    return _absent("decoding.json", "no other ways of decoding")
  return decoding_view.table(results.decoding)


def _training(drawn: Mapping[str, str]) -> str:
  if "training" not in drawn:
    return _absent(
      "pretrain/metrics.jsonl and specialize/metrics.jsonl",
      "no training curves",
    )
  return _figure(
    drawn["training"],
    "The training losses. Those of the two phases are not comparable: "
    "pre-training predicts text, specialization matches the teacher's "
    "distribution.",
  )


def _selection(results: results_lib.Results, drawn: Mapping[str, str]) -> str:
  if "selection" not in drawn:
    return _absent(
      "specialize/metrics.jsonl", "no validation accuracies over steps"
    )
  chosen = results.selection
  text = (
    "The checkpoint is chosen by the mean accuracy over held-out validation "
    "sets of the other datasets."
  )
  if not chosen:
    text += " There is no selection.json, so no step is marked."
  elif chosen.get("in_distribution_step") is not None:
    cost = chosen["mean"] - chosen["in_distribution_mean"]
    text += (
      f" That is step {chosen['step']:,}, with a mean of "
      f"{tables.percent(chosen['mean'])} %. Selection in distribution would "
      f"have taken step {chosen['in_distribution_step']:,}, at a cost of "
      f"{tables.percent(cost)} points of that mean."
    )
  return f"<p>{text}</p>" + _figure(
    drawn["selection"],
    "Validation accuracy in distribution, and on each of the other datasets "
    "and their mean, over the steps of specialization.",
  )


def _general(table: Sequence[tables.Row], drawn: Mapping[str, str]) -> str:
  if "general" not in drawn:
    return _absent("specialize/metrics.jsonl", "no general ability over steps")
  price = tables.mean_or_only(table, tables.GENERAL)
  text = (
    f"<p>On the test sets general ability changed by {_change(price)} "
    f"{tables.interval_text(price.difference)}.</p>"
    if price
    else ""
  )
  return text + _figure(
    drawn["general"],
    "Validation accuracy on the general tasks over the steps of "
    "specialization: the mean of each of the prompt's formats, and thin the "
    "single tasks.",
  )


def _alignment(results: results_lib.Results, drawn: Mapping[str, str]) -> str:
  parts = []
  if results.alignment:
    parts.append(
      "<p>Teacher and student cut the same text into different tokens. Where "
      "they can be laid on each other, the student learns the teacher's whole "
      "distribution; elsewhere only the token that was sampled.</p>"
    )
    parts.append(_figure(drawn["coverage"], _coverage(results)))
  else:
    parts.append(_absent("alignment.json", "no alignment coverage"))
  example = results.alignment_example
  if example:
    parts.append(
      "<h3>One sample, aligned</h3>"
      + _figure(
        drawn["alignment"],
        "Each framed cell lays teacher tokens on the student pieces that "
        "spell the same text; the darker, the surer the teacher was of what "
        "it sampled.",
      )
      + "<h3>What the teacher would also have said</h3><p>The teacher's "
      "tokens above, the student's pieces below with their probability, and "
      "under them the other pieces of the target.</p>"
      + alignment_view.links(example)
    )
  else:
    parts.append(_absent("alignment_example.json", "no aligned example"))
  return "".join(parts)


def _coverage(results: results_lib.Results) -> str:
  parts = []
  for name, report in results.alignment.items():
    kept = report.get("teacher_mass_kept")
    if kept is not None:
      parts.append(
        f"{html.escape(name)}: {report['positions']:,} positions, "
        f"{tables.percent(kept)} % of the teacher's probability mass kept"
      )
  return "How target positions found their teacher. " + "; ".join(parts) + "."


def _examples(results: results_lib.Results) -> str:
  content = prediction_view.examples(results)
  return content or _absent(
    "predictions/after/TASK.jsonl", "no examples of predictions"
  )


def _figure(svg: str, caption: str) -> str:
  return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _absent(files: str, what: str) -> str:
  return (
    f'<p class="absent">This directory has no {html.escape(files)}, so there '
    f"are {html.escape(what)} to show.</p>"
  )


def _footer(results: results_lib.Results) -> str:
  facts = ["Made by <code>specialize report</code> from written results only"]
  if results.seconds is not None:
    facts.append(f"the whole run took {results.seconds / 60:.1f} minutes")
  if results.peak_rss_gib is not None:
    facts.append(f"peak memory {results.peak_rss_gib:.1f} GiB")
  return f"<footer>{'; '.join(facts)}.</footer>"
