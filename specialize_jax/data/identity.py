"""Fingerprints of a run's data, to compare when the run is resumed.

The fingerprints are of file contents, since a directory may be moved, and a
file may be replaced by another of the same path and date.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import types
from collections.abc import Iterable, Mapping, Set

import seqio
from etils import epath

from specialize_jax.data import example_stream, sources, teacher_source

_MAX_DEPTH = 10
_DIGITS = 16  # hexadecimal digits of a fingerprint
_CHUNK_BYTES = 1 << 22
_SAMPLE_BYTES = 1 << 20
_MAX_WHOLE_BYTES = 1 << 30
"""Of files that are not ours: a corpus would take hours to read as a whole."""


def of_mixture(
  mixture_or_task_name: str, split: str = "train"
) -> dict[str, str]:
  """Returns a hash of the data of each task, and of each vocabulary.

  Args:
    mixture_or_task_name: A name registered with seqio.
    split: The split of each task.

  Returns:
    Under "data of TASK", a hash of the task's rows, or, for a source that is
    not a `TableSource`, its number of examples. Under "files of TASK", a hash
    of the files of such a source, if it has any. Under "prompts of TASK", a
    hash of its wording and demonstrations; under "preprocessors of TASK", of
    those that are not ours, with their arguments. Under "rate of TASK", its
    rate in a mixture. Under "vocabulary of FEATURE", a hash of the vocabulary's
    model.

  Raises:
    UserError: the name is unknown, or a file cannot be read.
  """
  provider = example_stream.find_provider(mixture_or_task_name)
  found = {}
  for task in seqio.get_subtasks(provider):
    found[f"data of {task.name}"] = _of_source(task.source, split)
    files = _files(task.source, split)
    if files:
      found[f"files of {task.name}"] = _hash_of_samples(files)
    found[f"prompts of {task.name}"] = _of_prompts(task)
    if any(_is_of_users(step) for step in task.preprocessors):
      found[f"preprocessors of {task.name}"] = _of_preprocessors(task)
    if isinstance(provider, seqio.Mixture):
      found[f"rate of {task.name}"] = f"{float(provider.get_rate(task)):g}"
  for name in ("inputs", "targets"):
    vocabulary = provider.output_features[name].vocabulary
    model = getattr(vocabulary, "sp_model", None)
    if model is not None:
      found[f"vocabulary of {name}"] = _hash(model)
  return found


def _of_source(source: seqio.DataSource, split: str) -> str:
  if isinstance(source, teacher_source.TeacherSource):
    return _hash_of_files(source.files(split))
  if isinstance(source, sources.TableSource):
    return _hash(_serialized(source.columns(split)))
  number = source.num_input_examples(split)
  return "unknown" if number is None else f"{number:,} examples"


def _files(source: seqio.DataSource, split: str) -> list[epath.Path]:
  """Returns the files of a source of seqio's own; none of other sources."""
  if isinstance(source, seqio.FileDataSource | seqio.TfdsDataSource):
    return [epath.Path(name) for name in source.list_shards(split)]
  return []


def _hash_of_samples(files: Iterable[epath.Path]) -> str:
  """Returns a hash of files, whatever their directory.

  Of files that have more than a GiB together it is of the sizes, and of the
  first and the last MiB of each.
  """
  sizes = [(file, file.stat().length) for file in files]
  if sum(size for _, size in sizes) <= _MAX_WHOLE_BYTES:
    return _hash_of_files(file for file, _ in sizes)
  digest = hashlib.sha256()
  for file, size in sizes:
    digest.update(b"%d " % size)
    with file.open("rb") as stream:
      digest.update(stream.read(_SAMPLE_BYTES))
      stream.seek(max(0, size - _SAMPLE_BYTES))
      digest.update(stream.read(_SAMPLE_BYTES))
  return digest.hexdigest()[:_DIGITS]


def _of_prompts(task: seqio.Task) -> str:
  """Returns a hash of how a task writes its rows."""
  steps = []
  for step in task.preprocessors:
    function, given = step, {}
    if isinstance(step, functools.partial):
      function, given = step.func, step.keywords
    name = getattr(function, "__name__", type(function).__name__)
    steps.append([name, {key: _plain(key, given) for key in sorted(given)}])
  return _hash(json.dumps(steps).encode())


def _is_of_users(step: object) -> bool:
  """Returns whether a preprocessor is not one of ours, which never change."""
  function = step.func if isinstance(step, functools.partial) else step
  module = getattr(function, "__module__", None) or type(function).__module__
  is_ours = module.partition(".")[0] == "specialize_jax"
  return not is_ours and not isinstance(step, seqio.CacheDatasetPlaceholder)


def _of_preprocessors(task: seqio.Task) -> str:
  """Returns a hash of what the users' preprocessors of a task are made of."""
  steps = [_as_json(step) for step in task.preprocessors if _is_of_users(step)]
  return _hash(json.dumps(steps).encode())


def _held(function: types.FunctionType) -> list[object]:
  """Returns what a function's closure holds."""
  held = []
  for cell in function.__closure__ or ():
    with contextlib.suppress(ValueError):  # an empty one
      held.append(cell.cell_contents)
  return held


def _as_json(value: object, depth: int = 0) -> object:
  """Returns a value as JSON, the same in every process.

  A function is its name, its defaults and what it holds, but not its code; an
  object that is neither a collection nor a dataclass is its type.
  """
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if depth == _MAX_DEPTH:
    return type(value).__name__

  def of(*parts: object) -> list[object]:
    return [_as_json(part, depth + 1) for part in parts]

  match value:
    case bytes():
      return value.hex()
    case functools.partial():
      return of(value.func, value.args, value.keywords)
    case Mapping():
      return sorted((of(*pair) for pair in value.items()), key=repr)
    case list() | tuple():
      return of(*value)
    case Set():
      return sorted(of(*value), key=repr)
    case types.MethodType():
      return of(value.__func__, value.__self__)
    case types.FunctionType():
      return [value.__qualname__, *of(value.__defaults__, _held(value))]
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return [type(value).__qualname__, *of(fields)]
  return type(value).__qualname__


def _plain(key: str, given: Mapping[str, object]) -> object:
  """Returns an argument of a preprocessor as JSON; an object as its type."""
  value = given[key]
  if key == "read_demonstrations" and value is not None:
    shows_some = getattr(given.get("data_format"), "in_context", False)
    return [dataclasses.asdict(one) for one in value()] if shows_some else None
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return dataclasses.asdict(value)
  if value is None or isinstance(value, bool | int | float | str):
    return value
  return type(value).__name__


def _hash_of_files(files: Iterable[epath.Path]) -> str:
  digest = hashlib.sha256()
  for file in files:
    with file.open("rb") as stream:
      while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
  return digest.hexdigest()[:_DIGITS]


def _serialized(columns: Mapping[str, object]) -> bytes:
  def plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else str(value)

  rows = {name: list(column) for name, column in sorted(columns.items())}
  return json.dumps(rows, default=plain).encode()


def _hash(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:_DIGITS]
