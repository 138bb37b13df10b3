r"""Reads text and JSON of any origin, with the line number in every error.

Text is UTF-8. A byte order mark, which Windows puts first, is removed, and line
ends `\r\n` are read as `\n`. Bytes that are not UTF-8 are an error: replacement
characters would be trained on, or graded, as if they were in the file.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from specialize_jax import errors
from specialize_jax.files import paths, seals

_MARK = "\ufeff"
# UTF-16 is recognized by its mark, or by the zero byte of an ASCII character.
_UTF16_STARTS = (
  (re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff"), "UTF-32"),
  (re.compile(rb"\xff\xfe|\xfe\xff"), "UTF-16"),
  (re.compile(rb"[\x01-\x7f]\x00"), "UTF-16LE"),
  (re.compile(rb"\x00[\x01-\x7f]"), "UTF-16BE"),
)

_BINARY_STARTS = (
  (b"\x1f\x8b", "gzip"),
  (b"BZh", "bzip2"),
  (b"\xfd7zXZ", "xz"),
  (b"(\xb5/\xfd", "Zstandard"),
  (b"PK\x03\x04", "a zip archive"),
  (b"PAR1", "Parquet"),
  (b"ARROW1", "Arrow"),
  (b"\xff\xff\xff\xff", "Arrow"),  # its stream format
  (b"Obj\x01", "Avro"),
  (b"SQLite format 3\0", "an SQLite database"),
  (b"\x93NUMPY", "NumPy's format"),
  (b"\x89HDF", "HDF5"),
  (b"GGUF", "GGUF"),
  (b"%PDF", "PDF"),
  (b"\x80\x02", "a pickle"),
  (b"\x80\x03", "a pickle"),
  (b"\x80\x04", "a pickle"),
  (b"\x80\x05", "a pickle"),
)
_LFS_START = b"version https://git-lfs"

_LINE_END = re.compile(r"[ \t\r]*(?:\n|\Z)")
_BETWEEN_ROWS = re.compile(rf"[\s{_MARK}]*")

# Largest size of a row, a thousand times that of the longest model input.
MAX_ROW_SIZE = 32 << 20
# Ten times the largest tokenizer.json or index of tensors.
MAX_DESCRIPTION_BYTES = 256 << 20

Path = str | os.PathLike[str]


def read_text(path: Path) -> str:
  r"""Reads a whole text file, without byte order mark and the `\r` of `\r\n`.

  Raises:
    UserError: there is no such file, or it is not UTF-8; the message names
      the line.
  """
  return decode(read_bytes(path), path).replace("\r\n", "\n")


def lines(path: Path) -> Iterator[str]:
  r"""Yields a text file's lines with their `\n`, which alone ends a line.

  Raises:
    UserError: a line is not UTF-8, or longer than a row may be; the message
      names it.
  """
  with open(path, "rb") as stream:
    stored = iter(lambda: stream.readline(MAX_ROW_SIZE + 1), b"")
    for number, line in enumerate(stored, start=1):
      check_row_size(line, f"{path}, line {number}")
      try:
        text = line.decode("utf-8")
      except UnicodeDecodeError as error:
        raise _not_utf8(path, number, line, error.start) from error
      if number == 1:
        text = text.removeprefix(_MARK)
      yield text.removesuffix("\r\n") + "\n" if text.endswith("\r\n") else text


def read_json(path: Path) -> object:
  """Reads a file that holds one JSON value.

  Raises:
    UserError: there is no such file, it is not JSON, or its checksum differs
      (see `seals`); the message names the line.
  """
  text = decode(read_bytes(path), path)
  try:
    value = json.loads(text)
  except json.JSONDecodeError as error:
    raise errors.UserError(
      f"{path}, line {error.lineno} is not JSON ({error.msg} at column"
      f" {error.colno}); mend the file"
    ) from error
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
      f"{path} is not JSON that can be read: {error}"
    ) from error
  return _unsealed(value, text, str(path))


def read_rows(path: Path) -> list[dict[str, object]]:
  """Reads JSON lines, one object per line; skips empty lines.

  Raises:
    UserError: see `read_numbered_rows`.
  """
  return [row for _, row in read_numbered_rows(path)]


def read_numbered_rows(path: Path) -> list[tuple[int, dict[str, object]]]:
  r"""Reads JSON lines, each with its line number, from 1.

  Only `\n` ends a line: a text may contain other line separators. The rows of a
  file that is one JSON list of objects, the format of samples in early releases
  of lm-evaluation-harness, are the entries of the list. Objects may also be
  printed over several lines, as `jq` and `json.dump(..., indent=2)` do, or be
  separated by `\r` alone; they are then numbered in their order.

  Raises:
    UserError: there is no such file, or a line is not a JSON object, or its
      checksum differs (see `seals`); the message names the line.
  """
  text = decode(read_bytes(path), path)
  rows = _listed_rows(text)
  if rows is None:
    rows = _printed_rows(text, path)
  if rows is not None:
    return list(enumerate(rows, start=1))
  return [
    (number, parsed_row(line, f"{path}, line {number}"))
    for number, line in _numbered(text)
  ]


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
  """Yields what `read_numbered_rows` returns, without holding a whole file.

  A file whose first line is no object, and one in a bucket, is read whole.

  Raises:
    UserError: as `read_numbered_rows`, where a line is reached.
  """
  if not paths.is_in_bucket(path) and os.path.isfile(path):
    with open(path, "rb") as stream:
      check_encoding(stream.read(64), path)
    numbered = (
      (number, line.strip().removeprefix(_MARK))
      for number, line in enumerate(lines(path), start=1)
    )
    rows = ((number, line) for number, line in numbered if line)
    first = next(rows, None)
    if first is None:
      return
    if first[1].startswith("{") and is_json(first[1]):
      for number, line in itertools.chain([first], rows):
        yield number, parsed_row(line, f"{path}, line {number}")
      return
  yield from read_numbered_rows(path)


def numbered_texts(path: Path) -> Iterator[tuple[int, str]]:
  r"""Yields the lines that are not empty, each with its number, from 1.

  Only `\n` ends a line: a text may contain other line separators.

  Raises:
    UserError: there is no such file, or it is not UTF-8.
  """
  yield from _numbered(decode(read_bytes(path), path))


def _numbered(text: str) -> Iterator[tuple[int, str]]:
  """Yields the lines of a text that are not empty, with their numbers."""
  for number, line in enumerate(text.split("\n"), start=1):
    stripped = line.strip().removeprefix(_MARK)  # of concatenated files
    if stripped:
      yield number, stripped


def _listed_rows(text: str) -> list[dict[str, object]] | None:
  """Returns the objects of a JSON list; None if the text is not a list."""
  if not text.lstrip().startswith("["):
    return None
  try:
    rows = json.loads(text)
  except (ValueError, RecursionError):
    return None
  are_rows = bool(rows) and all(isinstance(row, dict) for row in rows)
  return rows if are_rows else None


def _printed_rows(text: str, path: Path) -> list[dict[str, object]] | None:
  """Returns the objects of a text that are not one per line.

  JSON has no line end within a string, so that consecutive objects can be
  separated wherever their lines end.

  Returns:
    None if the first line is one object, or if there is anything but objects.
  """
  _, first = next(_numbered(text), (0, ""))
  if not first.startswith("{"):
    return None
  rows: list[dict[str, object]] = []
  decoder = json.JSONDecoder()
  position = text.find("{")
  while position < len(text):
    try:
      row, end = decoder.raw_decode(text, position)
    except (ValueError, RecursionError):
      return None
    is_line = "\n" not in text[position:end] and _LINE_END.match(text, end)
    if not isinstance(row, dict) or (is_line and not rows):
      return None
    where = f"{path}, object {len(rows) + 1}"
    check_row_size(text[position:end], where)
    rows.append(_unsealed(row, text[position:end], where))
    position = _BETWEEN_ROWS.match(text, end).end()
  return rows


def check_row_size(row: str | bytes, where: str) -> None:
  """Checks that a row is not too large.

  Args:
    row: a line of a file of rows.
    where: the file and the line number, for error messages.

  Raises:
    UserError: the row has more than `MAX_ROW_SIZE` characters or bytes.
  """
  if len(row) > MAX_ROW_SIZE:
    raise errors.UserError(
      f"{where} has more than {MAX_ROW_SIZE:,} characters: expected a row of"
      " one example; split or remove the line."
    )


def parsed_row(
  text: str, where: str, *, unique: bool = False
) -> dict[str, object]:
  """Parses one row, a JSON object.

  Args:
    text: the line of the row.
    where: the file and the line number, for error messages.
    unique: whether to refuse a field that an object has twice, of which JSON
      would keep the last.

  Raises:
    UserError: it is not a JSON object, or too large.
  """
  check_row_size(text, where)
  try:
    row = json.loads(text, object_pairs_hook=_once if unique else None)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
      f"{where} is not JSON ({error}): got {text[:60]!r}, expected one object"
      " a line; mend or remove the line."
    ) from error
  if not isinstance(row, dict):
    raise errors.UserError(
      f"{where} is not a JSON object: got {text[:60]!r}; expected one object a"
      ' line, such as {"text": ...}.'
    )
  return _unsealed(row, text, where)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
  """Returns an object; raises ValueError if it has a field twice."""
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"the field {twice[:40]!r} occurs twice")
  return found


def _unsealed(value: object, text: str, where: str) -> object:
  """Checks a value against its checksum, and returns it without that."""
  if isinstance(value, dict) and seals.FIELD in value:
    seals.check(text, where)
    del value[seals.FIELD]
  return value


def loads(text: str | bytes) -> object:
  """Parses JSON with orjson, or with json what orjson rejects.

  orjson rejects lone surrogates and NaN, and reads an integer beyond 64 bits as
  a float: use it for millions of responses and records, not for the files that
  users write.

  Raises:
    json.JSONDecodeError: it is not JSON.
    ValueError, RecursionError: a number has thousands of digits, or values
      are nested too deeply.
  """
  try:
    return orjson.loads(text)
  except orjson.JSONDecodeError:
    return json.loads(text)


def is_missing(value: object) -> bool:
  """Returns whether a field is null, or NaN, as tables without it have it."""
  return value is None or (isinstance(value, float) and math.isnan(value))


def id_of(row: Mapping[str, object], *names: str) -> object:
  """Returns the first of some fields that is not missing; None if all are.

  A table with gaps writes whole numbers as floats: they are integers again.

  Example:
    >>> id_of({"question_id": math.nan, "id": 3.0}, "question_id", "id")
    3
  """
  given = (row.get(name) for name in names)
  found = next((one for one in given if not is_missing(one)), None)
  if isinstance(found, float) and found.is_integer():
    return int(found)
  return found


def is_json(line: str | bytes) -> bool:
  """Returns whether a line is complete: no proper prefix of JSON is JSON."""
  try:
    json.loads(line)
  except (ValueError, RecursionError):
    return False
  return True


def decode(content: bytes, path: Path) -> str:
  """Decodes UTF-8, without its byte order mark.

  Args:
    content: the content of a whole file.
    path: the path of the file, for error messages.

  Raises:
    UserError: it is not UTF-8; the message names the line.
  """
  check_encoding(content, path)
  try:
    return content.decode("utf-8").removeprefix(_MARK)
  except UnicodeDecodeError as error:
    line_start = content.rfind(b"\n", 0, error.start) + 1
    number = content.count(b"\n", 0, error.start) + 1
    line = content[line_start:]
    raise _not_utf8(path, number, line, error.start - line_start) from error


def check_encoding(start: bytes, path: Path) -> None:
  """Checks that content is not UTF-16, UTF-32 or a known binary format.

  Args:
    start: the first bytes of a file, or all.
    path: the path of the file, for error messages.

  Raises:
    UserError: the bytes are the beginning of one of these.
  """
  name = next((name for mark, name in _UTF16_STARTS if mark.match(start)), None)
  if name is not None:
    raise errors.UserError(
      f"{path} is {name[:6]}: expected UTF-8; save it as UTF-8, or convert it"
      f" with `iconv -f {name} -t UTF-8`"
    )
  if start.startswith(_LFS_START):
    raise errors.UserError(
      f"{path} is a pointer of Git LFS and not the file itself: run `git lfs"
      " pull` in its repository"
    )
  for mark, name in _BINARY_STARTS:
    if start.startswith(mark):
      raise errors.UserError(
        f"{path} is {name}: expected UTF-8 text; unpack it, or save it as JSON"
        " lines"
      )


def _not_utf8(
  path: Path, number: int, line: bytes, start: int
) -> errors.UserError:
  return errors.UserError(
    f"{path}, line {number} is not UTF-8: byte {line[start]:#04x} at byte"
    f" {start + 1} of the line; save the file as UTF-8"
  )


def read_description(path: Path) -> bytes:
  """Reads a file that describes others: a config, an index, a tokenizer.

  Raises:
    UserError: as `read_bytes`, or it is larger than any such file.
  """
  return _read_at_most(path, MAX_DESCRIPTION_BYTES)


def read_json_description(path: Path) -> Any:
  """Reads the JSON value of a file that describes others.

  The value is for its caller to check, who knows what it describes.

  Raises:
    UserError: as `read_description`.
    ValueError: it is not JSON.
    RecursionError: it is nested deeper than Python can follow.
  """
  return json.loads(read_description(path))


def read_bytes(path: Path) -> bytes:
  """Reads a whole file, which may be local, a pipe, or in a bucket.

  Raises:
    UserError: there is no such file, or it is a directory, or a device, such
      as /dev/zero, which is endless, or larger than this machine's memory.
  """
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return _read_at_most(path, memory)


def _read_at_most(path: Path, max_bytes: int) -> bytes:
  if paths.is_device(path):
    raise errors.UserError(f"{path} is a device: expected a file to read")
  try:
    if not paths.is_in_bucket(path) and os.stat(path).st_size > max_bytes:
      raise errors.UserError(
        f"{path} has {os.stat(path).st_size:,} bytes: expected a file of at"
        f" most {max_bytes:,} here"
      )
    return paths.to_epath(path).read_bytes()
  except FileNotFoundError as error:
    raise errors.UserError(
      f"there is no {path}: expected a file to read"
    ) from error
  except IsADirectoryError as error:
    raise errors.UserError(
      f"{path} is a directory: expected a file to read"
    ) from error
