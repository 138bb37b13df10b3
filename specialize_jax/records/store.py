"""Stores teacher records in an append-only file of JSON lines.

A store is a directory with `records.jsonl`, one record per line. A record is
complete once its newline is on disk. A writer that is killed leaves at most one
incomplete line, the last, which the next writer removes and readers refuse.
Appending never rewrites a byte, so no crash can lose a record.

The format is JSON lines rather than SQLite, because records are only appended
and read from start to end, so an index would serve no query; any JSON reader
can read a store, now and in ten years, without this package; a store can be
split, concatenated, inspected, and copied while it grows; and a damaged sector
affects the records in it only. What a database would provide is small:

- durability: records are written and synced to disk in groups, and counted
  only then. One `fsync` per group hides the disk's latency;
- recovery: the only inconsistent state that a killed process can leave is a
  last line without newline. If the disk fills up, the file is truncated to the
  last complete group;
- exclusion: a writer holds a lock on the store, which the kernel releases with
  the process, so that no stale lock survives `kill -9` (see `files.locks`);
- versions: each line has the version of its schema;
- damage: each line ends with its checksum, which readers compare (see
  `files.seals`). Lines without one, of earlier releases, are read as they are.
"""

import codecs
import contextlib
import os
import pathlib
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO, Self

from etils import epath

from specialize_jax import errors
from specialize_jax.files import locks, paths, reading, seals, writing
from specialize_jax.records import columnar, released, schema

FILE_NAME = "records.jsonl"

_MAX_PENDING_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20


def read_records(
  path: str | os.PathLike[str],
) -> Iterator[schema.TeacherRecord]:
  """Reads records one at a time, in the order in which they were written.

  Args:
    path: A store's directory, a `.jsonl` file of records, or a JSON list of
      `{"question_id", "sample", "steps"}` as the paper's samples were released:
      a step is a list of `[token, probability]` pairs, the sampled token first.
      That format has neither questions nor gold answers (both are "") and no
      verdicts.

  Yields:
    The records; none for an empty store.

  Raises:
    UserError: `path` does not exist or is not a store, its last line is
      incomplete, or a record is invalid.
  """
  file = records_file(epath.Path(path))
  if is_released(file):
    yield from released.read(file)
  else:
    for where, line in _lines(file):
      yield schema.from_json_line(line, where)


def read_lines(path: str | os.PathLike[str]) -> Iterator[columnar.Line]:
  """Reads records as unparsed lines, for bulk processing.

  Args:
    path: see `read_records`.

  Raises:
    UserError: see `read_records`, except that lines are not parsed.
  """
  file = records_file(epath.Path(path))
  if is_released(file):
    for number, record in enumerate(released.read(file)):
      yield columnar.to_line(record, f"{file}, entry {number}")
  else:
    for where, line in _lines(file):
      yield columnar.Line(where, line)


def read_heads(path: str | os.PathLike[str]) -> Iterator[schema.RecordHead]:
  """Reads records without text and steps, about ten times as fast.

  Args:
    path: A store's directory or a `.jsonl` file of records.

  Raises:
    UserError: see `read_records`, except that steps are not parsed.
  """
  file = records_file(epath.Path(path))
  for where, line in _lines(file):
    yield schema.head_from_json_line(line, where)


def records_file(path: epath.Path) -> epath.Path:
  """Returns the file of a store.

  Raises:
    UserError: `path` does not exist or is not a store.
  """
  if path.is_dir():
    file = path / FILE_NAME
    if not file.is_file():
      raise errors.UserError(
        f"{path} is not a record store: it has no {FILE_NAME}; give the"
        " directory that `specialize teach` or `specialize import` wrote"
      )
    return file
  if paths.is_stream(path):
    raise errors.UserError(
      f"{path} is a pipe or device, and records are read more than once: write"
      " them to a file first"
    )
  if not path.is_file():
    raise errors.UserError(
      f"record store {path} does not exist; give a store's directory, a"
      " .jsonl file of records or the paper's released JSON"
    )
  return path


def is_released(file: epath.Path) -> bool:
  """Returns whether a file is a JSON list of the paper's released samples."""
  return _first_character(file) == "["


def _first_character(file: epath.Path) -> str:
  with file.open("rb") as stream:
    mark = codecs.BOM_UTF8
    while chunk := stream.read(_CHUNK_BYTES):
      text = chunk.removeprefix(mark).lstrip()
      if text:
        return chr(text[0])
      mark = b""
  return ""


def _stored_lines(stream: BinaryIO) -> Iterator[bytes]:
  """Yields lines with their ends, one that is too long cut where it is.

  A bucket's stream has no `readline` of a limited size, so chunks are read: no
  more than a row and a chunk is ever in memory, however long a line is.
  """
  rest = b""
  while chunk := stream.read(_CHUNK_BYTES):
    *whole, rest = (rest + chunk).split(b"\n")
    yield from (line + b"\n" for line in whole)
    if len(rest) > reading.MAX_ROW_SIZE:
      yield rest
      rest = b""
  if rest:
    yield rest


def _lines(file: epath.Path) -> Iterator[tuple[str, str]]:
  """Yields each line with its location for error messages."""
  with file.open("rb") as stream:
    for number, stored in enumerate(_stored_lines(stream), start=1):
      line = stored.removeprefix(codecs.BOM_UTF8)  # an editor on Windows
      where = f"{file}, line {number}"
      reading.check_row_size(stored, where)
      if not line.endswith(b"\n") and not reading.is_json(line):
        raise errors.UserError(
          f"{where}, the last, is cut short after {len(line)} bytes; where no"
          " command is writing the store any more, run the one that wrote it"
          " again (it removes the line and resumes) or delete that line"
        )
      try:
        text = line.decode("utf-8")
      except UnicodeDecodeError as error:
        raise errors.UserError(f"{where} is not UTF-8: {error}") from error
      check_line(text, where)
      yield where, text


def check_line(text: str, where: str) -> None:
  """Checks a line of a store against the checksum in it.

  Args:
    text: The line.
    where: The file and the line number, for error messages.

  Raises:
    UserError: It is not what was written.
  """
  if "\0" in text:
    raise errors.UserError(
      f"{where} is damaged: it contains zero bytes, which a machine that fails"
      " while writing may leave; delete that line, and run the command that"
      " wrote the store again to replace the sample"
    )
  seals.check(text, where)


class RecordWriter:
  """Appends records to a store, which are durable once `flush` has returned.

  Use it as a context manager, which flushes on exit. Opening a store locks it
  while the writer is open, and removes the incomplete last line of a killed
  writer with a warning. One thread may append while another flushes.

  Attributes:
    num_durable: Number of records that this writer has made durable.
  """

  def __init__(self, directory: str | os.PathLike[str]) -> None:
    """Opens the store at `directory`, creating it if missing.

    Raises:
      UserError: another process is writing to the store.
    """
    self._file = pathlib.Path(directory) / FILE_NAME
    with contextlib.ExitStack() as opened:
      opened.enter_context(locks.directory(directory, "--output"))
      writing.separate(self._file)
      self._stream = opened.enter_context(self._file.open("a+b", buffering=0))
      _mend_last_line(self._stream, self._file)
      self._opened = opened.pop_all()
    self._durable_bytes = self._stream.seek(0, os.SEEK_END)
    self._lines: list[bytes] = []
    self._pending_bytes = 0
    self._writing = threading.Lock()
    self._failure: Exception | None = None
    self.num_durable = 0

  @property
  def is_empty(self) -> bool:
    """Whether the store has no record, and none is to be written."""
    return not self._durable_bytes and not self._lines

  def append(self, record: schema.TeacherRecord) -> None:
    """Appends a record.

    Raises:
      UserError: the record's tokens do not spell its text, it is too large to
        be read again, or the disk is full.
    """
    schema.check_spelling(record)
    text = seals.sealed(schema.to_json_line(record))
    line = text.encode("utf-8") + b"\n"
    if len(line) > reading.MAX_ROW_SIZE:
      raise errors.UserError(
        f"question {record.question_id!r}, sample {record.sample}: the record"
        f" has {len(line):,} bytes, and a store's lines at most"
        f" {reading.MAX_ROW_SIZE:,}; ask for fewer tokens or alternatives"
      )
    self._lines.append(line)
    self._pending_bytes += len(line)
    if self._pending_bytes > _MAX_PENDING_BYTES:
      self.flush()

  def flush(self) -> None:
    """Writes all appended records to disk.

    Raises:
      UserError: the disk is full. The store then ends with the last durable
        record, and this writer cannot write any more.
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
        self._failure = _write_error(self._file, error)
        self._stream.truncate(self._durable_bytes)
        raise self._failure from error
      self._durable_bytes = self._stream.tell()
      self.num_durable += len(lines)

  def _write(self, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
      rest = rest[self._stream.write(rest) :]

  def close(self) -> None:
    """Flushes, unless that has failed, and closes the store."""
    try:
      if self._failure is None:
        self.flush()
    finally:
      self._opened.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


def _write_error(file: pathlib.Path, error: OSError) -> Exception:
  """Returns the error to raise, a UserError if the disk is full."""
  if error.errno not in paths.NO_SPACE:
    return error
  return errors.UserError(
    f"record store {file.parent} cannot grow ({error.strerror}): every record"
    " counted so far is kept; free some space and run the same command again,"
    " which resumes where this one stopped"
  )


def _mend_last_line(stream: BinaryIO, file: pathlib.Path) -> None:
  """Adds a newline to a complete last line; removes an incomplete one."""
  if stream.seek(0, os.SEEK_END) == 0:
    return
  start = _last_line_start(stream)
  stream.seek(start)
  line = stream.read()
  if line.endswith(b"\n"):
    return
  if reading.is_json(line):
    stream.write(b"\n")
    return
  stream.truncate(start)
  warnings.warn(
    f"{file}: removed an unfinished last line of {len(line)} bytes, left by a"
    " writer that was stopped",
    stacklevel=3,
  )


def _last_line_start(stream: BinaryIO) -> int:
  """Returns the offset of the last line, reading backwards in blocks."""
  block_bytes = 1 << 16
  end = stream.seek(0, os.SEEK_END)
  position = end - 1  # skip the newline that ends the last line
  while position > 0:
    start = max(0, position - block_bytes)
    stream.seek(start)
    found = stream.read(position - start).rfind(b"\n")
    if found >= 0:
      return start + found + 1
    position = start
  return 0
