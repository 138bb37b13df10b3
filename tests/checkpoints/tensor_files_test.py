"""Files of both kinds give the same tensors, and broken ones are named."""

import json
import pathlib
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from testdata import recorded

from specialize_jax import errors
from specialize_jax.checkpoints import tensor_files

TENSORS = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
  "c": np.array([0.25], np.float16),
}


def as_torch(value):
  torch = recorded.torch()
  if value.dtype == ml_dtypes.bfloat16:
    return torch.tensor(value.astype(np.float32)).to(torch.bfloat16)
  return torch.tensor(value)


def _save(path, values, **options):
  recorded.torch().save(values, path / "pytorch_model.bin", **options)


def single_bin(path, **options):
  _save(path, {name: as_torch(v) for name, v in TENSORS.items()}, **options)


def sharded_bin(path):
  weight_map = {}
  for name, value in TENSORS.items():
    file = f"pytorch_model-{name}.bin"
    recorded.torch().save({name: as_torch(value)}, path / file)
    weight_map[name] = file
  index = {"weight_map": weight_map}
  (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def first_torch_bin(path):
  single_bin(path, _use_new_zipfile_serialization=False)


def single_safetensors(path):
  safetensors.numpy.save_file(TENSORS, path / "model.safetensors")


@pytest.mark.parametrize(
  "write", [single_bin, sharded_bin, first_torch_bin, single_safetensors]
)
def test_every_layout_gives_the_tensors_that_were_written(tmp_path, write):
  write(tmp_path)
  files = tensor_files.TensorFiles(tmp_path)
  assert files.shapes == {"a": (2, 3), "b": (2,), "c": (1,)}
  for name, value in TENSORS.items():
    read = files.read(name)
    assert read.dtype == files.dtypes[name] == value.dtype
    np.testing.assert_array_equal(read, value)


def test_what_we_write_the_library_reads(tmp_path):
  tensor_files.write(
    tmp_path / "x.safetensors",
    {"a": (2, 3), "longer name": (0, 4), "z": (1,)},
    iter([TENSORS["a"], np.zeros((0, 4)), np.ones(1)]),
    np.dtype(ml_dtypes.bfloat16),
  )
  read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
  assert {name: value.shape for name, value in read.items()} == {
    "a": (2, 3),
    "longer name": (0, 4),
    "z": (1,),
  }
  np.testing.assert_array_equal(read["a"].astype(np.float32), TENSORS["a"])


class Bomb:
  """Unpickled by the book, it makes a file."""

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path("exploded"),)


def test_a_pickle_that_is_more_than_tensors_is_refused(tmp_path, monkeypatch):
  recorded.torch()  # which reads such files, too
  monkeypatch.chdir(tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
  with pytest.raises(errors.UserError, match="pytorch_model.bin cannot be re"):
    tensor_files.TensorFiles(tmp_path)
  _save(tmp_path, {"a": Bomb()})
  with pytest.raises(errors.UserError, match="it holds .*, not only tensors"):
    tensor_files.TensorFiles(tmp_path)
  assert not (tmp_path / "exploded").exists()


def test_an_index_that_does_not_fit_its_files_is_named(tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text("{}")
  with pytest.raises(errors.UserError, match="is not the index of sharded"):
    tensor_files.TensorFiles(tmp_path)
  index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
  with pytest.raises(errors.UserError, match="not there: .*one.safetensors"):
    tensor_files.TensorFiles(tmp_path)
  safetensors.numpy.save_file({"b": TENSORS["a"]}, tmp_path / "one.safetensors")
  with pytest.raises(errors.UserError, match="lacks tensors .* holds: a"):
    _ = tensor_files.TensorFiles(tmp_path).shapes


def test_a_whole_file_comes_before_an_index_that_was_left_there(tmp_path):
  """As in transformers, which saves one file and leaves an older index."""
  single_safetensors(tmp_path)
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": "old.safetensors"}}))
  files = tensor_files.TensorFiles(tmp_path)
  np.testing.assert_array_equal(files.read("a"), TENSORS["a"])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path, name):
  if name.endswith(".bin"):
    recorded.torch()
  pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n"
  (tmp_path / name).write_bytes(pointer)
  with pytest.raises(errors.UserError, match="pointer of Git LFS.*lfs pull"):
    _ = tensor_files.TensorFiles(tmp_path).shapes


def test_a_quantized_tensor_is_refused_by_name(tmp_path):
  quantized = {"a": np.zeros(3, np.int8)}
  safetensors.numpy.save_file(quantized, tmp_path / "model.safetensors")
  with pytest.raises(errors.UserError, match="a is of type I8"):
    _ = tensor_files.TensorFiles(tmp_path).shapes


@pytest.mark.parametrize(
  "file", ["../secret.safetensors", "/etc/passwd", "a/../../b", "..", ".", ""]
)
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path, file):
  folder = tmp_path / "folder"
  folder.mkdir()
  safetensors.numpy.save_file(TENSORS, tmp_path / "secret.safetensors")
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": file}}))
  with pytest.raises(errors.UserError, match="is not the name of a file in"):
    tensor_files.TensorFiles(folder)


def test_an_index_that_is_nested_too_deeply_is_refused(tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text('{"weight_map":' + "[" * 100_000)
  with pytest.raises(errors.UserError, match="is not the index of sharded"):
    tensor_files.TensorFiles(tmp_path)


def entry(shape, begin, end):
  return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
  "header",
  [
    {"a": entry([2**40], 0, 2**42)},
    {"a": entry([2**62, 4], 0, 0)},
    {"a": entry([-1], 0, 4)},
    {"a": entry([1], 0, 4), "b": entry([1], 0, 4)},
    {"a": entry([2], 0, 4)},
    {"a": entry([1], 4, 0)},
    {"a": 3},
    [],
  ],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
  encoded = json.dumps(header).encode()
  path = tmp_path / "model.safetensors"
  path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(4))
  with pytest.raises(errors.UserError, match="model.safetensors cannot be rea"):
    _ = tensor_files.TensorFiles(tmp_path).shapes


@pytest.mark.parametrize("length", [0, 1, 2**30, 2**63, 2**64 - 1])
def test_a_header_of_a_length_that_lies_is_refused(tmp_path, length):
  path = tmp_path / "model.safetensors"
  path.write_bytes(struct.pack("<Q", length) + b"{}")
  with pytest.raises(errors.UserError, match="model.safetensors cannot be rea"):
    _ = tensor_files.TensorFiles(tmp_path).shapes


ANCHORED = {
  "shared.weight": TENSORS["a"],
  "encoder.final_layer_norm.weight": TENSORS["c"],
}


@pytest.mark.parametrize(
  "prefix", ["module.", "_orig_mod.module.", "base_model.model."]
)
def test_the_prefix_of_a_wrapper_is_no_part_of_a_name(tmp_path, prefix):
  named = {prefix + name: value for name, value in ANCHORED.items()}
  safetensors.numpy.save_file(named, tmp_path / "model.safetensors")
  files = tensor_files.TensorFiles(tmp_path)
  assert set(files.shapes) == set(files.dtypes) == set(ANCHORED)
  np.testing.assert_array_equal(files.read("shared.weight"), TENSORS["a"])
  mixed = named | {"lm_head.weight": TENSORS["a"]}
  safetensors.numpy.save_file(mixed, tmp_path / "model.safetensors")
  assert set(tensor_files.TensorFiles(tmp_path).shapes) == set(mixed)


def test_the_model_of_a_trainers_checkpoint_is_read(tmp_path):
  model = {f"model.{k}": as_torch(v) for k, v in ANCHORED.items()}
  saved = {"state_dict": model, "epoch": 3, "optimizer": {"lr": 0.1}}
  _save(tmp_path, saved)
  assert set(tensor_files.TensorFiles(tmp_path).shapes) == set(ANCHORED)
  _save(tmp_path, saved | {"ema": model})
  with pytest.raises(errors.UserError, match="'epoch'.* no tensors"):
    tensor_files.TensorFiles(tmp_path)


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["adapter_config.json", "adapter_model.safetensors"], "holds an adapter"),
    (["flax_model.msgpack"], "but flax_model.msgpack, which is not read"),
    (["tf_model.h5", "rust_model.ot"], "but rust_model.ot, tf_model.h5, which"),
    (["flan-t5-base-q8_0.gguf"], "but flan-t5-base-q8_0.gguf, which"),
    (["model-00001-of-00002.safetensors"], "nor the index of its shards"),
    (["pytorch_model-00001-of-00002.bin"], "nor the index of its shards"),
    ([], "whole or sharded: save the model"),
  ],
)
def test_what_is_there_instead_of_tensors_is_named(tmp_path, names, message):
  for name in names:
    (tmp_path / name).write_bytes(b"{}")
  with pytest.raises(errors.UserError, match=message):
    tensor_files.TensorFiles(tmp_path)


def test_an_adapter_that_was_not_merged_is_refused(tmp_path):
  name = "encoder.block.0.layer.0.SelfAttention.q.lora_A.default.weight"
  tensors = ANCHORED | {name: TENSORS["a"]}
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(errors.UserError, match="lora_A.*merge_and_unload"):
    tensor_files.TensorFiles(tmp_path)


def test_a_model_with_an_adapter_beside_it_is_refused(tmp_path):
  safetensors.numpy.save_file(ANCHORED, tmp_path / "model.safetensors")
  tensor_files.TensorFiles(tmp_path)
  (tmp_path / "adapter_config.json").write_text("{}")
  with pytest.raises(errors.UserError, match="a model and an adapter .*away"):
    tensor_files.TensorFiles(tmp_path)


def test_a_folder_where_the_file_should_be_is_named(tmp_path):
  (tmp_path / "pytorch_model.bin").mkdir()
  with pytest.raises(errors.UserError, match="is a folder, as DeepSpeed's"):
    tensor_files.TensorFiles(tmp_path)


def test_a_file_of_an_early_pytorch_is_read_once(tmp_path, monkeypatch):
  torch = recorded.torch()
  loaded, load = [], torch.load
  monkeypatch.setattr(
    torch, "load", lambda *a, **k: loaded.append(a) or load(*a, **k)
  )
  early = {"_use_new_zipfile_serialization": False}
  for factor in (1, 2):  # the second replaces the first
    values = {name: factor * one for name, one in ANCHORED.items()}
    _save(tmp_path, {n: as_torch(v) for n, v in values.items()}, **early)
    files = tensor_files.TensorFiles(tmp_path)
    assert set(files.shapes) == set(ANCHORED)
    for name, expected in values.items():
      np.testing.assert_array_equal(files.read(name), expected)
    assert len(loaded) == factor
