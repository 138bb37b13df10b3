"""The style of all figures: palette, axes, labels and output.

The colors are those of Okabe and Ito, which are distinguishable with all kinds
of color vision. Markers, dashes and hatches are redundant with color, so that
figures are legible in grayscale.
"""

import contextlib
import functools
import hashlib
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import font_manager
from matplotlib import text as mpl_text
from matplotlib import ticker as mpl_ticker

# Okabe and Ito (2008), "Color universal design".
BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
# Neutral colors of the page.
INK = "#2B3440"
GREY = "#5F6B7A"
PALE = "#C3CAD3"
LINE = "#E4E8ED"

_FONT = "DejaVu Sans"  # which comes with matplotlib
# Fonts for Chinese, Japanese and Korean, on Linux, macOS and Windows.
_OTHER_SCRIPTS = (
  "Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans KR",
  "NanumGothic", "Apple SD Gothic Neo", "PingFang SC", "Hiragino Sans",
  "Malgun Gothic", "Microsoft YaHei", "Yu Gothic", "Arial Unicode MS",
  "Droid Sans Fallback", "WenQuanYi Zen Hei",
)  # fmt: skip

_STYLE = {
  "text.parse_math": False,  # a name may hold a dollar
  "font.family": "sans-serif",
  "font.size": 10,
  "axes.titlesize": 11,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.titlepad": 10,
  "axes.labelsize": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": GREY,
  "axes.labelcolor": INK,
  "axes.titlecolor": INK,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": LINE,
  "grid.linewidth": 0.8,
  "xtick.color": GREY,
  "ytick.color": GREY,
  "legend.frameon": False,
  "legend.fontsize": 9,
  "lines.linewidth": 1.8,
  "lines.markersize": 5,
  "hatch.linewidth": 0.8,
  "svg.fonttype": "path",
  "svg.hashsalt": "specialize",  # makes files reproducible
  "figure.constrained_layout.use": True,
}
_WIDTH_INCHES = 9.6


@contextlib.contextmanager
def styled(height: float) -> Iterator[mpl_figure.Figure]:
  """Opens a figure in the report's style, as wide as the page.

  Args:
    height: height in inches.

  Yields:
    The figure; save it within the block.
  """
  with _style():
    yield mpl_figure.Figure(figsize=(_WIDTH_INCHES, height))


@contextlib.contextmanager
def _style() -> Iterator[None]:
  """The style; a character without a glyph is a box, and no warning."""
  with mpl.rc_context(), warnings.catch_warnings():
    mpl.rcdefaults()  # whatever `matplotlibrc` the working directory has
    mpl.rcParams.update(_STYLE)
    mpl.rcParams["font.sans-serif"] = _fonts()
    mpl.rcParams["font.monospace"] = ["DejaVu Sans Mono", *_fonts()]
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    yield


class Drawing(str):
  """A figure as inline SVG text, which can be exported as SVG and PNG files.

  Attributes:
    description: alternative text.
  """

  description: str

  def __new__(
    cls, svg: str, made: mpl_figure.Figure, description: str
  ) -> "Drawing":
    """Creates the text; keeps the figure for `png`."""
    drawn = super().__new__(cls, svg)
    drawn._made = made
    drawn.description = description
    return drawn

  def png(self, *, dots_per_inch: int = 150) -> bytes:
    """Returns the content of a PNG file, with a white background."""
    buffer = io.BytesIO()
    with _style():
      # Without date and version, so that files are reproducible.
      self._made.savefig(
        buffer, format="png", dpi=dots_per_inch, metadata={"Software": None}
      )
    return buffer.getvalue()

  def svg(self) -> str:
    """Returns the content of an SVG file."""
    return f'<?xml version="1.0" encoding="utf-8"?>\n{self}'


@contextlib.contextmanager
def figure(
  height: float, description: str
) -> Iterator[tuple[mpl_figure.Figure, Callable[[], Drawing]]]:
  """Opens a figure in the report's style.

  Args:
    height: height in inches; the width is that of the page.
    description: alternative text.

  Yields:
    The figure, and a function that returns the drawing; call it after the
    block.
  """
  drawn = {}
  with styled(height) as made:
    yield made, lambda: drawn["svg"]
    buffer = io.StringIO()
    if not _has_all_glyphs(made):
      # Text is saved as text, which a browser draws in a font that it has.
      mpl.rcParams["svg.fonttype"] = "none"
    made.savefig(
      buffer, format="svg", metadata={"Date": None}, transparent=True
    )
  svg = _inline(buffer.getvalue(), description)
  drawn["svg"] = Drawing(svg, made, description)


def _has_all_glyphs(made: mpl_figure.Figure) -> bool:
  """Whether the font that we draw with has every character of a figure."""
  known = _characters()
  return all(
    ord(character) in known or character.isspace()
    for text in made.findobj(mpl_text.Text)
    for character in text.get_text()
  )


@functools.cache
def _characters() -> frozenset[int]:
  path = font_manager.findfont(_FONT)
  return frozenset(font_manager.get_font(path).get_charmap())


@functools.cache
def _fonts() -> list[str]:
  """Returns our font and the installed ones for glyphs that it lacks."""
  installed = set(font_manager.get_font_names())
  return [_FONT, *(name for name in _OTHER_SCRIPTS if name in installed)]


def percents(values: Sequence[float]) -> np.ndarray:
  """Converts fractions to percentages."""
  return 100.0 * np.asarray(values)


def step_axis(axes: mpl_axes.Axes, label: str) -> None:
  """Labels the x axis, with few integer ticks."""
  axes.set_xlabel(label)
  axes.xaxis.set_major_locator(
    mpl_ticker.MaxNLocator(7, integer=True, min_n_ticks=2)
  )
  axes.xaxis.set_major_formatter(mpl_ticker.StrMethodFormatter("{x:,.0f}"))


def percent_axis(axes: mpl_axes.Axes, label: str) -> None:
  """Labels the y axis and starts it at zero."""
  axes.set_ylabel(label)
  axes.set_ylim(bottom=0.0, top=min(105.0, max(1.08 * axes.get_ylim()[1], 10)))


def name_ends(
  axes: mpl_axes.Axes, ends: Sequence[tuple[float, float, str, str]]
) -> None:
  """Writes the name of each curve next to its end, without overlap.

  Args:
    axes: the axes, with y limits set.
    ends: x, y, name and color of the last point of each curve.
  """
  low, high = axes.get_ylim()
  gap = 0.075 * (high - low)
  ordered = sorted(ends, key=lambda end: end[1])
  heights = spaced([end[1] for end in ordered], gap)
  for (x, y, name, color), height in zip(ordered, heights, strict=True):
    axes.annotate(
      name,
      (x, y),
      xytext=(1.015, height),
      textcoords=axes.get_yaxis_transform(),
      va="center",
      color=color,
      fontsize=9.5,
      fontweight="bold",
      annotation_clip=False,
    )


def spaced(values: Sequence[float], gap: float) -> list[float]:
  """Moves ascending values apart until each is `gap` above the previous.

  The mean of each cluster is preserved. Example: [0.55, 1.55, 9] for
  [1, 1.1, 9] and a gap of 1.
  """
  groups: list[list[float]] = []  # clusters of values to be spaced evenly
  for value in values:
    groups.append([value])
    while len(groups) > 1:
      low, high = groups[-2], groups[-1]
      if _spread(high, gap)[0] - _spread(low, gap)[-1] >= gap:
        break
      groups[-2:] = [low + high]
  return [height for group in groups for height in _spread(group, gap)]


def smooth(values: Sequence[float]) -> np.ndarray:
  """Computes a centered moving average over a thirtieth of the curve."""
  values = np.asarray(values, np.float64)
  if not len(values):
    return values
  # Each window by itself: in differences of one running sum a single huge value
  # leaves nothing of those after it. A step without a number is left out.
  is_known = np.isfinite(values)
  window = np.ones(2 * (len(values) // 60) + 1)
  total = np.convolve(np.where(is_known, values, 0.0), window, "same")
  number = np.convolve(is_known, window, "same")
  return np.where(number, total / np.maximum(number, 1), np.nan)


def legend_below(made: mpl_figure.Figure, axes: mpl_axes.Axes) -> None:
  """Places the legend below the figure."""
  handles, labels = axes.get_legend_handles_labels()
  made.legend(
    handles, labels, loc="outside lower center", ncols=min(len(labels), 5)
  )


def _spread(group: Sequence[float], gap: float) -> list[float]:
  """Spaces the values of a cluster evenly, `gap` apart, around their mean."""
  middle = sum(group) / len(group)
  first = middle - gap * (len(group) - 1) / 2
  return [first + gap * place for place in range(len(group))]


def _inline(svg: str, description: str) -> str:
  """Converts an SVG file to inline SVG that scales with the page."""
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
  # The ids of two figures of a page must not collide.
  salt = hashlib.sha256(svg.encode()).hexdigest()[:8]
  svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>f{salt}-", svg)
  label = html.escape(description, quote=True)
  return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
