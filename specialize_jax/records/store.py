"""Where teacher records lie: an append-only file of lines, read and written.

A store is a directory that holds `records.jsonl`. One record is one line, and
a line counts once its newline is on disk: a writer that is killed leaves at
most one unfinished line, the last, which the next writer removes and a reader
refuses. Appending never rewrites a byte, so no crash can lose a record.

Why lines and not SQLite: what is stored is only ever added and read from end
to end, so an index has nothing to serve; whatever reads JSON reads a store,
today's and in ten years, without this package; a store can be cut, joined,
copied while it grows, and looked at; and a damaged sector costs the records in
it, not the tree above them. What a database would add is small, and here:

- durability: records are written and synchronised to disk in groups, and only
  then counted. One `fsync` a group makes the disk's latency no limit;
- recovery: the only state a killed process can leave is a last line without
  its newline. A disk that fills up is cut back to the last whole group;
- exclusion: a writer holds the file's lock, which the kernel drops with the
  process, so that no stale lock outlives a `kill -9`;
- versions: each line carries its schema's.
"""

import codecs
import errno
import fcntl
import json
import os
import pathlib
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO, Self

from etils import epath

from specialize_jax import errors
from specialize_jax.records import columnar, released, schema

FILE_NAME = "records.jsonl"

_MAX_PENDING_BYTES = 8 << 20


def read_records(
  path: str | os.PathLike[str],
) -> Iterator[schema.TeacherRecord]:
  """Reads records one at a time, in the order they were written.

  Args:
    path: A store's directory, or a `.jsonl` file of such lines, or a JSON
      list of `{"question_id", "sample", "steps"}` as the paper's samples are
      released: a step is `[token, probability]` pairs, the sampled one
      first. That form holds neither question nor gold answer (both are "")
      and is graded by nobody (no verdicts).

  Yields:
    Whole records. An empty store yields none.

  Raises:
    UserError: nothing lies at `path`, or it is something else, or its last
      line is cut short, or a record is not whole.
  """
  file = records_file(epath.Path(path))
  if is_released(file):
    yield from released.read(file)
  else:
    for where, line in _lines(file):
      yield schema.from_json_line(line, where)


def read_lines(path: str | os.PathLike[str]) -> Iterator[columnar.Line]:
  """Reads records as lines, for those who take many at a time.

  Args:
    path: as for `read_records`.

  Raises:
    UserError: as `read_records`, except that no line is looked into.
  """
  file = records_file(epath.Path(path))
  if is_released(file):
    for number, record in enumerate(released.read(file)):
      yield columnar.to_line(record, f"{file}, entry {number}")
  else:
    for where, line in _lines(file):
      yield columnar.Line(where, line)


def read_heads(path: str | os.PathLike[str]) -> Iterator[schema.RecordHead]:
  """Reads all of each record but its steps, some ten times as fast.

  Args:
    path: A store's directory, or a `.jsonl` file of such lines.

  Raises:
    UserError: as `read_records`, except that steps are not looked at.
  """
  file = records_file(epath.Path(path))
  for where, line in _lines(file):
    yield schema.head_from_json_line(line, where)


def records_file(path: epath.Path) -> epath.Path:
  """Finds the file of a store.

  Raises:
    UserError: nothing lies at `path`, or it is no store.
  """
  if path.is_dir():
    file = path / FILE_NAME
    if not file.is_file():
      raise errors.UserError(
        f"{path} is no record store: it has no {FILE_NAME}; give the"
        " directory that `specialize teach` or `specialize import` wrote"
      )
    return file
  if not path.is_file():
    raise errors.UserError(
      f"record store {path} does not exist; give a store's directory, a"
      " .jsonl file of records or the paper's released JSON"
    )
  return path


def is_released(file: epath.Path) -> bool:
  """Tells the paper's released JSON list from a store's lines."""
  return _first_character(file) == "["


def _first_character(file: epath.Path) -> str:
  with file.open("rb") as stream:
    for line in stream:
      text = line.removeprefix(codecs.BOM_UTF8).strip()
      if text:
        return chr(text[0])
  return ""


def _lines(file: epath.Path) -> Iterator[tuple[str, str]]:
  """Gives each line with the words that name it in an error."""
  with file.open("rb") as stream:
    for number, stored in enumerate(stream, start=1):
      line = stored.removeprefix(codecs.BOM_UTF8)  # an editor on Windows
      where = f"{file}, line {number}"
      if not line.endswith(b"\n") and not _is_json(line):
        raise errors.UserError(
          f"{where}, the last, is cut short after {len(line)} bytes; where no"
          " command is writing the store any more, run the one that wrote it"
          " again (it removes the line and goes on) or delete that line"
        )
      if b"\0" in line:
        raise errors.UserError(
          f"{where} is damaged: it holds zero bytes, as a machine that fails"
          " while writing leaves them; delete that line, and run the command"
          " that wrote the store again to have the sample replaced"
        )
      try:
        yield where, line.decode("utf-8")
      except UnicodeDecodeError as error:
        raise errors.UserError(f"{where} is not UTF-8: {error}") from error


def _is_json(line: bytes) -> bool:
  """Whether a line is whole: no proper prefix of an object is one."""
  try:
    json.loads(line)
  except ValueError:
    return False
  return True


class RecordWriter:
  """Appends records to a store, each durable once `flush` has returned.

  Use it as a context manager; leaving the block flushes. Opening a store
  locks it for as long as the writer is open, and removes the unfinished last
  line that a killed writer left, with a warning. One thread may append while
  another flushes.

  Attributes:
    num_durable: How many records this writer has made durable.
  """

  def __init__(self, directory: str | os.PathLike[str]) -> None:
    """Opens the store at `directory`, which is made where it is missing.

    Raises:
      UserError: another process writes to the store.
    """
    self._file = pathlib.Path(directory) / FILE_NAME
    self._file.parent.mkdir(parents=True, exist_ok=True)
    self._stream = self._file.open("a+b", buffering=0)
    try:
      _lock(self._stream, self._file)
      _mend_last_line(self._stream, self._file)
    except BaseException:
      self._stream.close()
      raise
    self._durable_bytes = self._stream.seek(0, os.SEEK_END)
    self._lines: list[bytes] = []
    self._pending_bytes = 0
    self._writing = threading.Lock()
    self._failure: Exception | None = None
    self.num_durable = 0

  def append(self, record: schema.TeacherRecord) -> None:
    """Adds one record.

    Raises:
      UserError: the record's tokens do not spell its text, or the disk is
        full.
    """
    schema.check_spelling(record)
    line = schema.to_json_line(record).encode("utf-8") + b"\n"
    self._lines.append(line)
    self._pending_bytes += len(line)
    if self._pending_bytes > _MAX_PENDING_BYTES:
      self.flush()

  def flush(self) -> None:
    """Returns once every appended record is on disk.

    Raises:
      UserError: the disk is full. The store then ends with the last record
        that was durable, and this writer writes no more.
    """
    with self._writing:
      if self._failure is not None:
        raise self._failure
      lines, self._lines = self._lines, []
      self._pending_bytes = 0
      try:
        self._write(b"".join(lines))
        os.fsync(self._stream.fileno())
      except OSError as error:
        self._stream.truncate(self._durable_bytes)
        self._failure = _write_error(self._file, error)
        raise self._failure from error
      self._durable_bytes = self._stream.tell()
      self.num_durable += len(lines)

  def _write(self, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
      rest = rest[self._stream.write(rest) :]

  def close(self) -> None:
    """Flushes, unless that has failed before, and closes the store."""
    try:
      if self._failure is None:
        self.flush()
    finally:
      self._stream.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


def _lock(stream: BinaryIO, file: pathlib.Path) -> None:
  """Locks a store until its file is closed, by whatever end of its writer."""
  try:
    fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise errors.UserError(
      f"record store {file.parent} is locked: another process writes to it;"
      " wait until it has ended, or give another directory"
    ) from error


def _write_error(file: pathlib.Path, error: OSError) -> Exception:
  """Gives the error to raise: a full disk is the user's to mend."""
  if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    return error
  return errors.UserError(
    f"record store {file.parent} cannot grow ({error.strerror}): every record"
    " counted so far is kept; free some space and run the same command again,"
    " which goes on where this one stopped"
  )


def _mend_last_line(stream: BinaryIO, file: pathlib.Path) -> None:
  """Ends a whole last line with its newline; removes one that is cut short."""
  if stream.seek(0, os.SEEK_END) == 0:
    return
  start = _last_line_start(stream)
  stream.seek(start)
  line = stream.read()
  if line.endswith(b"\n"):
    return
  if _is_json(line):
    stream.write(b"\n")
    return
  stream.truncate(start)
  warnings.warn(
    f"{file}: removed an unfinished last line of {len(line)} bytes, left by a"
    " writer that was stopped",
    stacklevel=3,
  )


def _last_line_start(stream: BinaryIO) -> int:
  """Gives the offset of the last line, read backwards in blocks."""
  block_bytes = 1 << 16
  end = stream.seek(0, os.SEEK_END)
  position = end - 1  # the last line's own newline does not end the one before
  while position > 0:
    start = max(0, position - block_bytes)
    stream.seek(start)
    found = stream.read(position - start).rfind(b"\n")
    if found >= 0:
      return start + found + 1
    position = start
  return 0
