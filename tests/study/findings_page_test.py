"""A study's page states what its numbers show, and nothing else."""

import re
import xml.etree.ElementTree as ET

import pytest
from testdata import made_up_study

from specialize_jax import errors
from specialize_jax.files import writing
from specialize_jax.study import (
  findings_page,
  findings_plots,
  findings_text,
  registered,
)


def words(study):
  """Everything that a page says of a study, without drawing its figures."""
  tables = [finding.table for finding in findings_text.findings(study)]
  return f"{findings_text.terminal(study)}\n{tables}"


def verdicts(study):
  return {f.name: f.verdict for f in findings_text.findings(study)}


def test_findings_that_hold_appear(study):
  assert set(verdicts(study).values()) == {findings_text.APPEARS}
  assert "General, CoT: " in findings_text.terminal(study)
  assert "2.0 hours of one core" in findings_text.lead(study)
  assert "6 appear, 0 in part and 0 do not" in findings_text.lead(study)


def test_findings_that_do_not_hold_are_reported_as_absent(tmp_path, study):
  without = made_up_study.collect(tmp_path, cost=0.0, parts=False)
  assert verdicts(without)["selection"] == findings_text.ABSENT
  text = words(without)
  assert "do not part in a run as short as this" in text
  assert "5 appear, 0 in part and 1 do not" in text


def with_tests(study, finding, **interval):
  """The study with other outcomes of a finding's registered tests."""
  changed = [
    {**test, "interval": {**test["interval"], **interval}}
    if test["finding"] == finding
    else test
    for test in study["tests"]
  ]
  return {**study, "tests": changed}


@pytest.mark.parametrize("finding", registered.FINDINGS)
def test_a_finding_is_judged_by_its_registered_tests(study, finding):
  absent = with_tests(study, finding, low=-0.01)
  assert verdicts(absent) == {
    **verdicts(study),
    finding: findings_text.ABSENT,
  }
  # A whole interval below zero is no evidence for a claim either.
  opposite = with_tests(study, finding, estimate=-0.2, low=-0.3, high=-0.1)
  assert verdicts(opposite)[finding] == findings_text.ABSENT
  assert "(does not)" in findings_text.terminal(opposite)


def test_a_finding_with_a_test_that_was_not_run_does_not_appear(study):
  tests = [dict(test) for test in study["tests"]]
  (first, *_) = (test for test in tests if test["finding"] == "starts")
  first["interval"] = None
  changed = {**study, "tests": tests}
  assert verdicts(changed)["starts"] == findings_text.PARTLY
  assert (
    "no interval: not run, one seed, or a seed without the statistic (does not)"
    in findings_text.terminal(changed)
  )
  for test in tests:
    if test["finding"] == "starts":
      test["interval"] = None
  assert verdicts(changed)["starts"] == findings_text.NOT_RUN
  assert "5 appear, 0 in part and 0 do not; 1 was not run" in (
    findings_text.lead(changed)
  )


def test_a_level_that_is_never_reached_is_reported(study):
  level = study["matching"]["levels"][-1]
  never = {
    **level,
    "steps": {**level["steps"], "distribution_matching": [None, 100, 100]},
  }
  matching = {**study["matching"], "levels": [never]}
  changed = {**study, "matching": matching}
  assert "never against" in words(changed)


def test_the_page_is_self_contained_and_shows_a_figure_a_finding(
  study, tmp_path
):
  writing.write_json(tmp_path / "study.json", study)
  findings_page.build(tmp_path / "study.json", tmp_path / "study.html")
  text = (tmp_path / "study.html").read_text()
  assert text.count("<svg") == len(registered.FINDINGS)
  assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"|url\((?!#)', text)
  assert "<script" not in text
  assert len(text) < 2_000_000
  for finding in findings_text.findings(study):
    assert f"<h2>{finding.name.capitalize()}: {finding.verdict}</h2>" in text
  assert "<h2>How certain the teacher is</h2>" in text
  tables = (tmp_path / "study.md").read_text()
  assert "| mean, out of distribution | 10.0 \\[" in tables


def test_figures_are_well_formed(study):
  for name, svg in findings_plots.figures(study).items():
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    assert root.get("aria-label"), name
    assert "mathdefault" not in svg, name  # mathematics that was not set


def test_what_is_no_study_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="there is no"):
    findings_text.load(tmp_path / "study.json")
  (tmp_path / "study.json").write_text("{")
  with pytest.raises(errors.UserError, match="is not JSON"):
    findings_text.load(tmp_path / "study.json")
  (tmp_path / "study.json").write_text("{}")
  with pytest.raises(errors.UserError, match="is not what a study writes"):
    findings_text.load(tmp_path / "study.json")
  (tmp_path / "study.json").write_text('{"gain_and_price": {}}')
  with pytest.raises(errors.UserError, match="by an earlier release"):
    findings_text.load(tmp_path / "study.json")
