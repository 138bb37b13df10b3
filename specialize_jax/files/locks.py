r"""Locks that allow one writer of an output at a time.

A run that resumes would continue another writer's rows as if they were its own.
So every writer of an output holds its lock, which ends with the process,
however the process ends:

- on a disk, it is a lock of the kernel (`flock`) on a hidden file in the output
  directory, or beside the output file. The kernel releases it at the end of the
  process; the hidden file that `kill -9` leaves behind locks nothing, and a
  process that the holder has forked holds nothing;
- in a bucket, which has no such locks, it is a lease: an object that its holder
  replaces every few seconds under another name. A second writer that sees it
  replaced ends with an error; if it is not replaced for a minute, the second
  writer takes the lease. A holder whose lease was taken ends at once.

  >>> import tempfile
  >>> from specialize_jax.files import locks
  >>> folder = tempfile.mkdtemp()
  >>> with locks.directory(folder, "MODEL_DIR"):
  ...   with locks.directory(folder, "MODEL_DIR"):  # doctest: +ELLIPSIS
  ...     pass
  Traceback (most recent call last):
  specialize_jax.errors.UserError: MODEL_DIR=... is being written by process \
... wait until it has ended, or give another MODEL_DIR
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import random
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from specialize_jax import errors
from specialize_jax.files import paths

Path = str | os.PathLike[str]

_BEAT_SECONDS = 15.0
# Several intervals, since a live holder may renew its lease late.
_SILENT_SECONDS = 60.0
_MAX_TRIES = 5
# A lock that other processes make and remove meanwhile is tried again.
_MAX_TRIES_TO_MAKE = 1000
_MAX_READS = 20
_HOLDER_BYTES = 4096
# Errors of file systems without locks: some of Lustre, FUSE and NFS.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


def directory(
  path: Path, flag: str, *, part: str = ""
) -> contextlib.AbstractContextManager[None]:
  """Locks an output directory, which is created if missing.

  Args:
    path: the directory, local or in a bucket.
    flag: the flag or gin macro that names it, for error messages.
    part: the name of one of several independent outputs in the directory, such
      as a selection beside the training that it follows; "" for all.

  Raises:
    UserError: another process holds the lock; the message has its host, its
      process id and the time at which it took the lock.
  """
  name = f".{part}.lock" if part else ".lock"
  return _held(path, flag, epath.Path(_real(path)) / name)


def file(path: Path, flag: str) -> contextlib.AbstractContextManager[None]:
  """Locks an output file, or a directory that is written atomically.

  Args:
    path: the file, which need not exist, local or in a bucket.
    flag: the flag that names it, for error messages.

  Raises:
    UserError: see `directory`.
  """
  if paths.is_stream(path):  # several writers may share it
    return contextlib.nullcontext()
  place = epath.Path(_real(path))
  name = f".{place.name}.lock"
  if len(os.fsencode(name)) > paths.MAX_NAME_BYTES:
    name = f".{hashlib.sha256(os.fsencode(place.name)).hexdigest()}.lock"
  return _held(path, flag, place.parent / name)


@contextlib.contextmanager
def files(paths_by_flag: Mapping[str, Path | None]) -> Iterator[None]:
  """Locks every file that a command writes; see `file`.

  Args:
    paths_by_flag: the files by their flags; None for a flag that is not set.

  Raises:
    UserError: another process holds one of the locks.
  """
  with contextlib.ExitStack() as held:
    for flag, path in paths_by_flag.items():
      if path is not None:
        held.enter_context(file(path, flag))
    yield


def _real(path: Path) -> str:
  path = os.fspath(path)
  return path if paths.is_in_bucket(path) else os.path.realpath(path)


def _held(
  path: Path, flag: str, lock: epath.Path
) -> contextlib.AbstractContextManager[None]:
  shown = f"{flag}={os.fspath(path)}"
  way_out = f"wait until it has ended, or give another {flag}"
  if paths.is_in_bucket(path):
    return _lease(lock, shown, way_out)
  return _kernel_lock(pathlib.Path(lock), shown, way_out)


@contextlib.contextmanager
def _kernel_lock(
  lock: pathlib.Path, shown: str, way_out: str
) -> Iterator[None]:
  """Holds a lock of the kernel; then removes its file and empty directories."""
  missing = [place for place in lock.parents if not place.exists()]
  for _ in range(_MAX_TRIES_TO_MAKE):
    descriptor = _locked(lock, shown, way_out)
    if descriptor is not None:
      break
  else:
    raise errors.UserError(
      f"{shown} cannot be written: no file can be made in {lock.parent}"
    )
  _descriptors.add(descriptor)
  try:
    _say_if_left_elsewhere(_read(descriptor), shown)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _myself().encode(), 0)
    yield
  finally:
    if descriptor in _descriptors:  # else in a forked process: not its lock
      _descriptors.remove(descriptor)
      with contextlib.suppress(FileNotFoundError):  # removed with its directory
        lock.unlink()
      os.close(descriptor)
      with contextlib.suppress(OSError):  # not empty: something was written
        for place in missing:
          place.rmdir()


def _read(descriptor: int) -> str:
  """Returns what a lock says of its holder."""
  return os.pread(descriptor, _HOLDER_BYTES, 0).decode("utf-8", "replace")


def _say_if_left_elsewhere(holder: str, shown: str) -> None:
  """Prints that a process of another host has not released the lock.

  It was killed, or runs and its lock cannot be seen from here, as on a disk of
  NFS that is mounted with `nolock`.
  """
  found = _parsed(holder)
  if found and found[0] != socket.gethostname():
    print(
      f"{shown} was last written by {_described(holder)}, which has not"
      " released it: make sure that it has ended",
      file=sys.stderr,
    )


# Of the locks that this process holds.
_descriptors: set[int] = set()


def _close_inherited() -> None:
  """Closes a parent's locks in a forked process, which may outlive it."""
  for descriptor in _descriptors:
    os.close(descriptor)
  _descriptors.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _locked(lock: pathlib.Path, shown: str, way_out: str) -> int | None:
  """Returns the descriptor of a locked file; None if it was just removed."""
  try:
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, _OPENED, 0o666)
  except FileNotFoundError:
    return None
  except FileExistsError:  # a directory that was removed meanwhile
    if lock.parent.exists() and not lock.parent.is_dir():
      raise
    return None
  except OSError as error:
    if error.errno not in (errno.ELOOP, errno.EISDIR):
      raise
    raise _foreign(shown, lock) from error
  if not _is_ours(descriptor):
    os.close(descriptor)
    raise _foreign(shown, lock)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError) as error:  # the latter on NFS
    holder = _read(descriptor)
    os.close(descriptor)
    raise _refusal(shown, holder, way_out) from error
  except OSError as error:
    if error.errno not in _WITHOUT_LOCKS:
      os.close(descriptor)
      raise
    print(
      f"{shown} is on a file system without locks ({error.strerror}): make sure"
      " that no second process writes to it",
      file=sys.stderr,
    )
    return descriptor
  with contextlib.suppress(FileNotFoundError):
    if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
      return descriptor
  os.close(descriptor)
  return None


# A link would have another file written over; a pipe would be waited for.
_OPENED = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def _is_ours(descriptor: int) -> bool:
  """Returns whether an opened file is one that only locks."""
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    return False
  content = os.pread(descriptor, _HOLDER_BYTES, 0).strip(b"\0")
  return not content or content.startswith(_HOLDER_START)


@contextlib.contextmanager
def _lease(lock: epath.Path, shown: str, way_out: str) -> Iterator[None]:
  """Holds a lease in a bucket, renewed by a thread."""
  lease = _Lease(lock, shown)
  for _ in range(_MAX_TRIES):
    lease.renew()
    others = lease.others()
    if not others:
      break
    # If two processes start at once, each sees the other, and both end.
    lease.end()
    _wait_for_silence(lock, others, shown, way_out)
    time.sleep(random.uniform(0, _BEAT_SECONDS / 5))
  else:
    raise errors.UserError(
      f"{shown} is wanted by several processes at once: {way_out}"
    )
  ended = threading.Event()

  def beat() -> None:
    while not ended.wait(_BEAT_SECONDS):
      lease.renew_or_exit()

  thread = threading.Thread(target=beat, name="lease", daemon=True)
  thread.start()
  try:
    yield
    ended.set()
    thread.join()
    lease.renew_or_exit()  # a lost lease must not end as a success
  finally:
    ended.set()
    thread.join()
    lease.end()


class _Lease:
  """An object `TOKEN-COUNT`, whose count grows as long as its holder runs."""

  def __init__(self, directory: epath.Path, shown: str) -> None:
    self._directory = directory
    self._shown = shown
    self._token = uuid.uuid4().hex
    self._count = 0
    self._written: list[int] = []
    self._process = os.getpid()
    self._myself = _myself()

  def renew(self) -> None:
    """Writes the object under its next name, then removes the previous one.

    What cannot be removed now is removed by a later renewal, or at the end.
    """
    following = self._count + 1
    self._place(following).write_text(self._myself)
    self._count = following
    self._written.append(following)
    self._remove(self._written[:-1])

  def _remove(self, counts: Sequence[int]) -> None:
    for count in counts:
      self._place(count).unlink(missing_ok=True)
      self._written.remove(count)

  def renew_or_exit(self) -> None:
    """Renews the lease; ends the process if another one has taken it.

    If the bucket does not respond, the next renewal tries again: a process that
    cannot reach the lease cannot write the output either.
    """
    try:
      if self._place(self._count).name in _objects(self._directory):
        self.renew()
        return
    except Exception as error:
      reason = paths.bucket_reason(error)
      if reason is None:
        raise
      print(f"{self._shown}: {reason}", file=sys.stderr)
      return
    print(
      f"{self._shown} was taken over by another process, since this one had"
      f" not renewed its lease for {_SILENT_SECONDS:g} s: ended, to write"
      " nothing into its output",
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)

  def others(self) -> set[str]:
    """Returns the names of the objects of other processes."""
    names = _objects(self._directory)
    return {name for name in names if not name.startswith(self._token)}

  def end(self) -> None:
    """Removes the object, so that the next writer need not wait."""
    if os.getpid() != self._process:
      return  # a forked process, whose parent holds the lease
    self._remove(self._written[:])
    self._count = 0

  def _place(self, count: int) -> epath.Path:
    return self._directory / f"{self._token}-{count}"


def _objects(directory: epath.Path) -> set[str]:
  try:
    return {place.name for place in directory.iterdir()}
  except FileNotFoundError:
    return set()


def _wait_for_silence(
  lock: epath.Path, names: set[str], shown: str, way_out: str
) -> None:
  """Removes leases that are not renewed for `_SILENT_SECONDS`.

  Raises:
    UserError: one of them is renewed, so its holder is running.
  """
  tokens = {name.partition("-")[0] for name in names}
  holder = _holder(lock, tokens)
  print(
    f"{shown} may still be written by {_described(holder)}: waiting up to"
    f" {_SILENT_SECONDS:g} s for a sign of it",
    file=sys.stderr,
    flush=True,
  )
  deadline = time.monotonic() + _SILENT_SECONDS
  while time.monotonic() < deadline:
    now = {n for n in _objects(lock) if n.partition("-")[0] in tokens}
    if not now:
      return
    if now - names:
      raise _refusal(shown, holder or _holder(lock, tokens), way_out)
    time.sleep(_BEAT_SECONDS / 5)
  for name in names:
    with contextlib.suppress(FileNotFoundError):
      (lock / name).unlink()


def _holder(lock: epath.Path, tokens: set[str]) -> str:
  """Returns what a lease says of its holder; "" if there is none any more.

  A lease may be replaced between its listing and its reading: then it is listed
  again.
  """
  for _ in range(_MAX_READS):
    for name in sorted(_objects(lock)):
      if name.partition("-")[0] in tokens:
        with contextlib.suppress(FileNotFoundError):
          return (lock / name).read_text()
  return ""


_HOLDER_START = b'{"host":'


def _myself() -> str:
  return json.dumps(
    {
      "host": socket.gethostname(),
      "process": os.getpid(),
      "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
  )


def _parsed(holder: str) -> tuple[str, str, str] | None:
  """Returns host, process and time; None between the lock and its text."""
  try:
    found = json.loads(holder)
    host, process, since = (found[k] for k in ("host", "process", "since"))
  except (ValueError, KeyError, TypeError):
    return None
  return host, process, since


def _described(holder: str) -> str:
  found = _parsed(holder)
  if found is None:
    return "another process"
  host, process, since = found
  return f"process {process} on {host} since {since}"


def _foreign(shown: str, lock: pathlib.Path) -> errors.UserError:
  return errors.UserError(
    f"{shown} cannot be locked: {lock} is not a lock that specialize wrote, and"
    " would be written over: move it away"
  )


def _refusal(shown: str, holder: str, way_out: str) -> errors.UserError:
  return errors.UserError(
    f"{shown} is being written by {_described(holder)}: {way_out}"
  )
