"""Renders a plan as a table and as a bar chart."""

import io
import os
from collections.abc import Mapping, Sequence

from etils import epath
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from rich import console as rich_console
from rich import table as rich_table

from specialize_jax import errors
from specialize_jax.files import writing
from specialize_jax.reports import drawing

Row = Mapping[str, object]
"""A row of `specialize plan --output`."""

FIGURE_KINDS = (".png", ".svg")
_MEMORY = (
  ("parameters_gib", "parameters", drawing.BLUE, ""),
  ("optimizer_gib", "optimizer", drawing.SKY, "//"),
  ("activations_gib", "gradients, activations, batch", drawing.GREEN, ".."),
)
_TIMES = (
  ("compute_seconds", "arithmetic", drawing.ORANGE, ""),
  ("memory_seconds", "memory", drawing.PURPLE, "//"),
  ("interconnect_seconds", "interconnect", drawing.VERMILION, ".."),
)
_PART_STYLES = tuple(
  (color, hatch)
  for hatch in ("", "//")
  for color in (
    drawing.BLUE,
    drawing.ORANGE,
    drawing.GREEN,
    drawing.PURPLE,
    drawing.SKY,
    drawing.VERMILION,
  )
)
_SHORT = {
  "all-gather": "gather",
  "all-reduce": "reduce",
  "reduce-scatter": "scatter",
  "all-to-all": "all-to-all",
  "collective-permute": "permute",
}


def terminal(rows: Sequence[Row], title: str, width: int | None = None) -> str:
  """Renders the table for a terminal.

  Args:
    rows: the rows of `plan.plan`, in their order.
    title: the title of the table.
    width: the width in characters; None for the default.

  Returns:
    The table, followed by advice and bytes sent for each mesh.
  """
  table = rich_table.Table(
    title=title, title_justify="left", header_style="bold", box=None
  )
  steps = {row["step"] for row in rows}
  if len(steps) > 1:
    table.add_column("step", no_wrap=True)
  table.add_column("mesh", no_wrap=True)
  for heading in (
    "params", "optim.", "rest", "peak", "of GiB", "TFLOP", "HBM GB", "sent GB",
    "step s", "bound by", "MFU", "ex/s", "hours", "compile s",
  ):  # fmt: skip
    table.add_column(heading, justify="right", no_wrap=True)
  for row in rows:
    cells = [row["mesh"], *_cells(row)]
    table.add_row(*([row["step"]] if len(steps) > 1 else []), *cells)
  lines = io.StringIO()
  console = rich_console.Console(
    file=lines, width=width or _WIDTH, highlight=False
  )
  console.print(table)
  for row in rows:
    if row["advice"]:
      console.print(f"{row['mesh']}: {row['advice']}", soft_wrap=True)
    sent = row["interconnect_bytes_by_kind"]
    if sent and any(sent.values()):
      parts = ", ".join(
        f"{_SHORT[kind]} {amount / 1e9:.2f}"
        for kind, amount in sent.items()
        if amount
      )
      console.print(f"{row['mesh']}: GB sent by kind: {parts}", soft_wrap=True)
  return lines.getvalue().rstrip("\n")


_WIDTH = 140


def breakdown(rows: Sequence[Row], width: int | None = None) -> str:
  """Renders what each part of the network costs, a table for each mesh.

  Args:
    rows: the rows of a plan with a breakdown; those that do not fit have none.
    width: the width of the terminal, in columns.
  """
  lines = io.StringIO()
  console = rich_console.Console(
    file=lines, width=width or _WIDTH, highlight=False
  )
  for row in rows:
    if not row.get("breakdown"):
      continue
    costs = row["breakdown"]
    passes = list(dict.fromkeys(cost["pass"] for cost in costs))
    table = rich_table.Table(
      title=f"{row['step']} {row['mesh']}: HBM GB a chip, by part",
      title_justify="left",
      header_style="bold",
      box=None,
    )
    table.add_column("part", no_wrap=True)
    for heading in (*passes, "all", "share", "TFLOP", "sent GB"):
      table.add_column(heading, justify="right", no_wrap=True)
    for part in dict.fromkeys(cost["part"] for cost in costs):
      of_part = [cost for cost in costs if cost["part"] == part]
      table.add_row(part, *_breakdown_cells(of_part, passes, row["hbm_bytes"]))
    table.add_row("all", *_breakdown_cells(costs, passes, row["hbm_bytes"]))
    console.print(table)
  return lines.getvalue().rstrip("\n")


def _breakdown_cells(
  costs: Sequence[Row], passes: Sequence[str], hbm_bytes: float
) -> list[str]:
  total = sum(cost["hbm_bytes"] for cost in costs)
  return [
    *(
      _number(
        sum(cost["hbm_bytes"] for cost in costs if cost["pass"] == one), 2, 1e9
      )
      for one in passes
    ),
    _number(total, 2, 1e9),
    "-" if not hbm_bytes else f"{total / hbm_bytes:.0%}",
    _number(sum(cost["flops"] for cost in costs), 2, 1e12),
    _number(sum(cost["interconnect_bytes"] for cost in costs), 2, 1e9),
  ]


def write_figure(
  path: str | os.PathLike[str], rows: Sequence[Row], title: str
) -> None:
  """Draws memory and time of each mesh to a PNG or SVG file.

  Args:
    path: the file, whose suffix is .png or .svg.
    rows: the rows of `plan.plan`.
    title: the title of the figure.

  Raises:
    UserError: the suffix is neither .png nor .svg.
  """
  path = epath.Path(path)
  if path.suffix not in FIGURE_KINDS:
    raise errors.UserError(
      f"--figure={path}: expected a name that ends in .png or .svg."
    )
  with drawing.styled(2.2 + 0.62 * len(rows)) as figure:
    _draw(figure, rows, title)
    buffer = io.BytesIO()
    figure.savefig(
      buffer, format=path.suffix[1:], dpi=150, metadata=_metadata(path.suffix)
    )
  writing.write_bytes(path, buffer.getvalue())


def _metadata(suffix: str) -> Mapping[str, str | None]:
  """Returns metadata without a date, so that files are reproducible."""
  return {"Date": None} if suffix == ".svg" else {"Software": None}


def _cells(row: Row) -> list[str]:
  memory = [
    _number(row[name], 2)
    for name in ("parameters_gib", "optimizer_gib", "activations_gib")
  ]
  peak = _number(row["hbm_gib"], 2)
  if not row["fits"]:
    peak = f"over {peak}"
  return [
    *memory,
    peak,
    _number(row["hbm_limit_gib"], 2),
    _number(row["flops"], 2, 1e12),
    _number(row["hbm_bytes"], 1, 1e9),
    _number(row["interconnect_bytes"], 2, 1e9),
    _number(row["step_seconds"], 4),
    row["bound_by"] or "-",
    "-" if row["mfu"] is None else f"{row['mfu']:.0%}",
    _number(row["examples_per_second"], 0),
    _number(row["hours"], 2),
    _number(row["compile_seconds"], 0),
  ]


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
  return "-" if value is None else f"{value / unit:,.{digits}f}"


def _draw(figure: mpl_figure.Figure, rows: Sequence[Row], title: str) -> None:
  figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=drawing.INK)
  broken_down = any(row.get("breakdown") for row in rows)
  memory, time, *parts = figure.subplots(1, 2 + broken_down, sharey=True)
  places = range(len(rows))
  names = [_name(row, rows) for row in rows]
  _bars_of_memory(memory, rows)
  _bars_of_time(time, rows)
  if broken_down:
    _bars_of_parts(parts[0], rows)
  memory.set_yticks(places, names)
  memory.invert_yaxis()
  for axes in (memory, time, *parts):
    axes.grid(visible=False, axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.5 / len(rows) - 0.08))
  memory.set_xlabel("GiB per chip")
  memory.set_title("Memory")
  time.set_xlabel("seconds per step, each at full utilization")
  time.set_title("Time: the longest bar bounds the step")


def _bars_of_parts(axes: mpl_axes.Axes, rows: Sequence[Row]) -> None:
  """Draws the HBM traffic of each part as one stacked bar a mesh."""
  parts = list(
    dict.fromkeys(
      cost["part"] for row in rows for cost in row.get("breakdown") or ()
    )
  )
  left = [0.0] * len(rows)
  for number, part in enumerate(parts):
    color, hatch = _PART_STYLES[number % len(_PART_STYLES)]
    sizes = [
      sum(
        cost["hbm_bytes"] / 1e9
        for cost in row.get("breakdown") or ()
        if cost["part"] == part
      )
      for row in rows
    ]
    axes.barh(
      range(len(rows)), sizes, left=left, height=0.6, label=part, color=color,
      hatch=hatch, edgecolor="white",
    )  # fmt: skip
    left = [start + size for start, size in zip(left, sizes, strict=True)]
  axes.set_xlabel("GB of HBM traffic per chip")
  axes.set_title("Traffic by part of the network")


def _name(row: Row, rows: Sequence[Row]) -> str:
  if len({other["step"] for other in rows}) == 1:
    return row["mesh"]
  return f"{row['step']} {row['mesh']}"


def _bars_of_memory(axes: mpl_axes.Axes, rows: Sequence[Row]) -> None:
  """Draws stacked bars of memory, and the limit as a line."""
  left = [0.0] * len(rows)
  for field, label, color, hatch in _MEMORY:
    sizes = [row[field] or 0.0 for row in rows]
    axes.barh(
      range(len(rows)), sizes, left=left, height=0.6, label=label, color=color,
      hatch=hatch, edgecolor="white",
    )  # fmt: skip
    left = [start + size for start, size in zip(left, sizes, strict=True)]
  for place, row in enumerate(rows):
    over = "" if row["fits"] else ", too much"
    axes.text(
      left[place], place, f" {row['hbm_gib']:.1f}{over}", va="center",
      fontsize=9, color=drawing.INK if row["fits"] else drawing.VERMILION,
    )  # fmt: skip
  limit = max(row["hbm_limit_gib"] for row in rows)
  axes.axvline(
    limit, color=drawing.INK, linestyle="--", linewidth=1.2,
    label=f"a chip has {limit:.2f} GiB",
  )  # fmt: skip
  axes.set_xlim(0, 1.25 * max(limit, *left))


def _bars_of_time(axes: mpl_axes.Axes, rows: Sequence[Row]) -> None:
  """Draws three bars for each mesh, labeling the longest with the bound."""
  longest = 0.0
  for number, (field, label, color, hatch) in enumerate(_TIMES):
    seconds = [row[field] or 0.0 for row in rows]
    longest = max(longest, *seconds)
    places = [place + 0.22 * (number - 1) for place in range(len(rows))]
    axes.barh(
      places, seconds, height=0.2, label=label, color=color, hatch=hatch,
      edgecolor="white",
    )  # fmt: skip
    for row, place, length in zip(rows, places, seconds, strict=True):
      if row["step_seconds"] and length == row["step_seconds"]:
        axes.text(
          length, place, f" {length:.3f} s, MFU {row['mfu']:.0%}",
          va="center", fontsize=9, color=drawing.INK,
        )  # fmt: skip
  for place, row in enumerate(rows):
    if not row["fits"]:
      axes.text(
        0, place, " does not fit", va="center", fontsize=9,
        color=drawing.VERMILION,
      )  # fmt: skip
  axes.set_xlim(0, 1.45 * (longest or 1.0))
