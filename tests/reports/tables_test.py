"""The main table has the numbers of the files, with valid intervals."""

import json

import pytest

from specialize_jax import errors
from specialize_jax.reports import results as results_lib
from specialize_jax.reports import tables


def test_names_are_written_as_people_write_them():
  assert tables.label("gsm8k_in_context_answer_only_v1") == (
    "GSM8K",
    "in-context answer only",
  )
  assert tables.label("mini_svamp_zero_shot_chain_of_thought_v1") == (
    "mini SVAMP",
    "CoT",
  )
  assert tables.label("mini_word_sorting") == ("word sorting", "")


def test_numbers_are_percents_and_signed_points():
  assert tables.percent(0.725) == "72.5"
  assert tables.points(0.042) == "+4.2"
  assert tables.points(-0.042) == "−4.2"
  assert tables.points(-0.0001) == "0.0"


def test_rows_come_by_role_each_with_its_mean(results_dir):
  results = results_lib.load(results_dir)
  table = tables.rows(results)
  roles = [row.role for row in table]
  assert roles == (
    [tables.IN_DISTRIBUTION]
    + [tables.OUT_OF_DISTRIBUTION] * 4
    + [tables.GENERAL] * 9
  )
  mean = tables.mean_or_only(table, tables.OUT_OF_DISTRIBUTION)
  parts = [row for row in table if row.role == mean.role and row.task]
  assert mean.difference.estimate == pytest.approx(
    sum(row.difference.estimate for row in parts) / 3
  )
  for row in table:
    assert row.difference.low <= row.difference.estimate <= row.difference.high
    assert row.difference.estimate == pytest.approx(
      row.after.estimate - row.before.estimate
    )
    assert row.paired


def test_without_predictions_the_difference_is_not_paired(results_dir):
  paired = tables.rows(results_lib.load(results_dir))
  task = paired[0].task
  for path in (results_dir / "predictions").rglob(f"{task}.jsonl"):
    path.unlink()
  table = tables.rows(results_lib.load(results_dir))
  assert not table[0].paired
  assert table[1].paired
  assert table[0].difference.estimate == pytest.approx(
    paired[0].difference.estimate
  )
  assert table[0].difference != paired[0].difference


def test_predictions_may_be_in_other_directories(results_dir):
  (results_dir / "predictions" / "before").rename(results_dir / "general_model")
  assert not tables.rows(results_lib.load(results_dir))[0].paired
  path = results_dir / "results.json"
  numbers = json.loads(path.read_text())
  numbers["predictions"] = {"before": "general_model"}
  path.write_text(json.dumps(numbers))
  assert tables.rows(results_lib.load(results_dir))[0].paired


@pytest.mark.parametrize("place", ["/", "..", "a/../../b"])
def test_predictions_elsewhere_are_not_looked_for(results_dir, place):
  path = results_dir / "results.json"
  numbers = json.loads(path.read_text())
  numbers["predictions"] = {"before": place}
  path.write_text(json.dumps(numbers))
  with pytest.raises(errors.UserError, match="expected a directory within"):
    results_lib.load(results_dir)


def test_predictions_of_another_step_do_not_pair(results_dir):
  path = results_dir / "results.json"
  numbers = json.loads(path.read_text())
  task = numbers["in_distribution"]
  numbers["after"][task]["accuracy"] -= 0.1
  path.write_text(json.dumps(numbers))
  assert not tables.rows(results_lib.load(results_dir))[0].paired


def test_the_terminal_and_markdown_tables_hold_every_row(results_dir):
  results = results_lib.load(results_dir)
  table = tables.rows(results)
  for text in (tables.terminal(results, width=120), tables.markdown(results)):
    for row in table:
      assert row.label in text
      assert tables.points(row.difference.estimate) in text
      assert tables.interval_text(row.difference) in text


@pytest.mark.parametrize("width", [40, 80, None])
def test_no_number_is_cut_in_a_narrow_terminal(results_dir, width):
  path = results_dir / "results.json"
  written = path.read_text()
  long = "bbh_tracking_shuffled_objects_three_objects_in_context_answer_only_v1"
  if width != 80:  # where the demo's own names fit
    path.write_text(written.replace(json.loads(written)["general"][0], long))
  results = results_lib.load(results_dir)
  text = tables.terminal(results, width=width)
  assert "\N{HORIZONTAL ELLIPSIS}" not in text
  ends = [line.split()[-1] for line in text.splitlines()]
  numbers = [f"{row.num_examples:,}" for row in tables.rows(results)]
  assert [end for end in ends if end in numbers] == numbers
  for row in tables.rows(results):
    assert tables.points(row.difference.estimate) in text
    assert tables.interval_text(row.difference) in text


def test_a_directory_without_results_is_an_error(tmp_path):
  with pytest.raises(errors.UserError, match="is not a directory"):
    results_lib.load(tmp_path / "absent")
  with pytest.raises(errors.UserError, match="holds no results"):
    results_lib.load(tmp_path)
  (tmp_path / "results.json").write_text("{")
  with pytest.raises(
    errors.UserError, match="results.json, line 1 is not JSON"
  ):
    results_lib.load(tmp_path)
