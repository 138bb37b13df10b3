"""Which code a run ran: the git revision that this package was made from."""

import importlib.metadata
import json
import pathlib
import subprocess

_DISTRIBUTION = "specialize-jax"


def find() -> str | None:
  """Returns the commit, followed by "-dirty" if files differ from it.

  Where the package was installed from a repository pip wrote the commit down
  (PEP 610); where it lies in a checkout, git is asked.

  Returns:
    None where neither says, as of a wheel.
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
    return None  # in some other repository's folder, git would name that one
  command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
  try:
    finished = subprocess.run(
      [*command, "--abbrev=40", "--exclude=*"],
      capture_output=True,
      text=True,
      check=False,
    )
  except FileNotFoundError:  # no git here
    return None
  return finished.stdout.strip() or None
