"""In a stranger's folder nothing of it runs, and nothing of it is obeyed."""

import os
import pathlib
import subprocess
import sys

import pytest

from specialize_jax.reports import drawing

ROOT = pathlib.Path(__file__).parents[2]
_ATTACK = "import pathlib\npathlib.Path({marker!r}).write_text(__name__)\n"
# Modules that a command imports, ours and others', and what Python may.
_NAMES = [
  "argparse",
  "jax",
  "numpy",
  "tasks",
  "gin",
  "gin_configs",
  "epath",
  "etils",
  "orjson",
  "json_tool",
  "sitecustomize",
  "usercustomize",
  "tensorflow",
  "seqio",
  "errors",
  "locks",
  "main",
]


@pytest.fixture
def folder(tmp_path):
  """A folder of modules, packages and settings that attack."""
  here = tmp_path / "stranger"
  for name in _NAMES:
    attack = _ATTACK.format(marker=str(tmp_path / f"ran_{name}"))
    (here / name).mkdir(parents=True)
    (here / name / "__init__.py").write_text(attack)
    (here / f"{name}.py").write_text(attack)
  (here / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\n")
  (here / "predictions.jsonl").write_text(
    '{"prediction": "The answer is 3.", "target": "3"}\n'
  )
  return here


def test_a_command_started_as_a_module_runs_no_other_module(folder, tmp_path):
  ended = subprocess.run(
    [sys.executable, "-m", "specialize_jax.cli.main", "score"]
    + ["--task=gsm8k", "--inputs=predictions.jsonl", "--output=out.jsonl"],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stderr
  assert sorted(place.name for place in tmp_path.glob("ran_*")) == []


def test_a_figure_is_the_same_in_any_folder(folder, monkeypatch):
  def drawn():
    with drawing.figure(3.0, "a title") as (made, done):
      made.subplots().set_title("$a")
    return done()

  here = drawn()
  import matplotlib as mpl

  monkeypatch.setitem(mpl.rcParams, "font.size", 40)
  monkeypatch.setitem(mpl.rcParams, "text.usetex", True)
  assert drawn() == here
