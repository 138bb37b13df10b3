"""The manifest of an exported folder: the size and CRC-32 of every file.

`specialize_manifest.json` in the folder lists all files, so that one that was
altered, truncated, lost, exchanged or added is noticed before it is read.
Folders that others wrote have no manifest and are not checked.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from specialize_jax import errors

NAME = "specialize_manifest.json"

_READ = (".json", ".model", ".safetensors", ".bin")
"""Endings of the files that a reader of a folder goes by."""

_SMALL = 2**24  # bytes: config, tokenizer and index, not tensors
_CHUNK = 2**22


def write(directory: str | os.PathLike) -> None:
  """Writes the manifest of a folder's files; reads each of them once."""
  directory = epath.Path(directory)
  content = {"files": entries(directory)}
  text = json.dumps(content, indent=2, sort_keys=True) + "\n"
  (directory / NAME).write_text(text)


def entries(directory: str | os.PathLike) -> dict[str, dict[str, Any]]:
  """Returns `{"bytes": size, "crc32": "8 hex digits"}` of every file."""
  return {
    file.name: {"bytes": file.stat().length, "crc32": _crc32(file)}
    for file in sorted(epath.Path(directory).iterdir())
    if file.is_file() and file.name != NAME
  }


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
  for file in sorted(directory.iterdir()):
    if file.suffix in _READ and file.name not in {*listed, NAME}:
      raise errors.UserError(
        f"{file} is not among the files that {NAME} lists, and would be read "
        "with them: move it away, or copy the folder again."
      )
  check_listed(directory, listed, only_small=only_small)
  return True


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
    listed = json.loads(path.read_text())["files"]
    for name, entry in listed.items():
      if pathlib.PurePath(name).name != name or name == "..":
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
