"""Renders a sample for `specialize inspect`, as text and as an HTML page.

An example is that of `alignment_view`. Parts are `(name, pieces, mask)`, a
feature of a task's example with its mask, if any.
"""

import html
from collections.abc import Sequence

from rich import cells

from specialize_jax.files import writing
from specialize_jax.reports import alignment_view, blocks
from specialize_jax.reports import page as page_lib

Part = tuple[str, Sequence[str], Sequence[int] | None]


def alignment_text(
  title: str, example: alignment_view.Example, width: int
) -> str:
  """Renders the groups of a sample as columns of text, wrapped to a width.

  A column has the teacher's tokens, the student's pieces, the target
  probabilities of these pieces, and the likeliest alternatives.

  Args:
    title: the title.
    example: see `alignment_view`.
    width: the width of the terminal, in characters.

  Returns:
    Lines of text.
  """
  lines, row, used = [title, ""], [], 0
  for tokens, pieces in example["groups"]:
    column = _column(example, tokens, pieces)
    size = max(map(cells.cell_len, column)) + 2
    if row and used + size > width:
      lines += _side_by_side(row)
      row, used = [], 0
    row.append(column)
    used += size
  return writing.visible("\n".join([*lines, *_side_by_side(row)]))


def _column(
  example: alignment_view.Example, tokens: Sequence[int], pieces: Sequence[int]
) -> list[str]:
  shown = (
    alignment_view.shown_token(example["teacher_tokens"][t]) for t in tokens
  )
  above = "·".join(shown) or "∅"
  below = " ".join(str(example["student_pieces"][p]) for p in pieces) or "∅"
  if len(tokens) == len(pieces) == 1:
    link = "│"
  else:
    link = f"{len(tokens)}:{len(pieces)}"
  lines = [above, link, below]
  for rank in range(-1, alignment_view.NUM_ALTERNATIVES):
    lines.append(" ".join(_cell(example, piece, rank) for piece in pieces))
  return lines


def _cell(example: alignment_view.Example, piece: int, rank: int) -> str:
  """Returns the probability of the piece (rank -1) or of an alternative."""
  if not example["mask"][piece]:
    return alignment_view.without_teacher(example, piece) if rank < 0 else ""
  if rank < 0:
    return f"{alignment_view.own_probability(example, piece):.3f}"
  others = alignment_view.alternatives(example, piece)
  if rank >= len(others):
    return ""
  text, probability = others[rank]
  return f"{alignment_view.shown_token(text)} {probability:.3f}"


def _side_by_side(columns: Sequence[Sequence[str]]) -> list[str]:
  # Characters of some scripts are two cells wide on a terminal.
  sizes = [max(map(cells.cell_len, column)) for column in columns]
  rows = zip(*columns, strict=True)
  lines = [
    "  ".join(
      cells.set_cell_size(cell, size)
      for cell, size in zip(row, sizes, strict=True)
    )
    for row in rows
  ]
  return [*(line.rstrip() for line in lines), ""]


def parts_text(title: str, parts: Sequence[Part]) -> str:
  """Renders the features of an example, with `|` between pieces."""
  lines = [title]
  for name, pieces, mask in parts:
    lines += ["", f"{name}, {len(pieces)} tokens{_taught(mask)}:"]
    lines.append("|".join(pieces))
  return writing.visible("\n".join([*lines, ""]))


def _taught(mask: Sequence[int] | None) -> str:
  if mask is None:
    return ""
  return f", {sum(mask)} of them with the teacher's distribution"


def alignment_section(
  title: str, example: alignment_view.Example
) -> blocks.Section:
  """Returns a section with a sample's groups and heat map."""
  return blocks.Section(
    name="alignment",
    title=title,
    blocks=[
      blocks.Text(
        "The teacher's tokens above; below, the student's pieces with their"
        " target probabilities and alternatives."
      ),
      alignment_view.links(example),
      blocks.Figure(
        name="alignment",
        drawn=alignment_view.heat_map(example),
        caption="Each frame aligns teacher tokens with the student pieces that"
        " spell the same text.",
      ),
    ],
  )


def text_section(title: str, text: str) -> blocks.Section:
  """Returns a section with lines of text."""
  return blocks.Section(
    name="dataset",
    title=title,
    blocks=[
      blocks.Markup(
        html=f"<pre>{html.escape(text)}</pre>", markdown=blocks.code(text)
      )
    ],
  )


def parts_section(title: str, parts: Sequence[Part]) -> blocks.Section:
  """Returns a section with the features of an example."""
  made: list[blocks.Block] = []
  for name, pieces, mask in parts:
    tokens = "".join(
      f'<span class="token">{html.escape(piece)}</span>' for piece in pieces
    )
    made += [
      blocks.Heading(f"{name}, {len(pieces)} tokens{_taught(mask)}"),
      blocks.Markup(
        html=f'<div class="links">{tokens}</div>',
        markdown=blocks.code("|".join(pieces)),
      ),
    ]
  return blocks.Section(name="example", title=title, blocks=made)


def page(sections: Sequence[blocks.Section]) -> str:
  """Renders sections as a self-contained HTML page."""
  return page_lib.render(
    blocks.Document(
      title="What the model will see",
      lead="",
      sections=sections,
      footer="Made by `specialize inspect`",
    )
  )
