"""The files of examples/, and the examples of docs/api.md and packages, run."""

import dataclasses
import doctest
import importlib
import pathlib
import re
import runpy
import shutil

import jax
import pytest
from testdata import tiny_t5, tiny_world

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


@pytest.fixture(scope="module")
def api_dir(tmp_path_factory):
  """A directory with the files that the examples of docs/api.md open."""
  from specialize_jax import checkpoints

  directory = tmp_path_factory.mktemp("api")
  world = tiny_world.build(directory / "world")
  vocabulary = shutil.copy(
    f"{world}/mini/student.model", directory / "t5_spiece.model"
  )
  config = dataclasses.replace(tiny_t5.T5_1_1, vocab_size=384)
  _, params = tiny_t5.init(config)
  checkpoints.export_params(
    directory / "google/flan-t5-small",
    config,
    params,
    vocabulary_path=vocabulary,
  )
  return directory


API = (ROOT / "docs/api.md").read_text()
API_EXAMPLES = re.findall(r"```python\n(.*?)```", API, re.DOTALL)


@pytest.mark.parametrize("number", range(len(API_EXAMPLES)))
def test_the_example_of_the_api_page_runs(number, api_dir, monkeypatch):
  monkeypatch.chdir(api_dir)
  names = {}
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    exec(API_EXAMPLES[number], names)  # noqa: S102 (our own page)
  if "kl" in names:
    assert [f"{value:.4f}" for value in names["kl"].ravel()] == ["0.1733"] * 6
  if "targets" in names:
    assert names["mask"].all()
    assert names["targets"].top_probs.sum(axis=-1).max() <= 1


def test_the_api_page_has_examples():
  assert len(API_EXAMPLES) == 3
