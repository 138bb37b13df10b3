"""Reads and writes Hugging Face folders: `config.json` and safetensors.

The tensors in the files decide whether the head is tied, since the two keys
have different meanings in different releases of `transformers`: up to v4
`tie_word_embeddings` ties the head and scales the logits; v5 always writes
true, has `scale_decoder_outputs` for scaled logits, and unties a model whose
file has a head that differs from the embedding.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from specialize_jax import errors
from specialize_jax.checkpoints import (
  manifests,
  name_table,
  sources,
  tensor_files,
)
from specialize_jax.files import reading, writing
from specialize_jax.t5 import config as t5_config

_CONFIG_JSON, _GENERATION_JSON = "config.json", "generation_config.json"

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
"""Our fields and the equivalent ones of Hugging Face."""

_DEFAULTS = {
  "vocab_size": 32128,
  "d_model": 512,
  "d_ff": 2048,
  "num_heads": 8,
  "d_kv": 64,
  "num_layers": 6,
}
"""Defaults of the T5 of transformers."""

_DEPTHS = ("num_encoder_layers", "num_decoder_layers")
_MAX_SIZE = 10**9  # of any other size

_FEED_FORWARD = {
  "relu": ("relu",),
  "gelu_new": ("gelu",),
  "gated-gelu": ("gelu", "linear"),
  "gated-gelu_new": ("gelu", "linear"),
  "gated-relu": ("relu", "linear"),
}
"""Their activations and ours; our "gelu" is the tanh approximation."""

_UNUSED = frozenset(
  {
    # Left over in the first T5 checkpoints, and read by no release.
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
  }
)

_FIELD_TYPES = {
  field.name: field.type for field in dataclasses.fields(t5_config.T5Config)
}

_HEAD = "lm_head.weight"
_EMBEDDINGS = (
  "shared.weight",
  "encoder.embed_tokens.weight",
  "decoder.embed_tokens.weight",
)
"""Names of the shared embedding; a file may have any of them."""

_NOT_DECODING = frozenset(
  {
    "_from_model_config",
    "bos_token_id",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict_in_generate",
    "decoder_start_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
  }
)
"""Keys of generation_config.json that do not change our decoding."""


class Folder:
  """A folder that `transformers` wrote, as a `sources.Source`."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Reads the configuration, but no tensor.

    Raises:
      UserError: there is no such folder, or no T5 in safetensors in it.
    """
    self.where = os.fspath(path)
    self._path = pathlib.Path(path)
    # An adapter is refused as one, and not for its lack of a config.json.
    is_adapter = (self._path / tensor_files.ADAPTER).exists()
    files = tensor_files.TensorFiles(self._path) if is_adapter else None
    self._json = _read_config_json(self._path)
    self.generation_config = _read_generation_json(self._path)
    self._files = files or tensor_files.TensorFiles(self._path)

  @property
  def manifest(self) -> str:
    """The name of the manifest that it was written with; "" if none."""
    return self._files.manifest

  @functools.cached_property
  def config(self) -> t5_config.T5Config:
    """The model, with T5's defaults for missing keys.

    Raises:
      UserError: config.json is not of a T5 that we support, or contradicts
        itself or generation_config.json.
    """
    given = {
      ours: self._number(ours, theirs)
      for ours, theirs in _CONFIG_KEYS.items()
      if (_DEFAULTS | self._json).get(theirs) is not None
      or theirs in _DEFAULTS  # null is an error in these
    }
    # Theirs defaults to the depth of the encoder.
    given.setdefault("num_decoder_layers", given["num_encoder_layers"])
    if self._json.get("pruned_heads"):
      raise self._wrong("pruned_heads", "empty: all heads are expected")
    return t5_config.T5Config(
      mlp_activations=self._mlp_activations(),
      tied_head=self._scaled and not self._has_own_head,
      **_special_ids(
        self.where, self._json, self.generation_config, given["vocab_size"]
      ),
      **given,
    )

  def _number(self, ours: str, theirs: str) -> int | float:
    value = (_DEFAULTS | self._json)[theirs]
    is_whole = _FIELD_TYPES[ours] is int
    fits = type(value) is int or (not is_whole and type(value) is float)
    largest = sources.MAX_LAYERS if ours in _DEPTHS else _MAX_SIZE
    if not fits or not is_whole <= value <= largest:  # NaN is not
      wanted = "a whole number of at least 1" if is_whole else "a number from 0"
      if fits and value > largest:
        wanted = f"at most {largest:,}"
      raise self._wrong(theirs, wanted)
    return value

  def _mlp_activations(self) -> tuple[str, ...]:
    feed_forward = self._json.get("feed_forward_proj", "relu")
    if feed_forward not in list(_FEED_FORWARD):
      raise self._wrong(
        "feed_forward_proj",
        f"one of {', '.join(_FEED_FORWARD)}: T5 1.0 has relu, T5 1.1 and "
        "FlanT5 gated-gelu",
      )
    activations = _FEED_FORWARD[feed_forward]
    # Derived from `feed_forward_proj`; some releases write these fields too.
    derived = {
      "is_gated_act": [len(activations) > 1],
      "dense_act_fn": {"gelu": ["gelu_new", "gelu_pytorch_tanh"]}.get(
        activations[0], list(activations[:1])
      ),
    }
    for key, wanted in derived.items():
      if self._json.get(key, wanted[0]) not in wanted:
        raise self._wrong(
          key,
          f"{json.dumps(wanted[0])} where feed_forward_proj is "
          f"{feed_forward!r}",
        )
    return activations

  def _flag(self, key: str, default: bool) -> bool:
    value = self._json.get(key)
    if value is None:
      return default
    if not isinstance(value, bool):
      raise self._wrong(key, "true or false")
    return value

  def _wrong(self, key: str, wanted: str) -> errors.UserError:
    value = json.dumps((_DEFAULTS | self._json).get(key, "relu"))
    return errors.UserError(
      f"{self.where}: {key} is {value[:80]} in config.json, and must be "
      f"{wanted}."
    )

  @functools.cached_property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all tensors, in our names and orientation.

    Names that are not in the table are unchanged.
    """
    theirs = {tensor.hugging_face: tensor for tensor in self._tensors.values()}
    shapes = {}
    for name, shape in self._files.shapes.items():
      if name in _UNUSED or (name == _HEAD and self.config.tied_head):
        continue
      if name in _EMBEDDINGS:
        continue  # one for all of them, below
      tensor = theirs.get(name)
      if tensor is None:
        shapes[name] = shape
      else:
        shapes[tensor.name] = shape[::-1] if tensor.transposed else shape
    if self._embedding is not None:
      shapes[sources.EMBEDDING] = self._files.shapes[self._embedding]
    if self._head_is_embedding and sources.EMBEDDING in shapes:
      shapes[sources.HEAD] = shapes[sources.EMBEDDING][::-1]
    return shapes

  @property
  def dtypes(self) -> Iterable[np.dtype]:
    """The dtypes of the tensors in the files."""
    return set(self._files.dtypes.values())

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor, in our orientation and its own dtype."""
    tensor = self._tensors[name]
    theirs = tensor.hugging_face
    if name == sources.EMBEDDING or (
      name == sources.HEAD and self._head_is_embedding
    ):
      theirs = self._embedding
    value = self._files.read(theirs)
    if name == sources.HEAD and self._scaled:
      # `transformers` scales an untied head's logits; our network never does.
      value = value.astype(np.float32) * self.config.embed_dim**-0.5
    return value.T if tensor.transposed else value

  @functools.cached_property
  def _tensors(self) -> Mapping[str, name_table.Tensor]:
    return {tensor.name: tensor for tensor in name_table.tensors(self.config)}

  @functools.cached_property
  def _scaled(self) -> bool:
    tied = self._flag("tie_word_embeddings", True)
    return self._flag("scale_decoder_outputs", tied)

  @functools.cached_property
  def _embedding(self) -> str | None:
    """The embedding's name in the files; None if it is not in any.

    A tied head is another name of the embedding; an untied head is not.
    """
    there = [name for name in _EMBEDDINGS if name in self._files.shapes]
    if not there:
      is_tied = self._scaled and _HEAD in self._files.shapes
      return _HEAD if is_tied else None
    for other in there[1:]:
      if not self._equal(there[0], other):
        raise errors.UserError(
          f"{self.where}: {there[0]} and {other} differ, and a T5 has one "
          "embedding for its encoder and its decoder: give a checkpoint in "
          "which they are equal."
        )
    return there[0]

  def _equal(self, one: str, other: str) -> bool:
    shapes = self._files.shapes
    return shapes[one] == shapes[other] and np.array_equal(
      self._files.read(one), self._files.read(other)
    )

  @functools.cached_property
  def _has_own_head(self) -> bool:
    """Whether the files have a head that differs from the embedding."""
    if _HEAD not in self._files.shapes or self._embedding == _HEAD:
      return False
    return self._embedding is None or not self._equal(_HEAD, self._embedding)

  @property
  def _head_is_embedding(self) -> bool:
    """Whether an untied head equals the embedding, as in a new model of v5.

    The key distinguishes it from a v4 file without its head.
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
  generation_config: Mapping[str, Any] | None = None,
  max_shard_bytes: int = 2**30,
) -> None:
  """Writes a folder that `T5ForConditionalGeneration` loads.

  Tensors are written one at a time, to a temporary folder that is renamed when
  it is complete, so that an interrupted export never looks complete.

  Args:
    directory: a folder that does not exist yet.
    config: the model.
    source: its parameters.
    dtype: dtype of the tensors in the files.
    other_files: contents of other files by name, such as a tokenizer's.
    generation_config: keys of generation_config.json besides the special
      tokens.
    max_shard_bytes: maximum size of a file, unless a single tensor is larger.

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
  with writing.new_directory(directory) as unfinished:
    _write_json(unfinished / _CONFIG_JSON, config_json)
    _write_json(
      unfinished / _GENERATION_JSON,
      {**(generation_config or {}), **_their_special_ids(config)},
    )
    for name, content in (other_files or {}).items():
      (unfinished / name).write_bytes(content)
    _write_tensors(unfinished, config, source, np.dtype(dtype), max_shard_bytes)
    manifests.write(unfinished)


def _write_tensors(
  directory: pathlib.Path,
  config: t5_config.T5Config,
  source: sources.Source,
  dtype: np.dtype,
  max_shard_bytes: int,
) -> None:
  """Writes the shards and their index."""
  shards = _shards(config, dtype, max_shard_bytes)
  files = [
    tensor_files.SINGLE
    if len(shards) == 1
    else tensor_files.SHARD.format(number, len(shards))
    for number in range(1, len(shards) + 1)
  ]
  for file, shard in zip(files, shards, strict=True):
    values = (
      name_table.cast(
        name_table.read(config, source, tensor.name),
        dtype,
        name=f"{tensor.name} ({tensor.hugging_face})",
        where=source.where,
      )
      for tensor in shard
    )
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
  """Assigns tensors to files in order, filling one after another."""
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
  # The first name of each, which all releases accept.
  feed_forwards = {names: key for key, names in reversed(_FEED_FORWARD.items())}
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
    **_their_special_ids(config),
    "dtype": dtype,
  }


def _their_special_ids(config: t5_config.T5Config) -> dict[str, Any]:
  return {
    "decoder_start_token_id": config.decoder_start_id,
    "eos_token_id": (
      config.eos_id if len(config.eos_ids) == 1 else list(config.eos_ids)
    ),
    "pad_token_id": config.pad_id,
  }


def _special_ids(
  where: str,
  config: Mapping[str, Any],
  generation: Mapping[str, Any],
  vocab_size: int,
) -> dict[str, Any]:
  """Returns the special tokens as fields of `T5Config`.

  As in transformers, generation_config.json overrides config.json for the
  tokens that end a decoded sequence: it may add to those of config.json, which
  end an encoded sequence, but not contradict them. T5's are the default.

  Raises:
    UserError: an id cannot be one, or the two files disagree.
  """

  def read(file: str, content: Mapping[str, Any], key: str) -> list[int] | None:
    if key not in content or (content[key] is None and file != _CONFIG_JSON):
      return None
    value = content[key]
    if value is None and key == "decoder_start_token_id":
      return None
    ids = value if isinstance(value, list) else [value]
    if key != "eos_token_id" and isinstance(value, list):
      ids = []
    if not ids or not all(type(i) is int and 0 <= i < vocab_size for i in ids):
      raise errors.UserError(
        f"{where}: {key} is {json.dumps(value)[:80]} in {file}, and must be a "
        f"token id from 0 to {vocab_size - 1}: write the one that the model "
        "was trained with."
      )
    return list(dict.fromkeys(ids))

  def one(key: str) -> int | None:
    said = {
      file: ids[0]
      for file, content in files.items()
      if (ids := read(file, content, key)) is not None
    }
    if len(set(said.values())) > 1:
      raise disagreement(key, said)
    return next(iter(said.values()), None)

  def disagreement(key: str, said: Mapping[str, object]) -> errors.UserError:
    both = " and ".join(f"{value} in {file}" for file, value in said.items())
    return errors.UserError(
      f"{where}: {key} is {both}: make them one, that which the model was "
      "trained with."
    )

  files = {_CONFIG_JSON: config, _GENERATION_JSON: generation}
  pad = one("pad_token_id")
  pad = t5_config.PAD_ID if pad is None else pad
  start = one("decoder_start_token_id")
  if start is None:  # as in transformers, then as in T5
    start = one("bos_token_id") if config.get("bos_token_id") else None
  key = "eos_token_id"
  ends = read(_CONFIG_JSON, config, key)
  more = read(_GENERATION_JSON, generation, key)
  if ends and more and ends[0] not in more:
    raise disagreement(key, {_CONFIG_JSON: ends, _GENERATION_JSON: more})
  eos = [*(ends or more or [t5_config.EOS_ID])[:1], *(more or ends or [])]
  if pad in eos:
    raise errors.UserError(
      f"{where}: pad_token_id and eos_token_id are both {pad}, so that padding "
      "could not be distinguished from the end of a sequence: give the padding "
      "an id of its own, such as an unused row of the vocabulary."
    )
  return {
    "pad_id": pad,
    "decoder_start_id": pad if start is None else start,
    "eos_ids": tuple(dict.fromkeys(eos)),
  }


def _read_config_json(path: pathlib.Path) -> Mapping[str, Any]:
  read = _read_object(path, _CONFIG_JSON)
  architecture = read.get("model_type")
  if architecture is None:
    raise errors.UserError(
      f'{path} has a config.json without "model_type", as early releases saved'
      ' it: if the model is a T5, add "model_type": "t5"'
    )
  if architecture != "t5":
    raise errors.UserError(
      f"{path} holds a model of type {architecture!r}, and only 't5' (T5 1.0, "
      "T5 1.1 and FlanT5) can be read."
    )
  return read


def _read_generation_json(path: pathlib.Path) -> Mapping[str, Any]:
  if not (path / _GENERATION_JSON).exists():
    return {}
  return _read_object(path, _GENERATION_JSON)


def _read_object(path: pathlib.Path, name: str) -> dict[str, Any]:
  try:
    read = reading.read_json_description(path / name)
    if not isinstance(read, dict):
      raise ValueError(f"it holds {json.dumps(read)[:40]} and no object")
  except (OSError, ValueError, RecursionError) as error:
    raise errors.UserError(
      f"{path} is not a Hugging Face folder: its {name} cannot be read "
      f"({error})."
    ) from error
  return read


def decoding_settings(generation_config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the keys of generation_config.json that change decoding."""
  return {
    key: value
    for key, value in generation_config.items()
    if key not in _NOT_DECODING and value is not None
  }


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
