"""Tensors are cut out of what is stored, whatever the layout of its chunks."""

import gzip
import json
import resource
import struct

import numpy as np
import pytest
import tensorstore
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import sources

VALUE = np.arange(24, dtype=np.float32).reshape(4, 3, 2)


def stored(path, chunks):
  spec = {
    "driver": "zarr",
    "kvstore": {"driver": "file", "path": f"{path}/"},
    "metadata": {"chunks": chunks, "shape": [4, 3, 2], "dtype": "<f4"},
  }
  tensorstore.open(spec, create=True).result().write(VALUE).result()
  return sources.open_zarr(epath.Path(path))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("chunks", [[4, 3, 2], [1, 1, 2], [2, 3, 1]])
def test_a_layer_is_its_slice_of_the_stack(tmp_path, axis, chunks):
  leaves = {"encoder/layers/w": stored(tmp_path / "a", chunks)}
  source = sources.Leaves("here", leaves, axis=axis)
  depth = VALUE.shape[axis]
  assert list(source.shapes) == [
    f"encoder/layers_{layer}/w" for layer in range(depth)
  ]
  for layer in range(depth):
    name = f"encoder/layers_{layer}/w"
    expected = np.take(VALUE, layer, axis)
    assert source.shapes[name] == expected.shape
    np.testing.assert_array_equal(source.read(name), expected)
  assert {dtype.name for dtype in source.dtypes} == {"float32"}


def test_a_stack_whose_layers_share_a_chunk_is_read_once(tmp_path):
  leaves = {"encoder/layers/w": stored(tmp_path / "a", [4, 3, 2])}
  source = sources.Leaves("here", leaves)
  source.read("encoder/layers_0/w")
  (tmp_path / "a" / "0.0.0").unlink()  # a second reading would give zeros
  np.testing.assert_array_equal(source.read("encoder/layers_3/w"), VALUE[3])


def test_an_array_that_is_not_there_is_a_value_error(tmp_path):
  with pytest.raises(ValueError, match="NOT_FOUND"):
    sources.open_zarr(epath.Path(tmp_path / "nowhere"))


@pytest.mark.parametrize(
  ("shape", "chunks"),
  [([2**50], [1]), ([2**40, 2**20], [1, 1]), ([8], [2**40])],
)
def test_metadata_that_ask_for_absurd_sizes_are_refused(
  tmp_path, shape, chunks
):
  stored(tmp_path / "a", [4, 3, 2])
  path = tmp_path / "a" / ".zarray"
  metadata = json.loads(path.read_text()) | {"shape": shape, "chunks": chunks}
  path.write_text(json.dumps(metadata))
  with pytest.raises(ValueError, match="GiB: expected at most|too large|limit"):
    sources.open_zarr(epath.Path(tmp_path / "a"))


@pytest.mark.parametrize(
  "changes",
  [
    {"chunks": [0, 0, 0]},
    {"chunks": [-1, -1, -1]},
    {"shape": [-4, 3, 2]},
    {"shape": [1] * 100, "chunks": [1] * 100},
    {"dtype": "|O", "filters": [{"id": "pickle"}]},
    {"dtype": [["a", "<f4"], ["b", "<i8"]]},
    {"compressor": {"id": "blosc", "cname": "x" * 10**6}},
    {"fill_value": "x" * 10**6},
  ],
)
def test_metadata_of_nonsense_are_a_value_error(tmp_path, changes):
  stored(tmp_path / "a", [4, 3, 2])
  path = tmp_path / "a" / ".zarray"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(ValueError, match="zarr"):
    sources.open_zarr(epath.Path(tmp_path / "a"))


def test_a_chunk_that_grows_without_end_is_cut_at_its_size(tmp_path):
  stored(tmp_path / "a", [4, 3, 2])
  path = tmp_path / "a" / ".zarray"
  compressor = {"compressor": {"id": "gzip", "level": 1}}
  path.write_text(json.dumps(json.loads(path.read_text()) | compressor))
  (tmp_path / "a" / "0.0.0").write_bytes(gzip.compress(bytes(1 << 27), 1))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  opened = sources.open_zarr(epath.Path(tmp_path / "a"))
  with pytest.raises(ValueError, match="End of data expected"):
    sources.read_leaf(opened)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 64 << 10  # KiB: half of what it unpacks to


def _crc32c(content):
  found = 0xFFFFFFFF
  for byte in content:
    found ^= byte
    for _ in range(8):
      found = found >> 1 ^ (0x82F63B78 if found & 1 else 0)
  return found ^ 0xFFFFFFFF


@pytest.mark.parametrize(
  "leads", ["../other/", "/etc/passwd/", "d/../../../x/"]
)
def test_a_database_that_leads_out_of_its_folder_is_refused(tmp_path, leads):
  base = {"driver": "file", "path": f"{tmp_path}/"}
  config = {"compression": None}
  place = {"driver": "ocdbt", "base": base, "path": "w/", "config": config}
  metadata = {"shape": [40, 30], "chunks": [20, 30], "dtype": "<f4"}
  spec = {"driver": "zarr", "kvstore": place, "metadata": metadata}
  value = np.arange(1200, dtype=np.float32).reshape(40, 30)
  # One commit: written in several, the names of later files would be stored
  # as what differs from the first.
  with tensorstore.Transaction(atomic=True) as transaction:
    opened = tensorstore.open(spec, create=True, transaction=transaction)
    opened.result().write(value).result()
  opened = sources.open_zarr(epath.Path(tmp_path), key="w")
  np.testing.assert_array_equal(sources.read_leaf(opened), value)
  manifest = tmp_path / "manifest.ocdbt"
  body = manifest.read_bytes()[:-4]
  assert _crc32c(body) == struct.unpack("<I", manifest.read_bytes()[-4:])[0]
  [written] = (tmp_path / "d").iterdir()
  name = f"d/{written.name}".encode()
  assert body.count(name) == 1
  body = body.replace(name, leads.encode().ljust(len(name), b"x"))
  manifest.write_bytes(body + struct.pack("<I", _crc32c(body)))
  with pytest.raises(ValueError, match="Invalid key"):
    sources.open_zarr(epath.Path(tmp_path), key="w")


def test_a_stack_of_absurdly_many_layers_is_refused():
  leaves = {"encoder/layers/w": np.zeros((2**20, 1), np.float32)}
  with pytest.raises(errors.UserError, match="would be of 1,048,576 layers"):
    _ = sources.Leaves("here", leaves).shapes
