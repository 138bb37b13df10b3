"""Whoever reads a checkpoint of ours reads what was saved, or is told."""

import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2
from testdata import tiny_checkpoints

from specialize_jax import errors
from specialize_jax.checkpoints import (
  best,
  conversion,
  damage,
  huggingface,
  manager,
  manifests,
  name_table,
  opening,
)
from specialize_jax.parallel import mesh, placement
from specialize_jax.runs import keeping


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A folder in shards that we wrote, with a file of a tokenizer."""
  path = tmp_path_factory.mktemp("exported") / "folder"
  config = tiny_checkpoints.config("t5_1_1")
  tensors = tiny_checkpoints.random_tensors(config)
  huggingface.write(
    path,
    config,
    tiny_checkpoints.source_of(tensors),
    other_files={"tokenizer_config.json": b"{}"},
    max_shard_bytes=20_000,
  )
  return path


@pytest.fixture(scope="module")
def ours(exported, tmp_path_factory):
  """A model_dir that was converted from it."""
  path = tmp_path_factory.mktemp("ours") / "model_dir"
  planned = conversion.plan(opening.open_checkpoint(exported), to="ours")
  conversion.write_ours(planned, path)
  return path


def _read(path, **options):
  """All tensors, as convert reads them."""
  checkpoint = opening.open_checkpoint(path, **options)
  checkpoint.check_files()
  names = [t.name for t in name_table.tensors(checkpoint.config)]
  return {name: checkpoint.source.read(name) for name in names}


def _restored(path):
  """All parameters, as generate, eval and train restore them."""
  one = mesh.make_mesh(data=1, devices=jax.devices()[:1])
  checkpoint = opening.open_checkpoint(path)
  return checkpoint.params(placement.Placement(mesh=one))


def _flip(path):
  """Changes forty bytes in the middle, the length staying as it is."""
  content = bytearray(path.read_bytes())
  middle = max(0, len(content) // 2 - 20)
  for place in range(middle, min(len(content), middle + 40)):
    content[place] ^= 0x5A
  path.write_bytes(bytes(content))


def _truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _remove(path):
  path.unlink()


def _one_of_each(path):
  """Files that are not empty, of those of one directory at most three."""
  for _, files in itertools.groupby(_files(path), lambda file: file.parent):
    there = [file for file in files if file.stat().st_size]
    yield from there if there and path == there[0].parent else there[:3]


def _write_digests(stored, content):
  """Writes the digests of a step as a release that saved no manifest did."""
  stored.write_text(
    json.dumps({k: v for k, v in content.items() if k != "manifest"})
  )
  (stored.parents[1] / manifests.NAME).unlink(missing_ok=True)


def _drop_manifest(step):
  stored = step / "fingerprint" / "metadata"
  _write_digests(stored, json.loads(stored.read_text()))


def _files(path):
  return sorted(p for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize("harm", [_flip, _truncate, _remove])
def test_no_harm_to_a_file_changes_what_is_read(exported, ours, tmp_path, harm):
  noticed = {}
  for kind in (exported, ours):
    saved = _read(kind)
    for number, file in enumerate(_one_of_each(kind)):
      copy = tmp_path / f"{kind.name}_{number}"
      shutil.copytree(kind, copy)
      harm(copy / file.relative_to(kind))
      try:
        found = _read(copy)
      except errors.UserError as error:
        assert str(copy) in str(error), error
        noticed.setdefault(kind, []).append(file.relative_to(kind))
      else:
        for name, value in saved.items():
          np.testing.assert_array_equal(found[name], value, err_msg=str(file))
      shutil.rmtree(copy)
  names = {file.name for file in noticed[exported]}
  every = {file.name for file in _files(exported)} - {manifests.NAME}
  # Without its manifest a folder is as others write them.
  assert every <= names
  assert harm is _remove or manifests.NAME in names
  items = {file.parts[2] for file in noticed[ours] if len(file.parts) > 3}
  assert {"state", "metadata", "fingerprint"} <= items


def test_files_that_changed_places_are_noticed(exported, ours, tmp_path):
  def swapped(kind, one, other):
    copy = tmp_path / f"{one.name}_{other.name}"
    shutil.copytree(kind, copy)
    if kind == ours:  # by the digests of arrays, as where files are large
      _drop_manifest(copy / "checkpoints" / "0")
    one, other = (copy / f.relative_to(kind) for f in (one, other))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return copy

  shards = sorted(exported.glob("model-*.safetensors"))
  copy = swapped(exported, shards[0], shards[1])
  with pytest.raises(errors.UserError, match=r"model-00001-.* is damaged"):
    _read(copy)
  chunks = [f for f in _files(ours) if f.parent.name == "d"]
  saved, noticed = _read(ours), 0
  for one, other in itertools.pairwise(chunks[:4]):
    try:
      found = _read(swapped(ours, one, other))
    except errors.UserError as error:
      assert "checkpoints/0 is damaged" in str(error)
      noticed += 1
    else:  # of what was written before all was merged, and is not read
      jax.tree.map(np.testing.assert_array_equal, found, saved)
  assert noticed


@pytest.mark.parametrize(
  "name", ["tokenizer.json", "model.safetensors.index.json", "a.safetensors"]
)
def test_a_file_that_was_added_is_noticed(exported, tmp_path, name):
  copy = tmp_path / "folder"
  shutil.copytree(exported, copy)
  (copy / "README.md").write_text("about it")
  _read(copy)
  (copy / name).write_text("{}")
  if name in json.loads((exported / manifests.NAME).read_text())["files"]:
    message = f"{name} is damaged"
  else:
    message = f"{name} is not among the files"
  with pytest.raises(errors.UserError, match=message):
    _read(copy)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with the steps 3 and 6, and the state of an optimizer in each."""
  path = tmp_path_factory.mktemp("run") / "model_dir"
  config = tiny_checkpoints.config("t5_1_1", param_dtype="float32")
  tensors = tiny_checkpoints.random_tensors(config)
  params = name_table.assemble(config, tiny_checkpoints.source_of(tensors))
  metadata = {"model": dataclasses.asdict(config)}
  with manager.CheckpointManager(path / "checkpoints", keep_best=1) as writer:
    for step in (3, 6):
      state = {
        "step": jnp.int32(step),
        "params": jax.tree.map(functools.partial(jnp.add, step), params),
        "opt_state": jax.tree.map(jnp.square, params),
      }
      writer.save(step, state, b"at %d" % step, metadata, score=step / 10)
  return path


@pytest.fixture(scope="module")
def copied(run, tmp_path_factory):
  """A copy of it, and a function that undoes what was done to one file."""
  copy = tmp_path_factory.mktemp("copied") / "model_dir"
  shutil.copytree(run, copy)

  def mend(file):
    shutil.copyfile(run / file.relative_to(copy), file)

  return copy, mend


def _flip_one_bit(path):
  """Flips one bit, at a place that the file's name decides."""
  content = bytearray(path.read_bytes())
  content[zlib.crc32(path.name.encode()) % len(content)] ^= 4
  path.write_bytes(bytes(content))


def _exchange(path):
  """Replaces a file by the one of its place in the other step."""
  (other,) = {3, 6} - {int(part) for part in path.parts if part.isdecimal()}
  place = [str(other) if part in ("3", "6") else part for part in path.parts]
  other = pathlib.Path(*place)
  if not other.is_file():  # a data file, named by chance
    other = max(other.parent.iterdir(), key=lambda file: file.stat().st_size)
  if other.read_bytes() == path.read_bytes():
    pytest.skip("both steps have the same")
  shutil.copyfile(other, path)


_OF_A_STEP = [
  "_CHECKPOINT_METADATA",
  "specialize_manifest.json",
  "fingerprint/metadata",
  "iterator/metadata",
  "iterator/commit_success.txt",
  "metadata/metadata",
  "metrics/metrics",
  "state/_METADATA",
  "state/_sharding",
  "state/array_metadatas/process_0",
  "state/d/*",
  "state/manifest.ocdbt",
  "state/ocdbt.process_0/d/*",
  "state/ocdbt.process_0/manifest.ocdbt",
]


def test_these_are_the_files_of_a_step(run):
  step = run / "checkpoints" / "6"
  known = {file for name in _OF_A_STEP for file in step.glob(name)}
  marks = {file for file in _files(step) if file.name == "commit_success.txt"}
  assert {*_files(step)} == known | marks


def test_any_bit_of_a_manifest_is_noticed(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  manifests.write(tmp_path)
  path = tmp_path / manifests.NAME
  content = path.read_bytes()
  for place in range(len(content.rstrip())):
    for bit in range(8):
      flipped = bytearray(content)
      flipped[place] ^= 1 << bit
      path.write_bytes(bytes(flipped))
      with pytest.raises(errors.UserError):
        manifests.check(tmp_path)
  # Who has changed it takes the checksum out, as the error says.
  files = json.loads(content)["files"]
  path.write_text(json.dumps({"files": files}))
  manifests.check(tmp_path)


@pytest.mark.parametrize("harm", [_flip_one_bit, _truncate, _remove, _exchange])
@pytest.mark.parametrize("name", _OF_A_STEP)
def test_verify_notices_any_file_of_a_step(copied, name, harm):
  copy, mend = copied
  for file in sorted((copy / "checkpoints" / "6").glob(name)):
    harm(file)
    try:
      with pytest.raises(errors.UserError, match="checkpoints/6"):
        opening.open_checkpoint(copy).verify()
    finally:
      mend(file)
  if harm is _flip_one_bit:  # all is mended
    assert opening.open_checkpoint(copy).verify().unverified == ()


def test_verify_notices_files_of_another_step_beside_those_of_a_step(copied):
  copy, _ = copied
  steps = copy / "checkpoints"
  (older,) = (steps / "3/state/d").iterdir()
  for name in (
    f"state/d/{older.name}",
    "state/checkpoint",
    "default/_METADATA",
  ):
    added = steps / "6" / name
    added.parent.mkdir(exist_ok=True)
    shutil.copyfile(older, added)
    with pytest.raises(errors.UserError, match=f"6/{name} is not among the"):
      opening.open_checkpoint(copy).verify()
    added.unlink()
  for name in (".lock", ".selection", "state/.nfs001", "state/d/.DS_Store"):
    (steps / "6" / name).write_text("held")
  (steps / "6" / "notes.txt").write_text("the best one")
  assert opening.open_checkpoint(copy).verify().unverified == ("notes.txt",)
  (steps / "6" / "notes.txt").unlink()


@pytest.mark.parametrize("name", ["config.json", "checkpoint"])
def test_a_run_is_not_taken_for_what_was_added_to_its_folder(copied, name):
  copy, _ = copied
  (copy / name).write_text("{}")
  with pytest.raises(errors.UserError, match=f"two checkpoints, .* {name} des"):
    opening.open_checkpoint(copy)
  assert opening.open_checkpoint(copy / "checkpoints").kind == "ours"
  (copy / name).unlink()


def test_the_optimizer_is_verified_by_its_digests_alone(run, tmp_path):
  """In a step of an earlier release, and in large files of a later one."""
  copy = tmp_path / "run"
  shutil.copytree(run, copy)
  stored = copy / "checkpoints" / "6" / "fingerprint" / "metadata"
  content = json.loads(stored.read_text())
  _write_digests(stored, content)
  verified = opening.open_checkpoint(copy).verify()
  assert verified.num_arrays == len(content["state"])
  (reason,) = verified.unverified
  assert "the descriptions of the arrays, since the release" in reason
  name = "opt_state/decoder/decoder_norm/scale"
  for digest in ({name: "float32:1:1"}, {f"{name}s": content["state"][name]}):
    others = {k: v for k, v in content["state"].items() if k != name}
    _write_digests(stored, content | {"state": others | digest})
    with pytest.raises(errors.UserError, match=f"6 is damaged .*{name}"):
      opening.open_checkpoint(copy).verify()


def test_a_manifest_reads_again_no_more_than_it_may(tmp_path):
  for size in (3, 10, 20):
    (tmp_path / f"{size}").write_bytes(b"x" * size)
  listed = manifests.entries(tmp_path, max_bytes=13)
  assert {
    name: entry.get("crc32") is None for name, entry in listed.items()
  } == {
    "3": False,
    "10": False,
    "20": True,
  }
  manifests.write_entries(tmp_path, listed)
  assert manifests.check(tmp_path)
  (tmp_path / "20").write_bytes(b"x" * 21)
  with pytest.raises(errors.UserError, match="21 bytes instead of 20"):
    manifests.check(tmp_path)


def _alter_chunks(path):
  """Flips bytes in every data file of a step, as a bad disk would."""
  for file in _files(path):
    if file.parent.name == "d":
      _flip(file)


def test_every_reader_of_ours_notices(ours, tmp_path):
  """By the digests of arrays, as where files are large."""
  copy = tmp_path / "run"
  shutil.copytree(ours, copy)
  _drop_manifest(copy / "checkpoints" / "0")
  _restored(copy)
  _alter_chunks(copy)
  message = "run/checkpoints/0 is damaged"
  for reader in (_read, _restored):
    with pytest.raises(errors.UserError, match=message):
      reader(copy)
  with pytest.raises(errors.UserError, match=message):
    best.place(copy, 0)
  assert not (copy / "best").exists()


def test_a_step_under_another_steps_name_is_refused(ours, tmp_path):
  """As a whole, and if only its arrays and their digests are another's."""
  copy = tmp_path / "run"
  shutil.copytree(ours, copy)
  steps = copy / "checkpoints"
  (steps / "0").rename(steps / "600")
  message = "run/checkpoints/600 was saved as step 0 and renamed"
  for reader in (_read, _restored):
    with pytest.raises(errors.UserError, match=message):
      reader(copy)
  stored = steps / "600" / "fingerprint" / "metadata"
  content = json.loads(stored.read_text())
  del content["step"]  # as releases saved it that had none
  _write_digests(stored, content)
  _restored(copy)


def test_what_a_run_saved_is_verified_in_every_dtype(tmp_path):
  config = tiny_checkpoints.config("t5_1_0", param_dtype="float32")
  tensors = tiny_checkpoints.random_tensors(config)
  params = name_table.assemble(config, tiny_checkpoints.source_of(tensors))
  with manager.CheckpointManager(tmp_path / "checkpoints") as writer:
    writer.save(
      3, {"params": params}, b"", {"model": dataclasses.asdict(config)}
    )
  stored = tmp_path / "checkpoints" / "3" / "fingerprint" / "metadata"
  content = json.loads(stored.read_text())
  name = "params/decoder/decoder_norm/scale"
  dtype, words, placed = content["state"][name].split(":")
  for digest in (f"{dtype}:{words}:{int(placed) ^ 1}", f"{dtype}:1"):
    content["state"][name] = digest
    _write_digests(stored, content)
    opened = opening.open_checkpoint(tmp_path)
    one = placement.Placement(
      mesh=mesh.make_mesh(data=1, devices=jax.devices()[:1])
    )
    for param_dtype in ("float32", "bfloat16"):
      wanted = dataclasses.replace(config, param_dtype=param_dtype)
      with pytest.raises(errors.UserError, match="decoder/decoder_norm/scale"):
        opened.params(one, wanted)
  # As releases saved it that had the first sum alone.
  content["state"][name] = f"{dtype}:{words}"
  _write_digests(stored, content)
  verified = opening.open_checkpoint(tmp_path).verify()
  assert verified.num_arrays == len(jax.tree.leaves(params))


@pytest.mark.parametrize("harm", [_flip, _truncate, _remove])
@pytest.mark.parametrize("file", ["spiece.model", "tokenizer_config.json"])
def test_the_vocabulary_that_a_run_keeps_is_verified(
  trained_run, tmp_path, harm, file
):
  copy = tmp_path / "run"
  shutil.copytree(trained_run[0].model_dir, copy)
  opening.open_checkpoint(copy)
  harm(copy / "vocabulary" / file)
  with pytest.raises(errors.UserError, match=f"vocabulary/{file} is damaged"):
    opening.open_checkpoint(copy)
  kept = opening.open_checkpoint(copy, verify=False).tokenizer_files
  assert len(kept) == (1 if harm is _remove else 2)


def test_a_step_knows_its_vocabulary_and_may_lie_without_it(
  trained_run, tmp_path
):
  copy = tmp_path / "run"
  shutil.copytree(trained_run[0].model_dir, copy)
  assert opening.open_checkpoint(copy).verify().unverified == ()
  (copy / "vocabulary" / manifests.NAME).unlink()
  _flip(copy / "vocabulary" / "spiece.model")
  with pytest.raises(errors.UserError, match=r"spiece\.model is damaged"):
    opening.open_checkpoint(copy)
  shutil.rmtree(copy / "vocabulary")
  (unverified,) = opening.open_checkpoint(copy).verify().unverified
  assert unverified == "vocabulary/, which does not lie beside it"


def test_the_dataset_file_that_a_run_keeps_is_verified(
  trained_run, world, tmp_path
):
  copy = tmp_path / "run"
  shutil.copytree(trained_run[0].model_dir, copy)
  files = {opening.DATASET: b"name: queues\n"}
  keeping.keep(
    copy, mixture_or_task_name="mini_facts_v1", config_text="", files=files
  )
  opened = opening.open_checkpoint(copy)
  assert opening.dataset_file(opened).read_bytes() == files[opening.DATASET]
  (copy / opening.DATASET).write_bytes(b"name: queuez\n")
  with pytest.raises(errors.UserError, match="dataset.yaml is damaged"):
    opening.dataset_file(opened)
  # Another start of the run keeps it anew.
  keeping.keep(
    copy, mixture_or_task_name="mini_facts_v1", config_text="", files=files
  )
  assert opening.dataset_file(opened).read_bytes() == files[opening.DATASET]


def test_another_vocabulary_is_not_taken_for_that_of_a_run(
  trained_run, tmp_path
):
  opened = opening.open_checkpoint(trained_run[0].model_dir)
  own = opened.vocabulary_path.read_bytes()
  model = sentencepiece_model_pb2.ModelProto.FromString(own)
  given = tmp_path / "given.model"

  def check():
    given.write_bytes(model.SerializeToString())
    opened.check_vocabulary(given, "a task", "give another")

  check()
  model.trainer_spec.model_prefix = "trained/elsewhere"
  check()
  model.pieces[20].piece, model.pieces[21].piece = (
    model.pieces[21].piece,
    model.pieces[20].piece,
  )
  with pytest.raises(errors.UserError, match=r"vocabulary of a task, .*given"):
    check()
  given.write_bytes(own[: len(own) // 2])
  with pytest.raises(errors.UserError, match="would mean other words"):
    opened.check_vocabulary(given, "a task", "give another")


def test_another_vocabulary_is_not_taken_for_that_of_a_strangers_folder(
  trained_run, tmp_path
):
  own = opening.open_checkpoint(trained_run[0].model_dir).vocabulary_path
  tiny_checkpoints.save_theirs("t5_1_1", tmp_path / "folder")
  stored = tmp_path / "folder" / "spiece.model"
  stored.write_bytes(own.read_bytes())
  opened = opening.open_checkpoint(tmp_path / "folder")
  assert not opened.is_ours
  model = sentencepiece_model_pb2.ModelProto.FromString(own.read_bytes())
  model.pieces[20].score -= 1  # T5's is published in several files
  given = tmp_path / "given.model"
  given.write_bytes(model.SerializeToString())
  opened.check_vocabulary(given, "a task", "give another")
  model.pieces[20].piece += "x"
  given.write_bytes(model.SerializeToString())
  with pytest.raises(errors.UserError, match="would mean other words"):
    opened.check_vocabulary(given, "a task", "give another")


def test_moments_that_are_handed_over_are_verified(tmp_path):
  config = tiny_checkpoints.config("t5_1_0", param_dtype="float32")
  tensors = tiny_checkpoints.random_tensors(config)
  params = name_table.assemble(config, tiny_checkpoints.source_of(tensors))
  state = {
    "count": jnp.array(7),
    "v_row": jax.tree.map(lambda _: jnp.zeros(1), params),
    "v_col": jax.tree.map(lambda _: jnp.zeros(1), params),
    "v": jax.tree.map(jnp.square, params),
  }
  with manager.CheckpointManager(tmp_path / "checkpoints") as writer:
    writer.save(
      3,
      {"params": params, "opt_state": {"0": state}},
      b"",
      {"model": dataclasses.asdict(config)},
    )
  tensor = "decoder/decoder_norm/scale"
  moments = opening.open_checkpoint(tmp_path).moments()
  assert moments.count == 7
  np.testing.assert_array_equal(
    moments.second_moment(tensor).product(), tensors[tensor] ** 2
  )
  stored = tmp_path / "checkpoints" / "3" / "fingerprint" / "metadata"
  content = json.loads(stored.read_text())
  for name in (f"opt_state/0/v/{tensor}", "opt_state/0/count"):
    altered = content["state"] | {name: "float32:1:1"}
    _write_digests(stored, content | {"state": altered})
    opened = opening.open_checkpoint(tmp_path)
    with pytest.raises(errors.UserError, match=f"3 is damaged .*{name}"):
      opened.moments().second_moment(tensor)
    unchecked = opening.open_checkpoint(tmp_path, verify=False).moments()
    assert unchecked.count == 7
  altered = content["state"] | {"opt_state/0/v/lost": "float32:1:1"}
  _write_digests(stored, content | {"state": altered})
  with pytest.raises(errors.UserError, match="no opt_state/0/v/lost any more"):
    opening.open_checkpoint(tmp_path).moments()


def test_one_without_digests_is_read_with_a_notice(ours, tmp_path, caplog):
  copy = tmp_path / "old"
  shutil.copytree(ours, copy)
  stored = copy / "checkpoints" / "0" / "fingerprint" / "metadata"
  content = json.loads(stored.read_text())
  _write_digests(stored, content | {"state": {}})
  with caplog.at_level("WARNING"):
    _read(copy)
  assert "was saved without digests of its parameters" in caplog.text
  with pytest.raises(errors.UserError, match="has no digests to compare"):
    opening.open_checkpoint(copy).verify()


def test_a_folder_of_ours_without_its_manifest_is_read_with_a_notice(
  exported, tmp_path, caplog
):
  copy = tmp_path / "folder"
  shutil.copytree(exported, copy)
  (copy / manifests.NAME).unlink()
  with caplog.at_level("WARNING"):
    _read(copy)
  assert "specialize_manifest.json, which it was written with, is" in (
    caplog.text
  )
  with pytest.raises(errors.UserError, match="has no digests to compare"):
    opening.open_checkpoint(copy).verify()


def test_verification_is_left_out_if_asked_and_said(ours, tmp_path, caplog):
  copy = tmp_path / "run"
  shutil.copytree(ours, copy)
  stored = copy / "checkpoints" / "0" / "fingerprint" / "metadata"
  content = json.loads(stored.read_text())
  content["state"] = dict.fromkeys(content["state"], "float32:1:1")
  _write_digests(stored, content)
  with pytest.raises(errors.UserError, match="is not the one that was saved"):
    _read(copy)
  with caplog.at_level("WARNING"):
    _read(copy, verify=False)
  assert "is not verified, as asked" in caplog.text


@pytest.mark.parametrize(
  "content",
  [
    "[]",
    '{"files": 3}',
    '{"files": {"../config.json": {"bytes": 1, "crc32": "00000000"}}}',
    '{"files": {"config.json": {"bytes": "1", "crc32": "00000000"}}}',
    '{"files": {"config.json": null}}',
    "[" * 100_000,
  ],
)
def test_a_manifest_of_nonsense_is_named(exported, tmp_path, content):
  copy = tmp_path / "folder"
  shutil.copytree(exported, copy)
  (copy / manifests.NAME).write_text(content)
  with pytest.raises(errors.UserError, match="specialize_manifest.json is dam"):
    _read(copy)


def test_a_digest_is_the_same_by_chunks_and_on_devices():
  rng = np.random.default_rng(0)
  for dtype in (np.float32, jnp.bfloat16, np.float16, np.int32, np.uint8):
    whole = (100 * rng.normal(size=(8, 37, 512))).astype(dtype)
    digest = damage.Digest(whole.dtype)
    for layer in (5, 0, 7, 1, 2, 6, 3, 4):
      digest.add(layer * whole[0].size, whole[layer])
    devices = np.array(jax.devices()[:8])
    spec = jax.sharding.PartitionSpec("a")
    sharding = jax.sharding.NamedSharding(
      jax.sharding.Mesh(devices, ("a",)), spec
    )
    sharded = jax.device_put(whole, sharding)
    found = damage.fingerprint({"whole": whole, "sharded": sharded})
    assert set(found.values()) == {str(digest)}
    found = damage._on_devices(
      {"whole": jnp.asarray(whole), "sharded": sharded}
    )
    assert set(found.values()) == {str(digest)}
    swapped = whole[[1, 0, *range(2, 8)]]
    other = damage.fingerprint({"whole": swapped})["whole"]
    assert other.split(":")[1] == str(digest).split(":")[1]
    assert other != str(digest)


def _with_huge_shapes(text):
  """Orbax's account of the arrays, each of a million terabytes."""
  account = json.loads(text)
  for entry in account.get("tree_metadata", {}).values():
    entry["value_metadata"]["write_shape"] = [2**40, 2**20]
  for entry in account.get("array_metadatas", ()):
    entry["array_metadata"]["write_shape"] = [2**40, 2**20]
    entry["array_metadata"]["chunk_shape"] = [2**40, 2**20]
  return json.dumps(account)


_NONSENSE = {
  "nested for ever": lambda text: "[" * 10**5,
  "objects for ever": lambda text: '{"a":' * 10**5,
  "null": lambda text: "null",
  "a number": lambda text: "1e999",
  "an empty object": lambda text: "{}",
  "a list": lambda text: "[1, 2, 3]",
  "another type everywhere": lambda text: json.dumps(
    dict.fromkeys(json.loads(text), 7)
  ),
  "names that leave": lambda text: text.replace("params", "../../../etc"),
  "huge shapes": _with_huge_shapes,
}


@pytest.mark.parametrize("nonsense", _NONSENSE)
def test_metadata_of_nonsense_are_refused_or_change_nothing(
  ours, tmp_path, nonsense
):
  """And in no more time or memory than those of a checkpoint."""
  saved = jax.tree.map(np.asarray, _restored(ours))
  (step,) = (ours / "checkpoints").iterdir()
  accounts = []
  for file in _files(step):
    if file.stat().st_size < 10**5 and file.read_bytes()[:1] == b"{":
      accounts.append(file.relative_to(ours))
  assert len(accounts) >= 4
  refused = 0
  for number, account in enumerate(accounts):
    copy = tmp_path / str(number)
    shutil.copytree(ours, copy)
    text = (copy / account).read_text()
    (copy / account).write_text(_NONSENSE[nonsense](text))
    try:
      found = _restored(copy)
    except errors.UserError as error:
      assert str(copy) in str(error)
      refused += 1
    else:
      jax.tree.map(np.testing.assert_array_equal, found, saved)
  assert refused or nonsense == "huge shapes"  # which nobody goes by
