"""The manifest of a folder that we wrote: the size and CRC-32 of its files.

`specialize_manifest.json` lists the files of a folder, so that one that was
altered, truncated, lost, exchanged or added is noticed:

- in an exported folder, Hugging Face's or T5X's: all files;
- in a step of a run: all files but the marks of a complete save, which Orbax
  writes last. Large files of arrays are listed with their size alone, since the
  arrays have digests of their own (`damage.fingerprint`);
- in a run's folder, and in its `vocabulary/`: the files that the run keeps
  next to its checkpoints.

Folders that others wrote have no manifest and are not checked. The manifest has
a checksum of its own (`files.seals`).

    {"files": {"config.json": {"bytes": 728, "crc32": "0b3cd3c4"}, ...},
     "specialize_crc32": "1ca4a03a"}
"""

import itertools
import json
import os
import pathlib
import zlib
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from concurrent import futures
from typing import Any

from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import tokenizers
from specialize_jax.files import reading, seals, writing

NAME = "specialize_manifest.json"

LISTED_IN = "listed_in"
"""Key in the metadata of exported arrays: the name of the folder's manifest. It
is lost, as the manifest is, when another program saves the model."""

_READ = (".index.json", ".model", ".safetensors", ".bin")
"""Endings of the files that a reader of a folder may open."""

_READ_NAMES = frozenset(
  ("config.json", "generation_config.json", "adapter_config.json")
  + tokenizers.FILES
)

_MARK = "commit_success.txt"
"""The mark of a complete save, which Orbax writes last; no reader opens it."""

_SMALL = 2**24  # bytes: config, tokenizer and index, not tensors
_CHUNK = 2**22
_READERS = 16  # files that are read in parallel: buckets have high latency


def write(
  directory: str | os.PathLike, names: Collection[str] | None = None
) -> None:
  """Writes the manifest of a folder's files; reads each of them once.

  Args:
    directory: the folder.
    names: the files to list; None for all. A manifest that lists them as they
      are is left as it is.
  """
  write_entries(directory, entries(directory, names))


def write_entries(
  directory: str | os.PathLike, listed: Mapping[str, Mapping[str, Any]]
) -> None:
  """Writes a manifest, unless the folder has the same one.

  Args:
    directory: the folder.
    listed: the entries of its files, from `entries`.
  """
  text = json.dumps({"files": listed}, indent=2, sort_keys=True)
  text = seals.sealed(text) + "\n"
  place = epath.Path(directory) / NAME
  if not place.is_file() or reading.read_bytes(place) != text.encode():
    writing.write_text(place, text)


def entries(
  directory: str | os.PathLike,
  names: Collection[str] | None = None,
  *,
  without: Mapping[str, Sequence[str]] | None = None,
  max_bytes: int | None = None,
) -> dict[str, dict[str, Any]]:
  """Returns `{"bytes": size, "crc32": "8 hex digits"}` of each file.

  Args:
    directory: the folder of the files.
    names: the files, by their paths below it; None for all.
    without: fields that are written later, by the name of a JSON file. The
      entry of such a file is `{"without": fields, "crc32": ...}`, with the
      checksum of the other fields in any order.
    max_bytes: how much is read in all, the smallest files first; the others
      have no "crc32". None for no limit.
  """
  directory = epath.Path(directory)
  files = (
    dict(_files(directory))
    if names is None
    else {name: directory / name for name in names}
  )
  without = without or {}
  with futures.ThreadPoolExecutor(_READERS) as readers:

    def of_each(function: Callable[..., Any], names: Iterable[str]) -> dict:
      found = {name: readers.submit(function, name) for name in names}
      return {name: value.result() for name, value in found.items()}

    def size(name: str) -> int:
      return files[name].stat().length

    def crc32(name: str) -> str:
      return _crc32(files[name], without.get(name, ()))

    sizes = of_each(size, files)
    smallest_first = sorted(files, key=sizes.__getitem__)
    ends = itertools.accumulate(sizes[name] for name in smallest_first)
    read = of_each(
      crc32,
      [
        name
        for name, end in zip(smallest_first, ends, strict=True)
        if max_bytes is None or end <= max_bytes or name in without
      ],
    )
  found: dict[str, dict[str, Any]] = {}
  for name in files:
    if name in without:
      found[name] = {"without": [*without[name]], "crc32": read[name]}
    elif name in read:
      found[name] = {"bytes": sizes[name], "crc32": read[name]}
    else:
      found[name] = {"bytes": sizes[name]}
  return found


def entries_of(contents: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
  """Returns what `entries` would of files with these contents."""
  return {
    name: {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    for name, content in contents.items()
  }


def _files(directory: epath.Path) -> Iterator[tuple[str, epath.Path]]:
  """Yields each file below a folder after its name there, in order.

  Hidden files, of an editor, a file system or a lock, are left out. (Zarr's
  descriptions are hidden too: `.zarray`.)
  """
  found = [
    place / name for place, _, names in directory.walk() for name in names
  ]
  for file in sorted(found):
    parts = file.relative_to(directory).parts
    hidden = any(part[0] == "." and part[:2] != ".z" for part in parts)
    if not hidden and parts != (NAME,):
      yield "/".join(parts), file


def check(
  directory: str | os.PathLike,
  *,
  only_small: bool = False,
  is_step: bool = False,
) -> bool:
  """Compares a folder with its manifest.

  Args:
    directory: the folder.
    only_small: whether of large files only the size is compared.
    is_step: whether it is a step of a run, all of whose folders are read.

  Returns:
    Whether there is a manifest.

  Raises:
    UserError: a file is missing, added, or not what was written.
  """
  directory = epath.Path(directory)
  if not (directory / NAME).exists():
    return False
  listed = _read(directory / NAME)
  for name in _unlisted(directory, listed):
    if _is_read(name, listed, is_step=is_step):
      raise errors.UserError(
        f"{directory / name} is not among the files that {NAME} lists, and"
        " would be read with them: move it away, or copy the folder again."
      )
  check_listed(directory, listed, only_small=only_small)
  return True


def unlisted(directory: str | os.PathLike) -> list[str]:
  """Returns the files of a folder that its manifest does not list.

  If `check` has passed, no reader uses them: a README, for example. Empty if
  there is no manifest.
  """
  directory = epath.Path(directory)
  if not (directory / NAME).exists():
    return []
  return _unlisted(directory, _read(directory / NAME))


def _unlisted(
  directory: epath.Path, listed: Mapping[str, Mapping[str, Any]]
) -> list[str]:
  return [
    name
    for name, file in _files(directory)
    if name not in listed and file.name != _MARK
  ]


def _is_read(
  name: str, listed: Mapping[str, Mapping[str, Any]], *, is_step: bool
) -> bool:
  """Returns whether a reader of a folder may open a file of this name."""
  folder, slash, _ = name.partition("/")
  if not slash:
    return not is_step and (name.endswith(_READ) or name in _READ_NAMES)
  return is_step or any(other.startswith(f"{folder}/") for other in listed)


def check_names(directory: str | os.PathLike, names: Iterable[str]) -> None:
  """Compares some files of a folder with its manifest, as far as it lists them.

  Args:
    directory: the folder, which need not have a manifest.
    names: the files, by their paths below it.

  Raises:
    UserError: a file, or the manifest, is not what was written.
  """
  directory = epath.Path(directory)
  if not (directory / NAME).is_file():
    return
  listed = _read(directory / NAME)
  check_listed(directory, {n: listed[n] for n in names if n in listed})


def check_listed(
  directory: str | os.PathLike,
  listed: Mapping[str, Mapping[str, Any]],
  *,
  only_small: bool = False,
) -> None:
  """Compares files with what `entries` returned of them.

  Args:
    directory: the directory of the files.
    listed: the entries by the name of each file.
    only_small: whether only the sizes of large files are compared.

  Raises:
    UserError: a file is missing or not what was written.
  """
  for name, entry in listed.items():
    file = epath.Path(directory) / name
    try:
      size, without = file.stat().length, entry.get("without", ())
      if size != entry.get("bytes", size):
        problem = f"it has {size:,} bytes instead of {entry['bytes']:,}"
      elif (only_small and size > _SMALL) or "crc32" not in entry:
        continue
      elif _crc32(file, without) != entry["crc32"]:
        problem = "its content is not what was written"
      else:
        continue
    except FileNotFoundError:
      problem = "it is missing"
    raise errors.UserError(
      f"{file} is damaged ({problem}): copy it again from an intact copy, give"
      " another checkpoint, or, where it was changed on purpose, read it"
      " unchecked (--no_verify, or `verify` in gin)."
    )


def _read(path: epath.Path) -> dict[str, dict[str, Any]]:
  try:
    text = reading.read_description(path).decode()
    seals.check(text, os.fspath(path))
    content = json.loads(text)
    listed = content["files"]
    # Else a manifest whose checksum lost its name would be one without.
    for name in content.keys() - {"files", seals.FIELD}:
      raise ValueError(f"{name!r} is not a part of a manifest")
    for name, entry in listed.items():
      parts = pathlib.PurePosixPath(name).parts
      if not parts or ".." in parts or parts[0] == "/":
        raise ValueError(f"{name!r} is not the name of a file")
      if not _is_entry(entry):
        raise ValueError(f"{name!r} has no size and CRC-32")
  except errors.UserError:
    raise
  except (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    raise errors.UserError(
      f"{path} is damaged ({error}): copy the folder again, or read it"
      " unchecked (--no_verify)."
    ) from error
  return listed


def _is_entry(entry: Mapping[str, Any]) -> bool:
  """Returns whether it is what `entries` returns of a file."""
  if "crc32" in entry and len(entry["crc32"]) != 8:
    return False
  if "without" in entry:
    return isinstance(entry["without"], list) and "crc32" in entry
  return isinstance(entry["bytes"], int)


def _crc32(file: epath.Path, without: Collection[str] = ()) -> str:
  """Computes the CRC-32 of a file.

  Args:
    file: the file.
    without: fields of the JSON object in it that are left out; the others may
      then have any order. A file that holds no object is taken as it is.
  """
  if without:
    content = reading.read_description(file)
    return f"{zlib.crc32(_other_fields(content, without)):08x}"
  value = 0
  with file.open("rb") as opened:
    while chunk := opened.read(_CHUNK):
      value = zlib.crc32(chunk, value)
  return f"{value:08x}"


def _other_fields(content: bytes, without: Collection[str]) -> bytes:
  try:
    fields = json.loads(content)
  except (ValueError, RecursionError):
    return content
  if not isinstance(fields, dict):
    return content
  other = {name: fields[name] for name in fields if name not in without}
  return json.dumps(other, sort_keys=True).encode()
