"""The tensor files of a Hugging Face folder: safetensors, and PyTorch's.

A file is mapped and never read whole; it is opened for each tensor anew, since
pages that were read count as memory of this process while it stays mapped.
"""

import collections
import contextlib
import functools
import json
import os
import pathlib
import pickle
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from specialize_jax import errors
from specialize_jax.checkpoints import manifests
from specialize_jax.files import reading

SINGLE, SHARD = "model.safetensors", "model-{:05d}-of-{:05d}.safetensors"
INDEX = f"{SINGLE}.index.json"
_TORCH = "pytorch_model.bin"
ADAPTER = "adapter_config.json"
_OTHER_FORMATS = (
  *("flax_model*.msgpack", "tf_model*.h5", "rust_model.ot", "*.gguf", "*.onnx"),
  *("model.ckpt*", "*.pth", "*.pt", "adapter_model.*", "model-*.safetensors"),
  *("pytorch_model-*.bin", "*.ckpt"),
)
# The tensor that tells the prefix of a wrapper, such as DDP's `module.`.
_ANCHOR = "encoder.final_layer_norm.weight"

_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The names of safetensors for what a parameter may be."""

_TORCH_SUFFIX = ".bin"


class TensorFiles:
  """All tensors of a folder, by their name in the files."""

  def __init__(self, folder: str | os.PathLike) -> None:
    """Finds the files as transformers does.

    Safetensors come before PyTorch's, and a whole file before an index. A
    prefix that all names have, from DDP, Lightning or `torch.compile`, is
    removed.

    Raises:
      UserError: there is none, one is missing, or cannot be read.
    """
    self._folder = pathlib.Path(folder)
    self._files = self._find()
    self._prefix = _common_prefix(self._files)
    self._check_no_adapter()

  @functools.cached_property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor."""
    return {
      name.removeprefix(self._prefix): shape
      for name, (shape, _) in self._headers.items()
    }

  @functools.cached_property
  def dtypes(self) -> Mapping[str, np.dtype]:
    """The type of every tensor."""
    return {
      name.removeprefix(self._prefix): dtype
      for name, (_, dtype) in self._headers.items()
    }

  @property
  def manifest(self) -> str:
    """The name of the manifest that they were written with; "" if none."""
    for path in set(self._files.values()):
      if path.suffix != _TORCH_SUFFIX:
        with _opened(path) as file:
          return file.metadata().get(manifests.LISTED_IN, "")
    return ""

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor as it is in its file."""
    with _opened(self._files[self._prefix + name]) as file:
      return file.read(self._prefix + name)

  def _check_no_adapter(self) -> None:
    added = sorted(name for name in self._files if ".lora_" in name)
    if added:
      raise errors.UserError(
        f"{self._folder} holds tensors of an adapter besides the model's"
        f" ({added[0]}): merge them with PEFT's merge_and_unload(), and save"
        " the model with save_pretrained."
      )

  @functools.cached_property
  def _headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    names = collections.defaultdict(list)
    for name, path in self._files.items():
      names[path].append(name)
    headers = {}
    for path in names:
      with _opened(path) as file:
        absent = sorted(set(names[path]) - set(file.names()))
        if absent:
          raise errors.UserError(
            f"{path} lacks tensors that the index says it holds: "
            f"{', '.join(absent[:5])}. Copy the folder again."
          )
        headers |= {name: file.header(name) for name in names[path]}
    return {name: headers[name] for name in self._files}

  def _find(self) -> Mapping[str, pathlib.Path]:
    has_adapter = (self._folder / ADAPTER).exists()
    for single in (SINGLE, _TORCH):
      path = self._folder / single
      index = self._folder / f"{single}.index.json"
      if has_adapter and (path.exists() or index.exists()):
        raise errors.UserError(
          f"{self._folder} holds a model and an adapter ({ADAPTER}), which"
          " changes it: merge it with PEFT's merge_and_unload() and save the"
          " model with save_pretrained, or, if the model is the merged one,"
          " move adapter_* away"
        )
      if path.is_dir():
        raise errors.UserError(
          f"{path} is a folder, as DeepSpeed's zero_to_fp32.py may write it:"
          f" move the file in it to {path.parent}"
        )
      if path.exists():
        with _opened(path) as file:
          return dict.fromkeys(file.names(), path)
      if index.exists():
        return self._indexed(index)
    if has_adapter:
      raise errors.UserError(
        f"{self._folder} holds an adapter ({ADAPTER}) and not the model that it"
        " adapts: merge it with PEFT's merge_and_unload(), and save the model"
        " with save_pretrained."
      )
    others = sorted(
      {
        path.name
        for pattern in _OTHER_FORMATS
        for path in self._folder.glob(pattern)
      }
    )
    but = ""
    if any("-of-" in name for name in others):
      but = f", nor the index of its shards ({others[0]})"
    elif others:
      but = f", but {', '.join(others[:3])}, which is not read"
    raise errors.UserError(
      f"{self._folder} holds neither {SINGLE} nor {_TORCH}, whole or sharded"
      f"{but}: save the model with save_pretrained of a recent transformers."
    )

  def _indexed(self, index: pathlib.Path) -> Mapping[str, pathlib.Path]:
    try:
      weight_map = reading.read_json_description(index)["weight_map"]
      for file in set(weight_map.values()):
        if pathlib.PurePath(file).name != file or file in ("", ".."):
          raise ValueError(f"{file!r} is not the name of a file in the folder")
      files = {n: self._folder / file for n, file in weight_map.items()}
    except (
      OSError,
      ValueError,
      KeyError,
      TypeError,
      AttributeError,
      RecursionError,
    ) as error:
      raise errors.UserError(
        f"{index} is not the index of sharded tensors ({error}): copy the "
        "folder again."
      ) from error
    absent = sorted({str(f) for f in files.values() if not f.exists()})
    if absent:
      raise errors.UserError(
        f"{index} names files that are not there: {', '.join(absent)}. Copy "
        "the folder again."
      )
    return files


def _common_prefix(names: Iterable[str]) -> str:
  """Returns the prefix that a wrapper gave to all names; "" if none did."""
  found = [
    name.removesuffix(_ANCHOR) for name in names if name.endswith(_ANCHOR)
  ]
  prefix = found[0] if len(found) == 1 else ""
  return prefix if all(name.startswith(prefix) for name in names) else ""


def write(
  path: str | os.PathLike,
  shapes: Mapping[str, tuple[int, ...]],
  values: Iterable[np.ndarray],
  dtype: np.dtype,
) -> None:
  """Writes a safetensors file one tensor at a time.

  The library's own writer requires all of them in memory.

  Args:
    path: the file.
    shapes: the shapes of the tensors, by name.
    values: the tensors, in the same order.
    dtype: the dtype of all tensors.
  """
  name_of_dtype = {value: key for key, value in _DTYPES.items()}[dtype]
  header: dict[str, Any] = {
    "__metadata__": {"format": "pt", manifests.LISTED_IN: manifests.NAME}
  }
  end = 0
  for name, shape in shapes.items():
    begin, end = end, end + int(np.prod(shape)) * dtype.itemsize
    header[name] = {
      "dtype": name_of_dtype,
      "shape": list(shape),
      "data_offsets": [begin, end],
    }
  encoded = json.dumps(header, separators=(",", ":")).encode()
  encoded += b" " * (-len(encoded) % 8)  # so that the tensors are aligned
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for shape, value in zip(shapes.values(), values, strict=True):
      assert value.shape == shape, f"{value.shape} is not {shape}"
      whole = np.ascontiguousarray(value, dtype)
      file.write(whole.reshape(-1).view(np.uint8).data)


class _Safetensors:
  """One open safetensors file."""

  def __init__(self, path: pathlib.Path) -> None:
    self._file = safetensors.safe_open(path, framework="np")
    self._path = path

  def metadata(self) -> Mapping[str, str]:
    return self._file.metadata() or {}

  def names(self) -> list[str]:
    return list(self._file.keys())

  def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
    part = self._file.get_slice(name)
    dtype = _DTYPES.get(part.get_dtype())
    if dtype is None:
      raise _unknown_dtype(self._path, name, part.get_dtype())
    return tuple(part.get_shape()), dtype

  def read(self, name: str) -> np.ndarray:
    return self._file.get_tensor(name)


class _Torch:
  """One open file of `torch.save`, of which only tensors are unpickled."""

  def __init__(self, path: pathlib.Path) -> None:
    try:
      import torch
    except ImportError as error:
      raise errors.UserError(
        f"{path} needs PyTorch to be read: install torch, or save the model "
        "as safetensors."
      ) from error
    self._tensors = _load(torch, path)
    self._path = path

  def names(self) -> list[str]:
    return list(self._tensors)

  def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
    tensor = self._tensors[name]
    spelled = str(tensor.dtype).removeprefix("torch.")
    known = {dtype.name: dtype for dtype in _DTYPES.values()}
    if spelled not in known:
      raise _unknown_dtype(self._path, name, spelled)
    return tuple(tensor.shape), known[spelled]

  def read(self, name: str) -> np.ndarray:
    import torch

    tensor = self._tensors[name].detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # which NumPy lacks
      tensor = tensor.view(torch.int16)
    # Copied, since the file is closed before the tensor is used.
    return np.array(tensor.numpy()).view(self.header(name)[1])


_PYTHON_OBJECT = re.compile(r"GLOBAL ([\w.]+)")  # in torch's message


@functools.lru_cache(maxsize=1)
def _whole(path: pathlib.Path, mtime_ns: int, size: int) -> Mapping[str, Any]:
  """Reads a file of an early PyTorch, which cannot be mapped, once for all.

  Args:
    path: the file, all of whose tensors stay in memory.
    mtime_ns: when it was written; another file of that name is read anew.
    size: its size, likewise.
  """
  import torch

  return torch.load(path, map_location="cpu", weights_only=True)


def _load(torch: Any, path: pathlib.Path) -> Mapping[str, Any]:
  """Unpickles tensors and nothing else, mapped where the format allows it."""
  with open(path, "rb") as file:
    is_mappable = file.read(4) == b"PK\x03\x04"  # a zip, since torch 1.6
  if is_mappable:
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
  else:
    stat = path.stat()
    tensors = _whole(path, stat.st_mtime_ns, stat.st_size)
  if not isinstance(tensors, Mapping):
    raise pickle.UnpicklingError(f"it holds a {type(tensors).__name__}")
  others = [key for key, one in tensors.items() if not torch.is_tensor(one)]
  if not others:
    return tensors
  # A trainer's own checkpoint has the model's among other things.
  nested = [
    one
    for one in tensors.values()
    if isinstance(one, Mapping)
    and one
    and all(map(torch.is_tensor, one.values()))
  ]
  if len(nested) != 1:
    shown = ", ".join(map(repr, others[:3]))
    raise pickle.UnpicklingError(f"it holds {shown}, which are no tensors")
  return nested[0]


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[_Safetensors | _Torch]:
  """Opens a file for as long as a tensor is read."""
  is_torch = path.suffix == _TORCH_SUFFIX
  try:
    yield _Torch(path) if is_torch else _Safetensors(path)
  except errors.UserError:
    raise
  except (
    safetensors.SafetensorError,
    OSError,
    EOFError,
    RuntimeError,  # of torch's zip reader
    pickle.UnpicklingError,
  ) as error:
    what = " ".join(str(error).split())[:200]
    way_out = "copy the folder again"
    if isinstance(error, pickle.UnpicklingError):
      way_out = "save the model with save_pretrained, or copy the folder again"
      # torch advises to load it anyway, which would run what it holds.
      if "weights_only" in str(error):
        named = _PYTHON_OBJECT.search(str(error))
        what = (
          f"it holds {named[1] if named else 'an object'}, not only tensors"
        )
    if _is_lfs_pointer(path):
      what = "it is a pointer of Git LFS and not the file itself"
      way_out = "run `git lfs pull` in its repository"
    raise errors.UserError(
      f"{path} cannot be read ({what}): {way_out}."
    ) from error


def _is_lfs_pointer(path: pathlib.Path) -> bool:
  try:
    with open(path, "rb") as file:
      return file.read(40).startswith(b"version https://git-lfs")
  except OSError:
    return False


def _unknown_dtype(
  path: pathlib.Path, name: str, dtype: str
) -> errors.UserError:
  return errors.UserError(
    f"{path}: {name} is of type {dtype}, and must be of one of "
    f"{', '.join(known.name for known in _DTYPES.values())}: quantized models "
    "are not read."
  )
