"""The manifest of a folder that we wrote: the size and CRC-32 of its files.

`specialize_manifest.json` in an exported folder, Hugging Face's or T5X's, lists
all files, so that one that was altered, truncated, lost, exchanged or added is
noticed before it is read. In a run's folder, and in its `vocabulary/`, it lists
the files that the run keeps beside its checkpoints. Folders that others wrote
have no manifest and are not checked.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from specialize_jax import errors
from specialize_jax.files import reading, writing

NAME = "specialize_manifest.json"

_READ = (".json", ".model", ".safetensors", ".bin")
"""Endings of the files that a reader of a folder goes by."""

_SMALL = 2**24  # bytes: config, tokenizer and index, not tensors
_CHUNK = 2**22


def write(
  directory: str | os.PathLike, names: Collection[str] | None = None
) -> None:
  """Writes the manifest of a folder's files; reads each of them once.

  Args:
    directory: the folder.
    names: the files to list; None for all. A manifest that lists them as they
      are is left as it is.
  """
  directory = epath.Path(directory)
  content = {"files": entries(directory, names)}
  text = json.dumps(content, indent=2, sort_keys=True) + "\n"
  place = directory / NAME
  if not place.is_file() or reading.read_bytes(place) != text.encode():
    writing.write_text(place, text)


def entries(
  directory: str | os.PathLike, names: Collection[str] | None = None
) -> dict[str, dict[str, Any]]:
  """Returns `{"bytes": size, "crc32": "8 hex digits"}` of each file.

  Args:
    directory: the folder of the files.
    names: the files, by their paths below it; None for all.
  """
  directory = epath.Path(directory)
  files = (
    _files(directory)
    if names is None
    else [(name, directory / name) for name in names]
  )
  return {
    name: {"bytes": file.stat().length, "crc32": _crc32(file)}
    for name, file in files
  }


def _files(directory: epath.Path) -> Iterator[tuple[str, epath.Path]]:
  """Yields each file below a folder after its name there, in order."""
  found = [
    place / name for place, _, names in directory.walk() for name in names
  ]
  for file in sorted(found):
    name = file.relative_to(directory).as_posix()
    if name != NAME:
      yield name, file


def check(directory: str | os.PathLike, *, only_small: bool = False) -> bool:
  """Compares a folder with its manifest.

  Args:
    directory: the folder.
    only_small: whether of large files only the size is compared.

  Returns:
    Whether there is a manifest.

  Raises:
    UserError: a file is missing, added, or not what was written.
  """
  directory = epath.Path(directory)
  if not (directory / NAME).exists():
    return False
  listed = _read(directory / NAME)
  folders = {name.partition("/")[0] for name in listed if "/" in name}
  for name, file in _files(directory):
    folder, slash, _ = name.partition("/")
    is_read = folder in folders if slash else file.suffix in _READ
    if is_read and name not in listed:
      raise errors.UserError(
        f"{file} is not among the files that {NAME} lists, and would be read "
        "with them: move it away, or copy the folder again."
      )
  check_listed(directory, listed, only_small=only_small)
  return True


def check_file(file: epath.Path) -> None:
  """Compares one file with its folder's manifest, if that lists it.

  Raises:
    UserError: the file, or the manifest, is not what was written.
  """
  manifest = file.parent / NAME
  if not manifest.is_file():
    return
  listed = _read(manifest)
  if file.name in listed:
    check_listed(file.parent, {file.name: listed[file.name]})


def check_listed(
  directory: str | os.PathLike,
  listed: Mapping[str, Mapping[str, Any]],
  *,
  only_small: bool = False,
) -> None:
  """Compares files with what `entries` returned of them.

  Args:
    directory: of the files.
    listed: by the name of each file.
    only_small: whether of large files only the size is compared.

  Raises:
    UserError: a file is missing or not what was written.
  """
  for name, entry in listed.items():
    file = epath.Path(directory) / name
    try:
      size = file.stat().length
      if size != entry["bytes"]:
        problem = f"it has {size:,} bytes instead of {entry['bytes']:,}"
      elif only_small and size > _SMALL:
        continue
      elif _crc32(file) != entry["crc32"]:
        problem = "its content is not what was written"
      else:
        continue
    except FileNotFoundError:
      problem = "it is missing"
    raise errors.UserError(
      f"{file} is damaged ({problem}): copy it again from where it is whole, "
      "or give another checkpoint."
    )


def _read(path: epath.Path) -> dict[str, dict[str, Any]]:
  try:
    listed = reading.read_json_description(path)["files"]
    for name, entry in listed.items():
      parts = pathlib.PurePosixPath(name).parts
      if not parts or ".." in parts or parts[0] == "/":
        raise ValueError(f"{name!r} is not the name of a file")
      if not isinstance(entry["bytes"], int) or len(entry["crc32"]) != 8:
        raise ValueError(f"{name!r} has no size and CRC-32")
  except (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    raise errors.UserError(
      f"{path} is damaged ({error}): copy the folder again, or remove this "
      "file to read the folder unchecked."
    ) from error
  return listed


def _crc32(file: epath.Path) -> str:
  value = 0
  with file.open("rb") as opened:
    while chunk := opened.read(_CHUNK):
      value = zlib.crc32(chunk, value)
  return f"{value:08x}"
