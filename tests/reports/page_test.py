"""The page is complete, self-contained and small, whatever is absent."""

import html.parser
import json
import math
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from specialize_jax.reports import (
  alignment_view,
  blocks,
  decoding_view,
  drawing,
  markdown,
  page,
  plots,
  price_view,
  tables,
)
from specialize_jax.reports import results as results_lib
from tests.reports import conftest

SECTIONS = (
  "accuracy",
  "price",
  "training",
  "checkpoint",
  "formats",
  "decoding",
  "alignment",
  "predictions",
)


class _Balance(html.parser.HTMLParser):
  """Fails on a tag that is closed out of turn."""

  def __init__(self):
    super().__init__()
    self.open = []

  def handle_starttag(self, tag, attrs):
    if tag not in ("meta", "br"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def _check(text):
  balance = _Balance()
  balance.feed(text)
  assert balance.open == []
  for name in SECTIONS:
    assert text.count(f'<section id="{name}">') == 1
  # Nothing is fetched: parts of the page and inline data only.
  fetched = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"|url\((?!#)', text)
  assert fetched == []
  assert "<script" not in text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The results of a finished demo and their document, drawn once."""
  directory = conftest.write_results(
    tmp_path_factory.mktemp("demo") / "results"
  )
  results = results_lib.load(directory)
  return results, page.document(results)


def test_the_page_of_a_finished_demo_shows_every_section(results_dir, tmp_path):
  output = tmp_path / "deep" / "report.html"
  page.build(results_dir, output)
  text = output.read_text()
  _check(text)
  assert 'class="absent"' not in text
  assert text.count("<svg") == 8
  assert len(text) < 2_000_000
  results = results_lib.load(results_dir)
  for row in tables.rows(results):
    assert tables.interval_text(row.difference) in text
  # What a model says is text, never markup.
  assert "&lt;pencils&gt;" in text and "<pencils>" not in text


@pytest.mark.parametrize(
  "kept",
  [
    "results.json",
    "specialize/metrics.jsonl",
    "pretrain/metrics.jsonl",
    "alignment.json",
    "alignment_example.json",
    "selection.json",
  ],
)
def test_a_section_without_its_file_reports_it(results_dir, tmp_path, kept):
  alone = tmp_path / "alone"
  (alone / kept).parent.mkdir(parents=True)
  shutil.copy(results_dir / kept, alone / kept)
  text = page.render(page.document(results_lib.load(alone)))
  _check(text)
  assert 'class="absent"' in text


def test_ways_of_decoding_are_reported_whatever_the_outcome(finished):
  results, document = finished
  text = page.render(document)
  assert "greedy, calculator raised its accuracy." in text
  assert "self-consistency of 8 made no difference that this many" in text
  assert "on mini GSM (CoT, 200 questions)" in text
  assert '<td class="up">+5.0</td><td>[+1.0, +9.0]</td>' in text
  lost = json.loads(json.dumps(results.decoding))
  lost["ways"][2]["difference"]["high"] = -0.001
  lost["ways"][1]["difference"] = lost["ways"][2]["difference"]
  assert (
    "greedy, calculator and self-consistency of 8 lowered its accuracy."
    in blocks.to_html(decoding_view.blocks_of(lost)[0])
  )


def test_the_page_is_a_function_of_the_results(finished):
  results, document = finished
  assert page.render(document) == page.render(page.document(results))


def test_figures_are_well_formed_and_share_no_names(finished):
  _, document = finished
  figures = blocks.figures(document.sections).values()
  seen = set()
  for figure in figures:
    root = ET.fromstring(figure.replace("xlink:href", "href"))
    assert root.get("aria-label")
    names = {e.get("id") for e in root.iter() if e.get("id")}
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', figure))
    assert used <= names
    assert not names & seen
    seen |= names


def test_one_step_of_validation_is_drawn_too(results_dir):
  results = results_lib.load(results_dir)
  last = max(results.validation)
  short = {last: results.validation[last]}
  results = results_lib.dataclasses.replace(
    results, validation=short, selection=None
  )
  assert plots.selection_curves(results).startswith("<svg")
  assert plots.general_curves(results).startswith("<svg")


def test_the_mean_curve_takes_the_steps_that_have_every_task(results_dir):
  results = results_lib.load(results_dir)
  tasks = results.out_of_distribution
  steps, values = results_lib.mean_curve(results, tasks)
  row = results.validation[steps[3]]
  mean = sum(row[f"{task}/accuracy"] for task in tasks) / 3
  assert values[3] == pytest.approx(mean)
  assert results_lib.mean_curve(results, []) == ([], [])


def test_names_beside_curves_do_not_overlap():
  assert drawing.spaced([1, 1.1, 9], 1) == pytest.approx([0.55, 1.55, 9])
  heights = drawing.spaced([0.0, 0.1, 0.2, 0.9, 1.0], 0.5)
  gaps = [b - a for a, b in zip(heights, heights[1:], strict=False)]
  assert min(gaps) >= 0.5 - 1e-9


def test_a_running_mean_keeps_a_constant_and_the_length():
  assert drawing.smooth([2.0] * 300).tolist() == pytest.approx([2.0] * 300)
  # One huge value, or none at all, is felt in its own window alone.
  for odd in (1e18, math.nan, math.inf):
    curve = drawing.smooth([odd] + [0.3] * 299)
    assert curve[6:].tolist() == pytest.approx([0.3] * 294)
  assert not len(drawing.smooth([]))
  assert drawing.smooth([1.0, 3.0]).tolist() == [1.0, 3.0]


def test_the_aligned_example_is_escaped_and_truncated(results_dir):
  example = dict(results_lib.load(results_dir).alignment_example)
  example["teacher_tokens"] = ["<b>"] * 27
  assert "<b></span>" not in alignment_view.links(example).html
  assert "| \\<b>" in alignment_view.links(example).markdown
  long = {
    "teacher_tokens": ["a"] * 100,
    "student_pieces": ["a"] * 100,
    "groups": [[[i], [i]] for i in range(100)],
    "targets": [[["a", 1.0]]] * 100,
    "mask": [1] * 100,
  }
  assert "and 56 more pieces" in alignment_view.links(long).html


def test_markdown_and_page_have_the_same_content(finished, tmp_path):
  results, document = finished
  markdown.write(document, tmp_path / "report.md")
  text = (tmp_path / "report.md").read_text()
  for row in tables.rows(results):
    assert tables.interval_text(row.difference) in text
  for section in document.sections:
    assert f"\n## {section.title}\n" in text
  shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
  assert len(shown) == 8
  for path in shown:
    assert (tmp_path / path).read_bytes().startswith(b"\x89PNG")
    ET.parse((tmp_path / path).with_suffix(".svg"))
  # What a model says stays what it is, and no markup.
  assert "<pencils>" in text.split("```")[1]
  assert "<pencils>" not in "".join(text.split("```")[::2])


def test_of_many_general_tasks_the_main_table_has_the_means(results_dir):
  results = results_lib.load(results_dir)
  table = tables.rows(results)
  shown = tables.main_rows(table)
  general = [row for row in shown if row.role == tables.GENERAL]
  assert [row.data_format for row in general] == ["CoT", "answer only", ""]
  assert not any(row.task for row in general)
  chain = [r for r in table if r.task in conftest.GENERAL and "chain" in r.task]
  assert general[0].after.estimate == pytest.approx(
    sum(row.after.estimate for row in chain) / 4
  )
  prices = price_view.lines(table)
  assert len(prices) == 4
  changes = [line.change for line in prices]
  assert changes == sorted(changes)


def test_examples_are_shown_beside_the_teachers_solution(results_dir):
  page_text = page.render(page.document(results_lib.load(results_dir)))
  assert page_text.count('<div class="who">teacher</div>') >= 8
  assert page_text.count('<div class="who">student</div>') >= 8
