"""The number of floating point operations of the network's matmuls."""

from specialize_jax.t5 import config as t5_config


def forward_flops(
  config: t5_config.T5Config,
  *,
  batch_size: int,
  input_length: int,
  target_length: int,
) -> float:
  """Returns the floating point operations of a forward pass with the head.

  A multiplication and an addition are two operations. All positions are
  counted, including padding, and attention over all pairs. The backward pass
  has twice as many; recomputation by remat is not included.

  Example: an encoder layer of width D, with H heads of width K and a gated
  feed-forward block of width F, has `2 (4 D H K + 3 D F)` operations per
  position, and `4 S H K` for attention's scores and weighted sums.

  Args:
    config: the network.
    batch_size: number of rows.
    input_length: length of encoder rows, S, in tokens.
    target_length: length of decoder rows in tokens.
  """
  width, heads = config.embed_dim, config.joined_kv_dim
  inputs, targets = batch_size * input_length, batch_size * target_length
  kernel = 2 * width * heads
  mlp = 2 * width * config.mlp_dim * (len(config.mlp_activations) + 1)
  encoder = inputs * (4 * kernel + mlp + 4 * input_length * heads)
  decoder = (
    targets * (6 * kernel + mlp + 4 * (target_length + input_length) * heads)
    + inputs * 2 * kernel
  )
  head = targets * 2 * width * config.vocab_size
  return float(
    config.num_encoder_layers * encoder
    + config.num_decoder_layers * decoder
    + head
  )
