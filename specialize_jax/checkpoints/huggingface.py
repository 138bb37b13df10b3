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
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from specialize_jax import errors
from specialize_jax.checkpoints import name_table
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
  """A folder that `transformers` wrote, as a `name_table.Source`."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Opens no tensor yet.

    Raises:
      UserError: there is no such folder, or it holds no T5 in safetensors.
    """
    self.where = os.fspath(path)
    self._path = pathlib.Path(path)
    self._json = _read_config_json(self._path)
    self._files = _tensor_files(self._path)

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
    for name in self._files:
      if name in _DUPLICATES or (name == _HEAD and self.config.tied_head):
        continue
      with self._open(name) as opened:
        shape = tuple(opened.get_slice(name).get_shape())
      tensor = theirs.get(name)
      if tensor is None:
        shapes[name] = shape
      else:
        shapes[tensor.name] = shape[::-1] if tensor.transposed else shape
    if self._head_is_embedding and name_table.EMBEDDING in shapes:
      shapes[name_table.HEAD] = shapes[name_table.EMBEDDING][::-1]
    return shapes

  def read(self, name: str) -> np.ndarray:
    """Gives one tensor, in our orientation and its own dtype."""
    tensor = self._tensors[name]
    theirs = tensor.hugging_face
    if name == name_table.HEAD and self._head_is_embedding:
      theirs = _EMBEDDING
    value = self._read_as_is(theirs)
    if name == name_table.HEAD and self._scaled:
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
    if _HEAD not in self._files or _EMBEDDING not in self._files:
      return _HEAD in self._files
    return not np.array_equal(
      self._read_as_is(_HEAD), self._read_as_is(_EMBEDDING)
    )

  @property
  def _head_is_embedding(self) -> bool:
    """Whether an untied head equals the embedding, as v5 leaves a fresh one.

    The key tells it from a v4 file that lacks its head.
    """
    known = "scale_decoder_outputs" in self._json or _HEAD in self._files
    return known and not self._scaled and not self._has_own_head

  def _read_as_is(self, name: str) -> np.ndarray:
    with self._open(name) as opened:
      return opened.get_tensor(name)

  def _open(self, name: str) -> Any:
    try:
      return safetensors.safe_open(self._files[name], framework="np")
    except (OSError, safetensors.SafetensorError) as error:
      raise errors.UserError(
        f"{self._files[name]} cannot be read ({error}): copy the folder again."
      ) from error


def write(
  directory: str | os.PathLike,
  config: t5_config.T5Config,
  params: Any,
  *,
  dtype: str = "float32",
  vocabulary_path: str | os.PathLike | None = None,
  max_shard_bytes: int = 2**30,
) -> None:
  """Writes a folder that `T5ForConditionalGeneration` loads.

  Everything is written beside the folder and moved into place at the end, so
  that what a kill leaves behind never looks complete.

  Args:
    directory: a folder that does not exist yet.
    config: the model.
    params: its parameters.
    dtype: of the tensors in the files.
    vocabulary_path: SentencePiece model to put beside them.
    max_shard_bytes: size of a file; a larger tensor has a file of its own.

  Raises:
    UserError: the folder exists already.
  """
  directory = pathlib.Path(directory)
  if directory.exists():
    raise errors.UserError(
      f"{directory} exists already: give a folder that does not."
    )
  directory.parent.mkdir(parents=True, exist_ok=True)
  with _moved_into_place(directory) as unfinished:
    _write_json(unfinished / "config.json", _config_json(config, dtype))
    _write_json(
      unfinished / "generation_config.json",
      {
        "decoder_start_token_id": t5_config.PAD_ID,
        "eos_token_id": t5_config.EOS_ID,
        "pad_token_id": t5_config.PAD_ID,
      },
    )
    if vocabulary_path is not None:
      shutil.copyfile(vocabulary_path, unfinished / "spiece.model")
    _write_tensors(unfinished, config, params, dtype, max_shard_bytes)


def _write_tensors(
  directory: pathlib.Path,
  config: t5_config.T5Config,
  params: Any,
  dtype: str,
  max_shard_bytes: int,
) -> None:
  """Writes shards as they fill up, and the index that names them."""
  number_of_shard = _shard_numbers(config, dtype, max_shard_bytes)
  num_shards = max(number_of_shard.values())

  def file_name(number: int) -> str:
    if num_shards == 1:
      return "model.safetensors"
    return f"model-{number:05d}-of-{num_shards:05d}.safetensors"

  shard, current, total = {}, 1, 0
  for tensor, value in name_table.disassemble(config, params):
    number = number_of_shard[tensor.hugging_face]
    if number != current:
      _save_shard(directory / file_name(current), shard)
      shard, current = {}, number
    theirs = value.T if tensor.transposed else value
    theirs = np.ascontiguousarray(theirs.astype(_np_dtype(dtype)))
    shard[tensor.hugging_face] = theirs
    total += theirs.nbytes
  _save_shard(directory / file_name(current), shard)
  if num_shards > 1:
    _write_json(
      directory / "model.safetensors.index.json",
      {
        "metadata": {"total_size": total},
        "weight_map": {
          name: file_name(number) for name, number in number_of_shard.items()
        },
      },
    )


def _shard_numbers(
  config: t5_config.T5Config, dtype: str, max_shard_bytes: int
) -> dict[str, int]:
  """Gives each tensor's shard, from 1, filling one after another."""
  numbers, number, filled = {}, 1, 0
  for tensor in name_table.tensors(config):
    size = name_table.num_bytes(tensor, _np_dtype(dtype))
    if filled and filled + size > max_shard_bytes:
      number, filled = number + 1, 0
    filled += size
    numbers[tensor.hugging_face] = number
  return numbers


def _save_shard(path: pathlib.Path, shard: Mapping[str, np.ndarray]) -> None:
  safetensors.numpy.save_file(dict(shard), path, metadata={"format": "pt"})


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


def _tensor_files(path: pathlib.Path) -> Mapping[str, pathlib.Path]:
  """Gives the file of each tensor, from the index or the one file."""
  index, single = (
    path / "model.safetensors.index.json",
    path / "model.safetensors",
  )
  if index.exists():
    weight_map = json.loads(index.read_text())["weight_map"]
    files = {name: path / file for name, file in weight_map.items()}
    absent = sorted({str(f) for f in files.values() if not f.exists()})
    if absent:
      raise errors.UserError(
        f"{index} names files that are not there: {', '.join(absent)}. Copy "
        "the folder again."
      )
    return files
  if not single.exists():
    raise errors.UserError(
      f"{path} holds no model.safetensors, whole or sharded: save the model "
      "with save_pretrained of a recent transformers."
    )
  try:
    with safetensors.safe_open(single, framework="np") as opened:
      return dict.fromkeys(opened.keys(), single)
  except safetensors.SafetensorError as error:
    raise errors.UserError(
      f"{single} cannot be read ({error}): copy the folder again."
    ) from error


@contextlib.contextmanager
def _moved_into_place(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a folder beside `directory` that becomes it if all goes well."""
  unfinished = pathlib.Path(
    tempfile.mkdtemp(
      prefix=f".{directory.name}.unfinished-", dir=directory.parent
    )
  )
  try:
    yield unfinished
    unfinished.chmod(0o755)
    unfinished.rename(directory)
  except BaseException:
    shutil.rmtree(unfinished, ignore_errors=True)
    raise


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _np_dtype(name: str) -> np.dtype:
  return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
