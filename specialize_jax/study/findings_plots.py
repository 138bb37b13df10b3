"""Draws the figures of a study, as SVG text, from `study.json`.

Thin lines and small marks are single seeds, thick ones their mean; whiskers
are 95 % intervals over seeds and questions.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import ticker as mpl_ticker

from specialize_jax.reports import drawing, tables
from specialize_jax.study import findings_text

Json = Mapping[str, object]

_IN = ("in_distribution", "in distribution", drawing.BLUE, "o", "-")
_OUT = (
  "out_of_distribution",
  "out of distribution",
  drawing.VERMILION,
  "s",
  "--",
)
_CHAIN = (
  "general_chain_of_thought",
  "general, CoT",
  drawing.PURPLE,
  "D",
  "-",
)
_ANSWER = (
  "general_answer_only",
  "general, answer only",
  drawing.GREEN,
  "^",
  "--",
)
_OBJECTIVES = (
  (
    "distribution_matching",
    "distribution matching",
    drawing.BLUE,
    "o",
    "-",
  ),
  ("sample_matching", "sample matching", drawing.ORANGE, "s", "--"),
)


def figures(study: Json) -> dict[str, str]:
  """Returns the figure of each finding, by the finding's name."""
  return {
    "gain and price": gain_and_price(study["gain_and_price"]),
    "distribution matching": matching(study["matching"]),
    "formats": formats(study["formats"]),
    "selection": selection(study["gain_and_price"], study["selection"]),
    "scaling": scaling(study["scaling"]),
    **({"starts": starts(study["starts"])} if study["starts"] else {}),
  }


def gain_and_price(part: Json) -> str:
  """Draws test accuracy before and after, and validation over steps."""
  description = "Test accuracy before and after, and accuracies over steps."
  rows = part["rows"]
  with drawing.figure(0.36 * len(rows) + 3.6, description) as (figure, svg):
    top, bottom = figure.subplots(
      2, 1, height_ratios=[0.36 * len(rows) + 0.4, 3.0]
    )
    _rows(
      top,
      [tables.row_name(row, findings_text.ROLES) for row in rows],
      _before_and_after(rows),
    )
    for row, label in zip(rows, top.get_yticklabels(), strict=True):
      label.set_fontweight("normal" if row["task"] else "bold")
      label.set_color(drawing.INK)
    top.set_xlabel("test accuracy, %")
    top.set_ylabel("test sets")
    kinds = (_IN, _OUT, _CHAIN, _ANSWER)
    _curves(bottom, [(part["curves"][k[0]], *k[1:]) for k in kinds])
    drawing.percent_axis(bottom, "validation accuracy, %")
    drawing.step_axis(bottom, "specialization step")
    _legend_above(bottom, 4)
  return svg()


def matching(part: Json) -> str:
  """Draws both objectives' held-out divergence and accuracy over steps."""
  description = "Held-out divergence and accuracy over steps of two objectives."
  with drawing.figure(3.7, description) as (figure, svg):
    left, right = figure.subplots(1, 2)
    _curves(
      left,
      [(part["divergences"][k[0]], *k[1:]) for k in _OBJECTIVES],
      percent=False,
    )
    left.set_yscale("log")
    # Plain numbers: powers of ten are set as mathematics, which pages show raw.
    left.yaxis.set_major_locator(mpl_ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter(mpl_ticker.StrMethodFormatter("{x:g}"))
    left.yaxis.set_minor_locator(mpl_ticker.NullLocator())
    left.set_ylabel("held-out divergence,\nnats a token (logarithmic)")
    accuracies = [
      (part["accuracies"][k[0]]["out_of_distribution"], *k[1:])
      for k in _OBJECTIVES
    ]
    _curves(right, accuracies)
    drawing.percent_axis(right, "out-of-distribution\nvalidation accuracy, %")
    for axes in (left, right):
      drawing.step_axis(axes, "specialization step")
    drawing.legend_below(figure, left)
  return svg()


def formats(part: Json) -> str:
  """Draws accuracy by training format in both kinds of prompt."""
  arms = part["arms"]
  description = "Accuracy by training format in two kinds of prompt."
  with drawing.figure(1.5 + 0.55 * len(arms), description) as (figure, svg):
    axes = figure.add_subplot()
    names = ["nothing (before)" if n == "general" else n for n in arms]
    _rows(
      axes,
      names,
      [
        _Marks([arm[prompt] for arm in arms.values()], color, marker, label)
        for prompt, label, color, marker in (
          ("zero_shot", "zero-shot prompts", drawing.BLUE, "o"),
          ("in_context", "in-context prompts", drawing.VERMILION, "s"),
        )
      ],
    )
    axes.set_ylabel("trained on")
    axes.set_xlabel("mean test accuracy of the four maths sets, %")
  return svg()


def selection(gain: Json, part: Json) -> str:
  """Draws both accuracies of the main arm by seed, and selected steps."""
  seeds = gain["curves"]["in_distribution"]["seeds"]
  arm = part["runs"][0]["arm"]
  choices = [run["steps"] for run in part["runs"] if run["arm"] == arm]
  description = "Validation accuracy over steps, each seed with its choices."
  with drawing.figure(3.6, description) as (figure, svg):
    panels = figure.subplots(1, len(seeds), sharey=True, squeeze=False)[0]
    for place, (axes, steps) in enumerate(zip(panels, choices, strict=True)):
      for role, label, color, marker, dash in (_IN, _OUT):
        curve = gain["curves"][role]
        axes.plot(
          curve["steps"],
          drawing.percents(curve["seeds"][place]),
          color=color,
          marker=marker,
          linestyle=dash,
          label=label,
        )
      for rule, color, dash, label in (
        ("selected", drawing.VERMILION, "-", "best out of distribution"),
        ("in_distribution", drawing.BLUE, ":", "best in distribution"),
      ):
        axes.axvline(
          steps[rule], color=color, linestyle=dash, linewidth=1.2, label=label
        )
      axes.set_title(f"seed {part['runs'][place]['seed']}")
      drawing.step_axis(axes, "specialization step")
    drawing.percent_axis(panels[0], "validation accuracy, %")
    drawing.legend_below(figure, panels[0])
  return svg()


def scaling(part: Json) -> str:
  """Draws accuracy over the student's size, with the log-linear fits."""
  sizes = [point["num_params"] for point in part["sizes"]]
  description = "Accuracy before and after over the number of parameters."
  with drawing.figure(3.9, description) as (figure, svg):
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    line = np.geomspace(min(sizes) / 1.15, max(sizes) * 1.15, 50)
    for role, label, color, marker, dash in (_IN, _OUT):
      after = [point[role]["after"] for point in part["sizes"]]
      before = [point[role]["before"]["estimate"] for point in part["sizes"]]
      marks = _Marks(after, color, marker, f"{label}, after")
      _draw(axes, sizes, marks, sideways=False)
      axes.plot(
        sizes,
        drawing.percents(before),
        color=color,
        marker=marker,
        markerfacecolor="none",
        linestyle="",
        label=f"{label}, before",
      )
      fit = part["fits"][role]
      slope = fit["slope_per_doubling"]["estimate"]
      axes.plot(
        line,
        drawing.percents(fit["intercept"] + slope * np.log2(line)),
        color=color,
        linestyle=dash,
        linewidth=1.3,
      )
    drawing.percent_axis(axes, "test accuracy, %")
    axes.set_xlabel("parameters of the student (logarithmic)")
    axes.set_xticks(sizes, [findings_text.size(n) for n in sizes])
    axes.xaxis.set_minor_locator(mpl_ticker.NullLocator())
    drawing.legend_below(figure, axes)
  return svg()


def starts(part: Json) -> str:
  """Draws accuracy before and after, from both starts."""
  rows = {
    f"{start}, {role.replace('_', ' ')}": row
    for start, by_role in part.items()
    for role, row in by_role.items()
  }
  description = "Test accuracy before and after, from two starts."
  with drawing.figure(1.2 + 0.45 * len(rows), description) as (figure, svg):
    axes = figure.add_subplot()
    _rows(axes, list(rows), _before_and_after(list(rows.values())))
    axes.set_ylabel("start")
    axes.set_xlabel("test accuracy, %")
  return svg()


def _curves(
  axes: mpl_axes.Axes, curves: Sequence[tuple], *, percent: bool = True
) -> None:
  """Draws the seeds of each curve as thin lines and their mean as a thick one.

  Accuracies are drawn in percent, losses are not.
  """
  for curve, label, color, marker, dash in curves:
    factor = 100.0 if percent else 1.0
    values = factor * np.array(curve["seeds"])
    for seed in values:
      axes.plot(
        curve["steps"], seed, color=color, linewidth=0.7, alpha=0.45, ls=dash
      )
    axes.plot(
      curve["steps"],
      values.mean(axis=0),
      color=color,
      linestyle=dash,
      marker=marker,
      label=label,
      linewidth=2.0,
    )


@dataclasses.dataclass(frozen=True)
class _Marks:
  """Estimates and their style."""

  parts: Sequence[Json]
  color: str
  marker: str
  label: str


def _draw(
  axes: mpl_axes.Axes,
  places: Sequence[float] | np.ndarray,
  marks: _Marks,
  *,
  sideways: bool,
) -> None:
  """Draws estimates as marks with whiskers, by row or over `places`."""
  estimates = drawing.percents([part["estimate"] for part in marks.parts])
  errors = drawing.percents(_errors(marks.parts))
  x, y = (estimates, places) if sideways else (places, estimates)
  axes.errorbar(
    x,
    y,
    xerr=errors if sideways else None,
    yerr=None if sideways else errors,
    color=marks.color,
    marker=marks.marker,
    linestyle="",
    capsize=2,
    elinewidth=1.2,
    label=marks.label,
  )
  if sideways:
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _before_and_after(rows: Sequence[Json]) -> list[_Marks]:
  return [
    _Marks([row["before"] for row in rows], drawing.GREY, "o", "before"),
    _Marks([row["after"] for row in rows], drawing.BLUE, "s", "after"),
  ]


def _rows(
  axes: mpl_axes.Axes, names: Sequence[str], pair: Sequence[_Marks]
) -> None:
  """Draws two accuracies in each named row, from top to bottom."""
  places = np.arange(len(names))
  for marks, shift in zip(pair, (-0.13, 0.13), strict=True):
    _draw(axes, places + shift, marks, sideways=True)
  axes.set_yticks(places, names)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.set_xlim(-2, 102)
  axes.legend(
    loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2
  )


def _errors(parts: Sequence[Json]) -> np.ndarray:
  """Returns the distances to lower and upper bounds, [2, rows]."""
  errors = [
    (p["estimate"] - p["low"], p["high"] - p["estimate"]) for p in parts
  ]
  return np.clip(np.array(errors).T, 0.0, None)


def _legend_above(axes: mpl_axes.Axes, columns: int) -> None:
  axes.legend(
    loc="lower left",
    bbox_to_anchor=(0.0, 1.0),
    ncols=columns,
    borderaxespad=0.2,
  )
