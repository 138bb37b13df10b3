"""Writes a report as Markdown, with figures as files."""

import os
import urllib.parse
from collections.abc import Mapping

from etils import epath

from specialize_jax.files import writing
from specialize_jax.reports import blocks, drawing


def write(report: blocks.Document, path: str | os.PathLike[str]) -> None:
  """Writes a report, and its figures as PNG and SVG.

  Args:
    report: the report.
    path: the output, `NAME.md`; figures are written to `NAME_figures/`.
  """
  path = epath.Path(path)
  folder = path.with_name(f"{path.stem}_figures")
  write_figures(blocks.figures(report.sections), folder)
  link = urllib.parse.quote(folder.name)
  writing.write_text(path, render(report, f"{link}/{{name}}.png"))


def render(report: blocks.Document, figure_path: str) -> str:
  """Renders a report as Markdown.

  Args:
    report: the report.
    figure_path: the path of a figure, with `{name}` for its name.
  """
  parts = [f"# {blocks.plain(report.title)}"]
  if report.lead:
    parts.append(blocks.to_markdown(blocks.Text(report.lead)))
  for section in report.sections:
    parts.append(f"## {blocks.plain(section.title)}")
    parts += [blocks.to_markdown(b, figure_path) for b in section.blocks]
  parts.append(f"*{blocks.to_markdown(blocks.Text(report.footer))}*")
  return "\n\n".join(parts) + "\n"


def write_figures(
  drawn: Mapping[str, drawing.Drawing], folder: str | os.PathLike[str]
) -> None:
  """Writes each figure to `NAME.svg` and `NAME.png`."""
  folder = epath.Path(folder)
  for name, one in drawn.items():
    writing.write_text(folder / f"{name}.svg", one.svg())
    writing.write_bytes(folder / f"{name}.png", one.png())
