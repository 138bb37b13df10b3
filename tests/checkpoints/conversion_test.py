"""Round trips between the three kinds, and what a kill leaves behind."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers
from testdata import real_files, tiny_checkpoints

from specialize_jax import errors
from specialize_jax.checkpoints import (
  conversion,
  huggingface,
  opening,
  sources,
  tensor_files,
  tokenizers,
)
from specialize_jax.parallel import mesh, placement

BOTH = pytest.mark.parametrize("family", tiny_checkpoints.FAMILIES)


def to_ours(path, output, **options):
  planned = conversion.plan(opening.open_checkpoint(path), to="ours", **options)
  conversion.write_ours(planned, output)
  return opening.open_checkpoint(output)


def to_folder(path, output, *, max_shard_bytes=2**30, **options):
  planned = conversion.plan(
    opening.open_checkpoint(path), to="huggingface", **options
  )
  conversion.write_folder(planned, output, max_shard_bytes=max_shard_bytes)
  return output


def one_device():
  return placement.Placement(mesh=mesh.make_mesh(data=8, fsdp=1, model=1))


def assert_same_tensors(left, right):
  left, right = (tensor_files.TensorFiles(path) for path in (left, right))
  assert left.shapes == right.shapes
  assert left.dtypes == right.dtypes
  for name in left.shapes:
    np.testing.assert_array_equal(left.read(name), right.read(name), name)


def save_theirs(family, path, dtype="float32"):
  """A folder of `transformers`, by its own writer; then in another type."""
  tiny_checkpoints.save_theirs(family, path)
  if dtype == "float32":
    return path
  folder, half = huggingface.Folder(path), path.with_name("half")
  huggingface.write(half, folder.config, folder, dtype=dtype)
  return half


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_comes_back_bit_by_bit(family, dtype, tmp_path):
  folder = save_theirs(family, tmp_path / "folder", dtype)
  ours = to_ours(folder, tmp_path / "ours")
  assert ours.kind == "ours"
  assert ours.config.param_dtype == dtype
  trained = dataclasses.replace(ours.config, param_dtype="float32")
  params = ours.params(one_device(), trained)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
  assert_same_tensors(folder, to_folder(tmp_path / "ours", tmp_path / "again"))


def test_double_precision_which_no_device_has_becomes_single(tmp_path):
  tiny_checkpoints.save_theirs("t5_1_1", tmp_path / "folder")
  file = tmp_path / "folder" / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  safetensors.numpy.save_file(
    {name: value.astype(np.float64) for name, value in tensors.items()}, file
  )
  opened = opening.open_checkpoint(tmp_path / "folder")
  planned = conversion.plan(opened, to="ours")
  assert planned.config.param_dtype == "float32"
  conversion.write_ours(planned, tmp_path / "ours")
  (dtype,) = opening.open_checkpoint(tmp_path / "ours").source.dtypes
  assert dtype == np.float32


@BOTH
def test_transformers_gives_our_logits(family, tmp_path):
  config = tiny_checkpoints.config(family)
  tensors = tiny_checkpoints.random_tensors(config)
  written = tiny_checkpoints.write_t5x(tmp_path / "checkpoint_7", tensors)
  ours = to_ours(written, tmp_path / "ours")
  assert ours.step == 7
  model_config = dataclasses.replace(
    ours.config, dtype="float32", relative_attention_max_distance=20
  )
  # Where distances end is in no T5X checkpoint: the caller knows it.
  params = ours.params(
    one_device(), dataclasses.replace(ours.config, dtype="float32")
  )
  folder = to_folder(
    tmp_path / "ours", tmp_path / "folder", max_shard_bytes=4000
  )
  config_json = json.loads((folder / "config.json").read_text())
  config_json["relative_attention_max_distance"] = 20
  (folder / "config.json").write_text(json.dumps(config_json))
  np.testing.assert_allclose(
    tiny_checkpoints.our_logits(model_config, params),
    tiny_checkpoints.their_logits(folder, f"{family}_from_t5x"),
    atol=1e-4,
    rtol=1e-5,
  )


def test_ours_fit_a_model_of_a_larger_vocabulary_and_listed_layers(tmp_path):
  folder = save_theirs("t5_1_1", tmp_path / "folder")
  ours = to_ours(folder, tmp_path / "ours")
  listed = dataclasses.replace(ours.config, scan_layers=False, vocab_size=48)
  params = ours.params(one_device(), listed)
  stacked = ours.params(one_device())
  embedding = params["token_embedder"]["embedding"]
  np.testing.assert_array_equal(embedding[40:], embedding[np.zeros(8, int)])
  for layer in range(3):
    np.testing.assert_array_equal(
      params["encoder"][f"layers_{layer}"]["mlp"]["wo"]["kernel"],
      stacked["encoder"]["layers"]["mlp"]["wo"]["kernel"][layer],
    )


def test_every_kind_is_restored_onto_the_mesh(tmp_path):
  folder = save_theirs("t5_1_1", tmp_path / "folder")
  to_ours(folder, tmp_path / "ours")
  cube = placement.Placement(mesh=mesh.make_mesh(data=2, fsdp=2, model=2))
  trees = [
    opening.open_checkpoint(path).params(cube)
    for path in (folder, tmp_path / "ours")
  ]
  jax.tree.map(np.testing.assert_array_equal, *trees)
  specs = [jax.tree.map(lambda x: x.sharding.spec, tree) for tree in trees]
  assert specs[0] == specs[1]
  assert specs[0]["token_embedder"]["embedding"] == (
    jax.sharding.PartitionSpec("model", "fsdp")
  )


def trimmed_folder(path, rows):
  """A T5 1.1 of a few dimensions whose vocabulary has `rows` rows."""
  config = tiny_checkpoints.config(
    "t5_1_1", vocab_size=rows, num_encoder_layers=1, num_decoder_layers=1
  )
  source = tiny_checkpoints.source_of(tiny_checkpoints.random_tensors(config))
  huggingface.write(path, config, source)
  return path


def test_t5_s_trimmed_vocabulary_is_padded_and_comes_back(tmp_path):
  folder = trimmed_folder(tmp_path / "folder", 32_100)
  planned = conversion.plan(opening.open_checkpoint(folder), to="ours")
  assert (planned.num_rows_read, planned.config.vocab_size) == (32_100, 32_128)
  ours = to_ours(folder, tmp_path / "ours")
  assert ours.config.vocab_size == 32_128
  embedding = ours.source.read(sources.EMBEDDING)
  np.testing.assert_array_equal(
    embedding[32_100:], np.repeat(embedding[:1], 28, axis=0)
  )
  assert_same_tensors(folder, to_folder(tmp_path / "ours", tmp_path / "again"))
  whole = to_folder(tmp_path / "ours", tmp_path / "whole", vocab_size=32_128)
  assert huggingface.Folder(whole).config.vocab_size == 32_128


def test_rows_that_were_cut_on_purpose_do_not_come_back(tmp_path):
  folder = save_theirs("t5_1_1", tmp_path / "folder")
  ours = to_ours(folder, tmp_path / "ours", vocab_size=36)
  assert ours.config.vocab_size == 36
  again = to_folder(tmp_path / "ours", tmp_path / "again")
  assert huggingface.Folder(again).config.vocab_size == 36


def test_a_vocabulary_is_trimmed_when_asked(tmp_path):
  folder = save_theirs("t5_1_1", tmp_path / "folder")
  cut = to_folder(folder, tmp_path / "cut", vocab_size=36)
  before, after = huggingface.Folder(folder), huggingface.Folder(cut)
  assert after.config.vocab_size == 36
  np.testing.assert_array_equal(
    after.read(sources.HEAD), before.read(sources.HEAD)[:, :36]
  )


def test_the_tokenizer_goes_along_and_counts_like_t5_s(tmp_path):
  spiece = real_files.find("tokenizers", "t5_spiece.model")
  folder = trimmed_folder(tmp_path / "folder", 32_128)
  vocabulary = tokenizers.from_sentencepiece(spiece)
  assert vocabulary.num_tokens == 32_100
  ours = to_ours(folder, tmp_path / "ours", vocabulary=vocabulary)
  assert ours.vocabulary_path.read_bytes() == spiece.read_bytes()
  again = to_folder(tmp_path / "ours", tmp_path / "again")
  tokenizer = transformers.AutoTokenizer.from_pretrained(again)
  assert tokenizer("Janet has <extra_id_0>").input_ids == [
    8158,
    17,
    65,
    32099,
    1,
  ]


def test_a_vocabulary_of_another_size_is_an_error(tmp_path):
  spiece = real_files.find("tokenizers", "t5_spiece.model")
  folder = save_theirs("t5_1_1", tmp_path / "folder")
  with pytest.raises(errors.UserError, match=r"32,100 tokens.* has 40 rows"):
    conversion.plan(
      opening.open_checkpoint(folder),
      to="ours",
      vocabulary=tokenizers.from_sentencepiece(spiece),
    )
  (folder / "spiece.model").write_bytes(spiece.read_bytes())
  with pytest.raises(errors.UserError, match="spiece.model has 32,100 tokens"):
    to_ours(folder, tmp_path / "ours")
  assert not (tmp_path / "ours").exists()


def test_a_folder_that_holds_something_is_not_written_to(tmp_path):
  folder = save_theirs("t5_1_1", tmp_path / "folder")
  to_ours(folder, tmp_path / "ours")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "thesis.txt").touch()
  for taken in ("ours", "full"):
    with pytest.raises(errors.UserError, match="holds something already"):
      to_ours(folder, tmp_path / taken)
    with pytest.raises(errors.UserError, match="exists already"):
      to_folder(folder, tmp_path / taken)


def test_a_file_that_breaks_off_is_an_error_and_leaves_no_step(tmp_path):
  folder = save_theirs("t5_1_1", tmp_path / "folder")
  checkpoint = opening.open_checkpoint(folder)
  planned = conversion.plan(checkpoint, to="ours")
  weights = folder / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-100])
  with pytest.raises(errors.UserError, match="cannot be read"):
    conversion.write_ours(planned, tmp_path / "ours")
  with pytest.raises(errors.UserError, match="does not hold a checkpoint"):
    opening.open_checkpoint(tmp_path / "ours")


_KILLED = """
import os, signal, sys
from specialize_jax.checkpoints import conversion, opening
folder, output, to = sys.argv[1:]
left = [30]
def on_tensor(num_bytes):
  left[0] -= 1
  if not left[0]:
    os.kill(os.getpid(), signal.SIGKILL)
planned = conversion.plan(
  opening.open_checkpoint(folder), to=to, on_tensor=on_tensor)
write = {"ours": conversion.write_ours, "huggingface": conversion.write_folder}
write[to](planned, output)
"""


def test_a_kill_leaves_nothing_that_looks_complete(tmp_path):
  folder = save_theirs("t5_1_1", tmp_path / "folder")
  outputs = {to: tmp_path / to for to in ("ours", "huggingface")}
  killed = [
    subprocess.Popen([sys.executable, "-c", _KILLED, folder, output, to])
    for to, output in outputs.items()
  ]
  assert [run.wait() for run in killed] == [-signal.SIGKILL] * 2
  left = [name for _, _, names in os.walk(outputs["ours"]) for name in names]
  assert left, "the kill came before anything was written"
  with pytest.raises(errors.UserError, match="does not hold a checkpoint"):
    opening.open_checkpoint(outputs["ours"])
  assert not outputs["huggingface"].exists()
  to_ours(folder, outputs["ours"])
  to_folder(outputs["ours"], outputs["huggingface"])
  assert_same_tensors(folder, outputs["huggingface"])
  assert not list(tmp_path.glob(".*")), "what the kill left is cleared away"
  names = [path.name for path in (outputs["ours"] / "checkpoints").iterdir()]
  assert names == ["0"]
