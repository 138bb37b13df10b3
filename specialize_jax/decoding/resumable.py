"""Writes rows in order although they arrive out of order, and resumes.

`FILE` holds the rows in order, each as soon as all rows before it are present.
`FILE.progress`, next to it, holds everything that the rows depend on (on its
first line), checksums of the rows so far, and rows that arrived early. Each
batch is written to both files and synced to disk before the next is decoded, so
a kill loses no more than the current batch. The next start removes an
incomplete last line.

The second file has two purposes. Rows of similar length are decoded together,
so they arrive out of order, and those that wait would be lost. And a file of
rows does not record the settings and inputs it was made from, so a run with
others would silently continue it. The file remains when all rows are present:
running the same command again then does nothing.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Self

from specialize_jax import errors
from specialize_jax.files import reading, writing

Row = Mapping[str, object]

_SUFFIX = ".progress"
_MAX_WAITING_LINES = 10_000


class ResumableRows:
  """Writes numbered rows in order; a second run of the same command resumes.

  Use it as a context manager.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    made_of: Mapping[str, object],
    num_rows: int,
    belongs: Callable[[int, Row], bool] | None = None,
    overwrite: bool = False,
  ) -> None:
    """Reads what an earlier run of the same command has written, if any.

    Args:
      path: the file of rows; missing directories are created.
      made_of: everything that the rows depend on, JSON-serializable, by the
        name of the flag, which error messages mention.
      num_rows: total number of rows.
      belongs: whether a row that is present was computed from the input of
        that number; None if rows do not show it.
      overwrite: whether to start over, whatever exists.

    Raises:
      UserError: the file exists and belongs to another run, or is damaged.
    """
    # Links are resolved, so that a file has the same path by every name.
    self._path = pathlib.Path(os.path.realpath(path))
    self._progress_path = self._path.with_name(self._path.name + _SUFFIX)
    self._made_of = json.loads(json.dumps(dict(made_of)))
    self._num_rows = num_rows
    self._waiting: dict[int, str] = {}
    self._num_lines = 0
    self._crc32 = 0  # of the rows that are in order
    if self._path.is_dir():
      raise errors.UserError(f"{path} is a directory: give a file's name.")
    self._belongs = belongs
    self._overwrite = overwrite
    if not overwrite:
      writing.separate(self._path)
    self._num_written = 0 if overwrite else self._resume()
    self._rows: BinaryIO | None = None
    self._progress: BinaryIO | None = None

  def done(self) -> set[int]:
    """Returns the numbers of the rows that are present."""
    return {*range(self._num_written), *self._waiting}

  def read(self) -> dict[int, Row]:
    """Returns the rows that are present, by number, all in memory."""
    return self._read(self._num_written)

  def _read(self, num_written: int) -> dict[int, Row]:
    rows = {}
    if num_written:
      lines, _ = _complete_lines(self._path)
      rows = dict(enumerate(map(json.loads, lines[:num_written])))
    return rows | {n: json.loads(line) for n, line in self._waiting.items()}

  def __enter__(self) -> Self:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    if self._overwrite:
      self._path.unlink(missing_ok=True)
    # Also compacts the file: rows that are in order by now are dropped.
    self._begin_progress()
    self._rows = self._path.open("ab")
    self._write_in_order()
    return self

  def __exit__(self, *exception: object) -> None:
    self._rows.close()
    self._progress.close()

  def add(self, rows: Mapping[int, Row]) -> None:
    """Writes rows by number; they are on disk when it returns."""
    lines = {number: writing.to_json(row) for number, row in rows.items()}
    self._waiting |= lines
    self._write_in_order()
    for number in sorted(lines.keys() & self._waiting.keys()):
      line = _waiting_line(number, lines[number])
      self._progress.write(line.encode() + b"\n")
      self._num_lines += 1
    self._progress.write(json.dumps(self._checksum()).encode() + b"\n")
    self._num_lines += 1
    _sync(self._progress)
    if self._num_lines > _MAX_WAITING_LINES and not self._waiting:
      self._begin_progress()

  def _write_in_order(self) -> None:
    while self._num_written in self._waiting:
      line = self._waiting.pop(self._num_written).encode() + b"\n"
      self._rows.write(line)
      self._crc32 = zlib.crc32(line, self._crc32)
      self._num_written += 1
    _sync(self._rows)

  def _begin_progress(self) -> None:
    """Rewrites the progress file with the waiting rows."""
    if self._progress is not None:
      self._progress.close()
    lines = [json.dumps({"made_of": self._made_of}, ensure_ascii=False)]
    lines.append(json.dumps(self._checksum()))
    lines += [
      _waiting_line(number, line)
      for number, line in sorted(self._waiting.items())
    ]
    writing.write_text(self._progress_path, "\n".join(lines) + "\n")
    self._progress = self._progress_path.open("ab")
    self._num_lines = len(lines)

  def _checksum(self) -> dict[str, int]:
    """Returns what the rows in order are to be compared with."""
    return {"rows": self._num_written, "crc32": self._crc32}

  def _resume(self) -> int:
    """Reads both files; returns the number of rows in order."""
    if not self._progress_path.exists():
      if self._path.exists() and self._path.stat().st_size:
        raise errors.UserError(
          f"{self._path} exists and was not written by this command (there is "
          f"no {self._progress_path.name} next to it): give another --outputs, "
          "or --overwrite to start over."
        )
      return 0
    first, *others = _complete_lines(self._progress_path)[0] or [""]
    self._check_made_of(first)
    num_written = self._mend_rows()
    checksum = {"rows": 0, "crc32": 0}
    for line in others:
      entry = self._progress_entry(line)
      if isinstance(entry, dict):
        # Rows that are missing at the end are decoded again.
        if entry["rows"] <= num_written:
          checksum = entry
      elif entry[0] >= num_written:
        self._waiting[entry[0]] = entry[1]
    self._crc32 = self._checked_sum(checksum, num_written)
    self._check_rows(num_written)
    return num_written

  def _progress_entry(self, line: str) -> dict[str, int] | list:
    """Parses a line of the progress file: a checksum, or a row that waits."""
    try:
      entry = json.loads(line)
      if isinstance(entry, dict):
        entry = {name: int(entry[name]) for name in ("rows", "crc32")}
      else:
        number, row, *checksum = entry  # no checksum in earlier releases
        if not isinstance(number, int) or checksum not in ([], [_crc32([row])]):
          raise ValueError(f"row {number}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise errors.UserError(
        f"{self._progress_path} is damaged ({error}): give another --outputs,"
        " or --overwrite to start over."
      ) from error
    return entry

  def _checked_sum(self, checksum: Mapping[str, int], num_written: int) -> int:
    """Compares the first rows with what was written; returns the sum of all."""
    lines = _complete_lines(self._path)[0] if num_written else []
    size = checksum["rows"]
    if checksum["crc32"] != _crc32(lines[:size]):
      raise errors.UserError(
        f"the first {size:,} rows of {self._path} are not those that were"
        " written: another process, an editor or the disk has changed the"
        " file; give another --outputs, or --overwrite to start over."
      )
    return _crc32(lines[size:num_written], checksum["crc32"])

  def _check_rows(self, num_written: int) -> None:
    """Checks that every row that is present was computed from its own input."""
    if self._belongs is None:
      return
    for number, row in self._read(num_written).items():
      if not self._belongs(number, row):
        raise errors.UserError(
          f"{self._path}, row {number + 1} was not made of input {number + 1}:"
          " another process or an editor has changed the file; give another"
          " --outputs, or --overwrite to start over."
        )

  def _check_made_of(self, line: str) -> None:
    try:
      made_of = json.loads(line)["made_of"]
      names = sorted(made_of.keys() | self._made_of.keys())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise errors.UserError(
        f"{self._progress_path} was not written by this command: give another "
        "--outputs, or --overwrite to start over."
      ) from error
    for name in names:
      before, now = made_of.get(name), self._made_of.get(name)
      if before != now:
        raise errors.UserError(
          f"{self._path} was begun with {name}={_shown(before)}, and now it is "
          f"{_shown(now)}: give another --outputs, or --overwrite to start "
          "over."
        )

  def _mend_rows(self) -> int:
    """Removes an incomplete last line; returns the number of other lines."""
    if not self._path.exists():
      return 0
    lines, num_bytes = _complete_lines(self._path)
    for number, line in enumerate(lines, start=1):
      if not _is_object(line):
        raise errors.UserError(
          f"{self._path}, line {number} is not a JSON object, though it is "
          "not the last: the file is damaged; --overwrite starts over."
        )
    if len(lines) > self._num_rows:
      raise errors.UserError(
        f"{self._path} has {len(lines):,} rows, and there are "
        f"{self._num_rows:,} inputs: give another --outputs, or --overwrite "
        "to start over."
      )
    if num_bytes < self._path.stat().st_size:
      with self._path.open("r+b") as stream:
        stream.truncate(num_bytes)
        _sync(stream)
    return len(lines)


def _complete_lines(path: pathlib.Path) -> tuple[list[str], int]:
  """Returns a file's complete lines, and their size in bytes.

  The last line is complete if it ends with a newline and is valid JSON: after a
  power failure a file may have its full length but not its content.
  """
  content = path.read_bytes()
  content = content[: content.rfind(b"\n") + 1]
  lines = content.decode("utf-8", "replace").split("\n")[:-1]
  if lines and not reading.is_json(lines[-1]):
    content = content[: content[:-1].rfind(b"\n") + 1]
    lines.pop()
  return lines, len(content)


def _crc32(lines: Sequence[str], first: int = 0) -> int:
  return zlib.crc32("".join(f"{line}\n" for line in lines).encode(), first)


def _waiting_line(number: int, line: str) -> str:
  """Returns the line of the progress file of a row that arrived early."""
  return json.dumps([number, line, _crc32([line])], ensure_ascii=False)


def _is_object(line: str) -> bool:
  return line.startswith("{") and reading.is_json(line)


def _shown(value: object) -> str:
  text = "unset" if value is None else str(value)
  return text if len(text) <= 40 else f"{text[:12]}..."


def _sync(stream: BinaryIO) -> None:
  stream.flush()
  os.fsync(stream.fileno())
