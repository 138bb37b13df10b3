"""The same rules hold in a bucket, through the real client of one."""

import json
import os
import socket

import pytest
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.files import paths, reading, writing


def test_what_is_written_reads_back(bucket):
  rows = [{"text": "£ 😀 \ud83d"}, {"text": ""}]
  writing.write_rows(f"{bucket}/deep/er/rows.jsonl", rows)
  assert reading.read_rows(f"{bucket}/deep/er/rows.jsonl") == rows
  writing.write_json(f"{bucket}/one.json", {"a": 1})
  writing.write_json(f"{bucket}/one.json", {"a": 2})
  assert reading.read_json(f"{bucket}/one.json") == {"a": 2}
  writing.write_bytes(f"{bucket}/bytes", bytes(range(256)))
  assert reading.read_bytes(f"{bucket}/bytes") == bytes(range(256))


def test_a_failing_writer_leaves_the_old_object_and_nothing_else(bucket):
  path = f"{bucket}/failing/page.html"
  writing.write_text(path, "old")
  with pytest.raises(RuntimeError), writing.opened(path) as stream:
    stream.write("half")
    raise RuntimeError("killed")
  assert reading.read_text(path) == "old"
  with pytest.raises(RuntimeError), writing.opened(f"{path}.new") as stream:
    stream.write("half")
    raise RuntimeError("killed")
  with pytest.raises(errors.UserError, match=r"there is no gs://"):
    reading.read_text(f"{path}.new")


def test_a_path_is_checked_as_a_local_one_is(bucket):
  writing.write_text(f"{bucket}/folder/file", "")
  paths.check("--flag", f"{bucket}/folder/file", paths.INPUT_FILE)
  paths.check("--flag", f"{bucket}/folder", paths.INPUT_DIRECTORY)
  paths.check("--flag", f"{bucket}/folder/", paths.INPUT_PATH)
  paths.check("--flag", f"{bucket}/new/new", paths.OUTPUT_FILE)
  paths.check("--flag", f"{bucket}/new/", paths.OUTPUT_DIRECTORY)
  for given, kind, match in (
    (f"{bucket}/absent", paths.INPUT_FILE, "does not exist"),
    (f"{bucket}/absent", paths.INPUT_DIRECTORY, "does not exist"),
    (f"{bucket}/folder", paths.INPUT_FILE, "is a directory"),
    (f"{bucket}/folder", paths.OUTPUT_FILE, "is a directory"),
    (f"{bucket}/folder/file", paths.INPUT_DIRECTORY, "is a file"),
    (f"{bucket}/folder/file", paths.OUTPUT_DIRECTORY, "is a file"),
    (f"{bucket}/new/", paths.OUTPUT_FILE, "ends with a slash"),
    (bucket, paths.OUTPUT_FILE, "expected gs://BUCKET/NAME"),
    ("gs://no-such-bucket-x/run", paths.INPUT_PATH, "there is no bucket"),
    ("gs://no-such-bucket-x/run", paths.OUTPUT_FILE, "there is no bucket"),
  ):
    with pytest.raises(errors.UserError, match=match) as caught:
      paths.check("--flag", given, kind)
    assert f"--flag={given}" in str(caught.value)


def test_without_credentials_the_way_out_is_named(bucket, monkeypatch):
  """Nobody answers at the address of the network, as behind a firewall."""
  monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
  monkeypatch.setattr(paths, "_PATIENCE_SECONDS", 2.0)
  with pytest.raises(errors.UserError, match="no credentials") as caught:
    paths.check("--flag", "gs://unreachable/run", paths.INPUT_PATH)
  assert "--flag=gs://unreachable/run: " in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_bucket_s_error_that_may_pass_is_no_mistake():
  assert paths.may_pass(tf.errors.UnavailableError(None, None, "busy"))
  for kind in (tf.errors.NotFoundError, tf.errors.PermissionDeniedError):
    assert not paths.may_pass(kind(None, None, "no"))
  assert not paths.may_pass(OSError("no"))


def test_a_full_disk_is_no_bucket_that_is_busy():
  """To TensorFlow both are exhausted resources."""
  exhausted = tf.errors.ResourceExhaustedError
  full = exhausted(None, None, "/run/events.1; No space left on device")
  busy = exhausted(None, None, "Error executing an HTTP request: gs://run/a")
  assert [paths.may_pass(one) for one in (full, busy)] == [False, True]
  assert paths.bucket_reason(full) == full.message
  assert paths.bucket_reason(busy).startswith("the bucket cannot be used (res")


def test_key_files_count_as_credentials(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", os.fspath(tmp_path))
  monkeypatch.setenv("CLOUDSDK_CONFIG", os.fspath(tmp_path))
  monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
  monkeypatch.delenv("NO_GCE_CHECK", raising=False)
  monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
  assert not paths._prepare_credentials()
  assert os.environ["NO_GCE_CHECK"] == "true"
  key = tmp_path / "application_default_credentials.json"
  key.write_text(json.dumps({}))
  assert paths._prepare_credentials()


@pytest.fixture
def key(tmp_path, monkeypatch):
  """A key file, as a service account has it."""
  path = tmp_path / "key.json"
  path.write_text("{}")
  monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", os.fspath(path))
  return path


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize(
  ("kind", "raised", "called"),
  [
    (tf.errors.UnavailableError, errors.PassingError, "unavailable"),
    (tf.errors.PermissionDeniedError, errors.UserError, "permission denied"),
  ],
)
def test_what_a_bucket_answers_is_told_in_one_sentence(kind, raised, called):
  def ask():
    raise kind(None, None, "Error executing an HTTP request: 503\n\twhen")

  with pytest.raises(errors.UserError) as caught:
    paths._answer("--flag=gs://bucket/x", ask)
  assert type(caught.value) is raised
  assert str(caught.value) == (
    f"--flag=gs://bucket/x: the bucket cannot be used ({called}: Error"
    " executing an HTTP request: 503)"
  )


@pytest.mark.usefixtures("key")
def test_what_is_no_error_of_a_bucket_is_raised_as_it_is():
  def ask():
    raise ZeroDivisionError("a defect of ours")

  with pytest.raises(ZeroDivisionError, match="^a defect of ours$"):
    paths._answer("--flag=gs://bucket/x", ask)


def test_a_machine_of_google_s_has_credentials(tmp_path, monkeypatch):
  """Its metadata server answers, which is at that address alone."""
  monkeypatch.setenv("HOME", os.fspath(tmp_path))
  for name in (
    "CLOUDSDK_CONFIG",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "NO_GCE_CHECK",
  ):
    monkeypatch.delenv(name, raising=False)
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{port}")
    assert paths._prepare_credentials()
  assert "NO_GCE_CHECK" not in os.environ


def test_what_is_appended_to_an_object_is_there_after_each_flush(bucket):
  path = f"{bucket}/appended/rows.jsonl"
  with writing.appended(path) as stream:
    stream.write("one\n")
    stream.flush()
    assert reading.read_text(path) == "one\n"
  with writing.appended(path) as stream:
    stream.write("two \u00a3\n")
  assert reading.read_text(path) == "one\ntwo \u00a3\n"
