"""The parts every layer is made of: embedding, dense, norm, feed-forward.

Each parameter carries logical axis names, and each activation a logical
constraint, so that a mesh is chosen outside (`parallel/axis_rules.py`).
Parameters have T5X's names, shapes and initial distributions
(github.com/google-research/t5x: t5x/examples/t5/layers.py), so that a run
from scratch starts where T5X's would.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import products

Initializer = Callable[..., jax.Array]

# By T5X: kernels have variance 1 / fan_in, embeddings variance 1.
dense_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
mlp_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
embedding_init = nn.initializers.normal(stddev=1.0)


class Dense(nn.Module):
  """A matrix product without bias, in the compute dtype.

  Attributes:
    features: size of the output's last axis.
    kernel_axes: logical names of the kernel's two axes.
    config: gives the dtypes.
    kernel_init: the kernel's initial distribution.
  """

  features: int
  kernel_axes: tuple[str, str]
  config: t5_config.T5Config
  kernel_init: Initializer = dense_init

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Gives `inputs @ kernel`, `[..., features]`."""
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(self.kernel_init, self.kernel_axes),
      (inputs.shape[-1], self.features),
      self.config.param_dtype,
    )
    dtype = self.config.dtype
    # As it lies in memory: so it is cast before other devices gather it, and
    # its gradient is summed into the shard of each, in the compute dtype.
    kernel = nn.with_logical_constraint(kernel.astype(dtype), self.kernel_axes)
    return _multiply(inputs.astype(dtype), kernel)


@jax.custom_vjp
def _multiply(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """Gives `inputs @ kernel`; its backward pass turns the smaller array.

  A sum over positions is fast on a CPU when its left side is turned, and what
  is turned is computed in strides, all that XLA fuses into it included: so let
  it be the narrow norm before the feed-forward block, not GELU's derivative.
  """
  return jnp.dot(inputs, kernel)


def _multiply_forward(
  inputs: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  # The product itself, not `_multiply`: a remat policy sees it only as such.
  return jnp.dot(inputs, kernel), (inputs, kernel)


def _multiply_backward(
  residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  inputs, kernel = residuals
  positions = tuple(range(inputs.ndim - 1))

  def over_positions(left: jax.Array, right: jax.Array) -> jax.Array:
    return jax.lax.dot_general(left, right, ((positions, positions), ((), ())))

  if inputs.shape[-1] <= gradient.shape[-1]:
    kernel_gradient = over_positions(inputs, gradient)
  else:
    kernel_gradient = products.as_written(over_positions(gradient, inputs)).T
  return jnp.dot(gradient, kernel.T), kernel_gradient


_multiply.defvjp(_multiply_forward, _multiply_backward)


class RMSNorm(nn.Module):
  """T5's layer norm: divides by the root mean square, in float32.

  No mean is subtracted and no bias added. The scale, too, is applied in
  float32, and only the result rounded to the compute dtype.
  """

  config: t5_config.T5Config

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Gives `inputs / sqrt(mean(inputs ** 2) + epsilon) * scale`."""
    scale_D = self.param(
      "scale",
      nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
      (inputs.shape[-1],),
      self.config.param_dtype,
    ).astype(jnp.float32)
    inputs = inputs.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(inputs), axis=-1, keepdims=True)
    normalized = inputs * jax.lax.rsqrt(
      mean_square + self.config.layer_norm_epsilon
    )
    scale = jnp.expand_dims(scale_D, tuple(range(inputs.ndim - 1)))
    return (normalized * scale).astype(self.config.dtype)


class TokenEmbedder(nn.Module):
  """The one table that both stacks look tokens up in."""

  config: t5_config.T5Config

  def setup(self) -> None:
    """Declares the table."""
    self.embedding = self.param(
      "embedding",
      nn.with_logical_partitioning(embedding_init, ("vocab", "embed")),
      (self.config.vocab_size, self.config.embed_dim),
      self.config.param_dtype,
    )

  def __call__(self, tokens_BT: jax.Array) -> jax.Array:
    """Gives the rows of `tokens_BT`, `[B, T, D]`.

    A token outside the vocabulary gives NaN, which training stops at: a
    clipped index would train on the wrong word in silence.
    """
    rows_BTD = _rows(self.embedding, tokens_BT, self.config.dtype)
    return nn.with_logical_constraint(rows_BTD, ("batch", "length", "embed"))

  def logits(self, hidden_BTD: jax.Array) -> jax.Array:
    """Gives the tied head's float32 logits, scaled by `D ** -0.5`."""
    return _float32_product(
      hidden_BTD, self.embedding.T, self.config
    ) * jnp.float32(self.config.embed_dim**-0.5)


class LogitsHead(nn.Module):
  """The untied head, T5 1.1's own output kernel."""

  config: t5_config.T5Config

  @nn.compact
  def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
    """Gives float32 logits `[B, T, V]`."""
    kernel_DV = self.param(
      "kernel",
      nn.with_logical_partitioning(mlp_init, ("embed", "vocab")),
      (self.config.embed_dim, self.config.vocab_size),
      self.config.param_dtype,
    )
    return _float32_product(hidden_BTD, kernel_DV, self.config)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
  """Gives the tokens' rows in `dtype`, `[B, T, D]`.

  Where the table is cut along `embed`, devices gather it in `dtype`: a gather
  by tokens that are cut too, from a table that is, would be made by moving
  whole rows of all devices. The gradient of a row is summed in float32, since
  frequent tokens have thousands of terms.
  """
  whole_VD = nn.with_logical_constraint(table_VD.astype(dtype), ("vocab", None))
  return jnp.take(whole_VD, tokens_BT, axis=0, mode="fill")


def _rows_forward(
  table_VD: jax.Array, tokens_BT: jax.Array, dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _rows(table_VD, tokens_BT, dtype), (table_VD, tokens_BT)


def _rows_backward(
  dtype: str, residuals: tuple[jax.Array, jax.Array], rows_BTD: jax.Array
) -> tuple[jax.Array, None]:
  table_VD, tokens_BT = residuals
  sum_dtype = jnp.float64 if dtype == "float64" else jnp.float32
  sums_VD = jnp.zeros(table_VD.shape, sum_dtype)
  sums_VD = nn.with_logical_constraint(sums_VD, ("vocab", None))
  sums_VD = sums_VD.at[tokens_BT].add(rows_BTD.astype(sum_dtype), mode="drop")
  gradient_VD = nn.with_logical_constraint(
    sums_VD.astype(dtype), ("vocab", "embed")
  )
  return gradient_VD.astype(table_VD.dtype), None


_rows.defvjp(_rows_forward, _rows_backward)


def _float32_product(
  hidden_BTD: jax.Array, kernel_DV: jax.Array, config: t5_config.T5Config
) -> jax.Array:
  """Multiplies in the compute dtype, and sums and gives float32."""
  return jnp.dot(
    hidden_BTD.astype(config.dtype),
    kernel_DV.astype(config.dtype),
    preferred_element_type=jnp.float32,
  )


class MlpBlock(nn.Module):
  """The feed-forward block: one ReLU (1.0), or a gated GELU (1.1).

  GELU is its tanh approximation, as T5X and `gelu_new` have it.
  """

  config: t5_config.T5Config

  @nn.compact
  def __call__(
    self, inputs_BTD: jax.Array, *, deterministic: bool
  ) -> jax.Array:
    """Gives `wo(product of activation_i(wi_i(inputs)))`, `[B, T, D]`."""
    config = self.config
    gated = len(config.mlp_activations) > 1
    hidden_BTF = None
    for index, activation in enumerate(config.mlp_activations):
      projected_BTF = Dense(
        config.mlp_dim,
        ("embed", "mlp"),
        config,
        mlp_init,
        name=f"wi_{index}" if gated else "wi",
      )(inputs_BTD)
      factor_BTF = _activate(activation, projected_BTF)
      hidden_BTF = factor_BTF if index == 0 else hidden_BTF * factor_BTF
    hidden_BTF = dropout(config)(hidden_BTF, deterministic=deterministic)
    hidden_BTF = nn.with_logical_constraint(
      hidden_BTF, ("batch", "length", "mlp")
    )
    return Dense(
      config.embed_dim, ("mlp", "embed"), config, mlp_init, name="wo"
    )(hidden_BTF)


def _activate(activation: str, inputs: jax.Array) -> jax.Array:
  match activation:
    case "relu":
      return jax.nn.relu(inputs)
    case "gelu":
      return jax.nn.gelu(inputs, approximate=True)
  return inputs


def dropout(config: t5_config.T5Config) -> nn.Dropout:
  """Gives T5's dropout: one mask for all positions of a sequence.

  T5X drops the same features at every position (axis -2), which saves the
  random numbers of a whole axis.
  """
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))
