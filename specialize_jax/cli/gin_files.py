"""Gin files and overrides on the command line, as T5X users write them.

    --gin_file=runs/train.gin --gin.TRAIN_STEPS=1000 --gin.MODEL_DIR=/tmp/m

A name is searched for in `--gin_search_paths`, then among the files that are
installed with the package, then below the working directory. A gin file is a
program: it can import and call anything. So the name of an installed file means
that file, even in a downloaded folder that has one of the same name; a name
that starts with `./`, `../` or `/` is a path. A macro on the command line that
no file uses is an error here: gin itself accepts it silently, and the run then
trains with the value that was meant to change.
"""

import argparse
import ast
import contextlib
import dataclasses
import functools
import io
import logging
import os
import pathlib
import re
import sys
import tokenize
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import specialize_jax
from specialize_jax import errors
from specialize_jax.cli import gin_values
from specialize_jax.files import paths, reading

Configured = TypeVar("Configured")

# In the package, even if Python would find another module of that name.
_INSTALLED = os.fspath(
  pathlib.Path(specialize_jax.__file__).resolve().parent / "gin_configs"
)

_OVERRIDE = re.compile(r"^--gin\.([^=\s]+)=(.*)$", re.DOTALL)
_REFERENCE = re.compile(r"\A[^\n]*[\[(,:]\s?[@%][A-Za-z][^\n]*[\])}]\Z")
# Quotes that were escaped twice, after the shell has read them: \\"text\\".
_ESCAPED_QUOTES = re.compile(r"\\([\"'])(.*)\\\1", re.DOTALL)
# Python's error for a constructor that lacks arguments.
_UNBOUND = re.compile(
  r"(\w+)(?:\.__init__)?\(\) missing \d+ required"
  r" [\w-]+ arguments?: ([^\n]+)"
)
_REFERENCE_NAME = re.compile(r"[@%][A-Za-z_]")
_PYTHON_ONLY = (set, frozenset, type(Ellipsis))


def add_flags(parser: argparse.ArgumentParser, default_file: str) -> None:
  """Adds `--gin_file` and `--gin_search_paths` to a command's parser."""
  group = parser.add_argument_group("gin")
  group.add_argument(
    "--gin_file",
    action="append",
    metavar="FILE",
    help=f"a gin file; may be repeated, in order (default: {default_file});"
    " gin files are programs, which can run anything, unlike checkpoints,"
    " records, questions, predictions and reports: read one from an untrusted"
    " source before you use it",
  )
  group.add_argument(
    "--gin_search_paths",
    default="",
    metavar="DIR,DIR",
    help="directories that are searched for gin files before the package's and"
    " the working directory",
  )
  group.add_argument(
    "--gin.NAME=value",
    action="append",
    dest="_gin_bindings_help",
    metavar="",
    help="bind a macro or a parameter, overriding the files, as in T5X",
  )
  parser.set_defaults(default_gin_file=default_file)


def parse(
  parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Splits `--gin.NAME=value` from the flags that argparse knows.

  Returns:
    The parsed flags, and the overrides as gin bindings, "NAME = value".

  Example:
    `--gin.MODEL_DIR=/tmp/m` becomes `MODEL_DIR = '/tmp/m'`, and so does
    `--gin.MODEL_DIR='"/tmp/m"'`, the quoting that T5X requires.
  """
  plain, bindings = [], []
  for argument in argv:
    match = _OVERRIDE.match(argument)
    if match:
      name, value = match.groups()
      if value[:1] in ("'", '"') and _as_literal(value) == repr(value):
        raise errors.UserError(
          f"{argument}: the quotation mark that opens the value is not closed"
        )
      bindings.append(f"{name} = {_as_literal(value)}")
    else:
      plain.append(argument)
  if {"-h", "--help"} & {*plain}:
    parser.epilog = f"{parser.epilog or ''}\n{_macro_help(parser, plain)}"
  return parser.parse_args(plain), bindings


def _macro_help(parser: argparse.ArgumentParser, argv: Sequence[str]) -> str:
  """Lists the macros of the files that a command line names, or would read."""
  from specialize_jax.cli import gin_macros

  given = argparse.ArgumentParser(add_help=False)
  given.add_argument("--gin_file", action="append")
  given.add_argument("--gin_search_paths", default="")
  flags, _ = given.parse_known_args(argv)
  text_of = functools.partial(read, search_paths=flags.gin_search_paths)
  files = flags.gin_file or [parser.get_default("default_gin_file")]
  try:
    macros = gin_macros.read(files, text_of)
  except (SyntaxError, tokenize.TokenError) as error:
    raise errors.UserError(
      f"the macros of {', '.join(files)} cannot be listed: "
      f"{' '.join(str(error).split())}"
    ) from error
  return gin_macros.listing(macros) if macros else ""


def read(file: str, search_paths: str) -> str | None:
  """Returns the text of a gin file; None if no search path has it."""
  places = _search_paths(search_paths)
  paths_of = (os.path.join(place, file) for place in places)
  found = next((path for path in paths_of if _is_in(places, path)), None)
  return reading.read_text(found) if found else None


_ON_A_DISK = "gin files are read from a disk"
_GIN_FILE = dataclasses.replace(
  paths.INPUT_FILE.local(_ON_A_DISK),
  expected="a gin file of the package, of --gin_search_paths or of this"
  " directory",
)
_GIN_DIRECTORY = paths.INPUT_DIRECTORY.local(_ON_A_DISK)

_PATH_PARAMETERS = {
  "Experiment.model_dir": paths.OUTPUT_DIRECTORY,
  "Experiment.initial_checkpoint_path": paths.CHECKPOINT,
  "evaluate_checkpoint.checkpoint_path": paths.CHECKPOINT,
  "evaluate_checkpoint.output_dir": paths.OUTPUT_DIRECTORY,
}


def check_paths() -> None:
  """Checks the parameters that are paths, in a configuration from `loaded`.

  Raises:
    UserError: one of them cannot be read, or written; the message names the
      macro that sets it, where one does.
  """
  import gin

  found = list(gin_values.values_of(gin, _PATH_PARAMETERS))
  model_dirs = [v for _, v, name in found if name == "Experiment.model_dir"]
  for name, value, parameter in found:
    if value is None:
      continue
    try:
      paths.check(name, value, _PATH_PARAMETERS[parameter])
    except errors.UserError:
      # A run that is resumed does not read it again.
      is_start = parameter == "Experiment.initial_checkpoint_path"
      if not (is_start and any(map(_has_step, model_dirs))):
        raise


def _has_step(model_dir: object) -> bool:
  """Returns whether a run has a checkpoint, from which it is resumed."""
  if not isinstance(model_dir, str):
    return False
  steps = paths.to_epath(model_dir) / "checkpoints"
  return steps.is_dir() and any(
    step.name.isdecimal() for step in steps.iterdir()
  )


@contextlib.contextmanager
def loaded(
  flags: argparse.Namespace,
  bindings: Sequence[str],
  defaults: Mapping[str, str] | None = None,
) -> Iterator[str]:
  """Loads the files and overrides into gin, and clears gin at the end.

  Args:
    flags: from `parse`.
    bindings: from `parse`.
    defaults: values for macros that the files require and do not bind.

  Yields:
    The configuration as gin text, to be kept with a run's checkpoints.

  Raises:
    UserError: a file does not exist, gin does not know a name, a macro is
      required and unbound, or no file uses it.
  """
  import gin

  check_flags(flags)
  gin.clear_config()
  # gin only ever adds places, and keeps them from one load to the next.
  places = _search_paths(flags.gin_search_paths)
  gin.config._LOCATION_PREFIXES[:] = places
  # Files alone: gin would also look for `losses/x.gin` in any Python package of
  # that name, and fails on a folder that merely looks like one.
  gin.config._FILE_READERS[:] = [(_opened, functools.partial(_is_in, places))]
  files = flags.gin_file or [flags.default_gin_file]
  try:
    with _silent_search():
      gin.parse_config_files_and_bindings(files, None, finalize_config=False)
    _refuse_unknown_macros(gin, bindings)
    with gin.unlock_config():
      for binding in bindings:
        _bind(gin, binding)
      unbound = _unbound_macros(gin)
      for name, value in (defaults or {}).items():
        if name in unbound:
          gin.parse_config(f"{name} = {value!r}")
    _refuse_unknown_scopes(gin, bindings)
    _refuse_unbound_macros(gin)
    gin_values.check_macros(gin)
    given = dict(binding.split(" = ", 1) for binding in bindings)
    with gin.unlock_config():
      for name, text in gin_values.check(gin, given).items():
        gin.parse_config(f"{name} = {text!r}")
    gin.finalize()
    _tell_unused_macros(gin, files, flags.gin_search_paths)
  except errors.UserError:
    raise
  except RecursionError as e:
    raise errors.UserError(
      f"the gin configuration ({', '.join(files)}) includes itself: a file that"
      " --gin_search_paths has is read in place of the package's of that name,"
      " which it may mean to include; give it another name"
    ) from e
  except (
    OSError,
    SyntaxError,
    tokenize.TokenError,  # a bracket that is not closed
    ImportError,
    NameError,  # of a module that no import statement has
    ValueError,
    AttributeError,
  ) as e:
    what = " ".join(str(e).split())
    raise errors.UserError(
      f"the gin configuration ({', '.join(files)}) does not load: {what}"
    ) from e
  try:
    yield gin.config_str()
  finally:
    gin.clear_config()


def _bind(gin: types.ModuleType, binding: str) -> None:
  """Applies bindings of the command line, "NAME = value".

  Raises:
    UserError: gin cannot read it, or knows no such parameter.
  """
  try:
    gin.parse_config(binding)
  except (SyntaxError, tokenize.TokenError, ValueError, AttributeError) as e:
    name, _, value = binding.partition(" = ")
    what = str(e).strip().splitlines()[0].partition(" In bindings string")[0]
    raise errors.UserError(
      f"--gin.{name}={value} cannot be bound: {' '.join(what.split())}"
    ) from e


def check_flags(flags: argparse.Namespace) -> None:
  """Checks `--gin_file` and `--gin_search_paths`, before any work is done.

  Raises:
    UserError: a file or directory does not exist.
  """
  check_files(flags.gin_file or (), flags.gin_search_paths, "--gin_file")


def is_packaged(file: str) -> bool:
  """Returns whether the package has a gin file of a name."""
  is_name = not os.path.isabs(file) and not file.startswith(("./", "../"))
  return is_name and os.path.isfile(os.path.join(_INSTALLED, file))


def check_files(files: Sequence[str], search_paths: str, flag: str) -> None:
  """Checks that each file is in one of the search paths.

  Args:
    files: the names that the user gave.
    search_paths: the value of `--gin_search_paths`.
    flag: the flag that named the files.

  Raises:
    UserError: one is not; the message suggests a similar installed file.
  """
  for place in filter(None, search_paths.split(",")):
    paths.check("--gin_search_paths", place, _GIN_DIRECTORY)
  places = _search_paths(search_paths)
  for file in files:
    if any(_is_in(places, os.path.join(place, file)) for place in places):
      continue
    try:
      paths.check(flag, file, _GIN_FILE)
    except errors.UserError as error:
      installed = [
        os.fspath(path.relative_to(_INSTALLED))
        for path in pathlib.Path(_INSTALLED).rglob("*.gin")
      ]
      hint = errors.did_you_mean(file, installed)
      raise errors.UserError(
        f"{error}; {hint}" if hint else str(error)
      ) from error


def _opened(path: str) -> io.StringIO:
  if path.startswith(f"{_INSTALLED}/"):
    _tell_shadowed(path.removeprefix(f"{_INSTALLED}/"))
  return io.StringIO(reading.read_text(path))


@functools.cache
def _tell_shadowed(name: str) -> None:
  """Prints once that a file in the working directory is not the one read."""
  ours = os.path.join(_INSTALLED, name)
  if os.path.isfile(name) and not os.path.samefile(name, ours):
    print(
      f"specialize: {name} is the package's file, not the one of that name in"
      f" the working directory: give ./{name} to read that one",
      file=sys.stderr,
    )


def configured(target: Callable[..., Configured]) -> Callable[..., Configured]:
  """Returns a callable with the parameters that the loaded gin files bind.

  Its UserErrors keep their one sentence: gin adds where it called what.
  """
  import gin

  bound = gin.get_configurable(target)

  @functools.wraps(bound)
  def call(**parameters: object) -> Configured:
    try:
      return bound(**parameters)
    except errors.UserError as error:
      sentence = str(error).partition("\n  In call to configurable")[0]
      sentence = gin_values.with_written_name(gin, sentence)
      raise errors.UserError(sentence) from error
    except OSError as error:
      # gin raises a copy, which has neither the number nor the file.
      raised = error.__context__
      if error.errno is not None or not isinstance(raised, OSError):
        raise
      raise raised from None
    except TypeError as error:
      unbound = _UNBOUND.match(str(error))
      if unbound is None:
        raise
      raise errors.UserError(
        f"the gin files bind no {unbound[2]} of {unbound[1]}: bind it there, or"
        f" as --gin.{unbound[1]}.NAME=value"
      ) from error

  return call


@contextlib.contextmanager
def _silent_search() -> Iterator[None]:
  """Keeps gin from logging an error for each place a file is not in."""
  logging.disable(logging.ERROR)
  try:
    yield
  finally:
    logging.disable(logging.NOTSET)


def _as_literal(value: str) -> str:
  """Returns a value for gin; text that is not a literal is quoted."""
  if _REFERENCE_NAME.match(value):
    return value
  # A list of references is neither a Python literal nor text.
  if value[:1] in ("[", "(", "{") and _REFERENCE.search(value):
    return value
  escaped = _ESCAPED_QUOTES.fullmatch(value)
  if escaped:
    value = f"{escaped[1]}{escaped[2]}{escaped[1]}"
  try:
    literal = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return repr(value)
  if isinstance(literal, tuple):
    return repr(literal)  # gin requires the parentheses
  # gin has no other literals of Python, such as {1, 2}.
  return repr(value) if isinstance(literal, _PYTHON_ONLY) else value


def _search_paths(text: str) -> list[str]:
  given = [path.rstrip("/") or "/" for path in text.split(",") if path]
  return [*given, _INSTALLED, ""]


def _is_in(places: Sequence[str], path: str) -> bool:
  """Whether gin's join of a place and a name is a file that may be meant."""
  # A name that starts with a dot is a path, and not one below a place.
  dotted = tuple(
    f"{place}/{dots}/" for place in places if place for dots in (".", "..")
  )
  return not path.startswith(dotted) and os.path.isfile(path)


def _macros(gin) -> dict[str, object]:  # noqa: ANN001  (the module itself)
  """Every macro that is bound, by name."""
  return {
    scope: parameters.get("value")
    for (scope, selector), parameters in gin.config._CONFIG.items()
    if selector == "gin.macro"
  }


def _refuse_unknown_macros(gin, bindings: Sequence[str]) -> None:  # noqa: ANN001
  known = _macros(gin)
  for binding in bindings:
    name = binding.split(" = ", 1)[0]
    if "." not in name and name not in known:
      hint = errors.did_you_mean(name, known) or (
        "they have " + (", ".join(sorted(known)) or "none")
      )
      raise errors.UserError(
        f"--gin.{name}: no gin file of this run has a macro of that name; "
        f"{hint}"
      )


def _refuse_unknown_scopes(gin, bindings: Sequence[str]) -> None:  # noqa: ANN001
  """Raises UserError for a binding in a scope that nothing is called in."""
  known = gin_values.scopes(gin)
  for binding in bindings:
    name, _, value = binding.partition(" = ")
    scope, _, rest = name.rpartition("/")
    if "." not in name:
      continue  # a macro, whose name may have a slash
    if scope and rest != "gin.macro" and not known.issuperset(scope.split("/")):
      raise errors.UserError(
        f"--gin.{name}: no gin file of this run has the scope {scope!r}, and"
        f" nothing would read it: give --gin.{rest}={value}"
      )


def _tell_unused_macros(gin, files: Sequence[str], search_paths: str) -> None:  # noqa: ANN001
  """Prints which macros of the user's own files nothing uses."""
  from specialize_jax.cli import gin_macros

  used = gin_values.used_macros(gin)
  for file in files:
    if is_packaged(file):
      continue
    own = functools.partial(_text_of_one, file, search_paths)
    for macro in gin_macros.read([file], own):
      if macro.name not in used:
        hint = errors.did_you_mean(macro.name, used)
        print(
          f"specialize: {file} sets {macro.name}, which nothing reads"
          + (f"; {hint}" if hint else ""),
          file=sys.stderr,
        )


def _text_of_one(wanted: str, search_paths: str, file: str) -> str | None:
  """Returns the text of a file, and of none that it includes."""
  return read(file, search_paths) if file == wanted else None


def _refuse_unbound_macros(gin) -> None:  # noqa: ANN001
  unbound = _unbound_macros(gin)
  if unbound:
    raise errors.UserError(
      f"the run needs {', '.join(unbound)}: bind each as --gin.NAME=value or "
      "in a gin file"
    )


def _unbound_macros(gin) -> list[str]:  # noqa: ANN001  (the module itself)
  return sorted(
    name
    for name, value in _macros(gin).items()
    if str(value) == "%gin.REQUIRED"  # a reference: the macro of a constant
  )
