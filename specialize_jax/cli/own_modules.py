"""Imports a user's own modules by name, from the working directory.

The working directory comes after everything that is installed, so that a
user's `queue.py` does not replace the standard library's; and it is searched
only for modules that `--import`, a gin file, a dataset's `python:` or another
module from there names. A library that checks whether `wandb` or `pandas` is
installed does not run a `pandas.py` of the working directory.

Our own tasks are `specialize_jax.tasks`: the short names `tasks` and
`gin_configs` mean the user's modules if there are any, and otherwise still
ours, for gin files that were written for earlier versions.
"""

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Sequence

import specialize_jax
from specialize_jax import errors

_NAME = "tasks"
# They import what a gin file, a flag or a dataset file names.
_ASK_FOR_USERS = (__name__, "gin.config", "specialize_jax.cot.answer_rules")
_OURS = pathlib.Path(specialize_jax.__file__).with_name(_NAME).resolve()


def add_flag(parser: argparse.ArgumentParser) -> None:
  """Adds `--import` to a command's parser."""
  parser.add_argument(
    "--import",
    action="append",
    default=[],
    dest="imports",
    metavar="MODULE",
    help="a Python module of your own to import first, such as one that"
    " registers seqio tasks; may be repeated; searched for among installed"
    " modules, then in the working directory",
  )


def make_importable() -> None:
  """Makes modules of the working directory importable, once a process."""
  if not any(isinstance(one, _OurTasks) for one in sys.meta_path):
    sys.meta_path.insert(0, _OurTasks())
    sys.meta_path.append(_InWorkingDirectory())


def check_named(names: Sequence[str]) -> None:
  """Looks for the modules of `--import`; imports none.

  Raises:
    UserError: there is no module of a name.
  """
  make_importable()
  for name in names:
    if not all(part.isidentifier() for part in name.split(".")):
      raise errors.UserError(
        f"--import={name} is not a module's name: expected one such as my_tasks"
        " or my_project.tasks, without .py"
      )
    top = name.partition(".")[0]
    if importlib.util.find_spec(top) is None:
      raise _missing(name, top)


def _missing(name: str, missing: str) -> errors.UserError:
  return errors.UserError(
    f"--import={name}: there is no module {missing}, neither installed nor in"
    f" the working directory {os.getcwd()}"
  )


def import_named(names: Sequence[str]) -> None:
  """Imports the modules of `--import`.

  Raises:
    UserError: there is no module of a name, or it fails; the message has the
      place in the user's file.
  """
  check_named(names)
  for name in names:
    try:
      importlib.import_module(name)
    except errors.UserError:
      raise
    except (Exception, SystemExit) as error:
      missing = getattr(error, "name", None)
      if isinstance(error, ModuleNotFoundError) and (
        missing == name or name.startswith(f"{missing}.")
      ):
        raise _missing(name, missing) from error
      last = traceback.extract_tb(error.__traceback__)[-1]
      raise errors.UserError(
        f"--import={name} fails at {last.filename}:{last.lineno}"
        f" ({type(error).__name__}: {error})"
      ) from error


class _InWorkingDirectory(importlib.abc.MetaPathFinder):
  """Finds modules of the working directory for those who name them."""

  def __init__(self) -> None:
    """Has found nothing yet."""
    self._found: set[str] = set()

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None = None,
    target: object = None,
  ) -> importlib.machinery.ModuleSpec | None:
    """Returns where a module is; None unless a user's words ask for it."""
    del target
    if path is not None or not self._is_asked_by_a_user():
      return None  # what is in a package is found by Python's own finder
    found = importlib.machinery.PathFinder.find_spec(fullname, [os.getcwd()])
    if found is not None:
      self._found.add(fullname)
    return found

  def _is_asked_by_a_user(self) -> bool:
    """Whether the import statement is a user's, or runs by a user's word."""
    frame = sys._getframe(2)
    while frame is not None:
      name = frame.f_globals.get("__name__", "")
      if name.partition(".")[0] != "importlib":
        return name in _ASK_FOR_USERS or name.partition(".")[0] in self._found
      frame = frame.f_back
    return False


class _OurTasks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds `tasks`: the user's, or else ours, which once had this name."""

  def __init__(self) -> None:
    """Has loaded nothing yet."""
    self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None = None,
    target: object = None,
  ) -> importlib.machinery.ModuleSpec | None:
    """Returns how to load `tasks` and its modules; None for all others."""
    del target
    if fullname.partition(".")[0] != _NAME:
      return None
    if path is not None and not any(map(_is_ours, path)):
      return None
    for place in [*sys.path, os.getcwd()] if path is None else ():
      found = importlib.machinery.PathFinder.find_spec(fullname, [place])
      if found is None or found.loader is None:
        continue  # a folder without `__init__.py` is not a user's package
      # In a checkout our own modules are also at its top level.
      if not any(map(_is_ours, found.submodule_search_locations or ())):
        return found
    return importlib.machinery.ModuleSpec(fullname, self)

  def create_module(
    self, spec: importlib.machinery.ModuleSpec
  ) -> types.ModuleType:
    """Returns our module, the same one under both names."""
    module = importlib.import_module(f"{specialize_jax.__name__}.{spec.name}")
    self._specs[spec.name] = module.__spec__
    return module

  def exec_module(self, module: types.ModuleType) -> None:
    """Restores the specification of the module, which is loaded."""
    module.__spec__ = self._specs.pop(module.__spec__.name)


def _is_ours(place: str) -> bool:
  return pathlib.Path(place).resolve() == _OURS
