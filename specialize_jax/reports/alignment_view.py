"""Visualizes one aligned sample: the student's targets, and their origin.

An example is `{"teacher_tokens": [text, ...], "student_pieces": [piece, ...],
"groups": [[[teacher index, ...], [student index, ...]], ...], "targets":
[[[piece, probability], ...], ...], "mask": [0 | 1, ...]}`. A group aligns
teacher tokens with the student pieces that spell the same text; targets and
mask have one entry per student piece.
"""

import html
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colors as mpl_colors
from matplotlib import patches as mpl_patches

from specialize_jax.reports import blocks, drawing

# A single hue, darker for higher probabilities, which is legible in grayscale.
_COLORS = mpl_colors.LinearSegmentedColormap.from_list(
  "teacher", ["#F1F6FA", drawing.SKY, drawing.BLUE]
)
_ONE_HOT_COLOR = drawing.ORANGE
_NO_TOKEN = "∅"  # of a piece that no token of the teacher belongs to
_MAX_PIECES = 44
NUM_ALTERNATIVES = 3

Example = Mapping[str, Sequence[object]]


def heat_map(example: Example) -> drawing.Drawing:
  """Draws a heat map of teacher tokens against student pieces.

  The color of a cell is the target probability of the sampled piece; the cells
  of a group share a frame. Samples are truncated to 44 pieces.

  Args:
    example: see the module docstring.

  Returns:
    The figure.
  """
  num_pieces, num_tokens, groups = _visible(example)
  height = min(9.6, 2.0 + 0.19 * num_pieces)
  with drawing.figure(
    height, "Heat map of teacher tokens against student pieces."
  ) as (figure, svg):
    axes = figure.add_subplot()
    shades = np.full([num_pieces, num_tokens], np.nan)
    for tokens, pieces in groups:
      for piece in pieces:
        if example["mask"][piece]:
          shades[piece, tokens] = own_probability(example, piece)
      _frame(axes, example, tokens, pieces)
    image = axes.pcolormesh(
      np.arange(num_tokens + 1) - 0.5,
      np.arange(num_pieces + 1) - 0.5,
      np.ma.masked_invalid(shades),
      cmap=_COLORS,
      vmin=0.0,
      vmax=1.0,
      zorder=2,
    )
    axes.invert_yaxis()
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.025)
    bar.set_label("probability of the sampled piece", color=drawing.INK)
    bar.outline.set_visible(False)
    axes.set_xticks(
      range(num_tokens),
      [shown_token(t) for t in example["teacher_tokens"][:num_tokens]],
      rotation=90,
      fontsize=8,
      family="monospace",
    )
    axes.set_yticks(
      range(num_pieces),
      [str(p) for p in example["student_pieces"][:num_pieces]],
      fontsize=8,
      family="monospace",
    )
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
      tick.set_color(drawing.INK)
    axes.set_xlabel("teacher tokens (␣ is a space)")
    axes.set_ylabel("student pieces (▁ starts a word)")
    axes.grid(color=drawing.LINE, linewidth=0.4)
    handles = [
      mpl_patches.Patch(
        facecolor=_COLORS(0.9), label="the teacher's distribution"
      ),
      mpl_patches.Patch(
        facecolor=_ONE_HOT_COLOR, label="one-hot: no distribution fits"
      ),
    ]
    axes.legend(
      handles=handles, loc="upper right", frameon=True, edgecolor="none"
    )
  return svg()


def links(example: Example) -> blocks.Markup:
  """Renders the sample as groups in reading order, with alternatives.

  Each group shows the teacher's tokens above and the student's pieces below. A
  piece has the color of its probability, and below it the alternatives of its
  target.

  Args:
    example: see the module docstring.

  Returns:
    HTML, styled by `stylesheet.CSS`, and a Markdown table.
  """
  groups = _first_groups(example)
  parts, rows = [], []
  for tokens, pieces in groups:
    spellings = [shown_token(example["teacher_tokens"][t]) for t in tokens]
    above = "".join(
      f'<span class="token">{_text(spelling)}</span>'
      for spelling in spellings or [_NO_TOKEN]
    )
    below = "".join(_piece_html(example, piece) for piece in pieces)
    tokens_text = " ".join(spellings)
    rows += [_row(example, piece, tokens_text) for piece in pieces]
    parts.append(
      f'<div class="group"><div class="teacher">{above}</div>'
      f'<div class="student">{below}</div></div>'
    )
  num_hidden = len(example["student_pieces"]) - sum(len(p) for _, p in groups)
  if num_hidden > 0:
    parts.append(f'<div class="cut">… and {num_hidden} more pieces</div>')
  table = blocks.Table(
    head=("teacher's tokens", "student's piece", "it and the alternatives"),
    rows=rows,
    num_text_columns=3,
  )
  return blocks.Markup(
    html=f'<div class="links">{"".join(parts)}</div>',
    markdown=blocks.to_markdown(table),
  )


def _row(example: Example, piece: int, tokens: str) -> blocks.Row:
  """Returns the table row of a piece's target."""
  target = sorted(example["targets"][piece], key=lambda item: -item[1])
  candidates = ", ".join(f"{text} {p:.3f}" for text, p in target)
  label = (
    candidates if example["mask"][piece] else without_teacher(example, piece)
  )
  return blocks.Row([tokens, str(example["student_pieces"][piece]), label])


def without_teacher(example: Example, piece: int) -> str:
  """Returns the kind of target of a position of mask 0."""
  return "one-hot" if example["targets"][piece] else "masked"


def _first_groups(example: Example) -> list[tuple[list[int], list[int]]]:
  """Returns the tokens and pieces of the groups that are shown."""
  return [
    (list(tokens), list(pieces))
    for tokens, pieces in example["groups"]
    if pieces and max(pieces) < _MAX_PIECES
  ]


def _visible(
  example: Example,
) -> tuple[int, int, list[tuple[list[int], list[int]]]]:
  """Returns the numbers of pieces and tokens that are linked, and their groups.

  A piece that no token belongs to has no link to draw.
  """
  groups = [group for group in _first_groups(example) if group[0]]
  num_pieces = 1 + max((max(p) for _, p in groups), default=0)
  num_tokens = 1 + max((max(t) for t, _ in groups), default=0)
  return num_pieces, num_tokens, groups


def own_probability(example: Example, piece: int) -> float:
  """Returns the target probability of the sampled piece."""
  own = example["student_pieces"][piece]
  return sum(p for text, p in example["targets"][piece] if text == own)


def alternatives(example: Example, piece: int) -> list[tuple[str, float]]:
  """Returns the likeliest other pieces of a target, at most three."""
  own = example["student_pieces"][piece]
  others = [(text, p) for text, p in example["targets"][piece] if text != own]
  return sorted(others, key=lambda item: -item[1])[:NUM_ALTERNATIVES]


def _frame(
  axes: object,
  example: Example,
  tokens: Sequence[int],
  pieces: Sequence[int],
) -> None:
  """Frames the cells of a group, and fills them if the target is one-hot."""
  one_hot = not all(example["mask"][piece] for piece in pieces)
  axes.add_patch(
    mpl_patches.Rectangle(
      (min(tokens) - 0.5, min(pieces) - 0.5),
      max(tokens) - min(tokens) + 1,
      max(pieces) - min(pieces) + 1,
      facecolor=_ONE_HOT_COLOR if one_hot else "none",
      edgecolor=drawing.INK,
      linewidth=0.7,
      zorder=3,
    )
  )


def _piece_html(example: Example, piece: int) -> str:
  own = example["student_pieces"][piece]
  probability = own_probability(example, piece)
  one_hot = not example["mask"][piece]
  background = mpl_colors.to_hex(_COLORS(probability))
  ink = "#fff" if probability > 0.75 else drawing.INK
  if one_hot:
    background, ink = _ONE_HOT_COLOR, drawing.BLACK
  others = "".join(
    f"<li><b>{_text(text)}</b> {_share(p)}</li>"
    for text, p in alternatives(example, piece)
  )
  label = _share(probability)
  if one_hot:
    label = without_teacher(example, piece)
  return (
    '<div class="piece">'
    f'<span style="background:{background};color:{ink}">'
    f"{_text(own)}</span><small>{label}</small>"
    f"<ul>{others}</ul></div>"
  )


def _share(probability: float) -> str:
  if 0.0 < probability < 0.001:
    return "&lt;.001"
  return f"{probability:.3f}".removeprefix("0") if probability < 1 else "1.0"


def shown_token(token: object) -> str:
  """Returns a token with visible spaces and newlines."""
  return str(token).replace("\n", "↵").replace(" ", "␣")


def _text(text: str) -> str:
  return html.escape(text) or "&nbsp;"
