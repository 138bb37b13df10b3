"""Compares what tasks are made of: functions by name, objects by content.

A module that is imported a second time makes the same functions and classes
anew, which `==` takes for others.
"""

import dataclasses
import functools
import types
from collections.abc import Mapping, Set

_PLAIN = (str, bytes, int, float, bool, type(None))


def described(value: object) -> object:
  """Returns a value that equals that of another object made in the same way.

  Functions are described by their names and what they hold (closures, bound
  objects, arguments of a partial), other objects by their classes' names and
  their state.

  Example:
    >>> described(functools.partial(int, base=2)) == described(
    ...   functools.partial(int, base=2)
    ... )
    True
  """
  return _described(value, set())


def _described(value: object, within: set[int]) -> object:
  if isinstance(value, _PLAIN):
    return value
  if id(value) in within:
    return "itself"
  within = {*within, id(value)}

  def of(part: object) -> object:
    return _described(part, within)

  match value:
    case type():
      return value.__qualname__
    case functools.partial():
      return "partial", of(value.func), of(value.args), of(value.keywords)
    case types.FunctionType():
      held = [cell.cell_contents for cell in value.__closure__ or ()]
      return value.__qualname__, of(held), of(value.__defaults__)
    case types.MethodType():
      return value.__func__.__qualname__, of(value.__self__)
    case types.BuiltinMethodType():
      return value.__qualname__, of(value.__self__)
    case types.ModuleType():
      return value.__name__
    case Mapping():
      return {of(key): of(one) for key, one in value.items()}
    case list() | tuple():
      return tuple(of(one) for one in value)
    case Set():
      return frozenset(of(one) for one in value)
  name = type(value).__qualname__
  if dataclasses.is_dataclass(value):
    fields = (field.name for field in dataclasses.fields(value))
    return name, {field: of(getattr(value, field)) for field in fields}
  return name, of(value.__getstate__())
