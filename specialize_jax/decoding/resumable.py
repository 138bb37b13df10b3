"""Rows that are written in order while they come out of it, and survive.

`FILE` holds the rows in order, each as soon as all before it are there.
`FILE.progress` lies beside it: its first line says what the rows are made of,
and its other lines hold rows that came before their turn. A batch is written
to both, and synchronised to disk, before the next is decoded, so that a kill
costs no more than the batch in flight; a line that it cuts in half is removed
by the next start.

Why a second file: rows of like length are decoded together, so they come out
of order, and those that wait would be lost; and a file of rows alone does not
say by which settings and of which inputs it was made, so that a run with
others would go on in it without a word. The file stays when all rows are
there: the same command then has nothing to do.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import BinaryIO, Self

from specialize_jax import errors
from specialize_jax.files import writing

Row = Mapping[str, object]

_SUFFIX = ".progress"
_MAX_WAITING_LINES = 10_000
# Line ends of Unicode (`str.splitlines` knows them), and half of a pair.
_AWKWARD = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


class ResumableRows:
  """Writes numbered rows in order; a second run of the same goes on.

  Use it as a context manager.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    made_of: Mapping[str, object],
    num_rows: int,
    overwrite: bool = False,
  ) -> None:
    """Opens the file, or finds what an earlier run of the same has written.

    Args:
      path: of the rows; missing directories are made.
      made_of: all that the rows depend on, as JSON-able values; the names are
        flags, which an error names.
      num_rows: how many there will be.
      overwrite: begins anew whatever is there.

    Raises:
      UserError: the file is there and is not of such a run, or not whole.
    """
    self._path = pathlib.Path(path)
    self._progress_path = self._path.with_name(self._path.name + _SUFFIX)
    self._made_of = json.loads(json.dumps(dict(made_of)))
    self._num_rows = num_rows
    self._waiting: dict[int, str] = {}
    self._num_lines = 0
    if self._path.is_dir():
      raise errors.UserError(f"{path} is a directory: give a file's name.")
    self._overwrite = overwrite
    self._num_written = 0 if overwrite else self._resume()
    self._rows: BinaryIO | None = None
    self._progress: BinaryIO | None = None

  def done(self) -> set[int]:
    """Gives the numbers of the rows that are there."""
    return {*range(self._num_written), *self._waiting}

  def read(self) -> dict[int, Row]:
    """Gives the rows that are there, by number; for a file that fits memory."""
    rows = {}
    if self._num_written:
      lines, _ = _whole_lines(self._path)
      rows = dict(enumerate(map(json.loads, lines[: self._num_written])))
    return rows | {n: json.loads(line) for n, line in self._waiting.items()}

  def __enter__(self) -> Self:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    if self._overwrite:
      self._path.unlink(missing_ok=True)
    # Compacts too: rows that are in order by now wait no longer.
    self._begin_progress()
    self._rows = self._path.open("ab")
    self._write_in_order()
    return self

  def __exit__(self, *exception: object) -> None:
    self._rows.close()
    self._progress.close()

  def add(self, rows: Mapping[int, Row]) -> None:
    """Writes rows of these numbers; they are on disk when it returns."""
    lines = {n: json.dumps(row, ensure_ascii=False) for n, row in rows.items()}
    lines = {n: _writable(line) for n, line in lines.items()}
    self._waiting |= lines
    self._write_in_order()
    for number in sorted(lines.keys() & self._waiting.keys()):
      line = json.dumps([number, lines[number]], ensure_ascii=False)
      self._progress.write(line.encode() + b"\n")
      self._num_lines += 1
    _synchronise(self._progress)
    if self._num_lines > _MAX_WAITING_LINES and not self._waiting:
      self._begin_progress()

  def _write_in_order(self) -> None:
    while self._num_written in self._waiting:
      line = self._waiting.pop(self._num_written)
      self._rows.write(line.encode() + b"\n")
      self._num_written += 1
    _synchronise(self._rows)

  def _begin_progress(self) -> None:
    """Writes the progress file anew, with what waits."""
    if self._progress is not None:
      self._progress.close()
    lines = [json.dumps({"made_of": self._made_of}, ensure_ascii=False)]
    lines += [
      json.dumps([number, line], ensure_ascii=False)
      for number, line in sorted(self._waiting.items())
    ]
    writing.write_text(self._progress_path, "\n".join(lines) + "\n")
    self._progress = self._progress_path.open("ab")
    self._num_lines = len(lines)

  def _resume(self) -> int:
    """Reads both files; gives how many rows are in order."""
    if not self._progress_path.exists():
      if self._path.exists() and self._path.stat().st_size:
        raise errors.UserError(
          f"{self._path} is there and was not begun by this command (there is "
          f"no {self._progress_path.name} beside it): give another --outputs, "
          "or --overwrite to begin anew."
        )
      return 0
    first, *others = _whole_lines(self._progress_path)[0] or [""]
    self._check_made_of(first)
    num_written = self._mend_rows()
    for line in others:
      number, row = json.loads(line)
      if number >= num_written:
        self._waiting[number] = row
    return num_written

  def _check_made_of(self, line: str) -> None:
    try:
      made_of = json.loads(line)["made_of"]
      names = sorted(made_of.keys() | self._made_of.keys())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise errors.UserError(
        f"{self._progress_path} is not what this command writes: give another "
        "--outputs, or --overwrite to begin anew."
      ) from error
    for name in names:
      before, now = made_of.get(name), self._made_of.get(name)
      if before != now:
        raise errors.UserError(
          f"{self._path} was begun with {name}={_shown(before)}, and now it is "
          f"{_shown(now)}: give another --outputs, or --overwrite to begin "
          "anew."
        )

  def _mend_rows(self) -> int:
    """Cuts a half-written last line off; gives the number of the others."""
    if not self._path.exists():
      return 0
    lines, num_bytes = _whole_lines(self._path)
    for number, line in enumerate(lines, start=1):
      if not _is_object(line):
        raise errors.UserError(
          f"{self._path}, line {number} is not a JSON object, though it is "
          "not the last: the file is damaged; --overwrite begins anew."
        )
    if len(lines) > self._num_rows:
      raise errors.UserError(
        f"{self._path} has {len(lines):,} rows, and there are "
        f"{self._num_rows:,} inputs: give another --outputs, or --overwrite "
        "to begin anew."
      )
    if num_bytes < self._path.stat().st_size:
      with self._path.open("r+b") as stream:
        stream.truncate(num_bytes)
        _synchronise(stream)
    return len(lines)


def _whole_lines(path: pathlib.Path) -> tuple[list[str], int]:
  """Gives a file's lines, and the bytes of those that are whole.

  A last line counts with its newline, and if it is JSON: a machine that lost
  its power may have kept the length and not the bytes.
  """
  content = path.read_bytes()
  content = content[: content.rfind(b"\n") + 1]
  lines = content.decode("utf-8", "replace").split("\n")[:-1]
  if lines and not _is_json(lines[-1]):
    content = content[: content[:-1].rfind(b"\n") + 1]
    lines.pop()
  return lines, len(content)


def _is_json(line: str) -> bool:
  try:
    json.loads(line)
  except ValueError:
    return False
  return True


def _is_object(line: str) -> bool:
  return line.startswith("{") and _is_json(line)


def _writable(line: str) -> str:
  """Escapes what ends a line for some readers, or what UTF-8 cannot hold."""
  if _AWKWARD.search(line):
    return json.dumps(json.loads(line))
  return line


def _shown(value: object) -> str:
  text = "unset" if value is None else str(value)
  return text if len(text) <= 40 else f"{text[:12]}..."


def _synchronise(stream: BinaryIO) -> None:
  stream.flush()
  os.fsync(stream.fileno())
