"""Hugging Face folders in and out: `config.json` and safetensors.

Whether the head is tied is decided by what the files hold, since the two keys
mean different things in different releases of `transformers`: up to v4
`tie_word_embeddings` ties the head and scales the logits; v5 always writes it
true, says by `scale_decoder_outputs` whether logits are scaled, and unties a
model whose file holds a head that differs from the embedding.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from specialize_jax import errors
from specialize_jax.checkpoints import name_table, sources, tensor_files
from specialize_jax.t5 import config as t5_config

_CONFIG_KEYS = {
  "vocab_size": "vocab_size",
  "embed_dim": "d_model",
  "mlp_dim": "d_ff",
  "num_heads": "num_heads",
  "head_dim": "d_kv",
  "num_encoder_layers": "num_layers",
  "num_decoder_layers": "num_decoder_layers",
  "dropout_rate": "dropout_rate",
  "relative_attention_num_buckets": "relative_attention_num_buckets",
  "relative_attention_max_distance": "relative_attention_max_distance",
  "layer_norm_epsilon": "layer_norm_epsilon",
}
"""Our fields, and theirs that say the same."""

_FEED_FORWARD = {
  "relu": ("relu",),
  "gated-gelu": ("gelu", "linear"),
}

_DUPLICATES = frozenset(
  {
    # The embedding again, for each stack.
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    # Left over in the first T5 checkpoints, and read by no release.
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
  }
)

_HEAD = "lm_head.weight"
_EMBEDDING = "shared.weight"


class Folder:
  """A folder that `transformers` wrote, as a `sources.Source`."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Opens no tensor yet.

    Raises:
      UserError: there is no such folder, or it holds no T5 in safetensors.
    """
    self.where = os.fspath(path)
    self._path = pathlib.Path(path)
    self._json = _read_config_json(self._path)
    self._files = tensor_files.TensorFiles(self._path)

  @functools.cached_property
  def config(self) -> t5_config.T5Config:
    """The model in the folder, with our defaults for what it does not say."""
    given = {
      ours: self._json[theirs]
      for ours, theirs in _CONFIG_KEYS.items()
      if self._json.get(theirs) is not None
    }
    # Theirs defaults to the depth of the encoder.
    given.setdefault("num_decoder_layers", given.get("num_encoder_layers"))
    feed_forward = self._json.get("feed_forward_proj", "relu")
    if feed_forward not in _FEED_FORWARD:
      raise errors.UserError(
        f"{self.where}: feed_forward_proj is {feed_forward!r} in config.json, "
        f"and must be one of {', '.join(_FEED_FORWARD)}, T5 1.0's and 1.1's."
      )
    return t5_config.T5Config(
      mlp_activations=_FEED_FORWARD[feed_forward],
      tied_head=self._scaled and not self._has_own_head,
      **given,
    )

  @functools.cached_property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all tensors, in our names and orientation.

    A name that the table does not know stays what it is.
    """
    theirs = {tensor.hugging_face: tensor for tensor in self._tensors.values()}
    shapes = {}
    for name, shape in self._files.shapes.items():
      if name in _DUPLICATES or (name == _HEAD and self.config.tied_head):
        continue
      tensor = theirs.get(name)
      if tensor is None:
        shapes[name] = shape
      else:
        shapes[tensor.name] = shape[::-1] if tensor.transposed else shape
    if self._head_is_embedding and sources.EMBEDDING in shapes:
      shapes[sources.HEAD] = shapes[sources.EMBEDDING][::-1]
    return shapes

  @property
  def dtypes(self) -> Iterable[np.dtype]:
    """The types of the tensors in the files."""
    return set(self._files.dtypes.values())

  def read(self, name: str) -> np.ndarray:
    """Gives one tensor, in our orientation and its own dtype."""
    tensor = self._tensors[name]
    theirs = tensor.hugging_face
    if name == sources.HEAD and self._head_is_embedding:
      theirs = _EMBEDDING
    value = self._files.read(theirs)
    if name == sources.HEAD and self._scaled:
      # Theirs scales the logits of a head of its own; ours never does.
      value = value.astype(np.float32) * self.config.embed_dim**-0.5
    return value.T if tensor.transposed else value

  @functools.cached_property
  def _tensors(self) -> Mapping[str, name_table.Tensor]:
    return {tensor.name: tensor for tensor in name_table.tensors(self.config)}

  @property
  def _scaled(self) -> bool:
    tied = self._json.get("tie_word_embeddings") is not False
    return self._json.get("scale_decoder_outputs", tied)

  @functools.cached_property
  def _has_own_head(self) -> bool:
    names = self._files.shapes
    if _HEAD not in names or _EMBEDDING not in names:
      return _HEAD in names
    return not np.array_equal(
      self._files.read(_HEAD), self._files.read(_EMBEDDING)
    )

  @property
  def _head_is_embedding(self) -> bool:
    """Whether an untied head equals the embedding, as v5 leaves a fresh one.

    The key tells it from a v4 file that lacks its head.
    """
    known = "scale_decoder_outputs" in self._json or _HEAD in self._files.shapes
    return known and not self._scaled and not self._has_own_head


def write(
  directory: str | os.PathLike,
  config: t5_config.T5Config,
  source: sources.Source,
  *,
  dtype: str = "float32",
  other_files: Mapping[str, bytes] | None = None,
  max_shard_bytes: int = 2**30,
) -> None:
  """Writes a folder that `T5ForConditionalGeneration` loads.

  One tensor at a time. Everything is written beside the folder and moved into
  place at the end, so that what a kill leaves behind never looks complete.

  Args:
    directory: a folder that does not exist yet.
    config: the model.
    source: its parameters.
    dtype: of the tensors in the files.
    other_files: contents by name, such as a tokenizer's, put beside them.
    max_shard_bytes: size of a file; a larger tensor has a file of its own.

  Raises:
    UserError: the folder exists already, or the source is not of the model.
  """
  directory = pathlib.Path(directory)
  if directory.exists():
    raise errors.UserError(
      f"{directory} exists already: give a folder that does not."
    )
  config_json = _config_json(config, dtype)
  name_table.check(config, source)
  directory.parent.mkdir(parents=True, exist_ok=True)
  with _moved_into_place(directory) as unfinished:
    _write_json(unfinished / "config.json", config_json)
    _write_json(
      unfinished / "generation_config.json",
      {
        "decoder_start_token_id": t5_config.PAD_ID,
        "eos_token_id": t5_config.EOS_ID,
        "pad_token_id": t5_config.PAD_ID,
      },
    )
    for name, content in (other_files or {}).items():
      (unfinished / name).write_bytes(content)
    _write_tensors(unfinished, config, source, np.dtype(dtype), max_shard_bytes)


def _write_tensors(
  directory: pathlib.Path,
  config: t5_config.T5Config,
  source: sources.Source,
  dtype: np.dtype,
  max_shard_bytes: int,
) -> None:
  """Writes shard after shard, and the index that names them."""
  shards = _shards(config, dtype, max_shard_bytes)
  files = [
    tensor_files.SINGLE
    if len(shards) == 1
    else tensor_files.SHARD.format(number, len(shards))
    for number in range(1, len(shards) + 1)
  ]
  for file, shard in zip(files, shards, strict=True):
    values = (name_table.read(config, source, tensor.name) for tensor in shard)
    tensor_files.write(
      directory / file,
      {tensor.hugging_face: _their_shape(tensor) for tensor in shard},
      (
        value.T if tensor.transposed else value
        for tensor, value in zip(shard, values, strict=True)
      ),
      dtype,
    )
  if len(shards) > 1:
    sizes = (_num_bytes(t, dtype) for shard in shards for t in shard)
    _write_json(
      directory / tensor_files.INDEX,
      {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": {
          tensor.hugging_face: file
          for file, shard in zip(files, shards, strict=True)
          for tensor in shard
        },
      },
    )


def _shards(
  config: t5_config.T5Config, dtype: np.dtype, max_shard_bytes: int
) -> list[list[name_table.Tensor]]:
  """Gives the tensors of each file, filling one after another."""
  shards, filled = [[]], 0
  for tensor in name_table.tensors(config):
    size = _num_bytes(tensor, dtype)
    if filled and filled + size > max_shard_bytes:
      shards.append([])
      filled = 0
    filled += size
    shards[-1].append(tensor)
  return shards


def _their_shape(tensor: name_table.Tensor) -> tuple[int, ...]:
  return tensor.shape[::-1] if tensor.transposed else tensor.shape


def _num_bytes(tensor: name_table.Tensor, dtype: np.dtype) -> int:
  return math.prod(tensor.shape) * dtype.itemsize


def _config_json(config: t5_config.T5Config, dtype: str) -> dict[str, Any]:
  feed_forwards = {names: key for key, names in _FEED_FORWARD.items()}
  if config.mlp_activations not in feed_forwards:
    raise errors.UserError(
      f"T5Config.mlp_activations is {config.mlp_activations}, and only "
      f"{' and '.join(map(str, feed_forwards))} have a name in Hugging "
      "Face's T5."
    )
  return {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    **{theirs: getattr(config, ours) for ours, theirs in _CONFIG_KEYS.items()},
    "feed_forward_proj": feed_forwards[config.mlp_activations],
    "is_encoder_decoder": True,
    # Read by releases up to v4, and by v5 where the next key is absent.
    "tie_word_embeddings": config.tied_head,
    "scale_decoder_outputs": config.tied_head,
    "decoder_start_token_id": t5_config.PAD_ID,
    "eos_token_id": t5_config.EOS_ID,
    "pad_token_id": t5_config.PAD_ID,
    "dtype": dtype,
  }


def _read_config_json(path: pathlib.Path) -> Mapping[str, Any]:
  try:
    read = json.loads((path / "config.json").read_text())
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"{path} is not a Hugging Face folder: its config.json cannot be read "
      f"({error})."
    ) from error
  architecture = read.get("model_type")
  if architecture != "t5":
    raise errors.UserError(
      f"{path} holds a model of type {architecture!r}, and only 't5' (T5 1.0, "
      "T5 1.1 and FlanT5) can be read."
    )
  return read


@contextlib.contextmanager
def _moved_into_place(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a folder beside `directory` that becomes it if all goes well."""
  unfinished = directory.with_name(f".{directory.name}.unfinished")
  # What a run that was killed has left.
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir()
  try:
    yield unfinished
    unfinished.rename(directory)
  except BaseException:
    shutil.rmtree(unfinished, ignore_errors=True)
    raise


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
