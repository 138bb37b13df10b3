"""Draws the figures of a report from results.

Curves are labeled at their ends as well as in the legend.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import axes as mpl_axes

from specialize_jax.evaluation import history as history_lib
from specialize_jax.evaluation import selection as selection_lib
from specialize_jax.reports import drawing, tables
from specialize_jax.reports import results as results_lib

_HALF_BAR = 0.19
_DASHES = ("--", "-.", ":")


def accuracy_bars(table: Sequence[tables.Row]) -> drawing.Drawing:
  """Draws accuracy before and after as pairs of bars with intervals.

  Args:
    table: the rows of the main table, including means.

  Returns:
    The figure.
  """
  positions, separators = _positions(table)
  description = "Bars of test accuracy before and after specialization."
  height = 0.9 + 0.46 * (positions[-1] + 1)
  with drawing.figure(height, description) as (figure, svg):
    axes = figure.add_subplot()
    _bars(axes, positions - _HALF_BAR, [r.before for r in table], "before")
    _bars(axes, positions + _HALF_BAR, [r.after for r in table], "after")
    for separator in separators:
      axes.axhline(separator, color=drawing.PALE, linewidth=0.8)
    axes.set_yticks(positions, [_bar_label(row) for row in table])
    for row, tick in zip(table, axes.get_yticklabels(), strict=True):
      tick.set_fontweight("normal" if row.task else "bold")
      tick.set_color(drawing.INK)
    axes.set_ylim(positions[-1] + 0.65, -0.65)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("test accuracy, % (whiskers: 95 % interval)")
    axes.set_ylabel("test set")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.legend(
      loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2
    )
  return svg()


def loss_curves(results: results_lib.Results) -> drawing.Drawing | None:
  """Draws the training losses of both phases; None if there are none."""
  phases = [
    (title, history_lib.curve(history, _loss_name(history)), color)
    for title, history, color in (
      ("Pre-training: the general model", results.pretraining, drawing.GREEN),
      (
        "Training" if results.run else "Specialization: teacher to student",
        results.specialization,
        drawing.BLUE,
      ),
    )
    if _loss_name(history)
  ]
  if not phases:
    return None
  description = "Curves of the training loss over steps."
  with drawing.figure(3.2, description) as (figure, svg):
    panels = figure.subplots(1, len(phases), squeeze=False)[0]
    figure.get_layout_engine().set(wspace=0.06)
    for axes, (title, curve, color) in zip(panels, phases, strict=True):
      steps, losses = curve
      smoothed = drawing.smooth(losses)
      axes.plot(
        steps,
        losses,
        color=color,
        linewidth=0.7,
        alpha=0.35,
        label="each logged step",
      )
      axes.plot(steps, smoothed, color=color, label="running mean")
      axes.set_title(title)
      axes.set_ylabel("loss, nats per target token")
      lowest = min(0.0, 1.1 * min(losses))  # a divergence of few terms can be
      top = 1.1 * float(np.quantile(losses, 0.99))
      axes.set_ylim(lowest, top if top > lowest else 0.1 * abs(lowest) or 1.0)
      drawing.step_axis(axes, "step")
      axes.annotate(
        f"{smoothed[-1]:.3f}",
        (steps[-1], smoothed[-1]),
        xytext=(0, 9),
        textcoords="offset points",
        ha="right",
        color=color,
        fontweight="bold",
      )
      axes.legend(loc="upper right")
  return svg()


def selection_curves(results: results_lib.Results) -> drawing.Drawing | None:
  """Draws in- and out-of-distribution validation accuracy over steps.

  The selected step is marked, and so is the one that in-distribution selection
  would have chosen.

  Args:
    results: a loaded results directory.

  Returns:
    The figure, or None if there are no such evaluations.
  """
  home = [results.in_distribution] if results.in_distribution else []
  others = results.out_of_distribution
  lines = [
    mean_line(results, home, "in distribution", drawing.BLUE, "o", "-"),
    mean_line(
      results, others, "out-of-distribution mean", drawing.VERMILION, "s", "-"
    ),
  ]
  lines = [line for line in lines if line.steps]
  if not lines:
    return None
  thin = [
    mean_line(
      results, [task], tables.label(task)[0], drawing.VERMILION, "", dash
    )
    for task, dash in zip(others, itertools.cycle(_DASHES), strict=False)
  ]
  description = "Curves of validation accuracy over specialization steps."
  with drawing.figure(4.2, description) as (figure, svg):
    axes = figure.add_subplot()
    accuracy_lines(axes, lines, thin)
    mark_selection(axes, results.selection)
    drawing.legend_below(figure, axes)
  return svg()


def task_curves(results: results_lib.Results) -> drawing.Drawing | None:
  """Draws each task's validation accuracy over steps, whatever its role.

  Returns:
    The figure, or None if no task was evaluated at any step. If there
    are more tasks than colors, the rest are thin lines.
  """
  styles = (
    (drawing.BLUE, "o", "-"),
    (drawing.ORANGE, "s", "--"),
    (drawing.GREEN, "^", "-."),
    (drawing.PURPLE, "D", ":"),
    (drawing.SKY, "v", "-"),
  )
  tasks = selection_lib.evaluated_tasks(results.validation)
  lines = [
    mean_line(results, [task], " ".join(tables.label(task)).strip(), *style)
    for task, style in zip(tasks, styles, strict=False)
  ]
  if not lines:
    return None
  thin = [
    mean_line(results, [task], "", drawing.GREY, "", "-")
    for task in tasks[len(styles) :]
  ]
  description = "Curves of validation accuracy over steps, by task."
  with drawing.figure(3.9, description) as (figure, svg):
    axes = figure.add_subplot()
    accuracy_lines(axes, lines, thin)
    mark_selection(axes, results.selection, only_selected=True)
    drawing.legend_below(figure, axes)
  return svg()


def general_curves(results: results_lib.Results) -> drawing.Drawing | None:
  """Draws general ability over steps, by kind of prompt.

  Thin lines are single tasks, thick ones the mean over a format.

  Args:
    results: a loaded results directory.

  Returns:
    The figure, or None if there are no such evaluations.
  """
  lines, thin = [], []
  for name, part, color, marker, dash in (
    ("chain of thought", "chain_of_thought", drawing.PURPLE, "D", "-"),
    ("answer only", "answer_only", drawing.GREEN, "^", "--"),
  ):
    tasks = [task for task in results.general if part in task]
    line = mean_line(results, tasks, name, color, marker, dash)
    if line.steps:
      lines.append(line)
      thin += [
        mean_line(results, [task], "", color, "", dash) for task in tasks
      ]
  if not lines:
    return None
  description = "Curves of general ability over specialization steps."
  with drawing.figure(3.9, description) as (figure, svg):
    axes = figure.add_subplot()
    accuracy_lines(axes, lines, thin)
    mark_selection(axes, results.selection, only_selected=True)
    drawing.legend_below(figure, axes)
  return svg()


def coverage_bars(
  reports: Mapping[str, Mapping[str, object]],
) -> drawing.Drawing:
  """Draws the kinds of targets as one stacked bar per report.

  Args:
    reports: coverage reports by name, with the counts "positions",
      "one_to_one", "in_chunks", "one_hot" and "masked".

  Returns:
    The figure.
  """
  kinds = (
    ("one_to_one", "one to one", drawing.BLUE, "white", ""),
    ("in_chunks", "in a chunk of several", drawing.SKY, "black", "//"),
    ("one_hot", "one-hot: no distribution", drawing.ORANGE, "black", ".."),
  )
  if any(report.get("masked") for report in reports.values()):
    label = "masked: the student cannot spell it"
    kinds = (*kinds, ("masked", label, drawing.LINE, "black", "xx"))
  description = "Bars of how target positions were matched to the teacher."
  with drawing.figure(1.25 + 0.5 * len(reports), description) as (figure, svg):
    axes = figure.add_subplot()
    starts = np.zeros(len(reports))
    for key, label, color, ink, hatch in kinds:
      shares = drawing.percents(
        [r.get(key, 0) / max(r["positions"], 1) for r in reports.values()]
      )
      axes.barh(
        np.arange(len(reports)),
        shares,
        left=starts,
        height=0.6,
        color=color,
        hatch=hatch,
        edgecolor="white",
        linewidth=0.0,
        label=label,
      )
      for position, share in enumerate(shares):
        if share >= 6.0:
          axes.text(
            starts[position] + share / 2,
            position,
            f"{share:.1f} %",
            ha="center",
            va="center",
            fontsize=9,
            color=ink,
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
          )
      starts = starts + shares
    axes.set_yticks(range(len(reports)), list(reports))
    axes.set_ylim(len(reports) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the student's target positions, %")
    axes.set_ylabel("alignment")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.legend(
      loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.2
    )
  return svg()


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve of accuracies in [0, 1], and its style."""

  name: str
  steps: Sequence[int]
  values: Sequence[float]
  color: str
  marker: str
  dash: str


def mean_line(
  results: results_lib.Results, tasks: Sequence[str], name: str, *how: str
) -> Line:
  """Returns the mean accuracy over tasks by step, as a line.

  Args:
    results: the results of a run.
    tasks: the tasks to average.
    name: the label of the line.
    *how: color, marker and dash of the line.
  """
  return Line(name, *results_lib.mean_curve(results, tasks), *how)


def accuracy_lines(
  axes: mpl_axes.Axes, lines: Sequence[Line], thin: Sequence[Line]
) -> None:
  """Draws accuracies over steps.

  Args:
    axes: the axes to draw on.
    lines: the main lines, with labels and markers.
    thin: thin lines, such as those of single tasks.
  """
  for line in lines:
    axes.plot(
      line.steps,
      drawing.percents(line.values),
      color=line.color,
      marker=line.marker,
      linestyle=line.dash,
      linewidth=2.0,
      label=line.name,
      zorder=2.5,
    )
  for line in thin:
    axes.plot(
      line.steps,
      drawing.percents(line.values),
      color=line.color,
      linestyle=line.dash,
      linewidth=0.9,
      alpha=0.6,
      label=line.name or None,
    )
  drawing.percent_axis(axes, "validation accuracy, %")
  drawing.step_axis(axes, "specialization step")
  drawing.name_ends(
    axes,
    [
      (line.steps[-1], 100 * line.values[-1], _wrapped(line.name), line.color)
      for line in lines
    ],
  )


def _positions(
  table: Sequence[tables.Row],
) -> tuple[np.ndarray, Sequence[float]]:
  """Returns the positions of rows, and of separators between roles."""
  positions, separators = [0.0], []
  for above, below in zip(table, table[1:], strict=False):
    apart = 1.35 if above.role != below.role else 1.0
    positions.append(positions[-1] + apart)
    if apart > 1.0:
      separators.append(positions[-1] - apart / 2)
  return np.array(positions), separators


def _bars(
  axes: mpl_axes.Axes,
  positions: np.ndarray,
  parts: Sequence[object],
  when: str,
) -> None:
  """Draws the bars of one side, with whiskers and numbers."""
  after = when == "after"
  whiskers = np.array(
    [(p.estimate - p.low, p.high - p.estimate) for p in parts]
  )
  axes.barh(
    positions,
    drawing.percents([part.estimate for part in parts]),
    height=2 * _HALF_BAR - 0.02,
    color=drawing.BLUE if after else drawing.PALE,
    label=f"{when} specialization",
    xerr=drawing.percents(np.clip(whiskers.T, 0.0, None)),
    error_kw={"ecolor": drawing.INK, "elinewidth": 1.0, "capsize": 2},
  )
  for position, part in zip(positions, parts, strict=True):
    axes.text(
      100 * part.high + 1.2,
      position,
      tables.percent(part.estimate),
      va="center",
      fontsize=8.5,
      color=drawing.INK,
      fontweight="bold" if after else "normal",
    )


def _bar_label(row: tables.Row) -> str:
  if not row.task:
    of = f", {row.data_format}" if row.data_format else ""
    return f"{row.role.lower()}:\n{row.label}{of}"
  return f"{row.label}, {row.data_format}" if row.data_format else row.label


def _loss_name(history: history_lib.History) -> str | None:
  """Returns the name of the loss in a history: "loss" or "*/loss"."""
  names = history_lib.names(history)
  ending = [n for n in names if n.endswith("/loss")]
  return "loss" if "loss" in names else next(iter(ending), None)


def _wrapped(name: str) -> str:
  """Breaks a long name into two lines."""
  head, _, tail = name.rpartition(" ")
  return f"{head}\n{tail}" if len(name) > 16 else name


def mark_selection(
  axes: mpl_axes.Axes,
  selection: Mapping[str, object] | None,
  *,
  only_selected: bool = False,
) -> None:
  """Marks the selected step, and the one of in-distribution selection.

  Args:
    axes: axes over steps.
    selection: the content of selection.json; None to mark nothing.
    only_selected: whether to mark the selected step only.
  """
  if not selection:
    return
  step = selection["step"]
  marks = [(step, "selected", drawing.BLACK, "-")]
  other = selection.get("in_distribution_step")
  if other is not None and other != step and not only_selected:
    marks.append((other, "best in distribution", drawing.GREY, ":"))
  marks.sort()
  # The labels of two marks point away from each other.
  sides = ("right", "left") if len(marks) == 2 else ("center",)
  for (step, name, color, dash), side in zip(marks, sides, strict=True):
    axes.axvline(step, color=color, linewidth=1.2, linestyle=dash, zorder=1.5)
    axes.annotate(
      f"{name}: step {step:,}",
      (step, 1.0),
      xycoords=axes.get_xaxis_transform(),
      xytext=(0, 4),
      textcoords="offset points",
      ha=side,
      fontsize=9,
      color=color,
      annotation_clip=False,
    )
