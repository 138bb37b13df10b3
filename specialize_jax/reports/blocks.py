"""The building blocks of a report, rendered as HTML or Markdown.

Blocks are independent of files; `page` and `markdown` render a `Document`.
"""

import dataclasses
import html
from collections.abc import Sequence

from specialize_jax.files import writing
from specialize_jax.reports import drawing


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph of plain text."""

  text: str


@dataclasses.dataclass(frozen=True)
class Heading:
  """A heading below a section's title."""

  text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """A figure with its caption.

  Attributes:
    name: short name, also of the figure's file if there is one.
    drawn: the drawing.
    caption: plain text.
  """

  name: str
  drawn: drawing.Drawing
  caption: str


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table.

  Attributes:
    text: plain text.
    small: additional text in small print, such as an interval.
    sign: "up" or "down" for a significant difference, otherwise "".
  """

  text: str
  small: str = ""
  sign: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table.

  Attributes:
    cells: one per column, or a single one if `kind` is "role".
    kind: "role" for a heading of the rows below, "mean" for a mean of the rows
      above, otherwise "".
  """

  cells: Sequence[Cell | str]
  kind: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table.

  Attributes:
    head: the names of the columns.
    rows: the rows, in order.
    num_text_columns: number of leading columns with text rather than numbers.
    is_narrow: whether to put small print on a line of its own.
  """

  head: Sequence[str]
  rows: Sequence[Row]
  num_text_columns: int = 1
  is_narrow: bool = False


@dataclasses.dataclass(frozen=True)
class Absent:
  """Reports that a file is missing, and what therefore cannot be shown.

  Attributes:
    files: the missing files.
    what: what cannot be shown, after "there are".
    commands: the commands that make it, in order.
  """

  files: str
  what: str
  commands: Sequence[str] = ()

  @property
  def text(self) -> str:
    """The sentence."""
    text = (
      f"This directory has no {self.files}, so there are {self.what} to show."
    )
    return f"{text} To make it, run:" if self.commands else text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Markup:
  """Content with separate HTML and Markdown."""

  html: str
  markdown: str


Block = Text | Heading | Figure | Table | Absent | Markup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """A part of the report under one title.

  Attributes:
    name: one word, the anchor of the section.
    title: the title.
    blocks: the blocks, in order.
  """

  name: str
  title: str
  blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
  """A whole report, to be rendered by `page` or `markdown`.

  Attributes:
    title: its heading.
    lead: the result in a sentence or two, plain text; may be empty.
    sections: in the order of reading.
    footer: how it was made, plain text.
    cards: HTML of the page's headline numbers; Markdown has none.
  """

  title: str
  lead: str
  sections: Sequence[Section]
  footer: str
  cards: str = ""


def figures(sections: Sequence[Section]) -> dict[str, drawing.Drawing]:
  """Returns all figures by name."""
  return {
    block.name: block.drawn
    for section in sections
    for block in section.blocks
    if isinstance(block, Figure)
  }


def to_html(block: Block) -> str:
  """Renders a block as HTML, styled by `stylesheet.CSS`."""
  match block:
    case Text(text):
      return f"<p>{html.escape(text)}</p>"
    case Heading(text):
      return f"<h3>{html.escape(text)}</h3>"
    case Figure():
      caption = html.escape(block.caption)
      return f"<figure>{block.drawn}<figcaption>{caption}</figcaption></figure>"
    case Table():
      return _html_table(block)
    case Absent():
      commands = html.escape("\n".join(block.commands))
      shown = f'<pre class="commands">{commands}</pre>' if commands else ""
      return f'<p class="absent">{html.escape(block.text)}</p>{shown}'
    case Markup():
      return block.html


def to_markdown(block: Block, figure_path: str = "{name}") -> str:
  """Renders a block as Markdown.

  Args:
    block: the block.
    figure_path: the path of a figure, with `{name}` for its name.
  """
  match block:
    case Text(text):
      return plain(text)
    case Heading(text):
      return f"### {plain(text)}"
    case Figure():
      path = figure_path.replace("{name}", block.name)
      caption = plain(block.caption)
      return f"![{plain(block.drawn.description)}]({path})\n\n*{caption}*"
    case Table():
      return _markdown_table(block)
    case Absent():
      text = f"*{plain(block.text)}*"
      if not block.commands:
        return text
      commands = "\n".join(block.commands)
      return f"{text}\n\n{code(commands)}"
    case Markup():
      return block.markdown


def _html_table(table: Table) -> str:
  head = "".join(
    f"<th{_text_class(n, table)}>{html.escape(name)}</th>"
    for n, name in enumerate(table.head)
  )
  rows = "".join(_html_row(row, table) for row in table.rows)
  style = ' class="narrow"' if table.is_narrow else ""
  return (
    f'<div class="scroll"><table{style}><thead><tr>{head}</tr></thead>'
    f"<tbody>{rows}</tbody></table></div>"
  )


def _html_row(row: Row, table: Table) -> str:
  if row.kind == "role":
    text = html.escape(_cell(row.cells[0]).text)
    return f'<tr class="role"><td colspan="{len(table.head)}">{text}</td></tr>'
  cells = []
  for n, given in enumerate(row.cells):
    cell = _cell(given)
    small = f" <small>{html.escape(cell.small)}</small>" if cell.small else ""
    style = f' class="{cell.sign}"' if cell.sign else _text_class(n, table)
    cells.append(f"<td{style}>{html.escape(cell.text)}{small}</td>")
  style = f' class="{row.kind}"' if row.kind else ""
  return f"<tr{style}>{''.join(cells)}</tr>"


def _text_class(column: int, table: Table) -> str:
  return ' class="text"' if 0 < column < table.num_text_columns else ""


def _markdown_table(table: Table) -> str:
  marks = [
    "---" if n < table.num_text_columns else "---:"
    for n in range(len(table.head))
  ]
  lines = [_markdown_line(table.head), _markdown_line(marks)]
  for row in table.rows:
    cells = [_cell(cell) for cell in row.cells]
    if row.kind == "role":
      blank = [""] * (len(table.head) - 1)
      lines.append(_markdown_line([f"**{plain(cells[0].text)}**", *blank]))
      continue
    texts = [
      plain(c.text) + (f" ({plain(c.small)})" if c.small else "") for c in cells
    ]
    if row.kind == "mean":
      texts[0] = f"*{texts[0]}*"
    lines.append(_markdown_line(texts))
  return "\n".join(lines)


def _markdown_line(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"


def _cell(cell: Cell | str) -> Cell:
  return Cell(cell) if isinstance(cell, str) else cell


def plain(text: str) -> str:
  """Escapes Markdown and HTML syntax, and control characters, in a text."""
  text = writing.visible(" ".join(text.split()))
  for sign in "\\`*_<|#[":
    text = text.replace(sign, f"\\{sign}")
  return text


def code(text: str) -> str:
  """Renders a text as a Markdown code block, control characters escaped."""
  text = writing.visible(text)
  fence = "```"
  while fence in text:
    fence += "`"
  return f"{fence}\n{text}\n{fence}"
