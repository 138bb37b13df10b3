"""Checks the paths that a user gives, before any work.

A path is local, or an object or folder in a bucket of Google Cloud Storage,
`gs://bucket/name`, which TensorFlow's client reads and writes (through
`etils.epath`, as Orbax, TFDS and SeqIO do). Any other `scheme://` is an error:
`pathlib` would take it for a local folder named `s3:`, and the outputs would be
lost with the machine. So are unexpanded `~` and `$HOME`, and quotation marks,
unless a file of that name exists.
"""

import argparse
import dataclasses
import errno
import importlib
import os
import pathlib
import re
import socket
import stat
import sys
import threading
import typing
from collections.abc import Mapping

from specialize_jax import errors

if typing.TYPE_CHECKING:
  from etils import epath

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(/{0,2})")
# Schemes that are errors also with one slash, as `pathlib` leaves them, or
# none: any other word before a colon may be the name of a local folder.
_STORES = frozenset(
  ("file", "ftp", "http", "https", "sftp", "dbfs", "hdfs", "webhdfs", "hf")
  + ("gs", "gcs", "s3", "s3a", "s3n", "r2", "minio", "oss", "cos", "swift")
  + ("abfs", "abfss", "adl", "az", "azure", "wasb", "wasbs")
)
_GOOGLE = ("gs", "gcs")
_SHELL_NAME = re.compile(r"\$(?:\w+|\{[^{}]*\}|\([^()]*\))")
_QUOTED = re.compile(r"(['\"`]).*\1", re.DOTALL)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
# Where a bucket is mounted on some clouds' machines, and what it then is.
_MOUNT = re.compile(r"/+(gcs|dbfs|cns)/+(.*)")
_HUB = re.compile(
  r"(?:hf:/*|https?://(?:huggingface\.co|hf\.co)/+)([^/]+/[^/?#]+).*"
)
# Names of files that a process has open already, such as standard output.
_DESCRIPTOR = re.compile(
  r"/dev/(?P<name>stdin|stdout|stderr)|(?:/dev|/proc/self)/fd/(?P<number>\d+)"
)
_STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}
_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_BUCKET = "gs://"
# TensorFlow's errors that are transient.
_PASSING = (
  "AbortedError",
  "DeadlineExceededError",
  "InternalError",
  "ResourceExhaustedError",
  "UnavailableError",
  "UnknownError",
)
# Timeout of the request that checks a path in a bucket.
_PATIENCE_SECONDS = 20.0
_METADATA_SECONDS = 2.0

MAX_NAME_BYTES = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """The requirements of a path.

  Attributes:
    what: "file", "directory", or "path" for either.
    is_read: whether it is an input, which must exist, rather than an output.
    local_because: why it cannot be in a bucket, as half a sentence; "" if it
      can.
    suffix: the longest suffix of files that are written beside it.
    or_name: whether it may be a name instead, of a model on a hub or of a
      packaged file: a path that does not exist and may be a name is accepted.
    expected: what must exist, for error messages; "" for "a file to read".
  """

  what: str
  is_read: bool
  local_because: str = ""
  suffix: str = ""
  or_name: bool = False
  expected: str = ""

  def local(self, because: str) -> "Kind":
    """Returns the kind for paths that cannot be in a bucket."""
    return dataclasses.replace(self, local_because=because)


INPUT_FILE = Kind(what="file", is_read=True)
INPUT_DIRECTORY = Kind(what="directory", is_read=True)
INPUT_PATH = Kind(what="path", is_read=True)
CHECKPOINT = Kind(
  what="path",
  is_read=True,
  or_name=True,
  expected="a run's directory, a Hugging Face folder or T5X's",
)
OUTPUT_FILE = Kind(what="file", is_read=False)
OUTPUT_DIRECTORY = Kind(what="directory", is_read=False)
LOCAL_STORE = OUTPUT_DIRECTORY.local(
  "a record store grows by appending, which no object in a bucket does"
)
RESUMED_FILE = dataclasses.replace(
  OUTPUT_FILE.local(
    "its rows are appended as they come, so that a run that was stopped goes"
    " on, which no object in a bucket can"
  ),
  suffix=".progress",
)


def check_flags(flags: argparse.Namespace, kinds: Mapping[str, Kind]) -> None:
  """Checks the paths among a command's flags; None is a flag that is not set.

  Args:
    flags: the parsed flags.
    kinds: the requirements of paths by the flag's name without its dashes.

  Raises:
    UserError: see `check`.
  """
  given = {
    name: getattr(flags, name)
    for name in kinds
    if getattr(flags, name) is not None
  }
  for name, path in given.items():
    check(f"--{name}", path, kinds[name])
  for name in given:
    if kinds[name].what == "file" and not kinds[name].is_read:
      _refuse_given_twice(name, given, kinds)


def _refuse_given_twice(
  name: str, given: Mapping[str, str], kinds: Mapping[str, Kind]
) -> None:
  """Checks that an output file is not also the file of another flag."""
  path = given[name]
  if is_stream(path):
    return
  for other, place in given.items():
    if other == name:
      continue
    if are_same(path, place):
      first, second = (flag for flag in given if flag in (name, other))
      raise errors.UserError(
        f"--{first} and --{second} are both {given[first]}: give two files"
      )
    is_store = dataclasses.replace(kinds[other], local_because="") == INPUT_PATH
    if (
      is_store
      and os.path.isfile(path)
      and are_same(os.path.dirname(path) or ".", place)
    ):
      raise errors.UserError(
        f"--{name}={path} is a file of --{other}={place}, which is read: give"
        " another"
      )


def check(name: str, given: str, kind: Kind) -> None:
  """Checks that a path can be read or written.

  Creates nothing, not even a directory. A path in a bucket takes a request to
  the bucket.

  Args:
    name: the flag or gin macro, as the user writes it: "--output".
    given: the path, as the user wrote it.
    kind: the requirements of the path.

  Raises:
    UserError: the path is empty, of another scheme or kind, does not exist, or
      cannot be written; or the bucket does not respond.
  """
  shown = f"{name}={given}"
  if not isinstance(given, str):
    raise errors.UserError(
      f"{name}={given!r} is not a path: expected a string, such as a"
      f" {kind.what}'s name"
    )
  if not given.strip():
    raise errors.UserError(
      f"{name}={given!r} is an empty path: expected a {kind.what}'s name"
    )
  try:
    os.fsencode(given)
  except UnicodeEncodeError as error:
    raise errors.UserError(
      f"{name}={given!r} is not valid Unicode: no file can have that name"
    ) from error
  if "\0" in given:
    raise errors.UserError(
      f"{name}={given!r} contains a null byte, which no path can"
    )
  if not os.path.lexists(given):
    _refuse_unmeant(name, given, kind)
  if is_in_bucket(given):
    _check_in_bucket(shown, given, kind)
    return
  try:
    _check_local(shown, given, kind)
  except OSError as error:
    raise errors.UserError(f"{shown}: {error.strerror}") from error


def to_epath(path: str | os.PathLike[str]) -> "epath.Path":
  """Returns `path` as an `epath.Path`, local or in a bucket.

  `etils.epath` is imported here and not with the module: it imports asyncio and
  `unittest.mock`, a fifth of what `import specialize_jax.align` takes.
  """
  from etils import epath

  return epath.Path(path)


def is_in_bucket(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is in a bucket, `gs://bucket/name`."""
  return os.fspath(path).startswith(_BUCKET)


def is_stream(path: str | os.PathLike[str]) -> bool:
  """Returns whether a local path is a pipe or a device, such as `/dev/null`.

  Such a path is written to directly, and never replaced by a rename.
  """
  path = os.fspath(path)
  if is_in_bucket(path):
    return False
  if _DESCRIPTOR.fullmatch(path):
    return True
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return False
  return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def beside(path: str | os.PathLike[str] | None) -> typing.TextIO:
  """Returns the stream for what is not part of an output.

  It is standard error where the output itself goes to standard output.
  """
  is_taken = path is not None and open_descriptor(path) == 1
  return sys.stderr if is_taken else sys.stdout


def open_descriptor(path: str | os.PathLike[str]) -> int | None:
  """Returns the descriptor that a path such as `/dev/stdout` names, or None.

  Opening it by name would truncate a file that it is redirected to.
  """
  found = _DESCRIPTOR.fullmatch(os.fspath(path))
  if found is None:
    return None
  return _STANDARD[found["name"]] if found["name"] else int(found["number"])


def are_same(one: str, other: str) -> bool:
  """Returns whether two paths name the same file or directory."""
  return _identity(one) == _identity(other)


# No space left; over the user's quota; over the process's file size limit.
NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def is_mendable(error: OSError) -> bool:
  """Returns whether a user can correct it: a wrong path or a full disk."""
  return error.errno in NO_SPACE or (
    error.filename is not None and error.errno in _MENDABLE
  )


def reason(error: OSError) -> str:
  """Returns the message of an error that `is_mendable`, without a period."""
  # The error of a write lacks the name of its file.
  where = "" if error.filename is None else f"{error.filename}: "
  if error.errno in NO_SPACE:
    return (
      f"{where}{error.strerror}: make room where the output is written, and run"
      " the same command again"
    )
  return f"{where}{error.strerror}"


_MENDABLE = (
  errno.EACCES,
  errno.EEXIST,
  errno.EISDIR,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.ENOENT,
  errno.ENOTDIR,
  errno.ENOTEMPTY,
  errno.EPERM,
  errno.EROFS,
)


def _identity(path: str) -> str:
  return path.rstrip("/") if is_in_bucket(path) else os.path.realpath(path)


def _refuse_unmeant(name: str, given: str, kind: Kind) -> None:
  """Rejects what is almost certainly not the path that was meant.

  Unexpanded shell syntax, quotation marks, stray white space, Windows paths,
  buckets that are not mounted, and other schemes.
  """
  shown = f"{name}={given}"
  if given == "-":
    standard = "/dev/stdin" if kind.is_read else "/dev/stdout"
    raise errors.UserError(
      f"{shown} is a file's name here: for a pipe give {standard}"
    )
  if given != given.strip() or any(sign in given for sign in "\n\r\t"):
    meant = re.sub(r"\s*[\n\r\t]\s*", " ", given.strip())
    raise errors.UserError(
      f"{name}={given!r} has white space at its ends, or a tab or the end of a"
      f" line within: expected {meant!r}"
    )
  if _QUOTED.fullmatch(given):
    raise errors.UserError(
      f"{shown} has quotation marks in it: expected {given[1:-1]}"
    )
  if given.startswith("~"):
    raise errors.UserError(
      f"{shown}: a shell replaces ~ only where a word begins with it; expected"
      f" {os.path.expanduser(given)}"
    )
  variable = _SHELL_NAME.search(given)
  if variable:
    raise errors.UserError(
      f"{shown}: only a shell replaces {variable[0]}, and not within single"
      " quotation marks or a gin file; expected the path itself"
    )
  if given.startswith("gs//"):
    raise errors.UserError(f"{shown} lacks a colon: expected gs:{given[2:]}")
  if _WINDOWS.match(given):
    raise errors.UserError(
      f"{shown} is a Windows path: expected a path of this system, with /"
    )
  mount = _MOUNT.match(given)
  if mount and not os.path.lexists(f"/{mount[1]}"):
    way_out = f" or gs://{mount[2]}" if mount[1] == "gcs" else ""
    raise errors.UserError(
      f"{shown}: nothing is mounted at /{mount[1]} on this machine, so the path"
      f" would be one of its own disk; expected a local path{way_out}"
    )
  _refuse_scheme(shown, given, kind)


def _refuse_scheme(shown: str, given: str, kind: Kind) -> None:
  found = _SCHEME.match(given)
  if found is None or is_in_bucket(given):
    return
  scheme, slashes = found[1].lower(), found[2]
  if slashes != "//" and scheme not in _STORES:
    return  # `notes:/x`
  rest = given[found.end() :].lstrip("/\\")
  if scheme in _GOOGLE:
    way_out = f"expected gs://{rest or 'BUCKET/NAME'}"
  elif kind.or_name and (model := _HUB.fullmatch(given)):
    way_out = f"give a model of the Hugging Face hub by its name, {model[1]}"
  elif scheme == "file":
    way_out = f"give the path alone, /{rest}"
  else:
    way_out = "expected a local path, or gs://BUCKET/NAME"
  raise errors.UserError(
    f"{shown}: {found[0]} is not read or written here; {way_out}"
  )


def is_device(path: str | os.PathLike[str]) -> bool:
  """Returns whether a local path is a device, other than /dev/null."""
  try:
    found = os.stat(path)
  except (OSError, ValueError):
    return False  # in a bucket, or not there
  return stat.S_ISBLK(found.st_mode) or (
    stat.S_ISCHR(found.st_mode) and not os.path.samefile(path, os.devnull)
  )


def _check_local(shown: str, given: str, kind: Kind) -> None:
  path = pathlib.Path(given)
  _check_names(shown, path, kind.suffix)
  try:
    mode = os.stat(given.rstrip("/") or "/")
  except FileNotFoundError:
    mode = None
  is_there = mode is not None
  is_dir = is_there and path.is_dir()
  if kind.or_name and not is_there and _may_be_name(path):
    return  # the function that resolves names reports an unknown one
  if kind.is_read and not is_there:
    raise errors.UserError(f"{shown} does not exist: {_expected(kind)}")
  if is_dir and kind.what == "file":
    raise errors.UserError(f"{shown} is a directory: expected a file")
  if is_there and not is_dir and kind.what == "directory":
    raise errors.UserError(f"{shown} is a file: expected a directory")
  if given.endswith("/") and not is_dir and kind.what != "directory":
    raise errors.UserError(
      f"{shown} ends with a slash, as a directory does: expected a file's name"
    )
  if kind.is_read:
    if is_device(given):
      raise errors.UserError(f"{shown} is a device: expected a file to read")
    if not _may(given, os.R_OK | (os.X_OK if is_dir else 0)):
      raise errors.UserError(f"{shown} may not be read: permission denied")
    return
  if is_stream(given):
    _check_stream(shown, given, kind)
    return
  # Outputs are written by a rename, which ignores the file's own permissions.
  if is_there and not is_dir and not _may(given, os.W_OK):
    raise _denied(shown, given, "for this file")
  # A symbolic link is followed: its target is replaced.
  _check_writable(shown, pathlib.Path(os.path.realpath(given)), is_there)


def _check_stream(shown: str, given: str, kind: Kind) -> None:
  """Checks a pipe or device to write to."""
  if kind.suffix:
    raise errors.UserError(
      f"{shown} is a pipe or device, and a run that was stopped goes on from"
      " the rows that it finds: expected a file"
    )
  if not _may(given, os.W_OK):
    raise errors.UserError(f"{shown} cannot be written: permission denied")


def _may_be_name(path: pathlib.Path) -> bool:
  """Whether it may be a name on a hub, or a step of a run's directory."""
  is_step = path.name.isdecimal() and path.parent.is_dir()
  return is_step or _NAME.fullmatch(str(path)) is not None


def _check_names(shown: str, path: pathlib.Path, suffix: str) -> None:
  """Checks that no component of a path is too long for a file system."""
  names = [*path.parts[:-1], path.name + suffix]
  if max(len(os.fsencode(name)) for name in names) <= MAX_NAME_BYTES:
    return
  with_it = f" with the {suffix} that is written beside it" if suffix else ""
  raise errors.UserError(
    f"{shown}: a name is too long: expected {MAX_NAME_BYTES} bytes or fewer"
    f"{with_it}"
  )


def _check_writable(shown: str, path: pathlib.Path, is_there: bool) -> None:
  """Checks the directory that a file or folder would be created in."""
  place = path if is_there and path.is_dir() else path.parent
  while not os.path.lexists(place):
    place = place.parent
  if not place.is_dir():
    raise errors.UserError(
      f"{shown}: {place} is not a directory, so nothing can be written in it"
    )
  if not _may(place, os.W_OK | os.X_OK):
    raise _denied(shown, place, f"in {place}")


def _denied(
  shown: str, path: str | os.PathLike[str], where: str
) -> errors.UserError:
  """Returns what to say of a file or directory that may not be written."""
  reason = f"permission denied {where}"
  if os.statvfs(path).f_flag & os.ST_RDONLY:
    reason = f"{path} is on a read-only file system"
  return errors.UserError(f"{shown} cannot be written: {reason}")


def _may(path: str | os.PathLike[str], how: int) -> bool:
  return os.access(path, how, effective_ids=True)


def _expected(kind: Kind) -> str:
  if kind.expected:
    return f"expected {kind.expected}"
  what = "file or directory" if kind.what == "path" else kind.what
  return f"expected a {what} to read"


def _check_in_bucket(shown: str, given: str, kind: Kind) -> None:
  if kind.local_because:
    raise errors.UserError(
      f"{shown} is in a bucket, and {kind.local_because}: give a local path"
    )
  bucket, _, name = given.removeprefix(_BUCKET).partition("/")
  if not bucket.strip() or (kind.what == "file" and not name.strip()):
    raise errors.UserError(
      f"{shown} names no {kind.what}: expected gs://BUCKET/NAME"
    )
  if kind.what == "file" and name.endswith("/"):
    raise errors.UserError(
      f"{shown} ends with a slash, as a directory does: expected a file's name"
    )
  is_there, is_dir = _answer(
    shown, lambda: _found_in_bucket(given, f"{_BUCKET}{bucket}")
  )
  if kind.is_read and not (is_there or is_dir):
    raise errors.UserError(f"{shown} does not exist: {_expected(kind)}")
  if is_dir and kind.what == "file":
    raise errors.UserError(f"{shown} is a directory: expected a file")
  if is_there and not is_dir and kind.what == "directory":
    raise errors.UserError(f"{shown} is a file: expected a directory")


def _found_in_bucket(given: str, bucket: str) -> tuple[bool, bool]:
  """Returns whether a path exists, and whether it is a directory.

  Raises:
    FileNotFoundError: there is no such bucket.
  """
  path = to_epath(given)
  is_there = path.exists()
  is_dir = path.is_dir()
  if not is_there and not is_dir and not _may_exist(bucket):
    raise FileNotFoundError(f"there is no bucket {bucket}")
  return is_there, is_dir


def _may_exist(bucket: str) -> bool:
  try:
    return to_epath(bucket).is_dir()
  except Exception as error:  # naming TensorFlow's classes would import it
    if type(error).__name__ == "PermissionDeniedError":
      return True  # access to objects does not imply access to the bucket
    raise


def _answer(shown: str, ask: object) -> tuple[bool, bool]:
  """Sends a request to a bucket, with a timeout and short error messages.

  The client repeats a lost request for many minutes, so the request runs on a
  thread that is abandoned after the timeout.
  """
  has_credentials = _prepare_credentials()
  # Imported here, since the import would take seconds of the timeout.
  importlib.import_module("tensorflow")
  answers, failures = [], []

  def run() -> None:
    try:
      answers.append(ask())
    except Exception as error:  # noqa: BLE001  (raised again below)
      failures.append(error)

  thread = threading.Thread(target=run, name="bucket", daemon=True)
  thread.start()
  thread.join(_PATIENCE_SECONDS)
  if answers:
    return answers[0]
  hint = (
    ""
    if has_credentials
    else "; there are no credentials on this machine: run `gcloud auth"
    " application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
  )
  if not failures:
    kind = errors.PassingError if has_credentials else errors.UserError
    raise kind(
      f"{shown}: the bucket has not answered for {_PATIENCE_SECONDS:g} s{hint}"
    )
  if isinstance(failures[0], FileNotFoundError):
    raise errors.UserError(f"{shown}: {failures[0]}{hint}") from failures[0]
  reason = bucket_reason(failures[0])
  if reason is None:
    raise failures[0]
  passes = has_credentials and may_pass(failures[0])
  kind = errors.PassingError if passes else errors.UserError
  raise kind(f"{shown}: {reason}{hint}") from failures[0]


def may_pass(error: BaseException) -> bool:
  """Returns whether an error of a bucket is transient."""
  return (
    bucket_reason(error) is not None
    and type(error).__name__ in _PASSING
    and not _is_of_a_disk(str(error))
  )


def _is_of_a_disk(message: str) -> bool:
  """Returns whether a message of TensorFlow is that of a local file system.

  TensorFlow raises `ResourceExhaustedError` both for a full disk and for an
  overloaded bucket; only the former ends with the system's own message.
  """
  first_line = message.strip().splitlines()[0]
  reasons = tuple(map(os.strerror, errno.errorcode))
  return "://" not in first_line and first_line.endswith(reasons)


def bucket_reason(error: BaseException) -> str | None:
  """Returns the message of TensorFlow's error of a file; None for others."""
  if type(error).__module__ != "tensorflow.python.framework.errors_impl":
    return None
  first_line = str(error).strip().splitlines()[0]
  if _is_of_a_disk(first_line):
    return first_line
  kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
  return (
    f"the bucket cannot be used ({kind.removesuffix(' error')}: {first_line})"
  )


def _prepare_credentials() -> bool:
  """Returns whether there are credentials; configures the client.

  Without a key file the client asks the metadata server of Google's VMs, and
  would retry for minutes elsewhere. Public buckets need no credentials.
  """
  home = os.environ.get("CLOUDSDK_CONFIG") or os.path.expanduser(
    "~/.config/gcloud"
  )
  well_known = os.path.join(home, "application_default_credentials.json")
  given = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
  if os.path.isfile(given) or os.path.isfile(well_known):
    return True
  if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
    return False
  host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
  host, _, port = host.partition(":")
  try:
    socket.create_connection(
      (host, int(port or 80)), timeout=_METADATA_SECONDS
    ).close()
  except (OSError, ValueError):
    os.environ["NO_GCE_CHECK"] = "true"
    return False
  return True
