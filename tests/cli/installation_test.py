"""A package that is missing or too old is named, with what to run."""

import importlib
import subprocess
import sys

import pytest

from specialize_jax import errors
from specialize_jax.cli import installation, main


@pytest.fixture
def installed(tmp_path, monkeypatch):
  """A function that writes the metadata of an installed package.

  Ours requires jax and no_such_package, and with the extra `train` seqio and
  no_such_extra.
  """

  def install(name, version, *requirements):
    metadata = tmp_path / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    lines = [f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {one}" for one in requirements]
    metadata.write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
    importlib.invalidate_caches()

  monkeypatch.syspath_prepend(str(tmp_path))
  install(
    *("specialize_jax", "1.0", "jax>=0.10.0", "no-such-package>=2"),
    *('seqio>=0.0.20; extra == "train"', 'no-such-extra; extra == "train"'),
  )
  return install


def test_missing_and_old_packages_are_named_with_both_versions(installed):
  installed("jax", "0.6.2")
  installed("seqio", "0.0.19")
  error = AttributeError("module 'jax' has no attribute 'set_mesh'")
  assert installation.problem(error, "train") == (
    "`specialize train` needs jax>=0.10.0 (0.6.2 is installed), "
    "no-such-package>=2 (not installed), seqio>=0.0.20 (0.0.19 is installed): "
    "run `pip install 'jax>=0.10.0' 'no-such-package>=2' 'seqio>=0.0.20'`"
  )


@pytest.mark.parametrize(
  "version", ["0.10.0", "0.12.0.1", "0.13.0.dev20261101"]
)
def test_where_all_packages_fit_the_error_is_a_defect(installed, version):
  installed("jax", version)
  installed("no_such_package", "2.0")
  installed("seqio", "0.0.20")
  assert installation.problem(ImportError("a defect"), "train") is None


@pytest.mark.parametrize("kind", [ZeroDivisionError, ValueError, OSError])
def test_no_other_error_is_laid_to_the_installation(installed, kind):
  assert installation.problem(kind("a defect"), "train") is None


def test_this_environment_has_what_setup_py_requires():
  assert installation.problem(ImportError("a defect"), "train") is None


def test_a_package_too_old_is_one_sentence_and_status_2(
  installed, monkeypatch, capsys
):
  installed("jax", "0.6.2")
  installed("no_such_package", "2.0")
  installed("seqio", "0.0.20")
  command = importlib.import_module("specialize_jax.cli.score")

  def fail(argv):
    raise AttributeError("module 'jax' has no attribute 'set_mesh'")

  monkeypatch.setattr(command, "main", fail)
  assert main.main(["score"]) == 2
  assert capsys.readouterr().err == (
    "specialize score: error: `specialize score` needs jax>=0.10.0 (0.6.2 is "
    "installed): run `pip install 'jax>=0.10.0'`\n"
  )

  def report(argv):
    try:
      fail(argv)
    except AttributeError as error:
      raise errors.UserError("run.gin does not load.") from error

  monkeypatch.setattr(command, "main", report)
  assert main.main(["score"]) == 2
  assert capsys.readouterr().err == (
    "specialize score: error: run.gin does not load. `specialize score` needs "
    "jax>=0.10.0 (0.6.2 is installed): run `pip install 'jax>=0.10.0'`\n"
  )


def test_the_command_line_itself_needs_the_standard_library_only():
  """Else a missing package is a traceback before any command begins."""
  program = (
    "import sys\n"
    "known = {*sys.modules}\n"
    "import specialize_jax.cli.main\n"
    "print(*{name.partition('.')[0] for name in {*sys.modules} - known})\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  imported = set(done.stdout.split()) - sys.stdlib_module_names
  assert imported == {"specialize_jax"}
