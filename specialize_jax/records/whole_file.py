"""Files that appear whole under their name, or not at all.

What is written goes to a neighbour first, which is synchronised to disk and
then takes the name: a reader never sees half a file, and a killed writer
leaves the old one.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import IO

from specialize_jax import errors


@contextlib.contextmanager
def opened(
  path: str | os.PathLike[str], *, binary: bool = False
) -> Iterator[IO]:
  """Opens a UTF-8 file that takes its name when the block ends well.

  Args:
    path: where to; missing directories are made.
    binary: whether it takes bytes instead of text.

  Raises:
    UserError: `path` is a directory.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    raise errors.UserError(f"{path} is a directory; give a file's name.")
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, unfinished = tempfile.mkstemp(
    prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent
  )
  try:
    how = ("wb", None) if binary else ("w", "utf-8")
    with os.fdopen(handle, how[0], encoding=how[1]) as stream:
      yield stream
      stream.flush()
      os.fsync(handle)
    os.chmod(unfinished, 0o666 & ~_umask())
    os.replace(unfinished, path)
  except BaseException:
    os.unlink(unfinished)
    raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a whole file; see `opened`."""
  with opened(path) as stream:
    stream.write(text)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
  """Writes a whole file; see `opened`."""
  with opened(path, binary=True) as stream:
    stream.write(content)


def _umask() -> int:
  """The process's file mode mask, which can only be read by setting it."""
  mask = os.umask(0)
  os.umask(mask)
  return mask
