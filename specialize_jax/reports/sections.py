"""Builds the sections of a report from a results directory.

A section whose files are missing says so in one sentence.
"""

from collections.abc import Mapping, Sequence

from specialize_jax.evaluation import intervals, selection
from specialize_jax.reports import (
  alignment_view,
  blocks,
  certainty_view,
  comparison_view,
  decoding_view,
  format_curves,
  plots,
  prediction_view,
  price_view,
  tables,
)
from specialize_jax.reports import results as results_lib

Block = blocks.Block


def build(results: results_lib.Results) -> list[blocks.Section]:
  """Returns the sections, in order."""
  table = tables.rows(results)
  made = (
    ("run", "The run", _run(results)),
    ("accuracy", "Accuracy before and after", _accuracy(results, table)),
    ("comparison", "Beside another specialization", _comparison(results)),
    ("price", "The price in general ability", _price(results, table)),
    ("training", "Training", _training(results)),
    ("checkpoint", "Which checkpoint", _checkpoint(results)),
    ("formats", "In-context and zero-shot", _formats(results)),
    ("decoding", "Ways of decoding", _decoding(results)),
    ("alignment", "What the student is taught", _alignment(results)),
    ("certainty", "How certain the teacher is", _certainty(results)),
    ("predictions", "Some predictions", _predictions(results)),
  )
  return [
    blocks.Section(name=name, title=title, blocks=content)
    for name, title, content in made
    if content
  ]


def lead(results: results_lib.Results) -> str:
  """Summarizes the results in one to three sentences."""
  table = tables.rows(results)
  target = tables.mean_or_only(table, tables.OUT_OF_DISTRIBUTION)
  home = tables.mean_or_only(table, tables.IN_DISTRIBUTION)
  price = tables.mean_or_only(table, tables.GENERAL)
  if results.run and not table:
    return _run_lead(results)
  gains = [
    f"{change(row)} {where}"
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
    sentences.append(f"General ability changed by {change(price)}.")
  if results.selection:
    sentences.append(
      f"The checkpoint of step {results.selection['step']:,} was selected by "
      f"its mean out-of-distribution validation {_metric(results.selection)}."
    )
  return " ".join(sentences)


def _run_lead(results: results_lib.Results) -> str:
  """Summarizes a run whose model was not compared with the general one."""
  sentences = []
  if results.specialization:
    first, last = min(results.specialization), max(results.specialization)
    losses = [
      results.specialization[step].get("loss") for step in (first, last)
    ]
    sentence = f"The run has done {last:,} steps"
    if None not in losses:
      sentence += f"; its loss went from {losses[0]:.3g} to {losses[1]:.3g}"
    sentences.append(f"{sentence}.")
  if results.selection:
    sentences.append(
      f"The checkpoint of step {results.selection['step']:,} was selected."
    )
  return " ".join(sentences)


def footer(results: results_lib.Results) -> str:
  """Returns the provenance of the report, and time and memory of the run."""
  facts = ["Made by `specialize report` from written results only"]
  if results.seconds is not None:
    facts.append(f"the whole run took {results.seconds / 60:.1f} minutes")
  if results.peak_rss_gib is not None:
    facts.append(f"peak memory {results.peak_rss_gib:.1f} GiB")
  return f"{'; '.join(facts)}."


def change(row: tables.Row) -> str:
  """Formats a row's difference, as in "+4.2 points"."""
  return f"{tables.points(row.difference.estimate)} points"


def _absent(
  results: results_lib.Results, section: str, files: str, what: str
) -> list[Block]:
  """Returns what is missing and the commands that make it, if any do."""
  commands = results.hints.get(section, ())
  if results.run and not commands:
    return []
  return [blocks.Absent(files, what, commands)]


def _run(results: results_lib.Results) -> list[Block]:
  rows = [blocks.Row([name, text]) for name, text in results.run.items()]
  if not rows:
    return []
  return [blocks.Table(head=("", ""), rows=rows, num_text_columns=2)]


def _accuracy(
  results: results_lib.Results, table: Sequence[tables.Row]
) -> list[Block]:
  if not table:
    files, what = "results.json", "no accuracies before and after"
    if results.run:
      files, what = "evaluation on test sets", "no accuracies before and after"
    alone = tables.one_sided(results)
    if len(alone) == 2:
      return [
        *alone,
        blocks.Text("No task was evaluated both before and after."),
      ]
    if alone:
      files = (
        "evaluation of the specialized model"
        if results.before
        else "evaluation of the general model"
      )
      what = "no differences"
    return [*alone, *_absent(results, "accuracy", files, what)]
  how = (
    "Intervals of a difference come from a paired bootstrap over the questions"
    if all(row.paired for row in table)
    else "Intervals of a difference are Newcombe's, from the two accuracies "
    "alone, where the verdicts on single questions were not kept"
  )
  shown = tables.main_rows(table)
  return [
    tables.table_of(shown),
    blocks.Text(
      f"{how}; those of an accuracy are Wilson's. n is the number of test "
      "questions."
    ),
    blocks.Figure(
      name="accuracy",
      drawn=plots.accuracy_bars(shown),
      caption="Accuracy on the test sets, before and after specialization, "
      "with 95 % intervals.",
    ),
  ]


def _price(
  results: results_lib.Results, table: Sequence[tables.Row]
) -> list[Block]:
  made: list[Block] = []
  lines = price_view.lines(table)
  price = tables.mean_or_only(table, tables.GENERAL)
  if lines:
    made += [
      blocks.Text(
        f"On the test sets general ability changed by {change(price)} "
        f"{tables.interval_text(price.difference)}. By task, the greatest "
        "loss first:"
      ),
      price_view.table_of(lines),
      blocks.Figure(
        name="price",
        drawn=price_view.figure(lines),
        caption="Each general task before (open) and after (filled) "
        "specialization.",
      ),
    ]
  drawn = plots.general_curves(results)
  if drawn:
    made.append(
      blocks.Figure(
        name="general",
        drawn=drawn,
        caption="Validation accuracy on the general tasks over the steps of "
        "specialization: the mean of each of the prompt's formats, and thin "
        "the single tasks.",
      )
    )
  return made or _absent(
    results,
    "price",
    "evaluation of general tasks on both sides"
    if results.run
    else "specialize/metrics.jsonl",
    "no changes of general ability"
    if results.run
    else "no general ability over steps",
  )


def _training(results: results_lib.Results) -> list[Block]:
  drawn = plots.loss_curves(results)
  if not drawn:
    files = "pretrain/metrics.jsonl and specialize/metrics.jsonl"
    if results.run:
      files = "training step in its metrics.jsonl"
    return _absent(results, "training", files, "no training curves")
  caption = "The training loss, in nats per target token."
  if results.pretraining:
    caption = (
      "The training losses. Those of the two phases are not comparable: "
      "pre-training predicts text, specialization matches the teacher's "
      "distribution."
    )
  return [
    blocks.Figure(name="training", drawn=drawn, caption=caption),
    *_changes(results),
  ]


def _changes(results: results_lib.Results) -> list[Block]:
  """Shows the settings that were changed as a run resumed, if any were."""
  rows = [
    blocks.Row([run, f"{row['step']:,}", name, str(before), str(after)])
    for run, changed in results.changes.items()
    for row in changed
    for name, (before, after) in row["changes"].items()
  ]
  if not rows:
    return []
  return [
    blocks.Heading("Changed as a run resumed"),
    blocks.Table(
      head=["Run", "From step", "Setting", "Before", "After"],
      rows=rows,
      num_text_columns=5,
    ),
  ]


def _checkpoint(results: results_lib.Results) -> list[Block]:
  drawn = plots.selection_curves(results)
  if not drawn:
    curves = plots.task_curves(results)
    files = "specialize/metrics.jsonl"
    if results.run:
      files = "evaluation in its metrics.jsonl"
    if curves is None:
      return _absent(
        results, "checkpoint", files, "no validation accuracies over steps"
      )
    caption = "Validation accuracy on each task, over the steps of the run."
    return [blocks.Figure(name="selection", drawn=curves, caption=caption)]
  return [
    blocks.Text(_choice(results)),
    blocks.Figure(
      name="selection",
      drawn=drawn,
      caption="Validation accuracy in distribution, and on each of the other "
      "datasets and their mean, over the steps of specialization.",
    ),
  ]


def _choice(results: results_lib.Results) -> str:
  """Describes the selection, and the cost of in-distribution selection."""
  chosen = results.selection
  metric = _metric(chosen or {})
  text = (
    f"The checkpoint is chosen by the mean {metric} over held-out validation "
    "sets of the other datasets."
  )
  if not chosen:
    text += " There is no selection.json, so no step is marked."
    commands = results.hints.get("selection", ())
    return " ".join([text, *(f"`{command}` makes it." for command in commands)])
  if chosen.get("in_distribution_step") is None:
    return text
  lost = chosen["mean"] - chosen["in_distribution_mean"]
  mean, cost = f"{chosen['mean']:.3f}", f"{lost:.3f}"
  if metric == selection.ACCURACY:
    mean = f"{tables.percent(chosen['mean'])} %"
    cost = f"{tables.percent(lost)} points"
  text += (
    f" That is step {chosen['step']:,}, with a mean of {mean}. Selection in"
    f" distribution would have taken step {chosen['in_distribution_step']:,},"
    f" at a cost of {cost} of that mean."
  )
  test = chosen.get("test")
  if test and chosen["step"] != chosen["in_distribution_step"]:
    tested = intervals.Interval(**test["cost"])
    text += (
      " On the test sets that would have cost"
      f" {tables.points(tested.estimate)} points of accuracy"
      f" {tables.interval_text(tested)}."
    )
  return text


def _metric(chosen: Mapping[str, object]) -> str:
  """Returns the name of the metric that a step was selected by."""
  return str(chosen.get("metric", selection.ACCURACY))


def _formats(results: results_lib.Results) -> list[Block]:
  drawn = format_curves.figure(results)
  if not drawn:
    return _absent(
      results,
      "formats",
      "validation in two formats in specialize/metrics.jsonl",
      "no curves of in-context beside zero-shot prompts",
    )
  return [
    blocks.Figure(
      name="formats",
      drawn=drawn,
      caption="Validation accuracy on the same maths sets in each format that "
      "was evaluated over the steps of specialization.",
    )
  ]


def _decoding(results: results_lib.Results) -> list[Block]:
  if not results.decoding:
    return _absent(
      results, "decoding", "decoding.json", "no other ways of decoding"
    )
  return decoding_view.blocks_of(results.decoding)


def _comparison(results: results_lib.Results) -> list[Block]:
  if not results.comparison:
    return []
  return comparison_view.blocks_of(results.comparison)


def _certainty(results: results_lib.Results) -> list[Block]:
  if not results.certainty:
    return []  # as of demos that were run before it was measured
  return certainty_view.blocks_of(results.certainty)


def _alignment(results: results_lib.Results) -> list[Block]:
  made: list[Block] = []
  if results.alignment:
    made += [
      blocks.Text(
        "Teacher and student split the same text into different tokens. Where "
        "these can be aligned, the student learns the teacher's "
        "distribution; elsewhere only the token that was sampled."
      ),
      blocks.Figure(
        name="coverage",
        drawn=plots.coverage_bars(results.alignment),
        caption=_coverage(results),
      ),
    ]
  else:
    made += _absent(
      results, "alignment", "alignment.json", "no figures of alignment"
    )
  example = results.alignment_example
  if not example:
    return made + _absent(
      results,
      "alignment example",
      "alignment_example.json",
      "no aligned example",
    )
  return [
    *made,
    blocks.Heading("One sample, aligned"),
    blocks.Figure(
      name="alignment",
      drawn=alignment_view.heat_map(example),
      caption="Each frame aligns teacher tokens with the student pieces that "
      "spell the same text; darker cells are sampled pieces that the teacher "
      "finds more probable.",
    ),
    blocks.Heading("The teacher's alternatives"),
    blocks.Text(
      "The teacher's tokens above, the student's pieces below with their "
      "probability, and under them the other pieces of the target."
    ),
    alignment_view.links(example),
  ]


def _coverage(results: results_lib.Results) -> str:
  parts = []
  for name, report in results.alignment.items():
    kept = report.get("teacher_mass_kept")
    if kept is not None:
      parts.append(
        f"{name}: {report['positions']:,} positions, "
        f"{tables.percent(kept)} % of the teacher's probability mass kept"
      )
  return (
    "The kinds of targets of the student's positions. " + "; ".join(parts) + "."
  )


def _predictions(results: results_lib.Results) -> list[Block]:
  made = prediction_view.examples(results)
  if not made:
    return _absent(
      results,
      "predictions",
      "predictions/after/TASK.jsonl",
      "no examples of predictions",
    )
  if results.run and not results.after:
    made.insert(0, blocks.Text("From the validation sets of the run itself."))
  return made
