"""An output has one writer at a time, and the lock ends with its holder."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf
from etils import epath

from specialize_jax import errors
from specialize_jax.files import locks, paths

_HOLDER = """
import sys, time
from specialize_jax.files import locks
kind, path = sys.argv[1:]
with getattr(locks, kind)(path, "--flag"):
  print("held", flush=True)
  sys.stdin.read()
"""


@contextlib.contextmanager
def holder(kind, path):
  """A process that holds a lock until its input ends."""
  process = subprocess.Popen(
    [sys.executable, "-c", _HOLDER, kind, os.fspath(path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == "held\n"
    yield process
  finally:
    process.kill()
    process.wait(10)


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_second_writer_is_refused_and_the_holder_named(tmp_path, kind):
  place, held = tmp_path / "deep" / "place", getattr(locks, kind)
  with holder(kind, place) as process:
    with pytest.raises(errors.UserError) as refused, held(place, "--outputs"):
      pass
    said = str(refused.value)
    assert f"--outputs={place} is being written by process {process.pid}" in (
      said
    )
    assert f"on {socket.gethostname()} since {time.strftime('%Y-')}" in said
    process.stdin.close()
    assert process.wait(10) == 0
  assert not (tmp_path / "deep").exists()  # nothing was written, nothing left
  with held(place, "--outputs"):
    pass


def test_a_lock_ends_with_a_holder_that_is_killed(tmp_path):
  with holder("directory", tmp_path) as process:
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert (tmp_path / ".lock").exists()
    with locks.directory(tmp_path, "--flag"):
      pass
  assert not any(tmp_path.iterdir())


def test_a_process_that_the_holder_has_forked_holds_nothing(tmp_path):
  """It neither keeps the lock from others nor takes it from the holder."""
  script = """
import os, sys
from specialize_jax.files import locks
with locks.directory(sys.argv[1], "--flag"):
  if not os.fork():
    if sys.argv[2] == "stays":
      # Said by the child: the parent may go on before its child has started.
      print("held", flush=True)
      sys.stdin.read()
    sys.exit()  # through the end of the `with`
  if sys.argv[2] == "ends":
    os.wait()
    print("held", flush=True)
  sys.stdin.read()
"""
  for child in ("stays", "ends"):
    process = subprocess.Popen(
      [sys.executable, "-c", script, os.fspath(tmp_path), child],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert process.stdout.readline() == "held\n"
    with (
      pytest.raises(errors.UserError, match=f"by process {process.pid}"),
      locks.directory(tmp_path, "--flag"),
    ):
      pass
    process.kill()
    process.wait(10)
    with locks.directory(tmp_path, "--flag"):
      pass
    process.stdin.close()


_FOREIGN = {
  "a link": lambda lock, kept: lock.symlink_to(kept),
  "a hard link": lambda lock, kept: os.link(kept, lock),
  "a link to nothing": lambda lock, kept: lock.symlink_to("nothing"),
  "a file of another program": lambda lock, kept: lock.write_text("9"),
  "a directory": lambda lock, kept: lock.mkdir(),
  "a pipe": lambda lock, kept: os.mkfifo(lock),
}


@pytest.mark.parametrize("made", _FOREIGN)
def test_a_file_that_is_no_lock_of_ours_is_not_written_over(tmp_path, made):
  kept = tmp_path / "kept"
  kept.write_text("a thesis")
  place = tmp_path / "place"
  place.mkdir()
  _FOREIGN[made](place / ".lock", kept)
  with (
    pytest.raises(errors.UserError, match=r"/\.lock is not a lock that"),
    locks.directory(place, "MODEL_DIR"),
  ):
    pass
  assert kept.read_text() == "a thesis"
  assert [file.name for file in place.iterdir()] == [".lock"]
  assert not (place / "nothing").exists()


@pytest.mark.parametrize("host", ["another", socket.gethostname()])
def test_what_a_process_of_another_host_has_left_is_named(
  tmp_path, capsys, host
):
  left = {"host": host, "process": 7, "since": "2026-11-28 15:00:00 +0000"}
  (tmp_path / ".lock").write_text(json.dumps(left))
  with locks.directory(tmp_path, "MODEL_DIR"):
    pass
  said = "was last written by process 7 on another since 2026-11-28"
  assert (said in capsys.readouterr().err) == (host == "another")


def test_two_names_of_one_file_are_one_output(tmp_path):
  (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
  with (
    locks.file(tmp_path / "rows.jsonl", "--outputs"),
    pytest.raises(errors.UserError, match="is being written"),
    locks.file(tmp_path / "link.jsonl", "--outputs"),
  ):
    pass


def test_parts_of_a_directory_are_held_apart(tmp_path):
  with (
    locks.directory(tmp_path, "MODEL_DIR"),
    locks.directory(tmp_path, "--model_dir", part="selection"),
    pytest.raises(errors.UserError, match="is being written"),
    locks.directory(tmp_path, "--model_dir", part="selection"),
  ):
    pass


def test_the_longest_name_can_be_held(tmp_path):
  with locks.file(tmp_path / ("x" * 255), "--outputs"):
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_where_no_file_can_be_made_is_said_at_once():
  with (
    pytest.raises(errors.UserError, match="--output=/proc/x cannot be written"),
    locks.file("/proc/x", "--output"),
  ):
    pass


@pytest.mark.parametrize(
  ("name", "said"), [("file", "File exists"), ("file/x", "Not a directory")]
)
def test_in_a_file_nothing_is_locked_and_the_system_says_why(
  tmp_path, name, said
):
  (tmp_path / "file").write_text("a thesis")
  with (
    pytest.raises(OSError, match=said) as caught,
    locks.directory(tmp_path / name, "MODEL_DIR"),
  ):
    pass
  assert paths.is_mendable(caught.value)  # one sentence
  assert paths.reason(caught.value) == f"{tmp_path / name}: {said}"
  assert (tmp_path / "file").read_text() == "a thesis"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_and_written_to(
  tmp_path, monkeypatch, capsys, number
):
  def without_locks(descriptor, how):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", without_locks)
  with locks.directory(tmp_path, "MODEL_DIR"):
    (tmp_path / "rows").write_text("text")
  assert capsys.readouterr().err == (
    f"MODEL_DIR={tmp_path} is on a file system without locks"
    f" ({os.strerror(number)}): make sure that no second process writes to it\n"
  )
  assert [file.name for file in tmp_path.iterdir()] == ["rows"]


def test_a_disk_that_fails_is_not_taken_for_one_without_locks(
  tmp_path, monkeypatch, capsys
):
  opened = []

  def failing(descriptor, how):
    opened.append(descriptor)
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(fcntl, "flock", failing)
  with (
    pytest.raises(OSError, match="Input/output error"),
    locks.directory(tmp_path, "MODEL_DIR"),
  ):
    pass
  with pytest.raises(OSError, match="Bad file descriptor"):
    os.fstat(opened[0])
  assert not capsys.readouterr().err


def test_of_many_that_come_at_once_one_at_a_time_holds(tmp_path):
  holding, most, refused = [], [], []

  def enter_often():
    for _ in range(50):
      try:
        with locks.directory(tmp_path / "place", "--flag"):
          holding.append(1)
          most.append(len(holding))
          holding.pop()
      except errors.UserError:
        refused.append(1)

  threads = [threading.Thread(target=enter_often) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert max(most) == 1
  assert len(most) + len(refused) == 200


@pytest.fixture
def fast_beats(monkeypatch):
  monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.5)
  monkeypatch.setattr(locks, "_SILENT_SECONDS", 8.0)


@pytest.mark.usefixtures("fast_beats")
def test_a_lease_in_a_bucket_refuses_a_second_writer(bucket):
  place = f"{bucket}/leased"
  with (
    locks.directory(place, "MODEL_DIR"),
    pytest.raises(errors.UserError, match="leased is being written by"),
    locks.directory(place, "MODEL_DIR"),
  ):
    pass
  with locks.directory(place, "MODEL_DIR"):  # at once, for it was given back
    pass


@pytest.mark.usefixtures("fast_beats")
def test_a_lease_whose_renewal_failed_is_renewed_later(tmp_path, capsys):
  lease = locks._Lease(epath.Path(tmp_path), "MODEL_DIR")
  lease.renew()

  def fail(counts):
    if counts != 1:  # where the object is now
      raise tf.errors.UnavailableError(None, None, "the bucket is gone")
    return lease._directory / f"{lease._token}-1"

  # As the next object is written, and as the one before is removed.
  for name in ("_place", "_remove"):
    setattr(lease, name, fail)
    lease.renew_or_exit()  # says so, and does not end the process
    delattr(lease, name)
    assert "the bucket is gone" in capsys.readouterr().err
  assert len(list(tmp_path.iterdir())) == 2
  lease.renew_or_exit()
  assert len(list(tmp_path.iterdir())) == 1
  assert not lease.others()
  lease.end()
  assert not list(tmp_path.iterdir())


def test_a_lease_of_the_dead_is_taken_and_the_dead_write_no_more(
  bucket, bucket_environment, monkeypatch
):
  place = f"{bucket}/of_the_dead"
  script = _HOLDER.replace(
    "kind, path", "locks._BEAT_SECONDS = 0.5; kind, path"
  )
  monkeypatch.setattr(locks, "_SILENT_SECONDS", 5.0)
  process = subprocess.Popen(
    [sys.executable, "-c", script, "directory", place],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={**os.environ, **bucket_environment},
    text=True,
  )
  try:
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    with locks.directory(place, "MODEL_DIR"):
      process.send_signal(signal.SIGCONT)
      _, said = process.communicate(timeout=20)
  finally:
    process.kill()
  assert process.returncode == 1
  assert "was taken over by another process" in said


def test_a_writer_waits_for_one_that_ends_meanwhile_and_then_holds(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.1)
  monkeypatch.setattr(locks, "_SILENT_SECONDS", 30.0)
  other = locks._Lease(epath.Path(tmp_path), "MODEL_DIR=gs://b/run")
  other.renew()
  ending = threading.Timer(0.05, other.end)
  ending.start()
  start = time.monotonic()
  with locks._lease(epath.Path(tmp_path), "MODEL_DIR=gs://b/run", "wait"):
    assert time.monotonic() - start < 15  # without the whole silence
    assert len(list(tmp_path.iterdir())) == 1
  ending.join()
  assert not list(tmp_path.iterdir())
  said = capsys.readouterr().err
  assert said.startswith(
    f"MODEL_DIR=gs://b/run may still be written by process {os.getpid()} on"
    f" {socket.gethostname()} since "
  )
  assert said.endswith(": waiting up to 30 s for a sign of it\n")


def test_a_lease_that_has_just_ended_is_not_waited_for(tmp_path, capsys):
  start = time.monotonic()
  locks._wait_for_silence(
    epath.Path(tmp_path), {"ended-3"}, "MODEL_DIR=gs://b/run", "wait"
  )
  assert time.monotonic() - start < 10
  assert capsys.readouterr().err == (
    "MODEL_DIR=gs://b/run may still be written by another process: waiting up"
    " to 60 s for a sign of it\n"
  )


def test_a_holder_ends_at_once_where_its_lease_is_gone(
  tmp_path, monkeypatch, capsys
):
  lock = tmp_path / ".lock"
  lock.mkdir()
  lease = locks._Lease(epath.Path(lock), "MODEL_DIR=gs://b/run")
  lease.renew()
  shutil.rmtree(lock)
  monkeypatch.setattr(os, "_exit", sys.exit)
  with pytest.raises(SystemExit) as ended:
    lease.renew_or_exit()
  assert ended.value.code == 1
  assert capsys.readouterr().err == (
    "MODEL_DIR=gs://b/run was taken over by another process, since this one had"
    " not renewed its lease for 60 s: ended, to write nothing into its output\n"
  )


def test_what_is_no_error_of_a_bucket_is_not_tried_again(tmp_path, capsys):
  lock = tmp_path / ".lock"
  lock.mkdir()
  lease = locks._Lease(epath.Path(lock), "MODEL_DIR=gs://b/run")
  lease.renew()
  shutil.rmtree(lock)
  lock.write_text("text")
  with pytest.raises(NotADirectoryError):
    lease.renew_or_exit()
  assert not capsys.readouterr().err


def test_a_process_that_was_forked_leaves_the_lease_to_its_parent(
  tmp_path, monkeypatch
):
  lease = locks._Lease(epath.Path(tmp_path), "MODEL_DIR")
  lease.renew()
  with monkeypatch.context() as child:
    child.setattr(os, "getpid", lambda: -1)
    lease.end()
  assert len(list(tmp_path.iterdir())) == 1
  lease.end()
  assert not list(tmp_path.iterdir())
