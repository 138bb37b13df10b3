"""The main table: accuracies before and after, with confidence intervals."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence

from rich import console as rich_console
from rich import markup
from rich import table as rich_table

from specialize_jax.evaluation import intervals
from specialize_jax.evaluation import selection as selection_lib
from specialize_jax.files import writing
from specialize_jax.reports import blocks
from specialize_jax.reports import results as results_lib

IN_DISTRIBUTION = "In distribution"
OUT_OF_DISTRIBUTION = "Out of distribution"
GENERAL = "General ability"
OTHER = "Other tasks"

_DATASETS = {
  "gsm8k": "GSM8K",
  "gsm": "GSM",
  "multiarith": "MultiArith",
  "asdiv": "ASDiv",
  "svamp": "SVAMP",
}
_FORMATS = {
  "in_context_answer_only": "in-context answer only",
  "in_context_chain_of_thought": "in-context CoT",
  "zero_shot_answer_only": "answer only",
  "zero_shot_chain_of_thought": "CoT",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A task, or the mean of a role's tasks.

  Attributes:
    task: the registered name; empty for a mean.
    label: the display name of the dataset.
    data_format: the format of the prompt; empty for a mean.
    role: one of this module's role names.
    before: the accuracy before specialization, with its interval.
    after: the accuracy after specialization, with its interval.
    difference: after minus before, with its interval.
    num_before: number of questions before.
    num_examples: number of questions after.
    paired: whether the difference's interval is paired by question, rather than
      computed from the two accuracies.
  """

  task: str
  label: str
  data_format: str
  role: str
  before: intervals.Interval
  after: intervals.Interval
  difference: intervals.Interval
  num_before: int
  num_examples: int
  paired: bool

  @property
  def num_in_words(self) -> str:
    """The number of questions: "200", or "100 / 1,000" if it differs."""
    if self.num_before == self.num_examples:
      return f"{self.num_examples:,}"
    return f"{self.num_before:,} / {self.num_examples:,}"


def rows(results: results_lib.Results) -> list[Row]:
  """Returns the rows of the main table by role, each role with its mean.

  A role with one task has no mean. Tasks without either accuracy are omitted.
  """
  table = []
  for role, tasks in _tasks_by_role(results).items():
    known = [t for t in tasks if t in results.before and t in results.after]
    role_rows = [_task_row(results, task, role) for task in known]
    table += role_rows
    if len(role_rows) > 1:
      table.append(_mean_row(results, role_rows))
  return table


def _tasks_by_role(results: results_lib.Results) -> dict[str, Sequence[str]]:
  in_distribution = [results.in_distribution] if results.in_distribution else []
  return {
    IN_DISTRIBUTION: in_distribution,
    OUT_OF_DISTRIBUTION: results.out_of_distribution,
    GENERAL: results.general,
    OTHER: results.other,
  }


def main_rows(table: Sequence[Row]) -> list[Row]:
  """Returns the rows of the main table without individual general tasks.

  Of BIG-Bench-Hard there are 27 in each format; they are in the price table.
  The mean of each format, and of all formats, is included.
  """
  general = [row for row in table if row.role == GENERAL]
  singles = [row for row in general if row.task]
  formats = list(dict.fromkeys(row.data_format for row in singles))
  means = []
  for data_format in formats if len(formats) > 1 else ():
    parts = [row for row in singles if row.data_format == data_format]
    means.append(mean_of(parts))
  means += [row for row in general if not row.task] or singles
  return [row for row in table if row.role != GENERAL] + means


def mean_of(parts: Sequence[Row]) -> Row:
  """Returns the unweighted mean of rows of one format.

  Its interval is computed from theirs, assuming independent tasks.
  """
  return dataclasses.replace(
    parts[0],
    task="",
    label=f"mean of {len(parts)}",
    before=intervals.mean([row.before for row in parts]),
    after=intervals.mean([row.after for row in parts]),
    difference=intervals.mean([row.difference for row in parts]),
    num_before=sum(row.num_before for row in parts),
    num_examples=sum(row.num_examples for row in parts),
  )


def table_of(table: Sequence[Row]) -> blocks.Table:
  """Renders rows as the main table of a report."""
  lines, role = [], None
  for row in table:
    if row.role != role:
      role = row.role
      lines.append(blocks.Row([role], "role"))
    lines.append(
      blocks.Row(
        [
          row.label,
          row.data_format,
          with_bounds(row.before),
          with_bounds(row.after),
          blocks.Cell(
            points(row.difference.estimate), "", sign(row.difference)
          ),
          interval_text(row.difference),
          row.num_in_words,
        ],
        "" if row.task else "mean",
      )
    )
  return blocks.Table(
    head=(
      "Accuracy, %",
      "format",
      "before",
      "after",
      "difference",
      "95 % interval",
      "n",
    ),
    rows=lines,
    num_text_columns=2,
  )


def one_sided(results: results_lib.Results) -> list[blocks.Table]:
  """Renders the accuracies of each model that was evaluated, on its own.

  For tasks that were evaluated before or after specialization, but not both.
  """
  return [
    _of_one_side(results, when, accuracies)
    for when, accuracies in (
      ("before", results.before),
      ("after", results.after),
    )
    if accuracies
  ]


def _of_one_side(
  results: results_lib.Results,
  when: str,
  accuracies: Mapping[str, Mapping[str, float]],
) -> blocks.Table:
  lines = []
  for role, tasks in _tasks_by_role(results).items():
    known = [task for task in tasks if task in accuracies]
    lines += [blocks.Row([role], "role")] if known else []
    for task in known:
      entry = accuracies[task]
      shown = with_bounds(_accuracy(entry))
      lines.append(blocks.Row([*label(task), shown, f"{entry['n']:,.0f}"]))
  return blocks.Table(
    head=("Accuracy, %", "format", f"{when} specialization", "n"),
    rows=lines,
    num_text_columns=2,
  )


def with_bounds(part: intervals.Interval) -> blocks.Cell:
  """Renders an accuracy with its interval in small print."""
  bounds = f"{percent(part.low)}–{percent(part.high)}"
  return blocks.Cell(percent(part.estimate), bounds)


def sign(difference: intervals.Interval) -> str:
  """Returns "up" or "down" if an interval excludes zero, otherwise ""."""
  return "up" if difference.low > 0 else "down" if difference.high < 0 else ""


def mean_or_only(table: Sequence[Row], role: str) -> Row | None:
  """Returns the mean of a role, or its only row, or None."""
  of_role = [row for row in table if row.role == role]
  means = [row for row in of_role if not row.task]
  return (means or of_role or [None])[0]


def label(task: str) -> tuple[str, str]:
  """Splits a registered name into the display names of dataset and format.

  Example: ("mini SVAMP", "CoT") for "mini_svamp_zero_shot_chain_of_thought_v1"
  and ("word sorting", "") for "mini_word_sorting".
  """
  name = re.sub(r"_v\d+$", "", task)
  data_format = ""
  for suffix, words in _FORMATS.items():
    if name.endswith(f"_{suffix}"):
      name, data_format = name.removesuffix(f"_{suffix}"), words
  dataset = name.removeprefix("mini_")
  if dataset in _DATASETS:
    mini = "mini " if name.startswith("mini_") else ""
    return mini + _DATASETS[dataset], data_format
  return dataset.replace("_", " "), data_format


def row_name(row: Mapping[str, object], roles: Mapping[str, str]) -> str:
  """Returns the name of a row of `task` or, for a mean, `role`.

  Example: "mini SVAMP CoT", and "mean, general, CoT" for no task.

  Args:
    row: the row.
    roles: display names of the roles.
  """
  if row["task"] is None:
    return f"mean, {roles[row['role']]}"
  return " ".join(filter(None, label(row["task"])))


def percent(share: float) -> str:
  """Formats a fraction as a percentage: "72.5" for 0.725."""
  return f"{100 * share:.1f}"


def points(difference: float) -> str:
  """Formats percentage points: "+4.2" or "−4.2" for ±0.042."""
  text = f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
  return "0.0" if float(f"{100 * difference:.1f}") == 0.0 else text


def terminal(results: results_lib.Results, *, width: int | None = None) -> str:
  """Renders the main table for a terminal.

  Args:
    results: a loaded results directory.
    width: width in characters; None for that of the terminal.

  Returns:
    Lines of text, without colors if the output is not a terminal.
  """
  drawn = rich_table.Table(
    title="Accuracy in %, before and after",
    title_style="bold",
    show_edge=False,  # with it, it would not fit a terminal of 80 characters
    pad_edge=False,
  )
  shown = rows(results)
  labels = [f"  {writing.visible(row.label)}" for row in shown]
  formats_ = [writing.visible(row.data_format) for row in shown]
  cells = [_cells(row) for row in shown]
  columns = [
    ("format", formats_),
    *zip(
      ("before", "after", "difference", "95 % interval", "n"),
      zip(*cells, strict=True),
      strict=True,
    ),
  ]
  widths = [max(map(len, (name, *texts))) for name, texts in columns]
  # The labels alone may take several lines, of whole words: a number that is
  # cut would be another one. Between columns there are a border and two blanks.
  others = sum(widths) + 3 * len(columns)
  roles = [row.role for row in shown]
  # The first word of a label is indented by two.
  firsts = (2 + len(text.split()[0]) for text in labels)
  words = (len(word) for text in (*labels, *roles) for word in text.split())
  least = max(*firsts, *words)
  width = _terminal_width() if width is None else width
  of_labels = min(max(map(len, (*labels, *roles))), max(width - others, least))
  drawn.add_column("", width=of_labels)
  for (name, _), own in zip(columns, widths, strict=True):
    drawn.add_column(
      name,
      justify="left" if name == "format" else "right",
      no_wrap=True,
      width=own,
    )
  role = None
  for row, label, data_format, numbers in zip(
    shown, labels, formats_, cells, strict=True
  ):
    if row.role != role:
      role = row.role
      drawn.add_section()
      drawn.add_row(f"[bold]{role}")
    style = None if row.task else "bold"
    drawn.add_row(markup.escape(label), data_format, *numbers, style=style)
  return _captured(drawn, max(width, others + of_labels))


def selection(
  chosen: selection_lib.Selection, *, width: int | None = None
) -> str:
  """Renders the ranking of steps for a terminal.

  Args:
    chosen: from `selection.select`.
    width: width in characters; None for that of the terminal.

  Returns:
    Lines of text, the best step first.
  """
  is_share = chosen.metric == selection_lib.ACCURACY
  shown = percent if is_share else "{:.3f}".format
  drawn = rich_table.Table(
    title="Steps by mean out-of-distribution validation "
    f"{chosen.metric}{', %' if is_share else ''}",
    title_style="bold",
  )
  for name in ("step", "mean", "in distribution"):
    drawn.add_column(name, justify="right")
  drawn.add_column("")
  for step in sorted(chosen.means, key=lambda s: (-chosen.means[s], s)):
    notes = ["selected"] if step == chosen.step else []
    if step == chosen.in_distribution_step:
      notes.append("best in distribution")
    inside = chosen.in_distribution_accuracies.get(step)
    drawn.add_row(
      f"{step:,}",
      shown(chosen.means[step]),
      "" if inside is None else shown(inside),
      ", ".join(notes),
      style="bold" if step == chosen.step else None,
    )
  return _captured(drawn, width)


def selection_cost(
  chosen: selection_lib.Selection, test: Mapping[str, object]
) -> str:
  """Describes the cost of in-distribution selection on the test sets."""
  if chosen.in_distribution_step == chosen.step:
    return (
      "Selection in distribution chooses the same step: out of distribution "
      f"it has {percent(test['mean'])} % on test."
    )
  cost = intervals.Interval(**test["cost"])
  other = percent(test["in_distribution_mean"])
  return (
    f"On test, step {chosen.step:,} has {percent(test['mean'])} % out of "
    f"distribution, and step {chosen.in_distribution_step:,}, which selection "
    f"in distribution would have chosen, {other} %: a cost of "
    f"{points(cost.estimate)} points {interval_text(cost)}."
  )


def markdown(results: results_lib.Results) -> str:
  """Renders the main table as Markdown."""
  return blocks.to_markdown(table_of(rows(results))) + "\n"


def _captured(drawn: rich_table.Table, width: int | None) -> str:
  width = _terminal_width() if width is None else width
  console = rich_console.Console(width=width, highlight=False)
  with console.capture() as capture:
    console.print(drawn)
  return capture.get().rstrip()


def _terminal_width() -> int:
  """Returns the terminal's width; files and pipes have none, and get 100."""
  return rich_console.Console().width if sys.stdout.isatty() else 100


def _cells(row: Row) -> tuple[str, ...]:
  return (
    percent(row.before.estimate),
    percent(row.after.estimate),
    points(row.difference.estimate),
    interval_text(row.difference),
    row.num_in_words,
  )


def interval_text(difference: intervals.Interval) -> str:
  """Formats an interval in percentage points, as in "[+1.0, +4.2]"."""
  return f"[{points(difference.low)}, {points(difference.high)}]"


def _task_row(results: results_lib.Results, task: str, role: str) -> Row:
  before, after = (_accuracy(r[task]) for r in (results.before, results.after))
  pair = _verdicts(results, task)
  dataset, data_format = label(task)
  return Row(
    task=task,
    label=dataset,
    data_format=data_format,
    role=role,
    before=before,
    after=after,
    difference=intervals.paired_bootstrap(*pair)
    if pair
    else intervals.newcombe(before, after),
    num_before=int(results.before[task]["n"]),
    num_examples=int(results.after[task]["n"]),
    paired=pair is not None,
  )


def _mean_row(results: results_lib.Results, parts: Sequence[Row]) -> Row:
  mean = dataclasses.replace(mean_of(parts), data_format="", paired=False)
  pairs = [_verdicts(results, row.task) for row in parts]
  if not all(pair is not None for pair in pairs):
    return mean
  return dataclasses.replace(
    mean, difference=intervals.paired_bootstrap_mean(pairs), paired=True
  )


def _accuracy(entry: Mapping[str, float]) -> intervals.Interval:
  num_examples = int(entry["n"])
  return intervals.wilson(round(entry["accuracy"] * num_examples), num_examples)


def _verdicts(
  results: results_lib.Results, task: str
) -> tuple[list[bool], list[bool]] | None:
  """Returns paired verdicts, or None if the questions differ or are unknown."""
  sides = []
  for when, accuracies in (
    ("before", results.before),
    ("after", results.after),
  ):
    kept = results.predictions[when].get(task, ())
    verdicts = {
      r["question_id"]: bool(r["correct"]) for r in kept if "correct" in r
    }
    num_examples = int(accuracies[task]["n"])
    num_correct = round(accuracies[task]["accuracy"] * num_examples)
    # Predictions of another step or split do not match the table.
    if (len(verdicts), sum(verdicts.values())) != (num_examples, num_correct):
      return None
    sides.append(verdicts)
  before, after = sides
  if not before or before.keys() != after.keys():
    return None
  return [before[q] for q in before], [after[q] for q in before]
