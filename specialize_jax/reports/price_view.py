"""The cost of specialization on each general task, by kind of prompt."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax.reports import blocks, drawing, tables

CHAIN, ANSWER, OTHER = "chain of thought", "answer only", "other prompts"
_KINDS = (
  (CHAIN, drawing.PURPLE, "D"),
  (ANSWER, drawing.GREEN, "^"),
  (OTHER, drawing.BLUE, "s"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """A general task in the kinds of prompt that were evaluated.

  Attributes:
    label: the display name of the task.
    by_kind: the row of the main table for `CHAIN`, `ANSWER` and `OTHER`; of
      several formats of a kind, the first.
  """

  label: str
  by_kind: Mapping[str, tables.Row]

  @property
  def change(self) -> float:
    """The mean difference over the kinds, by which tasks are sorted."""
    changes = [row.difference.estimate for row in self.by_kind.values()]
    return sum(changes) / len(changes)


def lines(table: Sequence[tables.Row]) -> list[Line]:
  """Returns the general tasks, the largest loss first."""
  found: dict[str, dict[str, tables.Row]] = {}
  for row in table:
    if row.role == tables.GENERAL and row.task:
      found.setdefault(row.label, {}).setdefault(_kind(row), row)
  made = [Line(label=label, by_kind=rows) for label, rows in found.items()]
  return sorted(made, key=lambda line: (line.change, line.label))


def table_of(made: Sequence[Line]) -> blocks.Table:
  """Returns the table of accuracies before and after, by kind of prompt."""
  kinds = [
    kind for kind, _, _ in _KINDS if any(kind in m.by_kind for m in made)
  ]
  head = ["Accuracy, %"]
  for kind in kinds:
    short = "CoT" if kind == CHAIN else kind
    head += [f"{short}: before", "after", "difference"]
  rows = [
    blocks.Row([line.label, *_cells([line.by_kind.get(k) for k in kinds])])
    for line in made
  ]
  if len(made) > 1:
    means = [
      tables.mean_of([m.by_kind[kind] for m in made if kind in m.by_kind])
      for kind in kinds
    ]
    counts = [sum(kind in m.by_kind for m in made) for kind in kinds]
    name = f"mean of {' and '.join(dict.fromkeys(map(str, counts)))}"
    rows.append(blocks.Row([name, *_cells(means)], "mean"))
  return blocks.Table(head=head, rows=rows, is_narrow=True)


def figure(made: Sequence[Line]) -> drawing.Drawing:
  """Draws each task's accuracy before and after, one panel per kind."""
  kinds = [k for k in _KINDS if any(k[0] in m.by_kind for m in made)]
  places = np.arange(len(made))
  height = 1.3 + 0.3 * len(made)
  description = "General tasks before and after specialization, by prompt."
  with drawing.figure(height, description) as (drawn, svg):
    panels = drawn.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    drawn.get_layout_engine().set(wspace=0.05)
    for axes, (kind, color, marker) in zip(panels, kinds, strict=True):
      for place, line in zip(places, made, strict=True):
        row = line.by_kind.get(kind)
        if row is None:
          continue
        before, after = 100 * row.before.estimate, 100 * row.after.estimate
        axes.plot([before, after], [place, place], color=color, linewidth=2)
        axes.plot(
          before,
          place,
          marker="o",
          markersize=6,
          markerfacecolor="white",
          markeredgecolor=color,
          linestyle="none",
          label="before" if place == 0 else None,
        )
        axes.plot(
          after,
          place,
          marker=marker,
          markersize=6.5,
          color=color,
          linestyle="none",
          label="after" if place == 0 else None,
        )
      axes.set_title(kind)
      axes.set_xlim(-3, 103)
      axes.set_xticks(range(0, 101, 20))
      axes.set_xlabel("test accuracy, %")
      axes.set_ylim(len(made) - 0.4, -0.6)
    panels[0].set_yticks(places, [line.label for line in made])
    panels[0].set_ylabel("general task")
    for axes in panels:
      axes.tick_params(axis="y", length=0)
      axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2
      )
  return svg()


def _cells(rows: Sequence[tables.Row | None]) -> list[blocks.Cell | str]:
  cells: list[blocks.Cell | str] = []
  for row in rows:
    if row is None:
      cells += ["", "", ""]
      continue
    cells += [
      tables.with_bounds(row.before),
      tables.with_bounds(row.after),
      blocks.Cell(
        tables.points(row.difference.estimate),
        tables.interval_text(row.difference),
        tables.sign(row.difference),
      ),
    ]
  return cells


def _kind(row: tables.Row) -> str:
  if "answer_only" in row.task:
    return ANSWER
  return CHAIN if "chain_of_thought" in row.task else OTHER
