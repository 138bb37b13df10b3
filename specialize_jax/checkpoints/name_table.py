"""The table of tensor names, used in both directions.

A tensor's name is its path in our tree with listed layers, such as
`encoder/layers_3/attention/query/kernel`, which is also its name in T5X. A row
of the table has its name in Hugging Face, and whether it is transposed there (a
PyTorch weight is `[out, in]`, a kernel `[in, out]`).

Other formats are a `Source` of names, shapes and tensors, which are read one at
a time, so that host memory need hold only one.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from specialize_jax import errors
from specialize_jax.checkpoints import sources, streaming
from specialize_jax.parallel import placement
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

_MAX_NAMES = 8  # of each kind that an error lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One tensor of the model, or one of each layer.

  Attributes:
    ours: our name, with `{layer}` where it belongs to a layer.
    hugging_face: the name in `transformers`, with the same `{layer}`; "" where
      its T5 has no such tensor.
    transposed: whether the tensor of `transformers` is ours transposed.
    needs: the kind of feed-forward block, head or bias that a model with this
      tensor has: "gated", "plain", "untied", "per_stack", "per_layer", or ""
      for every model.
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


def _tables(stack: str) -> tuple[Row, ...]:
  return (
    Row(
      ours=sources.table_name(stack),
      hugging_face=(
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
      ),
      transposed=True,
      needs="per_stack",
    ),
    Row(
      ours=f"{stack}/layers_{{layer}}/relpos_bias/rel_embedding",
      hugging_face="",
      needs="per_layer",
    ),
  )


_ENCODER, _DECODER = "encoder/layers_{layer}", "decoder/layers_{layer}"
_ENCODER_BLOCK = "encoder.block.{layer}.layer"
_DECODER_BLOCK = "decoder.block.{layer}.layer"

ROWS: tuple[Row, ...] = (
  Row(ours="token_embedder/embedding", hugging_face="shared.weight"),
  *_tables("encoder"),
  _norm(
    f"{_ENCODER}/pre_attention_layer_norm", f"{_ENCODER_BLOCK}.0.layer_norm"
  ),
  *_attention(f"{_ENCODER}/attention", f"{_ENCODER_BLOCK}.0.SelfAttention"),
  _norm(f"{_ENCODER}/pre_mlp_layer_norm", f"{_ENCODER_BLOCK}.1.layer_norm"),
  *_mlp(f"{_ENCODER}/mlp", f"{_ENCODER_BLOCK}.1.DenseReluDense"),
  _norm("encoder/encoder_norm", "encoder.final_layer_norm"),
  *_tables("decoder"),
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
    name: our name, layers listed.
    hugging_face: the name in `transformers`; "" where its T5 has none.
    transposed: whether the tensor of `transformers` is ours transposed.
    shape: the shape of our tensor.
  """

  name: str
  hugging_face: str
  transposed: bool
  shape: tuple[int, ...]


@functools.lru_cache(maxsize=64)
def tensors(config: t5_config.T5Config) -> tuple[Tensor, ...]:
  """Returns every tensor of a model, in the order of the table."""
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
    config.relative_bias,
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
  """Returns the tree of a model's parameters as shapes and dtypes.

  Args:
    config: the model.
    placed: the mesh over which they are sharded; None for no shardings.

  Returns:
    A tree of `jax.ShapeDtypeStruct`, without axis metadata.
  """
  boxed = network.boxed_shapes(network.EncoderDecoder(config))
  params = network.unboxed(boxed)
  if placed is None:
    return params
  return jax.tree.map(
    lambda leaf, sharding: leaf.update(sharding=sharding),
    params,
    placed.tree_shardings(boxed),
  )


def assemble(
  config: t5_config.T5Config, source: sources.Source, *, shardings: Any = None
) -> Any:
  """Builds our parameters leaf by leaf from a source.

  A vocabulary shorter than the model's is padded with copies of the padding
  token's row, which a trained model never emits. Zeros would be wrong, since
  the logits of a model trained with a z-loss are negative.

  Args:
    config: the model, which determines the structure and dtypes of the tree.
    source: the tensors.
    shardings: tree of `jax.sharding.Sharding`, one for each parameter; None
      to put all of them on the default device.

  Returns:
    The tree of parameters.

  Raises:
    UserError: tensors are missing, unexpected or of another shape.
  """
  placed = {}
  flat_shardings = None if shardings is None else _flat(shardings)
  for name, leaf in _flat(streamed(config, source)).items():
    host = leaf.whole()
    if flat_shardings is None:
      placed[name] = jnp.asarray(host)
    else:
      placed[name] = jax.make_array_from_callback(
        leaf.shape, flat_shardings[name], lambda index, host=host: host[index]
      )
  return flax.traverse_util.unflatten_dict(placed, sep="/")


def streamed(config: t5_config.T5Config, source: sources.Source) -> Any:
  """Returns our parameters as `streaming.StreamedArray`s, without reading.

  Args:
    config: the model, as in `assemble`.
    source: the tensors.

  Raises:
    UserError: tensors are missing, unexpected or of another shape.
  """
  if config.relative_bias == "per_layer":
    source = sources.TablesInLayers(source)
  check(config, source)
  leaves = {
    name: streaming.StreamedArray(
      shape=leaf.shape,
      dtype=np.dtype(leaf.dtype),
      read=functools.partial(_pieces, config, source, name, leaf),
      rows_of_piece=1 if sources.STACKED in name else leaf.shape[0],
    )
    for name, leaf in _flat(abstract_params(config)).items()
  }
  return flax.traverse_util.unflatten_dict(leaves, sep="/")


def read(
  config: t5_config.T5Config, source: sources.Source, name: str
) -> np.ndarray:
  """Reads one tensor, with its vocabulary padded as in `assemble`."""
  value = source.read(name)
  axis = sources.VOCABULARY_AXIS.get(name)
  if axis is not None and value.shape[axis] < config.vocab_size:
    missing = config.vocab_size - value.shape[axis]
    padding = np.take(value, [config.pad_id] * missing, axis=axis)
    value = np.concatenate([value, padding], axis=axis)
  return value


def cast(
  value: np.ndarray, dtype: np.dtype, *, name: str, where: str
) -> np.ndarray:
  """Returns a tensor in another dtype.

  Args:
    value: the tensor.
    dtype: dtype of the result.
    name: the tensor's name, for the error.
    where: the checkpoint's name, for the error.

  Raises:
    UserError: a value is not finite, or too large for the dtype.
  """
  finite = np.isfinite(value)
  if not finite.all():
    raise errors.UserError(
      f"{where}: {name} holds {np.count_nonzero(~finite):,} values that are NaN"
      " or infinite: the file is damaged or its training has diverged; take "
      "another checkpoint."
    )
  if value.dtype == dtype:
    return value
  with np.errstate(over="ignore"):  # said below, by name
    result = value.astype(dtype)
  lost = ~np.isfinite(result)
  if lost.any():
    raise errors.UserError(
      f"{where}: {name} holds {float(value[lost][0]):.6g}, which is too large "
      f"for {np.dtype(dtype).name} and would become infinite "
      f"({np.count_nonzero(lost):,} values of it): take float32 or bfloat16."
    )
  return result


def check(config: t5_config.T5Config, source: sources.Source) -> None:
  """Raises UserError with the names of all tensors that do not fit."""
  expected = {tensor.name: tensor.shape for tensor in tensors(config)}
  found = dict(source.shapes)
  if config.relative_bias == "per_stack" and (
    sources.table_name("decoder", layer=0) in found
  ):
    raise errors.UserError(
      f"{source.where} has a relative position table of its own in each layer "
      "(T5X's scalable_t5, trained so), and T5Config.relative_bias is "
      "'per_stack': set it to 'per_layer'."
    )
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
  axis = sources.VOCABULARY_AXIS.get(name)
  if axis is None or len(found) != len(expected):
    return found == expected
  return found[axis] <= expected[axis] and (
    found[1 - axis] == expected[1 - axis]
  )


def _pieces(
  config: t5_config.T5Config,
  source: sources.Source,
  name: str,
  leaf: jax.ShapeDtypeStruct,
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields a leaf whole, or layer by layer if layers are stacked."""
  if sources.STACKED not in name:
    whole = read(config, source, name)
    yield 0, cast(whole, leaf.dtype, name=name, where=source.where)
    return
  for layer in range(leaf.shape[0]):
    of_layer = name.replace(sources.STACKED, f"/layers_{layer}/", 1)
    one = source.read(of_layer)[None]
    yield layer, cast(one, leaf.dtype, name=of_layer, where=source.where)


def _flat(tree: Any) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(tree, sep="/")


def _listed(kind: str, names: Any) -> str:
  names = sorted(names)
  if not names:
    return ""
  more = len(names) - _MAX_NAMES
  shown = ", ".join(names[:_MAX_NAMES])
  return f"{kind}: {shown}" + (f" and {more} more" if more > 0 else "")
