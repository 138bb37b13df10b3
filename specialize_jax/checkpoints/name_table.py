"""One table of names, read in both directions.

A tensor is called by its path in our tree with listed layers, such as
`encoder/layers_3/attention/query/kernel`, which is also its name in T5X. A
row of the table says what Hugging Face calls it, and whether it lies there
transposed (a PyTorch weight is `[out, in]`, a kernel `[in, out]`).

Other formats are a `Source`: names, shapes, and one tensor at a time, so that
never more than one leaf of our tree is on the host in full.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from specialize_jax import errors
from specialize_jax.parallel import placement
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

EMBEDDING = "token_embedder/embedding"
HEAD = "decoder/logits_dense/kernel"

_VOCABULARY_AXIS = {EMBEDDING: 0, HEAD: 1}
_MAX_NAMES = 8  # of each kind that an error lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One tensor of the model, or one of each layer.

  Attributes:
    ours: our name, with `{layer}` where it belongs to a layer.
    hugging_face: that of `transformers`, with the same `{layer}`.
    transposed: whether the other tensor is ours transposed.
    needs: the feed-forward block or head that has it: "gated", "plain",
      "untied", or "" for every model.
  """

  ours: str
  hugging_face: str
  transposed: bool = False
  needs: str = ""


def _norm(ours: str, hugging_face: str) -> Row:
  return Row(ours=f"{ours}/scale", hugging_face=f"{hugging_face}.weight")


def _kernel(ours: str, hugging_face: str, needs: str = "") -> Row:
  return Row(
    ours=f"{ours}/kernel",
    hugging_face=f"{hugging_face}.weight",
    transposed=True,
    needs=needs,
  )


def _attention(ours: str, hugging_face: str) -> tuple[Row, ...]:
  parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
  return tuple(
    _kernel(f"{ours}/{our_part}", f"{hugging_face}.{part}")
    for our_part, part in parts.items()
  )


def _mlp(ours: str, hugging_face: str) -> tuple[Row, ...]:
  parts = {"wi": "plain", "wi_0": "gated", "wi_1": "gated", "wo": ""}
  return tuple(
    _kernel(f"{ours}/{part}", f"{hugging_face}.{part}", needs)
    for part, needs in parts.items()
  )


def _table(stack: str) -> Row:
  return Row(
    ours=f"{stack}/relpos_bias/rel_embedding",
    hugging_face=(
      f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ),
    transposed=True,
  )


_ENCODER, _DECODER = "encoder/layers_{layer}", "decoder/layers_{layer}"
_ENCODER_BLOCK = "encoder.block.{layer}.layer"
_DECODER_BLOCK = "decoder.block.{layer}.layer"

ROWS: tuple[Row, ...] = (
  Row(ours="token_embedder/embedding", hugging_face="shared.weight"),
  _table("encoder"),
  _norm(
    f"{_ENCODER}/pre_attention_layer_norm", f"{_ENCODER_BLOCK}.0.layer_norm"
  ),
  *_attention(f"{_ENCODER}/attention", f"{_ENCODER_BLOCK}.0.SelfAttention"),
  _norm(f"{_ENCODER}/pre_mlp_layer_norm", f"{_ENCODER_BLOCK}.1.layer_norm"),
  *_mlp(f"{_ENCODER}/mlp", f"{_ENCODER_BLOCK}.1.DenseReluDense"),
  _norm("encoder/encoder_norm", "encoder.final_layer_norm"),
  _table("decoder"),
  _norm(
    f"{_DECODER}/pre_self_attention_layer_norm",
    f"{_DECODER_BLOCK}.0.layer_norm",
  ),
  *_attention(
    f"{_DECODER}/self_attention", f"{_DECODER_BLOCK}.0.SelfAttention"
  ),
  _norm(
    f"{_DECODER}/pre_cross_attention_layer_norm",
    f"{_DECODER_BLOCK}.1.layer_norm",
  ),
  *_attention(
    f"{_DECODER}/encoder_decoder_attention",
    f"{_DECODER_BLOCK}.1.EncDecAttention",
  ),
  _norm(f"{_DECODER}/pre_mlp_layer_norm", f"{_DECODER_BLOCK}.2.layer_norm"),
  *_mlp(f"{_DECODER}/mlp", f"{_DECODER_BLOCK}.2.DenseReluDense"),
  _norm("decoder/decoder_norm", "decoder.final_layer_norm"),
  _kernel("decoder/logits_dense", "lm_head", needs="untied"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """A row of the table for one layer of one model.

  Attributes:
    name: ours, layers listed.
    hugging_face: that of `transformers`.
    transposed: whether the other tensor is ours transposed.
    shape: ours.
  """

  name: str
  hugging_face: str
  transposed: bool
  shape: tuple[int, ...]


def tensors(config: t5_config.T5Config) -> tuple[Tensor, ...]:
  """Gives every tensor of a model, in the order of the table."""
  shapes = {
    name: leaf.shape
    for name, leaf in _flat(
      abstract_params(dataclasses.replace(config, scan_layers=False))
    ).items()
  }
  kinds = {
    "",
    "gated" if len(config.mlp_activations) > 1 else "plain",
    "tied" if config.tied_head else "untied",
  }
  named = []
  for row in ROWS:
    if row.needs not in kinds:
      continue
    depth = 1
    if "{layer}" in row.ours:
      is_encoder = row.ours.startswith("encoder/")
      depth = (
        config.num_encoder_layers if is_encoder else config.num_decoder_layers
      )
    for layer in range(depth):
      name = row.ours.format(layer=layer)
      named.append(
        Tensor(
          name=name,
          hugging_face=row.hugging_face.format(layer=layer),
          transposed=row.transposed,
          shape=shapes.pop(name),
        )
      )
  assert not shapes, f"in no row of the table: {sorted(shapes)}"
  return tuple(named)


def abstract_params(
  config: t5_config.T5Config, placed: placement.Placement | None = None
) -> Any:
  """Gives the parameters' tree as shapes and dtypes, without axis metadata.

  Args:
    config: the model.
    placed: the mesh whose shardings the leaves have; none if None.
  """
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  model = network.EncoderDecoder(config)
  variables = jax.eval_shape(
    lambda rng, tokens: model.init(rng, tokens, tokens, deterministic=True),
    jax.random.key(0),
    tokens,
  )
  boxed = variables["params"]
  params = nn.meta.unbox(boxed)
  if placed is None:
    return params
  return jax.tree.map(
    lambda leaf, sharding: leaf.update(sharding=sharding),
    params,
    placed.tree_shardings(boxed),
  )


class Source(Protocol):
  """A checkpoint of another format, in our names and orientation."""

  @property
  def where(self) -> str:
    """The path or name that the user gave, for errors."""

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor, layers listed; what is unknown included."""

  def read(self, name: str) -> np.ndarray:
    """Gives one tensor."""


def assemble(
  config: t5_config.T5Config, source: Source, *, shardings: Any = None
) -> Any:
  """Gives our parameters, read leaf by leaf from a source.

  A vocabulary shorter than the model's is filled up with the row of the
  padding token, which a trained model never emits; zeros would not do, since
  logits trained with a z-loss lie below 0.

  Args:
    config: the model; its `param_dtype` and `scan_layers` shape the tree.
    source: where tensors come from.
    shardings: tree of `jax.sharding.Sharding`, one for each parameter; None
      puts all of them on the default device.

  Raises:
    UserError: tensors are missing, unexpected or of another shape.
  """
  check(config, source)
  placed = {}
  flat_shardings = None if shardings is None else _flat(shardings)
  for name, leaf in _flat(abstract_params(config)).items():
    host = _read_leaf(config, source, name, leaf)
    if flat_shardings is None:
      placed[name] = jnp.asarray(host)
    else:
      placed[name] = jax.make_array_from_callback(
        leaf.shape, flat_shardings[name], lambda index, host=host: host[index]
      )
  return flax.traverse_util.unflatten_dict(placed, sep="/")


def disassemble(
  config: t5_config.T5Config, params: Any
) -> Iterator[tuple[Tensor, np.ndarray]]:
  """Gives every tensor of the table with its value, one at a time."""
  flat = _flat(nn.meta.unbox(params))
  for tensor in tensors(config):
    leaf, layer = _leaf_of(tensor.name, config)
    value = flat[leaf] if layer is None else flat[leaf][layer]
    yield tensor, np.asarray(jax.device_get(value))


def check(config: t5_config.T5Config, source: Source) -> None:
  """Raises UserError with the names of all tensors that do not fit."""
  expected = {tensor.name: tensor.shape for tensor in tensors(config)}
  found = dict(source.shapes)
  problems = [
    _listed("missing", expected.keys() - found.keys()),
    _listed("unexpected", found.keys() - expected.keys()),
    _listed(
      "of another shape",
      {
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and not _fits(name, found[name], shape)
      },
    ),
  ]
  if any(problems):
    raise errors.UserError(
      f"{source.where} is not a checkpoint of this model: "
      f"{'; '.join(filter(None, problems))}. Give the model (its gin file) "
      "that the checkpoint was made with."
    )


def _fits(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
  axis = _VOCABULARY_AXIS.get(name)
  if axis is None or len(found) != len(expected):
    return found == expected
  return found[axis] <= expected[axis] and (
    found[1 - axis] == expected[1 - axis]
  )


def _read_leaf(
  config: t5_config.T5Config,
  source: Source,
  name: str,
  leaf: jax.ShapeDtypeStruct,
) -> np.ndarray:
  """Gives a leaf on the host, stacked if layers are scanned."""
  stacked = name.replace("/layers/", "/layers_{}/")
  if stacked == name:
    value = source.read(name).astype(leaf.dtype)
    axis = _VOCABULARY_AXIS.get(name)
    if axis is not None and value.shape[axis] < config.vocab_size:
      missing = config.vocab_size - value.shape[axis]
      padding = np.take(value, [t5_config.PAD_ID] * missing, axis=axis)
      value = np.concatenate([value, padding], axis=axis)
    return value
  host = np.empty(leaf.shape, leaf.dtype)
  for layer in range(leaf.shape[0]):
    host[layer] = source.read(stacked.format(layer))
  return host


def _leaf_of(name: str, config: t5_config.T5Config) -> tuple[str, int | None]:
  """Gives the leaf that holds a tensor, and its index there if stacked."""
  parts = name.split("/")
  if not config.scan_layers or not parts[1].startswith("layers_"):
    return name, None
  layer = int(parts[1].removeprefix("layers_"))
  return "/".join([parts[0], "layers", *parts[2:]]), layer


def _flat(tree: Any) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(tree, sep="/")


def _listed(kind: str, names: Any) -> str:
  names = sorted(names)
  if not names:
    return ""
  more = len(names) - _MAX_NAMES
  shown = ", ".join(names[:_MAX_NAMES])
  return f"{kind}: {shown}" + (f" and {more} more" if more > 0 else "")


def num_bytes(tensor: Tensor, dtype: Any) -> int:
  """Gives the size of a tensor in a file."""
  return math.prod(tensor.shape) * np.dtype(dtype).itemsize
