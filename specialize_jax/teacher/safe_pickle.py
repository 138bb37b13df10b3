"""Loads pickles of plain data, and refuses all others.

A pickle is a program: an unpickler imports and calls whatever it refers to.
This one imports only a few container types that have no opcodes of their own,
so that it loads lists, tuples, dictionaries, numbers and strings, and cannot
call anything else.
"""

import collections
import pathlib
import pickle

from specialize_jax import errors

_ADMITTED = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("builtins", "set"): set,
  ("builtins", "frozenset"): frozenset,
  ("__builtin__", "set"): set,  # Python 2's name
  ("__builtin__", "frozenset"): frozenset,
}


class _RefusedError(Exception):
  """A pickle refers to something that plain data does not need."""


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> type:
    found = _ADMITTED.get((module, name))
    if found is None:
      raise _RefusedError(f"{module}.{name}")
    return found

  def persistent_load(self, pid: object) -> None:
    raise _RefusedError(f"the persistent object {pid!r}")


def load(path: pathlib.Path) -> object:
  """Loads a pickle of plain data.

  Raises:
    UserError: the pickle is corrupt, or refers to anything but plain
      containers. Nothing that it refers to was imported or called.
  """
  with path.open("rb") as stream:
    try:
      return _Unpickler(stream).load()
    except _RefusedError as error:
      raise errors.UserError(
        f"{path} is refused: it asks for {error}, which plain data does not"
        " need; nothing of it was run"
      ) from error
    except OSError:
      raise
    except Exception as error:  # a broken pickle fails in any way it likes
      raise errors.UserError(
        f"{path} is not a complete pickle ({type(error).__name__}: {error})"
      ) from error
