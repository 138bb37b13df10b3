"""A checkpoint says by which code it was written."""

import pathlib
import subprocess

import pytest

from specialize_jax import revision


def test_it_is_the_commit_of_this_checkout():
  root = pathlib.Path(__file__).parents[1]
  asked = subprocess.run(
    ["git", "-C", str(root), "rev-parse", "HEAD"],
    capture_output=True,
    text=True,
    check=False,
  )
  if asked.returncode:
    pytest.skip("this is no git checkout")
  found = revision.find()
  assert found.removesuffix("-dirty") == asked.stdout.strip()
  assert revision._checked_out(root / "tests") is None
