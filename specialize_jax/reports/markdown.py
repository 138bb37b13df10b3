"""The report as Markdown, its figures as files beside it."""

import pathlib
from collections.abc import Mapping

from specialize_jax.files import writing
from specialize_jax.reports import blocks, drawing, sections
from specialize_jax.reports import results as results_lib


def write(results: results_lib.Results, path: str | pathlib.Path) -> None:
  """Writes the report, and its figures as PNG and SVG.

  Args:
    results: a loaded results directory.
    path: of the report; figures go to `NAME_figures/` beside `NAME.md`.
  """
  path = pathlib.Path(path)
  made = sections.build(results)
  folder = path.with_name(f"{path.stem}_figures")
  write_figures(blocks.figures(made), folder)
  parts = ["# Specialization report"]
  lead = sections.lead(results)
  if lead:
    parts.append(blocks.to_markdown(blocks.Text(lead)))
  for section in made:
    parts.append(f"## {section.title}")
    parts += [
      blocks.to_markdown(block, f"{folder.name}/{{name}}.png")
      for block in section.blocks
    ]
  parts.append(f"*{sections.footer(results)}*")
  writing.write_text(path, "\n\n".join(parts) + "\n")


def write_figures(
  drawn: Mapping[str, drawing.Drawing], folder: str | pathlib.Path
) -> None:
  """Writes each figure as `NAME.svg` and `NAME.png`."""
  folder = pathlib.Path(folder)
  for name, one in drawn.items():
    writing.write_text(folder / f"{name}.svg", one.svg())
    writing.write_bytes(folder / f"{name}.png", one.png())
