"""The page as a browser shows it: every axis labeled, no text on another."""

import html
import json
import re
import shutil
import subprocess

import pytest

from specialize_jax.reports import page
from specialize_jax.reports import results as results_lib

# Texts and axes of every figure, measured where they are drawn. matplotlib
# names its groups: an axis that has ticks has its label as a child of its own.
_MEASURE = """
<script>
const figures = [...document.querySelectorAll("figure svg")].map(svg => {
  const box = element => {
    const r = element.getBoundingClientRect();
    return [r.left, r.top, r.right, r.bottom];
  };
  const named = (element, part) => [...element.querySelectorAll("g")].filter(
    g => new RegExp(`(^|-)${part}_?[0-9]+$`).test(g.id));
  const drawn = g => g.getBoundingClientRect().width > 0;
  const texts = named(svg, "text").filter(drawn);
  const axes = named(svg, "matplotlib\\\\.axis").map(axis => ({
    ticks: named(axis, "text").length,
    labels: [...axis.children].filter(
      g => /-text_[0-9]+$/.test(g.id) && drawn(g)).length,
  }));
  return {name: svg.getAttribute("aria-label"), box: box(svg),
          texts: texts.map(g => [g.id, box(g)]), axes: axes};
});
const lines = element => {
  const range = document.createRange();
  range.selectNodeContents(element);
  return new Set([...range.getClientRects()].map(r => Math.round(r.top))).size;
};
const speakers = [...document.querySelectorAll(".who")].map(
  element => [element.textContent, lines(element)]);
const out = document.createElement("pre");
out.id = "measured";
out.textContent = JSON.stringify({figures, speakers});
document.body.append(out);
</script></body>
"""


def _chromium(*flags):
  program = shutil.which("chromium") or shutil.which("chromium-browser")
  if program is None:
    pytest.skip("no chromium is installed")
  command = [program, "--headless", "--no-sandbox", "--disable-gpu", *flags]
  return subprocess.run(
    command, capture_output=True, text=True, timeout=300, check=True
  ).stdout


def _measured(text, path):
  path.write_text(text.replace("</body>", _MEASURE))
  dom = _chromium("--window-size=1100,3000", "--dump-dom", f"file://{path}")
  content = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)[1]
  return json.loads(html.unescape(content))


def _overlap(one, other):
  """Returns the overlap of two boxes in pixels, in the narrower dimension."""
  left, top = max(one[0], other[0]), max(one[1], other[1])
  right, bottom = min(one[2], other[2]), min(one[3], other[3])
  return min(right - left, bottom - top)


def faults(figures):
  """Returns the flaws of measured figures, in words."""
  found = []
  for figure in figures:
    for number, axis in enumerate(figure["axes"]):
      if axis["ticks"] and not axis["labels"]:
        found.append(f"{figure['name']} axis {number} has no label")
    texts = figure["texts"]
    for place, (name, box) in enumerate(texts):
      inside = _overlap(box, figure["box"])
      if inside < min(box[2] - box[0], box[3] - box[1]) - 1.5:
        found.append(f"{figure['name']} {name} is cut off")
      for other, other_box in texts[place + 1 :]:
        if _overlap(box, other_box) > 1.5:
          found.append(f"{figure['name']} {name} lies on {other}")
  return found


@pytest.mark.third_party
def test_every_figure_has_labeled_axes_and_no_text_on_another(
  results_dir, tmp_path
):
  text = page.render(page.document(results_lib.load(results_dir)))
  figures = _measured(text, tmp_path / "report.html")["figures"]
  assert len(figures) == 8
  assert all(figure["texts"] and figure["axes"] for figure in figures)
  assert faults(figures) == []


@pytest.mark.third_party
def test_who_speaks_is_named_on_one_line(results_dir, tmp_path):
  text = page.render(page.document(results_lib.load(results_dir)))
  speakers = _measured(text, tmp_path / "report.html")["speakers"]
  assert {name for name, _ in speakers} >= {"teacher", "before", "student"}
  assert {lines for _, lines in speakers} == {1}


@pytest.mark.third_party
def test_the_page_prints(results_dir, tmp_path):
  source = tmp_path / "report.html"
  source.write_text(page.render(page.document(results_lib.load(results_dir))))
  printed = tmp_path / "report.pdf"
  _chromium(f"--print-to-pdf={printed}", f"file://{source}")
  content = printed.read_bytes()
  assert content.startswith(b"%PDF")
  assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20


def test_what_is_wrong_is_found():
  box = [0, 0, 100, 100]
  good = {
    "name": "a",
    "box": box,
    "texts": [["t1", [0, 0, 10, 10]], ["t2", [20, 0, 30, 10]]],
    "axes": [{"ticks": 1, "labels": 1}, {"ticks": 0, "labels": 0}],
  }
  assert faults([good]) == []
  for change, fault in (
    ({"axes": [{"ticks": 2, "labels": 0}]}, "has no label"),
    ({"texts": [["t1", [95, 0, 105, 10]]]}, "is cut off"),
    ({"texts": [["t1", box], ["t2", [20, 0, 30, 10]]]}, "t1 lies on t2"),
  ):
    assert fault in faults([good | change])[0]
