"""`specialize convert` as people type it, and what it needs of the host."""

import math
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from testdata import tiny_checkpoints

from specialize_jax.checkpoints import (
  huggingface,
  name_table,
  opening,
  tensor_files,
)
from specialize_jax.cli import main
from specialize_jax.t5 import config as t5_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("convert") / "folder"
  tiny_checkpoints.save_theirs("t5_1_1", path)
  return path


@pytest.fixture
def convert(capsys):
  """Runs the command and gives its status and its words."""

  def run(**flags):
    status = main.run("convert", [f"--{k}={v}" for k, v in flags.items()])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.replace("\r", "\n")

  return run


def test_there_and_back_by_default(folder, tmp_path, convert):
  status, out, _ = convert(checkpoint=folder, output=tmp_path / "ours")
  assert status == 0
  assert out.startswith(f"{tmp_path}/ours/checkpoints/0: 61 tensors, ")
  assert out.endswith("MiB of float32\n")
  status, out, _ = convert(
    checkpoint=tmp_path / "ours", output=tmp_path / "again"
  )
  assert status == 0
  before, after = (
    tensor_files.TensorFiles(path) for path in (folder, tmp_path / "again")
  )
  assert before.shapes == after.shapes
  for name in before.shapes:
    np.testing.assert_array_equal(after.read(name), before.read(name))


def test_a_tokenizer_that_is_left_out_is_said(folder, tmp_path, convert):
  """As CodeT5's, which is no SentencePiece model."""
  with_names = tmp_path / "with_names"
  shutil.copytree(folder, with_names)
  for name in ("vocab.json", "merges.txt"):
    (with_names / name).write_text("{}")
  status, out, _ = convert(checkpoint=with_names, output=tmp_path / "ours")
  assert status == 0
  assert "its tokenizer (vocab.json, merges.txt) is not read and was" in out


def test_the_rows_that_were_cut_are_counted(folder, tmp_path, convert):
  status, out, _ = convert(
    checkpoint=folder,
    output=tmp_path / "cut",
    to="huggingface",
    vocab_size=36,
    dtype="bfloat16",
  )
  assert status == 0
  assert "MiB of bfloat16; vocabulary cut from 40 to 36 rows" in out


def test_what_a_user_can_mend_is_one_sentence(folder, tmp_path, convert):
  broken = shutil.copytree(folder, tmp_path / "broken")
  (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
  for flags, message in (
    (
      {"checkpoint": tmp_path / "nowhere"},
      "nowhere does not exist: expected a run",
    ),
    ({"checkpoint": broken}, "model.safetensors cannot be read"),
    ({"checkpoint": folder, "output": tmp_path}, "holds something already"),
    ({"checkpoint": folder, "vocabulary": "no.model"}, "no.model does not exi"),
    ({"checkpoint": folder, "t5x_layers": "listed"}, "goes with --to=t5x"),
    ({"checkpoint": folder, "max_shard_mib": 9}, "goes with --to=huggingface"),
    ({"checkpoint": folder, "extra_ids": 0}, "goes with --vocabulary"),
  ):
    status, out, err = convert(**{"output": tmp_path / "ours"} | flags)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
  assert not (tmp_path / "ours").exists()


XL = t5_config.T5Config(
  vocab_size=32_128,
  embed_dim=2048,
  mlp_dim=5120,
  num_heads=32,
  head_dim=64,
  num_encoder_layers=24,
  num_decoder_layers=24,
  mlp_activations=("gelu", "linear"),
  tied_head=False,
)


class Random:
  """FlanT5-XL's tensors, made as they are read."""

  where = "random"
  dtypes = (np.dtype(ml_dtypes.bfloat16),)

  def __init__(self):
    self.shapes = {t.name: t.shape for t in name_table.tensors(XL)}
    self._rng = np.random.default_rng(0)

  def read(self, name):
    shape = self.shapes[name]
    bits = self._rng.bytes(2 * math.prod(shape))
    value = np.frombuffer(bits, np.int16).reshape(shape)
    return (value & -0x4001).view(ml_dtypes.bfloat16)  # all of them finite


@pytest.mark.slow
def test_xl_is_converted_in_bounded_memory(tmp_path):
  if shutil.disk_usage(tmp_path).free < 30 * 2**30:
    pytest.skip("needs 30 GiB of disk")
  folder = tmp_path / "xl"
  huggingface.write(folder, XL, Random(), dtype="bfloat16")

  def converted(checkpoint, output):
    command = [sys.executable, "-m", "specialize_jax.cli.convert"]
    command += [f"--checkpoint={checkpoint}", f"--output={tmp_path / output}"]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss * 2**10

  limit = 2 * 32_128 * 2048 * 2 + 2**30
  assert converted(folder, "ours") < limit < 2.5 * 2**30
  assert converted(tmp_path / "ours", "again") < limit
  source = opening.open_checkpoint(tmp_path / "again").source
  expected = huggingface.Folder(folder)
  for name in list(expected.shapes)[::40]:
    np.testing.assert_array_equal(source.read(name), expected.read(name))
