"""The git revision of the installed package."""

import importlib.metadata
import json
import pathlib
import subprocess

_DISTRIBUTION = "specialize-jax"


def find() -> str | None:
  """Returns the commit, followed by "-dirty" if files differ from it.

  It is read from pip's record if the package was installed from a repository
  (PEP 610), and from git in a checkout.

  Returns:
    The commit; None if neither has it, as for a wheel.
  """
  return _installed() or _checked_out(pathlib.Path(__file__).parents[1])


def _installed() -> str | None:
  try:
    distribution = importlib.metadata.distribution(_DISTRIBUTION)
  except importlib.metadata.PackageNotFoundError:
    return None
  origin = json.loads(distribution.read_text("direct_url.json") or "{}")
  return origin.get("vcs_info", {}).get("commit_id")


def _checked_out(root: pathlib.Path) -> str | None:
  if not (root / ".git").exists():
    return None  # in a folder of another repository git would return its commit
  command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
  try:
    finished = subprocess.run(
      [*command, "--abbrev=40", "--exclude=*"],
      capture_output=True,
      text=True,
      check=False,
    )
  except FileNotFoundError:  # git is not installed
    return None
  return finished.stdout.strip() or None
