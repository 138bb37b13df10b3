"""A path that a user gave is right, or refused in one sentence before work."""

import argparse
import dataclasses
import errno
import os
import types

import pytest

from specialize_jax import errors
from specialize_jax.files import paths

READ = (paths.INPUT_FILE, paths.INPUT_DIRECTORY, paths.INPUT_PATH)
WRITTEN = (paths.OUTPUT_FILE, paths.OUTPUT_DIRECTORY)
LOCAL = paths.OUTPUT_FILE.local("a store grows by appending, as none can")


@pytest.fixture
def place(tmp_path):
  """A directory with a file and a directory in it."""
  (tmp_path / "file").write_text("text")
  (tmp_path / "a folder").mkdir()
  return tmp_path


def _refused(given, kind, match):
  with pytest.raises(errors.UserError, match=match) as caught:
    paths.check("--flag", given, kind)
  assert "\n" not in str(caught.value)
  assert given in str(caught.value)  # as it was given


@pytest.mark.parametrize("kind", [*READ, *WRITTEN])
@pytest.mark.parametrize(
  ("given", "match"),
  [
    ("s3://bucket/x", "expected a local path, or gs://BUCKET/NAME"),
    ("hdfs://host/x", "expected a local path, or gs://BUCKET/NAME"),
    ("https://host/x", "expected a local path, or gs://BUCKET/NAME"),
    ("S3://bucket/x", "expected a local path, or gs://BUCKET/NAME"),
    ("file:///tmp/x", "give the path alone, /tmp/x"),
    ("s3:/bucket/x", "expected a local path, or gs://BUCKET/NAME"),
    ("s3a://bucket/x", "expected a local path, or gs://BUCKET/NAME"),
    ("s3:bucket/x", "expected a local path, or gs://BUCKET/NAME"),
    ("dbfs:/mnt/x", "expected a local path, or gs://BUCKET/NAME"),
    ("https:/host/x", "expected a local path, or gs://BUCKET/NAME"),
    ("file:/tmp/x", "give the path alone, /tmp/x"),
    ("gs:bucket/x", "expected gs://bucket/x"),
    ("gs//bucket/x", "lacks a colon: expected gs://bucket/x"),
    ("gcs://bucket/x", "expected gs://bucket/x"),
    ("gs:\\\\bucket\\x", "expected gs://bucket"),
    ("gs:/bucket/x", "expected gs://bucket/x"),
    ("GS://bucket/x", "expected gs://bucket/x"),
    ("gs://", "expected gs://BUCKET/NAME"),
    ("gs:///x", "expected gs://BUCKET/NAME"),
  ],
)
def test_a_scheme_that_is_not_read_or_written_is_refused(kind, given, match):
  _refused(given, kind, match)


@pytest.mark.parametrize("kind", [*READ, *WRITTEN])
@pytest.mark.parametrize(
  ("given", "match"),
  [
    ("~/x", "a shell replaces ~ only .* expected /"),
    ("~", "a shell replaces ~ only"),
    ("$HOME/x", r"only a shell replaces \$HOME"),
    ("runs/${NAME}/x", r"only a shell replaces \$\{NAME\}"),
    ("gs://$BUCKET/x", r"only a shell replaces \$BUCKET"),
    ("runs/$(date +%F)/x", r"only a shell replaces \$\(date \+%F\)"),
    ('"runs/x"', "quotation marks in it: expected runs/x"),
    ("'gs://bucket/x'", "quotation marks in it: expected gs://bucket/x"),
    ("C:\\Users\\x", "a Windows path"),
    ("\\\\server\\x", "a Windows path"),
    ("C:/Users/x", "a Windows path"),
    ("/gcs/bucket/x", "mounted at /gcs on .*local path or gs://bucket/x"),
    ("/dbfs/bucket/x", "nothing is mounted at /dbfs .* expected a local path"),
    ("-", "a file's name here: for a pipe give /dev/std"),
  ],
)
def test_what_only_a_shell_or_parser_replaces_is_refused(kind, given, match):
  _refused(given, kind, match)


@pytest.mark.parametrize("given", ["gs://b/x\r", " x", "x\n", "x ", "a\nb"])
def test_blanks_that_were_left_around_a_path_are_refused(given):
  expected = " ".join(given.split())
  for kind in (*READ, *WRITTEN):
    with pytest.raises(errors.UserError, match=f"expected '{expected}'$"):
      paths.check("--flag", given, kind)


def test_a_name_that_is_there_is_taken_as_it_is(place, monkeypatch):
  monkeypatch.chdir(place)
  for name in ("~", "$HOME", "'x'", " x ", "-", "s3:x", "C:\\x"):
    (place / name).write_text("text")
    paths.check("--flag", name, paths.INPUT_FILE)
    paths.check("--flag", name, paths.OUTPUT_FILE)


def test_a_pipe_or_device_may_be_written_but_nothing_goes_on_in_it(place):
  os.mkfifo(place / "pipe")
  resumed = dataclasses.replace(paths.OUTPUT_FILE, suffix=".progress")
  for given in (f"{place}/pipe", os.devnull, "/dev/stdout"):
    assert paths.is_stream(given)
    paths.check("--flag", given, paths.OUTPUT_FILE)
    _refused(given, resumed, "is a pipe or device")
    _refused(given, paths.OUTPUT_DIRECTORY, "is a file: expected a directory")
  assert not paths.is_stream(place / "file")
  assert not paths.is_stream(place / "absent")
  assert not paths.is_stream("gs://bucket/x")


def test_no_flag_writes_over_what_another_reads_or_writes(place, monkeypatch):
  monkeypatch.chdir(place)
  (place / "a folder" / "records").write_text("text")
  kinds = {
    "records": paths.INPUT_PATH,
    "output": paths.OUTPUT_FILE,
    "report": paths.OUTPUT_FILE,
  }

  def check(**given):
    flags = argparse.Namespace(**dict.fromkeys(kinds) | given)
    paths.check_flags(flags, kinds)

  check(records="file", output="new", report="a folder/new")
  check(records="a folder", output="a folder/new", report="/dev/null")
  check(records="file", output="/dev/null", report="/dev/null")
  for given, match in (
    ({"records": "file", "output": "./file"}, "--records and --output are bot"),
    ({"output": "new", "report": f"{place}/new"}, "--output and --report are"),
    (
      {"records": "a folder", "output": "a folder/records"},
      "a file of --re",
    ),
  ):
    with pytest.raises(errors.UserError, match=match):
      check(**given)


@pytest.mark.parametrize("kind", [*READ, *WRITTEN])
def test_an_empty_path_is_refused(kind):
  for given in ("", "  ", "\t"):
    with pytest.raises(errors.UserError, match="--flag=.* is an empty path"):
      paths.check("--flag", given, kind)
  with pytest.raises(errors.UserError, match="contains a null byte"):
    paths.check("--flag", "a\0b", kind)
  with pytest.raises(errors.UserError, match="is not valid Unicode: no file"):
    paths.check("--flag", "a\ud800", kind)
  with pytest.raises(errors.UserError, match="--flag=7 is not a path"):
    paths.check("--flag", 7, kind)


def test_what_is_read_must_be_there_and_of_its_kind(place):
  file, folder = str(place / "file"), str(place / "a folder")
  paths.check("--flag", file, paths.INPUT_FILE)
  paths.check("--flag", folder, paths.INPUT_DIRECTORY)
  paths.check("--flag", f"{folder}/", paths.INPUT_DIRECTORY)
  for given in (file, folder, f"{folder}/"):
    paths.check("--flag", given, paths.INPUT_PATH)
  paths.check("--flag", os.devnull, paths.INPUT_FILE)
  for kind in READ:
    _refused(f"{place}/absent", kind, "does not exist")
    _refused(f"{place}/absent/x", kind, "does not exist")
    _refused(f"{file}/x", kind, "Not a directory")
  _refused(folder, paths.INPUT_FILE, "is a directory: expected a file")
  _refused(file, paths.INPUT_DIRECTORY, "is a file: expected a directory")
  _refused(f"{file}/", paths.INPUT_FILE, "ends with a slash")
  (place / "endless").symlink_to("/dev/zero")
  for given in ("/dev/zero", f"{place}/endless"):
    _refused(given, paths.INPUT_FILE, "is a device: expected a file")


def test_what_is_written_may_be_new_and_is_not_made_yet(place):
  file, folder = str(place / "file"), str(place / "a folder")
  for given in (file, f"{folder}/new", f"{place}/new 1/new 2/x", "new", "./n"):
    paths.check("--flag", given, paths.OUTPUT_FILE)
  for given in (folder, f"{folder}/", f"{place}/new 1/", f"{place}/new 1/2"):
    paths.check("--flag", given, paths.OUTPUT_DIRECTORY)
  assert sorted(p.name for p in place.iterdir()) == ["a folder", "file"]
  _refused(folder, paths.OUTPUT_FILE, "is a directory: expected a file")
  _refused(f"{place}/new/", paths.OUTPUT_FILE, "ends with a slash")
  _refused(file, paths.OUTPUT_DIRECTORY, "is a file: expected a directory")
  for kind in WRITTEN:
    _refused(f"{file}/x", kind, "is not a directory|Not a directory")
    _refused(f"{file}/x/y", kind, "is not a directory|Not a directory")
    _refused(
      f"{place}/new/../file/x",
      kind,
      f": {file} is not a directory, so nothing can be written in it$",
    )


@pytest.mark.parametrize("kind", [*READ, *WRITTEN])
def test_a_name_longer_than_names_are_is_refused(place, kind):
  _refused(f"{place}/{'n' * 256}", kind, "name is too long")
  _refused(f"{place}/{'n' * 255}/{'é' * 128}", kind, "name is too long")


def test_the_longest_name_is_a_name(place):
  longest = f"{place}/{'n' * 255}"
  paths.check("--flag", longest, paths.OUTPUT_FILE)
  resumed = dataclasses.replace(paths.OUTPUT_FILE, suffix=".progress")
  _refused(longest, resumed, "255 bytes or fewer with the .progress")


def test_a_folder_whose_name_looks_like_a_scheme_is_a_folder(
  place, monkeypatch
):
  monkeypatch.chdir(place)
  os.makedirs("s3:/bucket")
  paths.check("--flag", "s3://bucket", paths.INPUT_DIRECTORY)
  paths.check("--flag", "notes:/x", paths.OUTPUT_FILE)


def test_what_may_not_be_read_or_written_is_refused(forbidden, as_nobody):
  place = forbidden
  with as_nobody():
    paths.check("--flag", f"{place}/open/file", paths.INPUT_FILE)
    _refused(f"{place}/closed", paths.INPUT_DIRECTORY, "permission denied")
    _refused(f"{place}/closed/x", paths.INPUT_FILE, "Permission denied")
    _refused(f"{place}/secret", paths.INPUT_FILE, "permission denied")
    for kind in WRITTEN:
      _refused(f"{place}/closed/x", kind, "Permission denied")
      _refused(f"{place}/open/x", kind, "permission denied in .*open")
      _refused(f"{place}/open/x/y", kind, "permission denied in .*open")


def test_a_file_that_is_read_only_is_not_replaced(forbidden, as_nobody):
  forbidden.chmod(0o777)  # so that a new one could take its place
  (forbidden / "link").symlink_to("secret")
  with as_nobody():
    for name in ("secret", "link"):
      for kind in (paths.OUTPUT_FILE, paths.RESUMED_FILE):
        _refused(f"{forbidden}/{name}", kind, "denied for this file")


@pytest.mark.parametrize("given", ["open/file", "open/new"])
def test_a_read_only_file_system_is_said_to_be_one(
  forbidden, as_nobody, monkeypatch, given
):
  """Permissions deny writing there too, but changing them would not help."""
  (forbidden / "open/file").chmod(0o444)
  flags = types.SimpleNamespace(f_flag=os.ST_RDONLY)
  monkeypatch.setattr(os, "statvfs", lambda path: flags)
  with (
    as_nobody(),
    pytest.raises(errors.UserError, match="is on a read-only file system$"),
  ):
    paths.check("--output", f"{forbidden}/{given}", paths.OUTPUT_FILE)


def test_where_only_a_local_path_works_a_bucket_is_refused_with_the_reason():
  _refused(
    "gs://bucket/x", LOCAL, "is in a bucket, and a store grows by appending"
  )


def test_two_spellings_of_one_path_are_the_same(place, monkeypatch):
  monkeypatch.chdir(place)
  assert paths.are_same("file", f"{place}/a folder/../file")
  assert not paths.are_same("file", "other")
  assert paths.are_same("gs://bucket/x/", "gs://bucket/x")


@pytest.mark.parametrize(
  "given",
  [
    "hf://google/flan-t5-xl",
    "https://huggingface.co/google/flan-t5-xl/tree/main",
  ],
)
def test_an_address_of_the_hub_leads_to_the_models_name(given):
  _refused(given, paths.CHECKPOINT, "by its name, google/flan-t5-xl$")


def test_a_pipe_that_may_not_be_written_to_is_refused(forbidden, as_nobody):
  forbidden.chmod(0o755)
  os.mkfifo(forbidden / "pipe", 0o444)
  with as_nobody():
    _refused(
      f"{forbidden}/pipe",
      paths.OUTPUT_FILE,
      "/pipe cannot be written: permission denied$",
    )


@pytest.mark.parametrize(
  ("number", "file", "said"),
  [
    (errno.ENOENT, "a/rows.jsonl", "a/rows.jsonl: No such file or directory"),
    (
      errno.ENOSPC,
      "a/rows.jsonl",
      "a/rows.jsonl: No space left on device: make room where the output is"
      " written, and run the same command again",
    ),
    (
      errno.EDQUOT,
      None,
      "Disk quota exceeded: make room where the output is written, and run the"
      " same command again",
    ),
  ],
)
def test_a_disk_that_is_full_and_a_path_that_is_wrong_can_be_mended(
  number, file, said
):
  error = OSError(number, os.strerror(number), *([file] if file else []))
  assert paths.is_mendable(error)
  assert paths.reason(error) == said


def test_an_error_that_names_no_file_is_not_the_user_s():
  assert not paths.is_mendable(OSError(errno.ENOENT, "no such file"))
  assert not paths.is_mendable(OSError(errno.EIO, "failed", "a/rows.jsonl"))
