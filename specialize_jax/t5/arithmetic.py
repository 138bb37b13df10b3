"""How many operations the network's matrix products take."""

from specialize_jax.t5 import config as t5_config


def forward_flops(
  config: t5_config.T5Config,
  *,
  batch_size: int,
  input_length: int,
  target_length: int,
) -> float:
  """Gives the floating point operations of one forward pass, head included.

  A multiplication and an addition are two. Every position of every row is
  counted, padding too, and attention over all pairs, as it is computed. The
  backward pass takes twice as many; what remat computes again is not counted.

  Example: an encoder layer of width D, heads of H K together and feed-forward
  of F takes `2 (4 D H K + 3 D F)` a position with a gated block, and
  `4 S H K` for the scores and sums of its attention.
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
