"""In a stranger's folder nothing of it runs, and nothing of it is obeyed."""

import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from testdata import tiny_gin

from specialize_jax.cli import own_modules
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
  "yaml",
  "regex",
  # What libraries look for and go on without.
  "cloudpickle",
  "dill",
  "IPython",
  "pandas",
  "wandb",
  "zstandard",
]
# A folder of our own package's name, for all ways but `python -m`.
_PACKAGE = "specialize_jax"
_SCRIPT = pathlib.Path(sys.executable).with_name("specialize")
_MODULE = [sys.executable, "-m", "specialize_jax"]
_RUN_NAMES = ("runs/train.gin", "runs/eval.gin", "train.gin", "eval.gin")


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


def _ran(tmp_path):
  return sorted(place.name for place in tmp_path.glob("ran_*"))


def _run(folder, command, *flags, path=str(ROOT)):
  ended = subprocess.run(
    [*map(str, command), *map(str, flags)],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stderr
  return ended


@pytest.mark.parametrize(
  ("command", "path"),
  [
    ([sys.executable, "-m", "specialize_jax.cli.main"], str(ROOT)),
    (_MODULE, str(ROOT)),
    ([_SCRIPT], str(ROOT)),
    # As `PYTHONPATH=$PYTHONPATH:ROOT` is where it was not set: the working
    # directory, before everything.
    ([_SCRIPT], f":{ROOT}"),
    (_MODULE, f"{ROOT}:"),
  ],
)
def test_no_module_of_the_folder_runs(command, path, folder, tmp_path):
  if path.startswith(":") or path.endswith(":"):
    # Python itself imports these from there, before any program begins.
    for name in ("sitecustomize", "usercustomize", "argparse"):
      shutil.rmtree(folder / name)
      (folder / f"{name}.py").unlink()
  if command == [_SCRIPT] and path == str(ROOT):
    (folder / _PACKAGE).mkdir()
    attack = _ATTACK.format(marker=str(tmp_path / "ran_ours"))
    (folder / _PACKAGE / "__init__.py").write_text(attack)
  flags = ["--task=gsm8k", "--inputs=predictions.jsonl", "--output=out.jsonl"]
  _run(folder, command, "score", *flags, path=path)
  assert _ran(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [[_SCRIPT], _MODULE])
def test_a_users_gin_file_includes_ours_and_may_import_its_own(
  command, folder, tmp_path
):
  """Ours by every name that we ship; the folder's own module when named."""
  for name in _RUN_NAMES:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(f"import {_module(folder, 'attacker')}\n")
  (folder / "own_helpers.py").write_text("WORD = 'mine'\n")
  (folder / "own_tasks.py").write_text("from own_helpers import WORD\n")
  (folder / "user.gin").write_text(
    "from __gin__ import dynamic_registration\n"
    "from specialize_jax.t5 import config\n"
    "import own_tasks\n"
    'include "runs/train.gin"\n'
    'include "losses/distribution_matching.gin"\n' + tiny_gin.MODEL
  )
  flags = ["--gin_file=user.gin", "--print_config", "--gin.MODEL_DIR=run"]
  flags += ["--gin.MIXTURE_OR_TASK_NAME=mini_facts_v1", "--gin.TRAIN_STEPS=1"]
  flags += ['--gin.TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 64}']
  flags += ["--gin.BATCH_SIZE=4"]
  ended = _run(folder, command, "train", *flags)
  assert "TRAIN_STEPS" in ended.stdout
  assert "runs/train.gin is the package's file" in ended.stderr
  assert _ran(tmp_path) == []


def _module(folder, name):
  """A module that attacks when a gin file imports it."""
  marker = str(folder.parent / f"ran_{name}")
  (folder / f"{name}.py").write_text(_ATTACK.format(marker=marker))
  return name


@pytest.fixture
def finder(monkeypatch):
  """The finder of the working directory, as commands install it."""
  monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
  own_modules.make_importable()


@pytest.mark.usefixtures("finder")
def test_a_module_is_found_for_who_names_it_and_for_nobody_else(
  folder, monkeypatch
):
  monkeypatch.chdir(folder)
  for name in ("named_one", "named_two"):
    _module(folder, name)
  (folder / "named_three.py").write_text("import named_two\n")
  with pytest.raises(ModuleNotFoundError):
    importlib.import_module("named_one")
  with pytest.raises(ModuleNotFoundError):
    exec("import named_two", {"__name__": "a_library"})  # noqa: S102
  assert _ran(folder.parent) == []
  own_modules.import_named(["named_one", "named_three"])
  assert _ran(folder.parent) == ["ran_named_one", "ran_named_two"]
  for name in ("named_one", "named_two", "named_three"):
    del sys.modules[name]


_FONT_SIZE = """
from specialize_jax.cli import main
main.run("score", ["--task=gsm8k", "--inputs=predictions.jsonl", "--output=o"])
import matplotlib
print(matplotlib.rcParams["font.size"])
"""


def test_the_settings_of_figures_in_the_folder_are_not_read(folder):
  ended = _run(folder, [sys.executable, "-P", "-c", _FONT_SIZE])
  assert ended.stdout.splitlines()[-1] != "40.0"


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
