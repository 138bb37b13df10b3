"""The encoder's and the decoder's layers, and the two stacks of them.

A stack is one scanned layer with stacked parameters (`layers`), or a list of
layers (`layers_0`, `layers_1`, ... as in T5X), by `T5Config.scan_layers`.
Its relative position bias is computed once, outside of the layers, unless
`T5Config.relative_bias` says that every layer has its own table.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from specialize_jax.t5 import (
  attend_tpu,
  attention,
  cache,
  layers,
  masks,
  relative_position,
)
from specialize_jax.t5 import config as t5_config

# The TPU's attention kernel is not a matmul to JAX: what it returns is saved by
# name.
_ATTENDED = jax.checkpoint_policies.save_only_these_names(*attend_tpu.RESIDUALS)
_MATMULS = {
  "full": jax.checkpoint_policies.nothing_saveable,
  "lean": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "dots": jax.checkpoint_policies.dots_saveable,
}


_Memory = attention.KeysValues | cache.CachedKeysValues


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each normed before and added after."""

  config: t5_config.T5Config

  def setup(self) -> None:
    """Declares the parts."""
    if self.config.relative_bias == "per_layer":
      self.relpos_bias = _bias(self.config, bidirectional=True)
    self.pre_attention_layer_norm = layers.RMSNorm(self.config)
    self.attention = attention.Attention(self.config)
    self.pre_mlp_layer_norm = layers.RMSNorm(self.config)
    self.mlp = layers.MlpBlock(self.config)
    self.dropout = layers.dropout(self.config)

  def __call__(
    self,
    hidden_BSD: jax.Array,
    scope: attention.Scope,
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Returns the next layer's input.

    Args:
      hidden_BSD: the residual stream.
      scope: which positions attend to each other, and the stack's bias; a
        layer with its own bias adds it.
      deterministic: whether dropout is off.
    """
    if self.config.relative_bias == "per_layer":
      scope = scope.with_bias(
        self.config, self.relpos_bias(), hidden_BSD.shape[1]
      )
    normed_BSD = self.pre_attention_layer_norm(hidden_BSD)
    attended_BSD = self.attention(
      normed_BSD,
      self.attention.keys_values(normed_BSD),
      scope,
      deterministic=deterministic,
    )
    hidden_BSD += self.dropout(attended_BSD, deterministic=deterministic)
    mixed_BSD = self.mlp(
      self.pre_mlp_layer_norm(hidden_BSD), deterministic=deterministic
    )
    hidden_BSD += self.dropout(mixed_BSD, deterministic=deterministic)
    return nn.with_logical_constraint(hidden_BSD, ("batch", "length", "embed"))


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention and feed-forward."""

  config: t5_config.T5Config

  def setup(self) -> None:
    """Declares the parts."""
    if self.config.relative_bias == "per_layer":
      self.relpos_bias = _bias(self.config, bidirectional=False)
    self.pre_self_attention_layer_norm = layers.RMSNorm(self.config)
    self.self_attention = attention.Attention(self.config)
    self.pre_cross_attention_layer_norm = layers.RMSNorm(self.config)
    self.encoder_decoder_attention = attention.Attention(self.config)
    self.pre_mlp_layer_norm = layers.RMSNorm(self.config)
    self.mlp = layers.MlpBlock(self.config)
    self.dropout = layers.dropout(self.config)

  def __call__(
    self,
    hidden_BTD: jax.Array,
    encoded_BSD: jax.Array | layers.Shared,
    scopes: tuple[attention.Scope, attention.Scope],
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Returns the next layer's input.

    Args:
      hidden_BTD: the residual stream.
      encoded_BSD: the encoder's output.
      scopes: the scope of self-attention, with the stack's bias, and that of
        cross-attention; a layer with its own bias adds it.
      deterministic: whether dropout is off.
    """
    self_scope, cross_scope = scopes
    if self.config.relative_bias == "per_layer":
      self_scope = self_scope.with_bias(
        self.config, self.relpos_bias(), hidden_BTD.shape[1]
      )
    normed_BTD = self.pre_self_attention_layer_norm(hidden_BTD)
    return self._layer(
      hidden_BTD,
      normed_BTD,
      (
        self.self_attention.keys_values(normed_BTD),
        self.encoder_decoder_attention.keys_values(encoded_BSD),
      ),
      (self_scope, cross_scope),
      deterministic=deterministic,
    )

  def cross_keys_values(self, encoded_BSD: jax.Array) -> attention.KeysValues:
    """Computes cross-attention's keys and values, the same at every step."""
    return self.encoder_decoder_attention.keys_values(encoded_BSD)

  def extend(
    self,
    hidden_BTD: jax.Array,
    cached: tuple[cache.CachedKeysValues, cache.CachedKeysValues],
    index: jax.Array,
    scopes: tuple[attention.Scope, attention.Scope],
  ) -> tuple[jax.Array, cache.CachedKeysValues]:
    """Returns the next layer's input at new positions, and its new cache.

    Args:
      hidden_BTD: the new positions.
      cached: self and cross keys and values; the former of the longest length.
      index: int32 scalar, the first new position.
      scopes: self and cross scope of the new positions, over the whole cache.
    """
    normed_BTD = self.pre_self_attention_layer_norm(hidden_BTD)
    past, cross = cached
    new = self.self_attention.keys_values(normed_BTD).cached(self.config)
    seen = past.updated(new, index)
    hidden_BTD = self._layer(
      hidden_BTD,
      normed_BTD,
      (seen, cross),
      scopes,
      deterministic=True,
    )
    return hidden_BTD, seen

  def _layer(
    self,
    hidden_BTD: jax.Array,
    normed_BTD: jax.Array,
    memory: tuple[_Memory, _Memory],
    scopes: tuple[attention.Scope, attention.Scope],
    *,
    deterministic: bool,
  ) -> jax.Array:
    seen, cross = memory
    self_scope, cross_scope = scopes
    attended_BTD = self.self_attention(
      normed_BTD, seen, self_scope, deterministic=deterministic
    )
    hidden_BTD += self.dropout(attended_BTD, deterministic=deterministic)
    # Continuations of one input are one row of queries, so that its keys and
    # values, most of the memory traffic of a step, are read only once.
    normed_BTD = self.pre_cross_attention_layer_norm(hidden_BTD)
    crossed_BTD = self.encoder_decoder_attention(
      normed_BTD.reshape(cross.num_rows, -1, normed_BTD.shape[-1]),
      cross,
      cross_scope,
      deterministic=deterministic,
    ).reshape(normed_BTD.shape)
    hidden_BTD += self.dropout(crossed_BTD, deterministic=deterministic)
    mixed_BTD = self.mlp(
      self.pre_mlp_layer_norm(hidden_BTD), deterministic=deterministic
    )
    hidden_BTD += self.dropout(mixed_BTD, deterministic=deterministic)
    return nn.with_logical_constraint(hidden_BTD, ("batch", "length", "embed"))


class Encoder(nn.Module):
  """All encoder layers and their final norm."""

  config: t5_config.T5Config

  def setup(self) -> None:
    """Declares the stack."""
    config = self.config
    if config.relative_bias == "per_stack":
      self.relpos_bias = _bias(config, bidirectional=True)
    self.layers = _stack(EncoderLayer, config, config.num_encoder_layers)
    self.encoder_norm = layers.RMSNorm(config)
    self.dropout = layers.dropout(config)

  def __call__(
    self, embedded_BSD: jax.Array, pairs: masks.Pairs, *, deterministic: bool
  ) -> jax.Array:
    """Returns the encoded input, `[B, S, D]`."""
    length = embedded_BSD.shape[1]
    scope = attention.Scope.of(
      self.config, pairs, (length, length), _shared_bias(self)
    )
    hidden_BSD = self.dropout(embedded_BSD, deterministic=deterministic)
    hidden_BSD = _run(
      self,
      lambda layer, hidden_BSD: layer(
        hidden_BSD, scope, deterministic=deterministic
      ),
      hidden_BSD,
      self.config.num_encoder_layers,
    )
    return self.dropout(
      self.encoder_norm(hidden_BSD), deterministic=deterministic
    )


class Decoder(nn.Module):
  """All decoder layers, their final norm, and the untied head if any."""

  config: t5_config.T5Config

  def setup(self) -> None:
    """Declares the stack."""
    config = self.config
    if config.relative_bias == "per_stack":
      self.relpos_bias = _bias(config, bidirectional=False)
    self.layers = _stack(DecoderLayer, config, config.num_decoder_layers)
    self.decoder_norm = layers.RMSNorm(config)
    self.dropout = layers.dropout(config)
    if not config.tied_head:
      self.logits_dense = layers.LogitsHead(config)

  def __call__(
    self,
    embedded_BTD: jax.Array,
    encoded_BSD: jax.Array,
    pairs: tuple[masks.Pairs, masks.Pairs],
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Returns the hidden states before the head, `[B, T, D]`.

    Args:
      embedded_BTD: the targets, shifted right.
      encoded_BSD: the encoder's output.
      pairs: the pairs of self-attention, and those of cross-attention.
      deterministic: whether dropout is off.
    """
    length = embedded_BTD.shape[1]
    self_pairs, cross_pairs = pairs
    scopes = (
      attention.Scope.of(
        self.config, self_pairs, (length, length), _shared_bias(self)
      ),
      attention.Scope.of(
        self.config, cross_pairs, (length, encoded_BSD.shape[1])
      ),
    )
    hidden_BTD = self.dropout(embedded_BTD, deterministic=deterministic)
    shared_BSD = layers.Shared.over(
      "joined_kv", encoded_BSD, num_columns=self.config.joined_kv_dim
    )
    hidden_BTD = _run(
      self,
      lambda layer, hidden_BTD: layer(
        hidden_BTD, shared_BSD, scopes, deterministic=deterministic
      ),
      hidden_BTD,
      self.config.num_decoder_layers,
    )
    return self.dropout(
      self.decoder_norm(hidden_BTD), deterministic=deterministic
    )

  def biases_by_distance(self, max_length: int) -> tuple[jax.Array, ...]:
    """Returns the relative position biases for decoding.

    Args:
      max_length: T.

    Returns:
      Float32 `[H, T]` by distance back from 0 to T - 1: one that all layers
      share, or one for each (listed) layer.
    """
    distance = -np.arange(max_length)
    if self.config.relative_bias == "per_stack":
      return (self.relpos_bias().by_distance(distance),)
    return tuple(
      layer.relpos_bias().by_distance(distance) for layer in self.layers
    )


def _bias(
  config: t5_config.T5Config, *, bidirectional: bool
) -> relative_position.RelativePositionBias:
  return relative_position.RelativePositionBias(
    bidirectional=bidirectional, config=config
  )


def _shared_bias(
  stack: Encoder | Decoder,
) -> relative_position.Bias | None:
  """Returns the bias of all layers of a stack; None if each has its own."""
  if stack.config.relative_bias == "per_layer":
    return None
  return stack.relpos_bias()


def _stack(
  layer_class: Callable[[t5_config.T5Config], nn.Module],
  config: t5_config.T5Config,
  num_layers: int,
) -> nn.Module | list[nn.Module]:
  if config.scan_layers:
    return layer_class(config)
  return [layer_class(config) for _ in range(num_layers)]


def _saveable(stack: Encoder | Decoder) -> Callable[..., bool]:
  """Returns the policy that says what the backward pass does not recompute."""
  policy = stack.config.remat_policy
  # `minimal` keeps the encoder's attention outputs alone. Targets are short:
  # to run the decoder's kernels again takes 1 % of a step, and to keep their
  # outputs takes 2 to 5 % of its memory.
  attends_once = {"dots": True, "minimal": isinstance(stack, Encoder)}
  if not attends_once.get(policy, False):
    return _MATMULS[policy]
  return jax.checkpoint_policies.save_from_both_policies(
    _MATMULS[policy], _ATTENDED
  )


def _run(
  stack: Encoder | Decoder,
  apply_layer: Callable[[nn.Module, jax.Array], jax.Array],
  hidden_BTD: jax.Array,
  num_layers: int,
) -> jax.Array:
  """Applies all layers to the residual stream, scanned or not."""
  config = stack.config
  if config.remat_policy != "none":
    apply_layer = nn.remat(
      apply_layer,
      policy=_saveable(stack),
      # Within a scan, common subexpressions of both passes cannot be merged.
      prevent_cse=not config.scan_layers,
    )
  if not config.scan_layers:
    for layer in stack.layers:
      hidden_BTD = apply_layer(layer, hidden_BTD)
    return hidden_BTD
  scanned = nn.scan(
    lambda layer, hidden_BTD, _: (apply_layer(layer, hidden_BTD), None),
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    length=num_layers,
    metadata_params={nn.PARTITION_NAME: "layers"},
  )
  hidden_BTD, _ = scanned(stack.layers, hidden_BTD, None)
  return hidden_BTD
