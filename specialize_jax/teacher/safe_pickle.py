"""Reads pickles of plain data and refuses all others.

A pickle is a program: an unpickler calls whatever it names. The only names
that this one looks up are those of containers that no opcode makes, so that
lists, tuples, dictionaries, numbers and strings pass and nothing else can be
called.
"""

import collections
import pathlib
import pickle

from specialize_jax import errors

_ADMITTED = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("builtins", "set"): set,
  ("builtins", "frozenset"): frozenset,
  ("__builtin__", "set"): set,  # as Python 2 names them
  ("__builtin__", "frozenset"): frozenset,
}


class _RefusedError(Exception):
  """A pickle names something that plain data does not need."""


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> type:
    found = _ADMITTED.get((module, name))
    if found is None:
      raise _RefusedError(f"{module}.{name}")
    return found

  def persistent_load(self, pid: object) -> None:
    raise _RefusedError(f"the persistent object {pid!r}")


def load(path: pathlib.Path) -> object:
  """Gives what a pickle of plain data holds.

  Raises:
    UserError: it names anything but plain containers, of which nothing was
      looked up or run, or it is no whole pickle.
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
        f"{path} is no whole pickle ({type(error).__name__}: {error})"
      ) from error
