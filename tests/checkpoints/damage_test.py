"""Damage of a checkpoint is noticed, and the one before it is used."""

import asyncio
import contextlib
import errno
import gc
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import damage, manager


def _state(step):
  return {
    "params": {"kernel": step + jnp.arange(40.0).reshape(8, 5)},
    "step": jnp.int32(step),
  }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A directory with steps 10 and 20."""
  directory = tmp_path_factory.mktemp("run") / "checkpoints"
  with manager.CheckpointManager(directory) as writer:
    for step in (10, 20):
      writer.save(step, _state(step), b"at %d" % step, {"step": step})
  return directory


@pytest.fixture
def copied(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def _newest(directory):
  """The newest step that can be read, checked to be what was saved."""
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), _state(0)
  )
  with manager.CheckpointManager(directory) as reader:
    found = reader.restore_newest(abstract)
  jax.tree.map(np.testing.assert_array_equal, found.state, _state(found.step))
  assert found.iterator_state == b"at %d" % found.step
  assert found.metadata == {"step": found.step}
  return found.step


def _truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def _flip(path):
  """Changes one bit in the middle, the length staying as it is."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(bytes(content))


def test_any_file_that_is_cut_lost_or_altered_costs_one_step_at_most(
  saved, tmp_path
):
  """What is read is what was saved, of step 20 or, passing it over, of 10."""
  files = sorted(p for p in (saved / "20").rglob("*") if p.is_file())
  passed_over = {}
  for harm in (_truncate, pathlib.Path.unlink, _flip):
    for number, file in enumerate(files):
      if not file.stat().st_size:
        continue
      place = tmp_path / f"{harm.__name__}_{number}"
      shutil.copytree(saved, place)
      harm(place / file.relative_to(saved))
      step = _newest(place)
      assert (place / "damaged_20").exists() == (step == 10)
      passed_over.setdefault(harm.__name__, set())
      if step == 10:
        passed_over[harm.__name__].add(file.relative_to(saved / "20").parts[0])
  # (A bit in the middle of the fingerprint may change what it is called.)
  for parts in passed_over.values():
    assert parts >= {"state", "iterator", "metadata"}


def test_a_directory_that_was_never_committed_is_passed_over(copied, caplog):
  (copied / "30" / "state").mkdir(parents=True)
  (copied / "40").mkdir()
  with caplog.at_level(logging.WARNING):
    assert _newest(copied) == 20
  assert "The checkpoint of step 40" in caplog.text
  assert "Passing over step 30, which is damaged" in caplog.text
  assert sorted(p.name for p in copied.iterdir()) == [
    "10",
    "20",
    "damaged_30",
    "damaged_40",
  ]


def test_one_that_is_passed_over_neither_counts_nor_stands_in_the_way(copied):
  _truncate(copied / "20" / "fingerprint" / "metadata")
  assert _newest(copied) == 10
  with manager.CheckpointManager(copied, keep=2) as writer:
    writer.save(20, _state(20), b"at 20", {"step": 20})
    writer.wait()
    assert writer.all_steps() == [10, 20]
  assert _newest(copied) == 20


def test_where_none_can_be_read_nothing_is_begun_anew(copied):
  for step in ("10", "20"):
    shutil.rmtree(copied / step / "state")
  with pytest.raises(errors.UserError, match=r"no checkpoint .*\(step 20: "):
    _newest(copied)
  assert sorted(p.name for p in copied.iterdir()) == ["10", "20"]


def test_storage_that_cannot_be_reached_is_no_damage():
  assert damage.is_damage(ValueError("DATA_LOSS: checksum"))
  assert not damage.is_damage(ValueError("UNAVAILABLE: try again"))
  assert not damage.is_damage(PermissionError(13, "no"))
  assert not damage.is_damage(RuntimeError("out of memory"))


def test_a_fingerprint_does_not_depend_on_how_an_array_is_cut():
  numbers = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
  devices = np.array(jax.devices()[:8]).reshape(4, 2)
  mesh = jax.sharding.Mesh(devices, ("a", "b"))
  spec = jax.sharding.PartitionSpec("b", "a")
  cut = jax.device_put(numbers, jax.sharding.NamedSharding(mesh, spec))
  whole = damage.fingerprint({"x": numbers, "n": 3})
  assert damage.fingerprint({"x": cut, "n": 3}) == whole
  assert damage._on_devices({"x": cut}) == whole
  expected = int(numbers.view(np.uint32).astype(np.uint64).sum() % 2**32)
  dtype, words, _ = whole["x"].split(":")
  assert (dtype, int(words)) == ("float32", expected)


def test_a_boolean_array_has_the_same_fingerprint_on_host_and_device():
  flags = np.arange(70_000) % 3 == 0
  whole = damage.fingerprint({"x": flags})
  assert damage._on_devices({"x": jnp.asarray(flags)}) == whole
  assert whole["x"].startswith(f"bool:{flags.sum()}:")
  flags[-1] = not flags[-1]
  assert damage._on_devices({"x": jnp.asarray(flags)}) != whole


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ValueError("RESOURCE_EXHAUSTED: write: No space left on device"),
  ],
)
def test_a_save_without_room_names_the_directory_and_what_is_free(
  tmp_path, error
):
  with (
    pytest.raises(errors.UserError) as caught,
    damage.explained(epath.Path(tmp_path)),
  ):
    raise error
  assert re.fullmatch(
    "no space is left to save a checkpoint in "
    + re.escape(str(tmp_path))
    + r" \([\d,]+ MiB are free\): make room there, or keep fewer \(KEEP\), and"
    " start again to go on from the last one that is whole.",
    str(caught.value),
  )


def test_how_much_is_free_is_not_said_where_it_is_not_known():
  with (
    pytest.raises(errors.UserError, match="in gs://b/run: make room there"),
    damage.explained(epath.Path("gs://b/run")),
  ):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_another_error_of_a_save_names_the_directory(tmp_path):
  with (
    pytest.raises(OSError, match="checkpoint") as caught,
    damage.explained(epath.Path(tmp_path)),
  ):
    raise ValueError("a shape")
  assert str(caught.value) == (
    f"a checkpoint could not be saved in {tmp_path}: a shape"
  )


def test_errors_other_than_damage_are_raised_again():
  with (
    pytest.raises(PermissionError, match="Permission denied"),
    damage.named("run/checkpoints/2"),
  ):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  with pytest.raises(errors.UserError) as caught, damage.named("run/2"):
    raise EOFError("cut\n short")
  assert str(caught.value) == (
    "run/2 is damaged (cut short): copy it again from an intact copy, or give"
    " another checkpoint."
  )


_FILLS_UP = """
import resource
import sys
import jax.numpy as jnp
from specialize_jax.checkpoints import manager

if sys.argv[2:]:
  resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
with manager.CheckpointManager(sys.argv[1], keep=None) as writer:
  for step in range(1, 9):
    writer.save(step, {"x": jnp.sin(jnp.arange(2.0**18)) + step}, b"", {})
    writer.wait()
    print(step, flush=True)
"""


def _fill(directory, *limit):
  finished = subprocess.run(
    [sys.executable, "-c", _FILLS_UP, str(directory), *limit],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
  )
  return finished.stdout.split(), finished.stderr


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 4 MiB."""
  place = tmp_path / "disk"
  place.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
  if (
    shutil.which("mount") is None
    or subprocess.run(command, capture_output=True, check=False).returncode
  ):
    pytest.skip("only root can mount a small file system")
  yield place
  subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_to_be_full_and_costs_no_saved_step(small_disk):
  done, error = _fill(small_disk / "checkpoints")
  assert 1 <= len(done) < 8
  assert "UserError: no space is left to save a checkpoint in" in error
  with manager.CheckpointManager(small_disk / "checkpoints") as reader:
    steps = reader.all_steps()
    assert [str(step) for step in steps] == done
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    x = jax.ShapeDtypeStruct((2**18,), jnp.float32, sharding=device)
    found = reader.restore_newest({"x": x})
  np.testing.assert_allclose(
    found.state["x"],
    np.sin(np.arange(2.0**18, dtype=np.float32)) + steps[-1],
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ("number", "logged"), [(errno.ENOSPC, 0), (errno.EIO, 1)]
)
def test_what_asyncio_says_of_a_full_disk_is_not_said_twice(
  tmp_path, caplog, number, logged
):
  async def write():
    raise OSError(number, os.strerror(number))

  async def save():
    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    del writing  # as where the first of several writes has failed

  with contextlib.suppress(ValueError), damage.explained(tmp_path):
    raise errors.UserError("full")
  asyncio.run(save())
  gc.collect()
  assert len(caplog.records) == logged


_ENDS_LATE = """
import pathlib
from specialize_jax.checkpoints import damage

class Write:
  def __init__(self, error):
    self.error = error
  def __del__(self):
    raise self.error

with damage.explained(pathlib.Path()):
  pass
Write(RuntimeError("Event loop is closed"))
Write(RuntimeError("another"))
"""


def test_a_write_that_ends_after_the_save_that_failed_prints_nothing():
  ended = subprocess.run(
    [sys.executable, "-c", _ENDS_LATE],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
  )
  assert "RuntimeError: another" in ended.stderr
  assert "Event loop is closed" not in ended.stderr


def test_a_file_that_may_not_grow_is_said_too(tmp_path):
  done, error = _fill(tmp_path / "checkpoints", str(2**18))
  assert done == []
  assert "UserError: no space is left to save a checkpoint in" in error


def test_a_step_whose_own_account_is_nonsense_is_passed_over(tmp_path):
  abstract = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
  directory = tmp_path / "checkpoints"
  with manager.CheckpointManager(directory) as saver:
    for step in (1, 2):
      saver.save(step, {"a": np.full(2, step, np.float32)}, b"", {})
  (directory / "2" / "_CHECKPOINT_METADATA").write_text("[" * 10**5)
  with (
    manager.CheckpointManager(directory) as reader,
    pytest.raises(errors.UserError, match="checkpoints/2 is damaged"),
  ):
    reader.all_steps()
  with manager.CheckpointManager(directory) as saver:
    assert saver.restore_newest(abstract).step == 1
  assert (directory / "damaged_2").is_dir()


@pytest.mark.parametrize(
  "content", ["", '{"score', "[1]", '{"score": "high"}', '{"score": 0.9}']
)
def test_a_step_whose_score_was_altered_is_passed_over(tmp_path, content):
  abstract = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
  directory = tmp_path / "checkpoints"
  with manager.CheckpointManager(directory, keep_best=1) as saver:
    for step in (1, 2):
      state = {"a": np.full(2, step, np.float32)}
      saver.save(step, state, b"", {}, score=0.1 * step)
  (directory / "2" / "metrics" / "metrics").write_text(content)
  if not content.endswith(("}", "]")):  # Orbax cannot list the steps
    with (
      manager.CheckpointManager(directory, keep_best=1) as reader,
      pytest.raises(errors.UserError, match="2 is damaged .its metrics/metric"),
    ):
      reader.all_steps()
  with manager.CheckpointManager(directory, keep_best=1) as saver:
    assert saver.restore_newest(abstract).step == 1
  assert (directory / "damaged_2").is_dir()
