"""The calibrated teacher is as uncertain as the real one, the other is not."""

import json

import pytest

from specialize_jax.teacher import certainty


@pytest.fixture(scope="module")
def calibration():
  import calibration  # a script of bench/

  return calibration


@pytest.fixture(scope="module")
def measured(calibration):
  return {
    style: certainty.measure(
      calibration.mini_records(style, num_problems=120, seed=3)
    )
    for style in ("certain", "calibrated")
  }


def test_each_figure_of_the_calibrated_teacher_is_within_15_percent(
  calibration, measured
):
  shares = certainty.ratios(measured["calibrated"], certainty.CODE_DAVINCI_002)
  assert set(shares) == set(certainty.FIGURES)
  assert shares == {name: pytest.approx(1, abs=0.15) for name in shares}
  assert calibration.is_calibrated(measured["calibrated"])


def test_the_certain_teacher_is_not_calibrated(calibration, measured):
  assert not calibration.is_calibrated(measured["certain"])
  assert measured["certain"].none_above_90 < 0.15


def test_a_table_and_json_have_every_teacher(calibration, tmp_path, capsys):
  path = tmp_path / "calibration.json"
  argv = ["--mini", "--num_problems=20", f"--output={path}"]
  assert calibration.main(argv) in (0, 1)
  names = list(json.loads(path.read_text()))
  assert names == [calibration.REAL, "mini, certain", "mini, calibrated"]
  shown = capsys.readouterr().out
  for called in (*names, *certainty.FIGURES.values()):
    assert called in shown
