"""setup.py declares what the package imports, and nothing else."""

import ast
import importlib.metadata
import pathlib
import re
import runpy
import sys

import pytest
import setuptools
from packaging import requirements

ROOT = pathlib.Path(__file__).parents[1]
# Imported only where the user has them, with an error that says so.
OPTIONAL = {"apache_beam", "argcomplete", "mlflow", "t5x", "torch", "wandb"}
# What another package imports for us, or an executable.
INDIRECT = {"google-cloud-storage"}


@pytest.fixture(scope="module")
def required():
  """The requirements of the base installation, "", and of each extra."""
  given = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setuptools, "setup", lambda **named: given.update(named))
    runpy.run_path(str(ROOT / "setup.py"))
  extras = {"": given["install_requires"], **given["extras_require"]}
  return {
    extra: [requirements.Requirement(one) for one in lines]
    for extra, lines in extras.items()
  }


@pytest.fixture(scope="module")
def declared(required):
  """The names of the requirements, likewise."""
  return {
    extra: {_normalized(one.name) for one in given}
    for extra, given in required.items()
  }


def _normalized(name):
  return re.sub(r"[-_.]+", "-", name).lower()


def _imported(*tops):
  """The distributions that files below `tops` import, wherever in a file."""
  modules = set()
  for top in tops:
    for path in (ROOT / top).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
          modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
          modules.add(node.module.split(".")[0])
  modules -= {*sys.stdlib_module_names, "specialize_jax", "tasks", *OPTIONAL}
  by_module = importlib.metadata.packages_distributions()
  # Several distributions share the package `google`; ours is one of them.
  by_module["google"] = ["protobuf"]
  return {_normalized(by_module.get(one, [one])[0]) for one in modules}


def test_what_the_package_imports_is_declared_and_nothing_else(declared):
  imported = _imported("specialize_jax", "tasks")
  assert imported - declared[""] - declared["train"] == set()
  assert (declared[""] | declared["train"]) - imported == INDIRECT


def test_what_the_tests_import_is_declared(declared):
  own = {path.stem for path in (ROOT / "bench").glob("*.py")}
  own |= {path.stem for path in (ROOT / "examples").rglob("*.py")}
  own |= {path.name for path in (ROOT / "tests").iterdir()} | {"tests"}
  extras = ("", "test", "t5x", "third_party")
  known = set().union(*(declared[extra] for extra in extras))
  bundled = {"setuptools"}
  imported = _imported("tests", "examples") - {_normalized(one) for one in own}
  assert imported - known - bundled == set()


@pytest.mark.parametrize("extra", ["", "train", "plan", "test"])
def test_the_lock_has_a_version_that_fits_of_all_that_make_installs(
  required, extra
):
  lock = dict(
    line.split("==")
    for line in (ROOT / "requirements.lock").read_text().splitlines()
  )
  lock = {_normalized(name): version for name, version in lock.items()}
  for one in required[extra]:
    assert one.specifier.contains(lock[_normalized(one.name)]), str(one)
