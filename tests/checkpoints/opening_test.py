"""A path tells what kind of checkpoint it is, or what is wrong with it."""

import dataclasses
import json
import os
import shutil

import huggingface_hub.constants
import huggingface_hub.utils
import numpy as np
import pytest
import tokenizers
from absl import logging
from etils import epath
from testdata import tiny_checkpoints, tiny_vocabulary, trees

from specialize_jax import errors
from specialize_jax.checkpoints import (
  adafactor_moments,
  best,
  conversion,
  hub,
  manager,
  manifests,
  opening,
)

CONFIG = tiny_checkpoints.config("t5_1_1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("opening") / "folder"
  tiny_checkpoints.save_theirs("t5_1_1", path)
  return path


def test_each_kind_is_told_by_its_files(folder, tmp_path):
  stored = tiny_checkpoints.random_tensors(CONFIG)
  tiny_checkpoints.write_t5x(tmp_path / "t5x" / "checkpoint_7", stored)
  tiny_checkpoints.write_t5x(tmp_path / "t5x" / "checkpoint_12", stored)
  planned = conversion.plan(opening.open_checkpoint(folder), to="ours")
  conversion.write_ours(planned, tmp_path / "ours")
  paths = {
    folder: "huggingface",
    tmp_path / "t5x": "t5x",
    tmp_path / "t5x" / "checkpoint_7": "t5x",
    tmp_path / "ours": "ours",
    tmp_path / "ours" / "checkpoints": "ours",
    tmp_path / "ours" / "checkpoints" / "0": "ours",
  }
  assert {path: opening.kind_of(path) for path in paths} == paths
  steps = [opening.open_checkpoint(path).step for path in paths]
  assert steps == [None, 12, 7, 0, 0, 0]
  shapes = [opening.open_checkpoint(path).source.shapes for path in paths]
  assert all(one == shapes[0] for one in shapes)


def test_what_is_written_into_a_folder_does_not_make_it_another(tmp_path):
  path = tmp_path / "folder"
  tiny_checkpoints.save_theirs("t5_1_1", path)
  before = opening.open_checkpoint(path).fingerprint()
  (path / "outputs.jsonl").write_text("{}\n")
  (path / "eval").mkdir()
  (path / "eval" / "config.json").write_text("{}\n")
  assert opening.open_checkpoint(path).fingerprint() == before
  (path / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
  assert opening.open_checkpoint(path).fingerprint() != before


def test_a_t5x_checkpoint_is_read_beside_what_is_called_as_parts_of_ours(
  tmp_path,
):
  stored = tiny_checkpoints.random_tensors(CONFIG)
  tiny_checkpoints.write_t5x(tmp_path / "checkpoint_7", stored)
  (tmp_path / "metadata").mkdir()
  assert opening.kind_of(tmp_path / "checkpoint_7") == "t5x"
  assert opening.open_checkpoint(tmp_path / "checkpoint_7").step == 7


def test_what_is_no_checkpoint_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="no checkpoint directory"):
    opening.open_checkpoint(tmp_path / "nowhere")
  with pytest.raises(errors.UserError, match="holds no checkpoint: neither"):
    opening.open_checkpoint(tmp_path)
  with pytest.raises(errors.UserError, match="does not hold a checkpoint of s"):
    opening.open_checkpoint(tmp_path / "5")


@pytest.mark.parametrize("architecture", ["mt5", "umt5", "longt5", "bart"])
def test_another_architecture_is_refused_by_name(tmp_path, architecture):
  config = json.dumps({"model_type": architecture})
  (tmp_path / "config.json").write_text(config)
  with pytest.raises(errors.UserError, match=f"type '{architecture}', and on"):
    opening.open_checkpoint(tmp_path)


def test_a_step_without_params_is_refused(tmp_path):
  state = {"step": np.zeros(())}
  with manager.CheckpointManager(tmp_path / "checkpoints") as steps:
    steps.save(3, state, b"", {"model": {}})
  with pytest.raises(errors.UserError, match=r"\(step 3\) without params"):
    opening.open_checkpoint(tmp_path)


def cached(cache, name, folder):
  """Lays a folder into the hub's cache, as a download would."""
  repository = cache / f"models--{name.replace('/', '--')}"
  snapshot = repository / "snapshots" / ("0" * 40)
  snapshot.parent.mkdir(parents=True)
  snapshot.symlink_to(folder)
  (repository / "refs").mkdir()
  (repository / "refs" / "main").write_text("0" * 40)


def test_a_hub_name_is_opened_from_its_cache(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  cached(tmp_path, "someone/tiny-t5", folder)
  checkpoint = opening.open_checkpoint("someone/tiny-t5")
  assert checkpoint.kind == opening.kind_of("someone/tiny-t5") == "huggingface"
  assert checkpoint.config.embed_dim == 16
  with pytest.raises(errors.UserError, match="no model of that name .* hub"):
    opening.open_checkpoint("someone/another-t5")


def test_a_hub_name_of_which_the_cache_has_no_weights_is_said(
  folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  bare = tmp_path / "bare"
  bare.mkdir()
  shutil.copy(folder / "config.json", bare)
  cached(tmp_path, "someone/tiny-t5", bare)
  with pytest.raises(errors.UserError, match="has no weights: download them"):
    opening.open_checkpoint("someone/tiny-t5")


def test_a_dataset_file_is_downloaded_with_its_model():
  names = ["dataset.yaml", "spiece.model", "config.json", "other.py"]
  kept = huggingface_hub.utils.filter_repo_objects(
    names, allow_patterns=hub._OTHERS
  )
  assert list(kept) == names[:3]


def test_another_vocabulary_than_a_tokenizer_json_is_refused(folder, tmp_path):
  """As transformers saves it, without `spiece.model`."""
  mine = shutil.copytree(folder, tmp_path / "mine")
  for name in ("spiece.model", "specialize_manifest.json"):
    (mine / name).unlink(missing_ok=True)
  vocabulary = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, "<unk>")
  )
  vocabulary.save(str(mine / "tokenizer.json"))
  (tmp_path / "x.model").write_bytes(trees.tiny_model())
  checkpoint = opening.open_checkpoint(mine)
  with pytest.raises(errors.UserError, match="tokenizer.json, so that ids"):
    checkpoint.check_vocabulary(tmp_path / "x.model", "a task", "give another")
  # And a tokenizer.json is compared with it likewise.
  same = shutil.copy(mine / "tokenizer.json", tmp_path / "same.json")
  checkpoint.check_vocabulary(same, "--vocabulary", "leave it out")
  vocabulary.add_tokens(["more"])
  vocabulary.save(str(tmp_path / "more.json"))
  with pytest.raises(errors.UserError, match="tokenizer.json, so that ids"):
    checkpoint.check_vocabulary(tmp_path / "more.json", "--vocabulary", "leave")


def test_a_list_of_tensorflow_s_checkpoints_does_not_hide_a_folder(
  folder, tmp_path
):
  """As where it was converted in the directory of the other."""
  mine = shutil.copytree(folder, tmp_path / "mine")
  (mine / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"\n')
  assert opening.kind_of(mine) == "huggingface"
  (mine / "config.json").unlink()
  assert opening.kind_of(mine) == "t5x"


def test_best_has_the_dataset_file_of_its_run(folder, tmp_path):
  planned = conversion.plan(opening.open_checkpoint(folder), to="ours")
  run = tmp_path / "run"
  conversion.write_ours(planned, run)
  (run / "dataset.yaml").write_text("name: mine\n")
  manifests.write(run, ["dataset.yaml"])
  placed = best.place(run, opening.open_checkpoint(run).step)
  copy = shutil.copytree(placed, tmp_path / "copy")
  found = opening.dataset_file(opening.open_checkpoint(copy))
  assert found.read_text() == "name: mine\n"
  (copy / "dataset.yaml").write_text("name: other\n")
  with pytest.raises(errors.UserError, match="is damaged.*--no_verify"):
    opening.dataset_file(opening.open_checkpoint(copy))


def test_what_is_a_hub_name():
  for path in ("google/flan-t5-xl", "t5-base"):
    assert hub.is_name(path), path
  for path in ("./a/b", "/a/b", "a/b/c", "gs://a/b", "../a"):
    assert not hub.is_name(path), path


def test_a_directory_of_folders_names_them(tmp_path):
  for name in ("checkpoint-500", "checkpoint-1000"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
  with pytest.raises(errors.UserError, match="give one of .*checkpoint-500"):
    opening.kind_of(tmp_path)


def test_numbered_directories_of_others_are_no_damaged_steps(tmp_path):
  orbax = tmp_path / "orbax" / "100" / "default"
  orbax.mkdir(parents=True)
  (orbax / "_METADATA").write_text("{}")
  folder = tmp_path / "trainer" / "500"
  folder.mkdir(parents=True)
  (folder / "config.json").write_text("{}")
  with pytest.raises(errors.UserError, match="holds no checkpoint: neither"):
    opening.kind_of(tmp_path / "orbax")
  with pytest.raises(errors.UserError, match="give one of .*trainer/500"):
    opening.kind_of(tmp_path / "trainer")


def test_a_client_s_own_errors_are_of_the_hub(monkeypatch):
  class ProxyError(Exception):
    pass

  ProxyError.__module__ = "httpx"
  for error in (ProxyError("refused"), RuntimeError("storage"), OSError("no")):

    def fail(*args, error=error, **kwargs):
      raise error

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
      errors.UserError, match=f"{type(error).__name__}: {error}"
    ):
      hub.download("google/flan-t5-xl")


def test_copies_of_a_folder_have_one_digest_and_another_model_has_another(
  folder, tmp_path, monkeypatch
):
  # The file has 600 times as many.
  monkeypatch.setattr(opening, "_SAMPLE_BYTES", 100)
  copies = [tmp_path / "a", tmp_path / "b"]
  for copy in copies:
    shutil.copytree(folder, copy)
  one, two = (opening.open_checkpoint(copy) for copy in copies)
  assert one.fingerprint() != two.fingerprint()
  (copies[0] / "results.json").write_text("{}")  # which is not read
  assert one.sampled_digest() == two.sampled_digest()
  weights = copies[1] / "model.safetensors"
  content = bytearray(weights.read_bytes())
  content[-1] ^= 1
  weights.write_bytes(content)
  assert one.sampled_digest() != two.sampled_digest()


def test_an_adapter_alone_is_refused_by_name(tmp_path):
  (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
  with pytest.raises(errors.UserError, match="holds an adapter .*PEFT"):
    opening.open_checkpoint(tmp_path)


def test_a_step_of_a_release_with_other_fields_is_refused(tmp_path):
  saved = dataclasses.asdict(CONFIG) | {"num_experts": 8}
  with manager.CheckpointManager(tmp_path / "checkpoints") as steps:
    metadata = {"model": saved, "version": "9.1"}
    steps.save(1, {"params": {"a": np.zeros(2)}}, b"", metadata)
  with pytest.raises(errors.UserError, match="9.1, and .* know its num_exper"):
    opening.open_checkpoint(tmp_path)


@pytest.mark.parametrize("num_copied", [1, 4, 9])
def test_a_copy_to_best_that_was_cut_short_is_made_again(
  folder, tmp_path, monkeypatch, num_copied
):
  """As in a bucket, where it is copied file by file."""
  planned = conversion.plan(opening.open_checkpoint(folder), to="ours")
  conversion.write_ours(planned, tmp_path)
  monkeypatch.setattr(best.paths, "is_in_bucket", lambda path: True)
  link, copied = os.link, []

  def killed(*files):
    if len(copied) == num_copied:
      raise KeyboardInterrupt
    copied.append(link(*files))

  monkeypatch.setattr(os, "link", killed)
  with pytest.raises(KeyboardInterrupt):
    best.place(tmp_path, 0)
  monkeypatch.setattr(os, "link", link)
  placed = best.place(tmp_path, 0)
  opening.open_checkpoint(placed).verify()


def test_a_step_s_digest_is_that_of_its_copy_whatever_is_saved_beside_it(
  tmp_path,
):
  def saved(name, step):
    metadata = {"model": dataclasses.asdict(CONFIG)}
    with manager.CheckpointManager(tmp_path / name / "checkpoints") as steps:
      steps.save(step, {"params": {"a": np.zeros(2)}}, b"", metadata)

  saved("run", 1)
  shutil.copytree(tmp_path / "run", tmp_path / "copy")
  saved("copy", 2)
  run, copy, later = (
    opening.open_checkpoint(tmp_path / name / "checkpoints" / step)
    for name, step in (("run", "1"), ("copy", "1"), ("copy", "2"))
  )
  assert run.sampled_digest() == copy.sampled_digest()
  assert run.sampled_digest() != later.sampled_digest()


def test_a_dataset_file_that_nothing_vouches_for_is_named(folder, tmp_path):
  planned = conversion.plan(opening.open_checkpoint(folder), to="ours")
  conversion.write_ours(planned, tmp_path)
  (tmp_path / "dataset.yaml").write_text("name: mine\n")
  verified = opening.open_checkpoint(tmp_path).verify()
  assert verified.unverified == (
    f"{tmp_path}/dataset.yaml, beside which is no {manifests.NAME}",
  )


def test_a_folder_has_no_moments_of_an_optimizer(folder):
  opened = opening.open_checkpoint(folder)
  with pytest.raises(adafactor_moments.NoMomentsError) as caught:
    opened.moments()
  assert str(caught.value) == (
    f"{folder} is a huggingface folder, which has no optimizer's state."
  )


def test_only_a_vocabulary_beside_a_checkpoint_is_compared(folder, tmp_path):
  mine = shutil.copytree(folder, tmp_path / "mine")
  assert not (mine / "spiece.model").exists()
  model = tmp_path / "x.model"
  model.write_bytes(trees.tiny_model())
  opening.open_checkpoint(mine).check_vocabulary(model, "a task", "leave it")
  shutil.copy(model, mine / "spiece.model")
  opening.open_checkpoint(mine).check_vocabulary(model, "a task", "leave it")
  model.write_bytes(tiny_vocabulary.model())
  with pytest.raises(errors.UserError) as caught:
    opening.open_checkpoint(mine).check_vocabulary(model, "a task", "leave it")
  assert str(caught.value) == (
    f"the vocabulary of a task, {model}, is not the one that {mine} was trained"
    f" with, {mine}/spiece.model, so that ids would mean other words: leave it"
  )


def test_tokens_that_a_tokenizer_adds_to_the_pieces_are_told(
  folder, tmp_path, caplog
):
  mine = shutil.copytree(folder, tmp_path / "mine")
  model = tmp_path / "x.model"
  model.write_bytes(trees.tiny_model())
  shutil.copy(model, mine / "spiece.model")
  added = [{"content": name} for name in ("<extra_id_0>", "</s>", "<tool>")]
  (mine / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
  with caplog.at_level(logging.WARNING):
    opening.open_checkpoint(mine).check_vocabulary(model, "a task", "leave it")
  assert (
    f"{mine}/tokenizer.json adds '<tool>' to the pieces of {model}, which tasks"
    " encode with: inputs that have them are tokenized to other pieces, and"
    " outputs never have them."
  ) in caplog.messages


def test_another_activation_is_an_error_except_for_t5x_s_checkpoints(
  folder, tmp_path
):
  stored = tiny_checkpoints.random_tensors(CONFIG)
  tiny_checkpoints.write_t5x(tmp_path / "checkpoint_7", stored)
  other = dataclasses.replace(CONFIG, mlp_activations=("relu", "linear"))
  opening.open_checkpoint(tmp_path / "checkpoint_7").check_fits(other)
  with pytest.raises(errors.UserError) as caught:
    opening.open_checkpoint(folder).check_fits(other)
  assert str(caught.value) == (
    f"{folder} is of a model whose T5Config.mlp_activations is ('gelu',"
    " 'linear'), and the one configured has ('relu', 'linear'): give"
    """ --gin.T5Config.mlp_activations="('gelu', 'linear')", or another"""
    " checkpoint."
  )


def test_checkpoints_that_t5x_never_finished_are_skipped(tmp_path, caplog):
  stored = tiny_checkpoints.random_tensors(CONFIG)
  tiny_checkpoints.write_t5x(tmp_path / "run" / "checkpoint_7", stored)
  (tmp_path / "run" / "checkpoint_12").mkdir()
  with caplog.at_level(logging.WARNING):
    assert opening.open_checkpoint(tmp_path / "run").step == 7
  assert (
    f"{tmp_path}/run/checkpoint_12 was never finished and is skipped"
    in caplog.messages
  )
  shutil.rmtree(tmp_path / "run" / "checkpoint_7")
  with pytest.raises(errors.UserError, match="run/checkpoint_12"):
    opening.open_checkpoint(tmp_path / "run")


def test_a_directory_without_t5x_s_checkpoints_holds_none_to_read(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    opening.t5x_directory(epath.Path(tmp_path))
  assert str(caught.value) == (
    f"{tmp_path} holds no checkpoint of T5X's: expected a checkpoint_STEP"
    " directory, or the model_dir that has some"
  )


def test_an_item_of_a_step_is_no_checkpoint_of_t5x_s(tmp_path):
  """A damaged item of Orbax may have the files of a checkpoint of T5X's."""
  state = {"params": {"a": np.zeros(2)}}
  with manager.CheckpointManager(tmp_path / "checkpoints") as steps:
    steps.save(3, state, b"", {"model": {}})
  step = tmp_path / "checkpoints" / "3"
  shutil.copy(step / "state" / "_METADATA", step / "metadata")
  (step / "metadata" / "metadata").unlink()
  with pytest.raises(errors.UserError, match="3/metadata holds no checkpoint"):
    opening.kind_of(step / "metadata")
