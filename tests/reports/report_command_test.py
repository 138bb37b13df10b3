"""`specialize report` on a finished demo's directory."""

import json
import re
import urllib.parse

import pytest

from specialize_jax.cli import main


def test_the_page_the_figures_and_the_table_are_written(
  results_dir, tmp_path, capsys
):
  figures = tmp_path / "figures"
  flags = [f"--results_dir={results_dir}", f"--figures_dir={figures}"]
  assert main.run("report", flags) == 0
  out = capsys.readouterr().out
  assert "mini SVAMP" in out
  assert f"report: {results_dir / 'report.html'}" in out
  assert (results_dir / "report.html").exists()
  names = ("accuracy", "alignment", "coverage", "formats", "general", "price")
  names += ("selection", "training")
  assert sorted(path.name for path in figures.iterdir()) == sorted(
    ["table.md"] + [f"{n}.{kind}" for n in names for kind in ("png", "svg")]
  )


def test_an_empty_directory_is_one_sentence(tmp_path, capsys):
  assert main.run("report", [f"--results_dir={tmp_path}"]) == 2
  assert "holds no results" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []


def test_markdown_to_a_stream_is_refused(results_dir, capsys):
  flags = [f"--results_dir={results_dir}", "--markdown=/dev/stdout"]
  assert main.run("report", flags) == 2
  assert "its figures are files beside it" in capsys.readouterr().err


_SCORE = {"accuracy": 0.5, "n": 4}


@pytest.mark.parametrize(
  ("numbers", "said"),
  [
    ({"before": []}, "before is []: expected an object"),
    ({"after": {"t": 3}}, 'after.t is 3: expected an object of "accuracy"'),
    ({"after": {"t": {"n": 3}}}, "after.t.accuracy is None: expected a number"),
    (
      {"after": {"t": _SCORE | {"accuracy": -0.5}}},
      "after.t.accuracy is -0.5: expected a number in [0, 1]",
    ),
    (
      {"after": {"t": _SCORE | {"accuracy": float("nan")}}},
      "after.t.accuracy is ",
    ),
    ({"after": {"t": _SCORE | {"n": 10**400}}}, "after.t.n is 1000000"),
    ({"after": {"t": _SCORE | {"n": -1}}}, "after.t.n is -1"),
    ({"after": {"t": _SCORE | {"n": 0}}}, "after.t.n is 0"),
    ({"after": {"t": _SCORE | {"n": {"a": 1}}}}, "after.t.n is {'a': 1}"),
    ({"general": "gsm8k"}, "general is 'gsm8k': expected a list"),
    ({"out_of_distribution": [["a"]]}, "out_of_distribution is ['a']"),
    ({"in_distribution": ["a"]}, "in_distribution is ['a']"),
    ({"predictions": {"before": 3}}, "predictions.before is 3"),
    ({"seconds": "an hour"}, "seconds is 'an hour': expected a number"),
    (
      {"before": {f"t{n}": _SCORE for n in range(1001)}},
      "before has 1,001 tasks: expected at most 1,000",
    ),
  ],
)
def test_results_that_are_none_are_named(numbers, said, tmp_path, capsys):
  (tmp_path / "results.json").write_text(json.dumps(numbers))
  assert main.main(["report", f"--results_dir={tmp_path}"]) == 2
  assert f"results.json: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("file", "content", "said"),
  [
    ("selection.json", {"mean": 0.5}, "step is None"),
    ("selection.json", {"step": 1, "mean": "much"}, "mean is 'much'"),
    ("certainty.json", {"num_records": 1}, "num_steps is None"),
    ("decoding.json", {"task": "t"}, "ways is None"),
    ("comparison.json", {"name": "t", "rows": 3, "steps": {}}, "rows is 3"),
    ("alignment_example.json", {"groups": []}, "teacher_tokens is None"),
    ("study.json", {"seeds": []}, "is not what a study writes"),
    (
      "predictions/after/900/t.jsonl",
      {"prediction": "2"},
      "line 1 lacks question_id, prompt, target",
    ),
  ],
)
def test_a_file_of_another_shape_is_named(
  file, content, said, tmp_path, capsys
):
  numbers = {"before": {"t": _SCORE}, "after": {"t": _SCORE}}
  (tmp_path / "results.json").write_text(json.dumps(numbers))
  path = tmp_path / file
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))
  assert main.main(["report", f"--results_dir={tmp_path}"]) == 2
  error = capsys.readouterr().err
  assert str(path) in error
  assert said in error


def test_markdown_of_any_name_links_its_figures(results_dir, tmp_path):
  page = tmp_path / "my {0} report.md"
  flags = [f"--results_dir={results_dir}", f"--markdown={page}"]
  assert main.main(["report", *flags, f"--output={tmp_path}/r.html"]) == 0
  links = re.findall(r"!\[.*?\]\((.*?)\)", page.read_text())
  assert links
  for link in links:
    assert " " not in link
    assert (tmp_path / urllib.parse.unquote(link)).is_file()
