"""Writes files atomically, and text that UTF-8 or a terminal cannot show.

A local file is written under a temporary name in the same directory, synced to
disk, and renamed: a reader never sees an incomplete file, and a killed writer
leaves the old file, and a hidden `.….NAME.unfinished` that the next writer of
that name removes. Of a link, the target is written; a pipe or a device, such as
`/dev/null`, is written to directly. A file in a bucket is written to local disk
and then uploaded as one object, which is atomic.

A Python string can contain a lone surrogate, which UTF-8 cannot encode: a model
that stops within an emoji generates one. JSON escapes it, so that reading
returns the same string; plain text has U+FFFD in its place.
"""

import codecs
import contextlib
import errno
import fcntl
import io
import json
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

from specialize_jax import errors
from specialize_jax.files import paths, seals

Path = str | os.PathLike[str]

_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters but tab and line feed, and overrides of text direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Characters that other readers take for the end of a line.
_LINE_END = re.compile("[\x85\u2028\u2029]")

# The error handler of standard output, and its ASCII spellings of characters in
# our own tables and messages.
_SPELLED = "specialize_jax.spelled"
_TYPEWRITTEN = {
  "\N{MINUS SIGN}": "-",
  "\N{EN DASH}": "-",
  "\N{EM DASH}": "-",
  "\N{RIGHTWARDS ARROW}": "->",
  "\N{HORIZONTAL ELLIPSIS}": "...",
  "\N{MULTIPLICATION SIGN}": "x",
  "\N{MIDDLE DOT}": "*",
  "\N{LESS-THAN OR EQUAL TO}": "<=",
  "\N{GREATER-THAN OR EQUAL TO}": ">=",
  "\N{LOWER ONE EIGHTH BLOCK}": "_",
  "\N{LEFT SINGLE QUOTATION MARK}": "'",
  "\N{RIGHT SINGLE QUOTATION MARK}": "'",
  "\N{LEFT DOUBLE QUOTATION MARK}": '"',
  "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
}


@contextlib.contextmanager
def opened(path: Path, *, binary: bool = False) -> Iterator[IO]:
  """Opens a UTF-8 file, which is renamed to `path` if the block succeeds.

  Args:
    path: the file, local or in a bucket; missing directories are created.
    binary: whether to write bytes instead of text.

  Yields:
    The stream to write to; text has U+FFFD for lone surrogates.

  Raises:
    UserError: `path` is a directory.
  """
  if paths.is_in_bucket(path):
    with tempfile.TemporaryDirectory() as folder:
      unfinished = os.path.join(folder, "unfinished")
      with open(unfinished, "wb") as file:
        yield from _stream(file, binary)
      paths.to_epath(unfinished).copy(path, overwrite=True)
    return
  if paths.is_stream(path):
    with _opened_stream(path) as file:
      yield from _stream(file, binary)
    return
  path = pathlib.Path(os.path.realpath(path))
  if path.is_dir():
    raise errors.UserError(f"{path} is a directory; give a file's name.")
  path.parent.mkdir(parents=True, exist_ok=True)
  suffix = _unfinished_suffix(path.name)
  _remove_abandoned(path.parent, suffix)
  handle, unfinished = tempfile.mkstemp(
    prefix=".", suffix=suffix, dir=path.parent
  )
  try:
    with os.fdopen(handle, "wb") as file:
      _hold(handle)
      yield from _stream(file, binary)
      os.fsync(handle)
    os.chmod(unfinished, 0o666 & ~_umask())
    os.replace(unfinished, path)
  except BaseException as error:
    os.unlink(unfinished)
    _name_file(error, path)
    raise


def _opened_stream(path: Path) -> IO[bytes]:
  """Opens a pipe or device; duplicates a descriptor that is open already."""
  descriptor = paths.open_descriptor(path)
  if descriptor is None:
    return open(path, "wb")
  sys.stdout.flush()
  try:
    access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if access == os.O_RDONLY:
      raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return os.fdopen(os.dup(descriptor), "wb")
  except OSError as error:
    raise errors.UserError(f"{path} is not open: {error.strerror}") from error


def separate(path: Path) -> None:
  """Replaces a local file that has other names (hard links) by a copy.

  A copy of a directory that was made with `cp -al` shares its files. What is
  appended to one of them would be appended to all, and two writers, each with
  the lock of its own name, would write into one file.

  Args:
    path: the file that will be appended to, which need not exist.
  """
  if not os.path.isfile(path) or os.stat(path).st_nlink == 1:
    return
  with open(path, "rb") as shared, opened(path, binary=True) as own:
    shutil.copyfileobj(shared, own)


def appended(path: Path) -> typing.TextIO:
  """Opens a UTF-8 file for appending; flushed text survives the process.

  An object in a bucket cannot grow, so each flush uploads it as a whole.
  """
  if not paths.is_in_bucket(path):
    return open(path, "a", encoding="utf-8")
  # `epath` has no stream that outlives a `with`.
  import tensorflow as tf

  return tf.io.gfile.GFile(os.fspath(path), "a")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[pathlib.Path]:
  """Creates a local directory, which is renamed if the block succeeds.

  Args:
    path: the final path, which does not exist or is an empty directory.

  Yields:
    The temporary directory to write in, beside the final one.
  """
  path = pathlib.Path(os.path.realpath(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  suffix = _unfinished_suffix(path.name)
  _remove_abandoned(path.parent, suffix)
  unfinished = pathlib.Path(
    tempfile.mkdtemp(prefix=".", suffix=suffix, dir=path.parent)
  )
  handle = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
  try:
    _hold(handle)
    yield unfinished
    unfinished.chmod(0o777 & ~_umask())
    try:
      unfinished.replace(path)
    except OSError as error:
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        raise
      raise errors.UserError(
        f"{path} was made by another process meanwhile, and is left as it is:"
        " give another name, or move that one away"
      ) from error
  except BaseException as error:
    shutil.rmtree(unfinished)
    _name_file(error, path)
    raise
  finally:
    os.close(handle)


def write_text(path: Path, text: str) -> None:
  """Writes a text file atomically; see `opened`."""
  with opened(path) as stream:
    stream.write(text)


def write_bytes(path: Path, content: bytes) -> None:
  """Writes a file atomically; see `opened`."""
  with opened(path, binary=True) as stream:
    stream.write(content)


def write_json(path: Path, value: object, *, sealed: bool = False) -> None:
  """Writes one JSON value atomically, indented.

  Args:
    path: the file.
    value: the value; an object, if `sealed`.
    sealed: whether to add a checksum as its last field; see `seals`.
  """
  text = to_json(value, indent=2)
  write_text(path, (seals.sealed(text) if sealed else text) + "\n")


def write_rows(
  path: Path, rows: Iterable[Mapping[str, object]], *, sealed: bool = False
) -> None:
  """Writes JSON lines atomically.

  Args:
    path: the file.
    rows: the objects; none of them empty, if `sealed`.
    sealed: whether to add a checksum as the last field of each; see `seals`.
  """
  with opened(path) as stream:
    for row in rows:
      text = to_json(row)
      stream.write((seals.sealed(text) if sealed else text) + "\n")


def to_json(value: object, *, indent: int | None = None) -> str:
  r"""Returns a value as standard JSON, on one line or indented.

  JSON has no NaN and infinity, which Python's json would write: they become
  null, as in JavaScript.

  Example:
    >>> to_json({"text": "5 £ \ud83d", "loss": float("nan")})
    '{"text": "5 £ \\ud83d", "loss": null}'
  """
  try:
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
  except ValueError:
    value = _finite(value)
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
  if text.isascii():
    return text
  text = _LINE_END.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
  return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: object) -> object:
  """Returns a JSON value with None for every number that is not finite."""
  if isinstance(value, Mapping):
    return {key: _finite(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(inner) for inner in value]
  is_number = not isinstance(value, float) or math.isfinite(value)
  return value if is_number else None


def shown(spelt: bytes) -> str:
  """Returns the start of a text that is given by its bytes, for a message."""
  text = spelt.decode("utf-8", errors="replace")
  return repr(text if len(text) <= 50 else f"{text[:47]}...")


def printable(text: str) -> str:
  """Returns a text with U+FFFD for each lone surrogate."""
  return _SURROGATE.sub("\ufffd", text)


def printable_json(value: object) -> object:
  """Returns a JSON value with `printable` applied to all texts and names."""
  if isinstance(value, str):
    return printable(value)
  if isinstance(value, list):
    return [printable_json(item) for item in value]
  if isinstance(value, dict):
    return {printable(k): printable_json(v) for k, v in value.items()}
  return value


def visible(text: str) -> str:
  r"""Returns a text with its control characters escaped, for a terminal.

  Untrusted text could otherwise clear the screen, change the title of the
  terminal or write to its input, or display characters out of order.

  Example:
    >>> visible("5 pens\x1b[2J")
    '5 pens\\x1b[2J'
  """
  return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def survive_any_text() -> None:
  """Keeps standard output and error from failing on any text.

  If their encoding is ASCII or Latin-1, the characters of our own tables are
  replaced by ASCII spellings, and all others are escaped.
  """
  codecs.register_error(_SPELLED, _spelled)
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors=_SPELLED)


def _spelled(error: UnicodeError) -> tuple[str, int]:
  """Replaces what cannot be encoded; a handler of `codecs.register_error`."""
  if not isinstance(error, UnicodeEncodeError):
    raise error
  text = error.object[error.start : error.end]
  signs = (
    _TYPEWRITTEN.get(sign)
    or sign.encode("ascii", "backslashreplace").decode("ascii")
    for sign in text
  )
  return "".join(signs), error.end


class _Printable(io.TextIOWrapper):
  """A UTF-8 stream that accepts every string."""

  def write(self, text: str) -> int:
    return super().write(printable(text))


def _stream(file: IO[bytes], binary: bool) -> Iterator[IO]:
  if binary:
    yield file
    file.flush()
    return
  text = _Printable(file, encoding="utf-8", newline="\n", write_through=False)
  try:
    yield text
    text.flush()
  finally:
    text.detach()


def _unfinished_suffix(name: str) -> str:
  """Returns a suffix with the final file's name, as far as 255 bytes allow."""
  room = paths.MAX_NAME_BYTES - len("..unfinished") - 16
  kept = os.fsencode(name)[:room].decode("utf-8", "ignore")
  return f".{kept}.unfinished"


def _name_file(error: BaseException, path: pathlib.Path) -> None:
  """Adds the file's name to the error of a write, which lacks it."""
  if isinstance(error, OSError) and error.errno in paths.NO_SPACE:
    error.filename = os.fspath(path)


def _hold(handle: int) -> None:
  """Locks the file being written, until its writer ends."""
  with contextlib.suppress(OSError):  # a file system without locks
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_abandoned(directory: pathlib.Path, suffix: str) -> None:
  """Removes the unfinished files of killed writers of the same name.

  Files that are locked by a running writer, or are on a file system without
  locks, are kept.
  """
  for name in os.listdir(directory):
    if not (name.startswith(".") and name.endswith(suffix)):
      continue
    place = directory / name
    with contextlib.suppress(OSError):
      handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if place.is_dir():
          shutil.rmtree(place)
        else:
          place.unlink()
      finally:
        os.close(handle)


def _umask() -> int:
  """Returns the process's file mode mask, which is read by setting it."""
  mask = os.umask(0)
  os.umask(mask)
  return mask
