"""Every file of examples/, and the example of every package, runs."""

import doctest
import importlib
import pathlib
import runpy

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_and_prints_its_result(path, capsys, monkeypatch):
  monkeypatch.setattr("sys.argv", [str(path)])
  # As for a user: the suite's own settings are stricter.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    runpy.run_path(str(path), run_name="__main__")
  assert capsys.readouterr().out.strip()


def test_there_are_examples():
  assert EXAMPLES


PACKAGES = [
  f"specialize_jax.{path.parent.name}"
  for path in sorted((ROOT / "specialize_jax").glob("*/__init__.py"))
  if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", PACKAGES)
def test_the_example_of_a_package_is_true(name):
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    outcome = doctest.testmod(importlib.import_module(name))
  assert outcome.attempted > 0
  assert outcome.failed == 0
