"""T5 as a Flax module: the forward pass, and single decoding steps.

Padding never changes the output at other positions, the output of a packed row
equals that of its examples, and decoding steps with a cache equal the whole
forward pass.
"""

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from specialize_jax.t5 import attention, layers, masks, stacks
from specialize_jax.t5 import cache as caches
from specialize_jax.t5 import config as t5_config


class DecodeCache(flax.struct.PyTreeNode):
  """The state of decoding.

  Attributes:
    index: int32 scalar, how many positions have been decoded.
    past: self-attention's keys and values in each layer, zeros from `index` on:
      B * N rows of length T if every input has N independent continuations, or
      B rows of length T * W if it has W beams.
    cross: cross-attention's keys and values in each layer, B rows of length S.
    cross_mask: bool `[B, 1, 1, S]`.
    biases_HT: float32 relative position biases, by distance back from 0 to
      T - 1: one for all layers, or one for each.
  """

  index: jax.Array
  past: tuple[caches.CachedKeysValues, ...]
  cross: tuple[caches.CachedKeysValues, ...]
  cross_mask: jax.Array
  biases_HT: tuple[jax.Array, ...]


class EncoderDecoder(nn.Module):
  """The whole network.

  Token ids are int32, `T5Config.pad_id` at padding. Segment ids are 0 for
  padding and otherwise identify the example of a packed row; without them a row
  is one example. There are no position ids: segments are contiguous, so
  relative positions within a segment are differences of indices.

  With `deterministic=False` dropout draws from the `dropout` collection:
  `model.apply({"params": params}, ..., rngs={"dropout": dropout_rng})`.
  """

  config: t5_config.T5Config

  def setup(self) -> None:
    """Declares the shared embedding and the two stacks."""
    self.token_embedder = layers.TokenEmbedder(self.config)
    self.encoder = stacks.Encoder(self.config)
    self.decoder = stacks.Decoder(self.config)

  def __call__(
    self,
    encoder_input_tokens_BS: jax.Array,
    decoder_input_tokens_BT: jax.Array,
    *,
    encoder_segment_ids_BS: jax.Array | None = None,
    decoder_segment_ids_BT: jax.Array | None = None,
    deterministic: bool,
  ) -> jax.Array:
    """Computes the logits, float32 `[B, T, V]`."""
    return self.logits(
      self.hidden(
        encoder_input_tokens_BS,
        decoder_input_tokens_BT,
        encoder_segment_ids_BS=encoder_segment_ids_BS,
        decoder_segment_ids_BT=decoder_segment_ids_BT,
        deterministic=deterministic,
      )
    )

  def hidden(
    self,
    encoder_input_tokens_BS: jax.Array,
    decoder_input_tokens_BT: jax.Array,
    *,
    encoder_segment_ids_BS: jax.Array | None = None,
    decoder_segment_ids_BT: jax.Array | None = None,
    deterministic: bool,
  ) -> jax.Array:
    """Computes the hidden states before the head, `[B, T, D]`."""
    encoded_BSD = self.encode(
      encoder_input_tokens_BS,
      encoder_segment_ids_BS=encoder_segment_ids_BS,
      deterministic=deterministic,
    )
    return self.decode(
      encoded_BSD,
      encoder_input_tokens_BS,
      decoder_input_tokens_BT,
      encoder_segment_ids_BS=encoder_segment_ids_BS,
      decoder_segment_ids_BT=decoder_segment_ids_BT,
      deterministic=deterministic,
    )

  def encode(
    self,
    encoder_input_tokens_BS: jax.Array,
    *,
    encoder_segment_ids_BS: jax.Array | None = None,
    deterministic: bool,
  ) -> jax.Array:
    """Computes the encoder's output, `[B, S, D]`, arbitrary at padding."""
    segment_ids_BS = self._segments(
      encoder_input_tokens_BS, encoder_segment_ids_BS
    )
    return self.encoder(
      self.token_embedder(encoder_input_tokens_BS),
      masks.encoder(segment_ids_BS),
      deterministic=deterministic,
    )

  def decode(
    self,
    encoded_BSD: jax.Array,
    encoder_input_tokens_BS: jax.Array,
    decoder_input_tokens_BT: jax.Array,
    *,
    encoder_segment_ids_BS: jax.Array | None = None,
    decoder_segment_ids_BT: jax.Array | None = None,
    deterministic: bool,
  ) -> jax.Array:
    """Computes the decoder's output after the final norm, `[B, T, D]`.

    `decoder_input_tokens_BT` are the targets shifted right, beginning with
    `T5Config.decoder_start_id`.
    """
    segment_ids_BS = self._segments(
      encoder_input_tokens_BS, encoder_segment_ids_BS
    )
    return self.decoder(
      self.token_embedder(decoder_input_tokens_BT),
      encoded_BSD,
      (
        masks.decoder(decoder_segment_ids_BT),
        masks.cross(segment_ids_BS, decoder_segment_ids_BT),
      ),
      deterministic=deterministic,
    )

  def logits(self, hidden_BTD: jax.Array) -> jax.Array:
    """Applies the tied or untied head; returns float32 logits `[B, T, V]`."""
    if self.config.tied_head:
      logits_BTV = self.token_embedder.logits(hidden_BTD)
    else:
      logits_BTV = self.decoder.logits_dense(hidden_BTD)
    return nn.with_logical_constraint(logits_BTV, ("batch", "length", "vocab"))

  def start_cache(
    self,
    encoded_BSD: jax.Array,
    encoder_input_tokens_BS: jax.Array,
    *,
    max_length: int,
    num_continuations: int = 1,
    num_beams: int = 1,
  ) -> DecodeCache:
    """Returns the cache before the first step, with cross-attention's part.

    Decoding does not support scanned layers: see `unrolled`.

    Args:
      encoded_BSD: The output of `encode`.
      encoder_input_tokens_BS: The encoder's input.
      max_length: T, the maximum number of positions to decode.
      num_continuations: N, the number of consecutive rows of `extend` for each
        input. They share the cross-attention cache.
      num_beams: W, the number of beams of `extend_beams` for each input.
    """
    decoder, batch_size = self.decoder, encoded_BSD.shape[0]
    empty = caches.CachedKeysValues.empty(
      self.config, batch_size * num_continuations, max_length * num_beams
    )
    return DecodeCache(
      index=jnp.zeros((), jnp.int32),
      past=tuple(empty for _ in decoder.layers),
      cross=tuple(
        layer.cross_keys_values(encoded_BSD).cached(self.config)
        for layer in decoder.layers
      ),
      cross_mask=masks.cross(
        self._segments(encoder_input_tokens_BS, None)
      ).mask(max_length, encoded_BSD.shape[1]),
      biases_HT=decoder.biases_by_distance(max_length),
    )

  def extend(
    self, cache: DecodeCache, tokens_BT: jax.Array
  ) -> tuple[jax.Array, DecodeCache]:
    """Decodes the next T positions, which are usually one.

    Args:
      cache: The result of `start_cache` or of the last step.
      tokens_BT: The tokens at these positions, in B * N rows.

    Returns:
      Hidden states `[B, T, D]` at these positions, like those of `decode`, and
      the updated cache.
    """
    num_new, max_length = tokens_BT.shape[1], cache.biases_HT[0].shape[1]
    query_T1 = cache.index + jnp.arange(num_new)[:, None]
    distance_TS = query_T1 - jnp.arange(max_length)[None, :]
    biases_HTS = tuple(
      bias_HT[:, jnp.maximum(distance_TS, 0)] for bias_HT in cache.biases_HT
    )
    self_mask = (distance_TS >= 0)[None, None]
    hidden_BTD, past = self._extended(
      cache, tokens_BT, cache.index, self_mask, biases_HTS
    )
    return hidden_BTD, cache.replace(index=cache.index + num_new, past=past)

  def extend_beams(
    self, cache: DecodeCache, tokens_BW: jax.Array, ancestors_BWT: jax.Array
  ) -> tuple[jax.Array, DecodeCache]:
    """Decodes the next position of W beams.

    All beams of an input share one cache, which is never reordered: a mask
    selects the past of each beam.

    Args:
      cache: The result of `start_cache` or of the last step.
      tokens_BW: Each beam's token at this position.
      ancestors_BWT: int32, the beam at position t from which each beam
        continues; at this position, the beam itself.

    Returns:
      Hidden states `[B, W, D]`, and the updated cache.
    """
    batch_size, num_beams, max_length = ancestors_BWT.shape
    own_BWTW = (
      ancestors_BWT[..., None] == jnp.arange(num_beams)[None, None, None]
    )
    own_BWS = own_BWTW.reshape(batch_size, num_beams, max_length * num_beams)
    distance_S = jnp.repeat(cache.index - jnp.arange(max_length), num_beams)
    biases_H1S = tuple(
      bias_HT[:, jnp.maximum(distance_S, 0)][:, None]
      for bias_HT in cache.biases_HT
    )
    self_mask = (own_BWS & (distance_S >= 0)[None, None])[:, None]
    hidden_BWD, past = self._extended(
      cache, tokens_BW, cache.index * num_beams, self_mask, biases_H1S
    )
    return hidden_BWD, cache.replace(index=cache.index + 1, past=past)

  def _extended(
    self,
    cache: DecodeCache,
    tokens_BT: jax.Array,
    start: jax.Array,
    self_mask: jax.Array,
    biases_HTS: tuple[jax.Array, ...],
  ) -> tuple[jax.Array, tuple[caches.CachedKeysValues, ...]]:
    """Runs the layers at new positions, and caches them from `start` on."""
    hidden_BTD = self.token_embedder(tokens_BT)
    if len(biases_HTS) == 1:
      biases_HTS *= len(self.decoder.layers)
    past = []
    for layer, bias_HTS, *layer_cache in zip(
      self.decoder.layers, biases_HTS, cache.past, cache.cross, strict=True
    ):
      hidden_BTD, seen = layer.extend(
        hidden_BTD,
        tuple(layer_cache),
        start,
        (
          attention.Scope(mask=self_mask, bias_HTS=bias_HTS),
          attention.Scope(mask=cache.cross_mask),
        ),
      )
      past.append(seen)
    return self.decoder.decoder_norm(hidden_BTD), tuple(past)

  def _segments(
    self, tokens_BS: jax.Array, segment_ids_BS: jax.Array | None
  ) -> jax.Array:
    if segment_ids_BS is not None:
      return segment_ids_BS
    return masks.segments_of_tokens(tokens_BS, self.config.pad_id)


Params = Mapping[str, "jax.Array | Params"]


@functools.lru_cache(maxsize=64)
def boxed_shapes(model: EncoderDecoder) -> Params:
  """Returns the shapes of a network's parameters with their logical axes.

  A network is traced once, which takes seconds if its layers are listed.

  Args:
    model: the network.

  Returns:
    A tree of `nn.LogicallyPartitioned` boxes of `jax.ShapeDtypeStruct`, which
    all callers share: do not change it in place.
  """

  def init() -> Params:
    tokens = jnp.ones((1, 1), jnp.int32)
    return model.init(jax.random.key(0), tokens, tokens, deterministic=True)

  return jax.eval_shape(init)["params"]


def unboxed(boxed: Params) -> Params:
  """Returns a tree without its `nn.LogicallyPartitioned` boxes.

  Within a mesh, `nn.meta.unbox` would also constrain the sharding of each leaf,
  which is not possible for abstract arrays.
  """

  def is_box(node: object) -> bool:
    return isinstance(node, nn.LogicallyPartitioned)

  return jax.tree.map(
    lambda leaf: leaf.value if is_box(leaf) else leaf, boxed, is_leaf=is_box
  )


def output_kernel(params: Params) -> jax.Array:
  """Returns the head's kernel `[D, V]`, tied or not, in the parameters' dtype.

  `hidden_BTD @ output_kernel(params)` are the logits: the kernel of a tied head
  includes the factor `D ** -0.5`.

  Args:
    params: The network's parameters, with or without logical axis metadata.
  """
  params = nn.meta.unbox(params)
  if "logits_dense" in params["decoder"]:
    return params["decoder"]["logits_dense"]["kernel"]
  embedding_VD = params["token_embedder"]["embedding"]
  # In float32: in bfloat16 the factor itself would be off by 0.1 %, all logits
  # by as much in one direction.
  dtype = embedding_VD.dtype
  dtype = jnp.float64 if dtype == jnp.float64 else jnp.float32
  scaled_VD = embedding_VD.astype(dtype) * embedding_VD.shape[1] ** -0.5
  return scaled_VD.astype(embedding_VD.dtype).T


def unrolled(
  model: EncoderDecoder, params: Params
) -> tuple[EncoderDecoder, Params]:
  """Returns the same network with a list of layers instead of scanned stacks.

  In decoding, each layer's cache is then a separate array that is updated in
  place; a scan would copy all of them at every step.
  """
  params = nn.meta.unbox(params)
  config = model.config
  if not config.scan_layers:
    return model, params
  config = dataclasses.replace(config, scan_layers=False)
  return EncoderDecoder(config), {
    **params,
    "encoder": _unstacked(params["encoder"], config.num_encoder_layers),
    "decoder": _unstacked(params["decoder"], config.num_decoder_layers),
  }


def _unstacked(stack_params: Params, num_layers: int) -> Params:
  rest = {k: v for k, v in stack_params.items() if k != "layers"}
  listed = {
    f"layers_{index}": jax.tree.map(
      lambda leaf, i=index: leaf[i], stack_params["layers"]
    )
    for index in range(num_layers)
  }
  return rest | listed
