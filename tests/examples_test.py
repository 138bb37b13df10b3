"""Every file of examples/ runs as it is."""

import pathlib
import runpy

import jax
import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_and_prints_its_result(path, capsys, monkeypatch):
  monkeypatch.setattr("sys.argv", [str(path)])
  # As for a user: the suite's own settings are stricter.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    runpy.run_path(str(path), run_name="__main__")
  assert capsys.readouterr().out.strip()


def test_there_are_examples():
  assert EXAMPLES
