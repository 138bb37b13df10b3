"""Packages that a command needs and that are missing, or too old.

pip installs what `setup.py` requires. An installation can lack some of it all
the same: without the extra `train`, with `--no-deps`, or after another
package's requirements have replaced a newer release by an older one.
"""

import importlib.metadata

# Packages of the extra `train`, which the base installation leaves out.
_OF_TRAIN = ("clu", "seqio", "tensorboard", "tensorflow", "tensorflow_datasets")

# How a package that is missing, or too old, shows in the code that uses it.
_SYMPTOMS = (ImportError, AttributeError, TypeError)


def problem(error: BaseException, command: str) -> str | None:
  """Returns what the installation lacks, if that can have raised `error`.

  Args:
    error: what a command raised.
    command: the command's name, such as "train".

  Returns:
    One sentence with the packages, the installed and the required versions, and
    what to run; None if neither `error` nor its cause is of a kind that a
    missing or an old package raises, or if all packages fit.
  """
  error = error.__cause__ or error
  if not isinstance(error, _SYMPTOMS):
    return None
  if isinstance(error, ModuleNotFoundError):
    missing = (error.name or "").partition(".")[0]
    if missing in _OF_TRAIN:
      return (
        f"{missing} is not installed, which `specialize {command}` needs: run "
        "`pip install 'specialize-jax[train]'`"
      )
  lacking = _lacking()
  if not lacking:
    return None
  found = ", ".join(f"{need} ({what})" for need, what in lacking.items())
  install = " ".join(f"'{need}'" for need in lacking)
  return f"`specialize {command}` needs {found}: run `pip install {install}`"


def _lacking() -> dict[str, str]:
  """Returns the requirements that are not met, with what is installed instead.

  Those of the extra `train` are left out where they are not installed.
  """
  from packaging import requirements

  try:
    declared = importlib.metadata.requires("specialize-jax") or []
  except importlib.metadata.PackageNotFoundError:
    declared = []  # the package is used from its sources, without installation
  lacking = {}
  for line in declared:
    requirement = requirements.Requirement(line)
    in_extra, in_base = (
      requirement.marker is None
      or requirement.marker.evaluate({"extra": extra})
      for extra in ("train", "")
    )
    need = f"{requirement.name}{requirement.specifier}"
    try:
      version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
      if in_base:
        lacking[need] = "not installed"
      continue
    fits = requirement.specifier.contains(version, prereleases=True)
    if in_extra and not fits:
      lacking[need] = f"{version} is installed"
  return lacking
