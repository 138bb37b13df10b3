"""Checks every value that gin binds against the annotation of its parameter.

Gin binds any value, so that `TRAIN_STEPS = "2"` could fail hours later, with an
error of another library. Here each bound parameter is resolved to its literal,
through macros and references, and compared with its annotation in the dataclass
or function, before anything runs.

An integer is accepted for a float, and a list for a tuple. A bool is not a
number, numbers must be finite, and text must not be empty.
"""

import collections.abc
import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from specialize_jax import errors

_MAX_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class _Bound:
  """A parameter and what is bound to it.

  Attributes:
    owner: The name of the dataclass or function, such as "LoopConfig".
    parameter: The parameter's name.
    written: The name under which the value was written: that of a macro, or
      the parameter's own.
    value: The value behind all macros.
    annotation: The parameter's annotation.
  """

  owner: str
  parameter: str
  written: str
  value: object
  annotation: object


def check(gin: types.ModuleType, given: Mapping[str, str]) -> dict[str, str]:
  """Checks all values that are bound.

  Args:
    gin: The module, with a configuration loaded.
    given: The bindings of the command line: the text of each value by name.

  Returns:
    The values of the command line that gin read as numbers and that are text
    to their parameters, such as a MODEL_DIR of 2024; by name.

  Raises:
    UserError: A value is not of its parameter's type.
  """
  texts = {}
  for bound in _bound_parameters(gin):
    problem = _problem(bound.value, bound.annotation, gin)
    if problem is None:
      continue
    on_command_line = _given_name(bound.written, given)
    if (
      on_command_line
      and type(bound.value) in (int, float)
      and _problem("text", bound.annotation, gin) is None
    ):
      texts[on_command_line] = given[on_command_line]
      continue
    name = f"--gin.{on_command_line}" if on_command_line else bound.written
    raise errors.UserError(
      f"{name}={_shown(bound.value)} is not possible for "
      f"{bound.owner}.{bound.parameter}: {problem}."
    )
  return texts


def check_macros(gin: types.ModuleType) -> None:
  """Checks that every macro that is used is bound.

  Raises:
    UserError: one is not; the message may suggest a similar name.
  """
  known = {
    scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"
  }
  _check_no_circle(gin, known)
  for (scope, selector), parameters in list(gin.config._CONFIG.items()):
    for parameter, value in parameters.items():
      for name in _macro_names(gin, value):
        if name not in known:
          owner = selector.rpartition(".")[2]
          user = scope if owner == "macro" else f"{owner}.{parameter}"
          hint = errors.did_you_mean(name, known)
          raise errors.UserError(
            f"{user}=%{name}: no gin file of this run sets a macro of that"
            " name" + (f"; {hint}" if hint else "")
          )


def used_macros(gin: types.ModuleType) -> set[str]:
  """Returns the names of the macros that some value refers to."""
  return {
    reference.config_key[0]
    for reference in _all_references(gin)
    if _is_macro(gin, reference)
  }


def scopes(gin: types.ModuleType) -> set[str]:
  """Returns the scopes in which some value calls something."""
  return {
    scope
    for reference in _all_references(gin)
    if not _is_macro(gin, reference)
    for scope in reference.scopes
  }


def _all_references(gin: types.ModuleType) -> Iterator[Any]:
  for parameters in gin.config._CONFIG.values():
    yield from _references(gin, parameters)


def _check_no_circle(gin: types.ModuleType, names: Collection[str]) -> None:
  """Raises UserError if the value of a macro contains the macro itself."""
  uses = {
    name: set(_macro_names(gin, gin.config._CONFIG[name, "gin.macro"]))
    for name in names
  }
  for name in sorted(names):
    reached, following = set(), uses[name]
    while following:
      if name in following:
        raise errors.UserError(
          f"the value of the macro {name} contains %{name} itself: set it to a"
          " value"
        )
      reached |= following
      following = {
        after for one in following for after in uses.get(one, ())
      } - reached


def _macro_names(gin: types.ModuleType, value: object) -> Iterator[str]:
  """Yields the names of the macros in a value, including in collections."""
  for reference in _references(gin, value):
    if _is_macro(gin, reference):
      yield reference.config_key[0]


def _references(gin: types.ModuleType, value: object) -> Iterator[Any]:
  """Yields the references in a value, including in collections."""
  if _is_reference(gin, value):
    yield value
  elif isinstance(value, Mapping):
    for pair in value.items():
      yield from _references(gin, pair)
  elif isinstance(value, list | tuple | set):
    for element in value:
      yield from _references(gin, element)


def values_of(
  gin: types.ModuleType, parameters: Collection[str]
) -> Iterator[tuple[str, object, str]]:
  """Yields the values bound to parameters, such as "Experiment.model_dir".

  Yields:
    The name under which the value was written, the value behind all macros,
    and the parameter.
  """
  for one in _bound_parameters(gin):
    parameter = f"{one.owner}.{one.parameter}"
    if parameter in parameters:
      yield one.written, one.value, parameter


def with_written_name(gin: types.ModuleType, sentence: str) -> str:
  """Adds to an error by which name the parameter that it names was set.

  Example: "LoopConfig.num_steps=0 is not possible: expected at least 1." gets
  "(TRAIN_STEPS sets LoopConfig.num_steps)" before its period.
  """
  for bound in _bound_parameters(gin):
    parameter = f"{bound.owner}.{bound.parameter}"
    if re.match(rf"{re.escape(parameter)}\b", sentence) and (
      parameter not in bound.written
    ):
      return f"{sentence.rstrip('.')} ({bound.written} sets {parameter})."
  return sentence


def _bound_parameters(gin: types.ModuleType) -> Iterator[_Bound]:
  """Yields every bound parameter that has an annotation."""
  for (scope, selector), parameters in list(gin.config._CONFIG.items()):
    if selector.startswith("gin."):
      continue
    configurable = gin.config._REGISTRY[selector]
    hints = _hints(configurable.wrapped)
    owner = configurable.name.rpartition(".")[2]
    for parameter, bound in parameters.items():
      if parameter not in hints:
        continue
      own_name = f"{scope}/{owner}.{parameter}".lstrip("/")
      written, value = _behind_macros(gin, bound, own_name)
      if str(value) == "%gin.REQUIRED":
        continue  # unbound, which is an error of its own
      yield _Bound(owner, parameter, written, value, hints[parameter])


def _given_name(written: str, given: Mapping[str, str]) -> str | None:
  """Returns the name by which the command line binds what is written.

  Example: "LoopConfig.log_every" may be given as "loop.LoopConfig.log_every".
  """
  for name in given:
    scope, _, rest = name.rpartition("/")
    short = ".".join(rest.split(".")[-2:])
    if f"{scope}/{short}".lstrip("/") == written:
      return name
  return None


def _hints(target: object) -> Mapping[str, object]:
  """Returns what each parameter of a class or function takes.

  Nothing of one whose annotations name what only a type checker imports.
  """
  is_called = dataclasses.is_dataclass(target) or inspect.isfunction(target)
  if not is_called and inspect.isclass(target):
    target = target.__init__
  elif not is_called:
    return {}
  try:
    return typing.get_type_hints(target)
  except (NameError, AttributeError):
    return {}


def _behind_macros(
  gin: types.ModuleType, value: object, name: str
) -> tuple[str, object]:
  """Returns the last macro's name and the value that it stands for."""
  seen = set()
  while _is_macro(gin, value) and value.config_key not in seen:
    seen.add(value.config_key)
    parameters = gin.config._CONFIG.get(value.config_key, {})
    if "value" not in parameters:
      break
    name, value = value.config_key[0], parameters["value"]
  return name, value


def _is_reference(gin: types.ModuleType, value: object) -> bool:
  return isinstance(value, gin.config.ConfigurableReference)


def _is_macro(gin: types.ModuleType, value: object) -> bool:
  return _is_reference(gin, value) and value.configurable.selector.endswith(
    "gin.macro"
  )


def _problem(
  value: object, annotation: object, gin: types.ModuleType
) -> str | None:
  """Returns what is wrong with a value, None for nothing."""
  _, value = _behind_macros(gin, value, "")
  if _is_reference(gin, value):
    return _problem_of_reference(value, annotation)
  if annotation in (typing.Any, object) or isinstance(
    annotation, typing.TypeVar
  ):
    return None
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (typing.Union, types.UnionType):
    problems = [_problem(value, one, gin) for one in arguments]
    if None in problems:
      return None
    # A problem within a value of nearly the right type is the more helpful one.
    nearly = [p for p in problems if p and ":" in p or ";" in (p or "")]
    return nearly[0] if nearly else _expected(annotation)
  if origin is typing.Literal:
    fits = any(value == one and type(value) is type(one) for one in arguments)
    return None if fits else _expected(annotation)
  if collections.abc.Callable in (origin, annotation):
    return None if callable(value) else _expected(annotation)
  if _is_collection(origin or annotation):
    return _problem_of_collection(value, annotation, gin)
  return _problem_of_plain(value, annotation)


def _problem_of_plain(value: object, annotation: object) -> str | None:
  """Compares a value with a type that has no parts."""
  if annotation in (None, type(None)):
    return None if value is None else _expected(annotation)
  if annotation is float and type(value) in (int, float):
    if math.isfinite(value):
      return None
    return "expected a finite number"
  if annotation in (int, bool, float):
    if annotation is int and type(value) is float and value.is_integer():
      return f"expected a whole number: write {int(value)}"
    return None if type(value) is annotation else _expected(annotation)
  if annotation is str:
    if isinstance(value, str) and not value.strip():
      return "it is empty; expected text"
    return None if isinstance(value, str) else _expected(annotation)
  if inspect.isclass(annotation):
    # A path is written as text.
    try:
      return None if isinstance(value, annotation) else _expected(annotation)
    except TypeError:  # as of a protocol, which says nothing at run time
      return None
  return None


def _problem_of_reference(value: object, annotation: object) -> str | None:
  """Compares what a reference such as @config.T5Config() makes."""
  made = value.configurable.wrapped
  if not value.evaluate:
    return (
      None
      if _takes(annotation, collections.abc.Callable)
      else (
        f"{_expected(annotation)}, and @{value.selector} is not called: write "
        f"@{value.selector}()"
      )
    )
  if not inspect.isclass(made):
    return None  # what a function returns is known when it has run
  return None if _takes(annotation, made) else _expected(annotation)


def _takes(annotation: object, made: object) -> bool:
  """Whether an annotation takes the objects of a class, or callables."""
  origin = typing.get_origin(annotation)
  if origin in (typing.Union, types.UnionType):
    return any(_takes(one, made) for one in typing.get_args(annotation))
  if annotation in (typing.Any, object):
    return True
  if origin is typing.Literal:
    return False
  kind = origin or annotation
  if made is collections.abc.Callable:
    return kind is collections.abc.Callable
  try:
    return not inspect.isclass(kind) or issubclass(made, kind)
  except TypeError:  # as of a protocol, which says nothing at run time
    return True


def _is_collection(kind: object) -> bool:
  return kind in (
    *(list, tuple, dict, set, frozenset, collections.abc.Sequence),
    *(collections.abc.Mapping, collections.abc.Collection),
    collections.abc.Iterable,
  )


def _problem_of_collection(
  value: object, annotation: object, gin: types.ModuleType
) -> str | None:
  """Compares a list, tuple or mapping, and then each of its elements."""
  kind = typing.get_origin(annotation) or annotation
  arguments = typing.get_args(annotation)
  if kind in (dict, collections.abc.Mapping):
    if not isinstance(value, Mapping):
      return _expected(annotation)
    for key, element in value.items() if arguments else ():
      for part, what in zip((key, element), arguments, strict=True):
        problem = _problem(part, what, gin)
        if problem is not None:
          return f"of its entry {_shown(key)}, {_shown(part)}: {problem}"
    return None
  if not isinstance(value, list | tuple | set | frozenset):
    return _expected(annotation)
  elements = list(value)
  if kind is tuple and arguments and arguments[-1] is not Ellipsis:
    if len(elements) != len(arguments):
      return _expected(annotation)
    wanted: Sequence[object] = arguments
  else:
    wanted = [arguments[0]] * len(elements) if arguments else []
  for element, what in zip(elements, wanted, strict=False):
    problem = _problem(element, what, gin)
    if problem is not None:
      return f"of its element {_shown(element)}: {problem}"
  return None


_NAMES = {
  int: "a whole number",
  float: "a number",
  str: "text",
  bool: "True or False",
  type(None): "None",
}


def _expected(annotation: object) -> str:
  return f"expected {_name(annotation)}"


def _name(annotation: object) -> str:
  """Names an annotation in words.

  Example: `Mapping[str, int] | None` is 'a mapping such as {"inputs": 512}
  or None'.
  """
  if annotation in _NAMES:
    return _NAMES[annotation]
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (typing.Union, types.UnionType):
    return " or ".join(dict.fromkeys(map(_name, arguments)))
  if origin is typing.Literal:
    return " or ".join(map(repr, arguments))
  kind = origin or annotation
  if kind is collections.abc.Callable:
    return "a function, such as @module.name"
  if kind in (dict, collections.abc.Mapping):
    of = (
      f" of {_name(arguments[0])} to {_name(arguments[1])}" if arguments else ""
    )
    example = ', such as {"inputs": 512}' if arguments == (str, int) else ""
    return f"a mapping{of}{example}"
  if _is_collection(kind):
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
      return f"({', '.join(map(_name, arguments))})"
    return f"a list of {_name(arguments[0])}" if arguments else "a list"
  name = getattr(annotation, "__name__", str(annotation))
  return "a path" if name == "Path" else f"@{name}()"


def _shown(value: object) -> str:
  text = repr(value)
  return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
