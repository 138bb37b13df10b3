"""The components of layers: embedding, dense, norm, feed-forward.

Parameters have logical axis names, and activations logical constraints, which
`parallel/axis_rules.py` maps to a mesh. Parameters have T5X's names, shapes and
initial distributions (github.com/google-research/t5x:
t5x/examples/t5/layers.py).
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from specialize_jax.parallel import row_sums
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import matmuls

Initializer = Callable[..., jax.Array]

# As in T5X, kernels have variance 1 / fan_in, and embeddings variance 1.
dense_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
mlp_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
embedding_init = nn.initializers.normal(stddev=1.0)


class Shared(flax.struct.PyTreeNode):
  """An input of the matmuls of many layers.

  Where columns of kernels are sharded, each device computes a part of the
  gradient with respect to a kernel's input. Here these parts are summed over
  the layers on each device, and then once over devices, instead of in each
  layer.

  Attributes:
    array: `[B, S, D]`, without a gradient if there are copies.
    copies: `[M, B, S, D]`, a copy for each of M shards of the kernels' columns;
      only their gradients are used. None if columns are not sharded.
  """

  array: jax.Array
  copies: jax.Array | None = None

  @classmethod
  def over(
    cls, columns: str, array_BSD: jax.Array, *, num_columns: int
  ) -> "Shared":
    """Returns an array as the input of kernels.

    Args:
      columns: logical axis of the kernels' columns.
      array_BSD: the array.
      num_columns: the number of a kernel's columns.
    """
    num_shards = row_sums.num_shards(columns)
    if num_shards == 1 or num_columns % num_shards:
      return cls(array=array_BSD)
    copies_MBSD = jnp.broadcast_to(array_BSD, (num_shards, *array_BSD.shape))
    return cls(
      array=jax.lax.stop_gradient(array_BSD),
      copies=_one_on_each_shard(copies_MBSD, columns),
    )


def _one_on_each_shard(copies_MBSD: jax.Array, columns: str) -> jax.Array:
  return nn.with_logical_constraint(
    copies_MBSD, (columns, "batch", "length", None)
  )


class Dense(nn.Module):
  """A matmul without bias, in the compute dtype.

  Attributes:
    features: size of the output's last axis.
    kernel_axes: logical names of the kernel's two axes.
    config: has the dtypes.
    kernel_init: the kernel's initial distribution.
  """

  features: int
  kernel_axes: tuple[str, str]
  config: t5_config.T5Config
  kernel_init: Initializer = dense_init

  @nn.compact
  def __call__(self, inputs: jax.Array | Shared) -> jax.Array:
    """Returns `inputs @ kernel`, `[..., features]`."""
    if not isinstance(inputs, Shared):
      inputs = Shared(array=inputs)
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(self.kernel_init, self.kernel_axes),
      (inputs.array.shape[-1], self.features),
      self.config.param_dtype,
    )
    return _multiply(
      inputs.array.astype(self.config.dtype),
      kernel,
      self.kernel_axes,
      self.config.gradient_sum_dtype,
      inputs.copies,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _multiply(
  inputs: jax.Array,
  kernel: jax.Array,
  kernel_axes: tuple[str | None, str | None],
  sum_dtype: str,
  copies: jax.Array | None = None,
) -> jax.Array:
  """Returns `inputs @ kernel` in the inputs' dtype.

  The kernel's gradient is a sum over positions. On a CPU, XLA computes it fast
  if its left operand is transposed, but computes whatever is fused into a
  transposed operand with strided access. The backward pass therefore transposes
  the smaller operand: the norm before the feed-forward block, and not GELU's
  derivative.

  Args:
    inputs: `[..., features in]`; batch first, where there is a mesh.
    kernel: `[features in, features out]`, in the parameters' dtype.
    kernel_axes: its logical axes.
    sum_dtype: the dtype in which devices sum the kernel's gradient.
    copies: copies of the inputs, which then have no gradient: see `Shared`.
  """
  return _multiply_forward(inputs, kernel, kernel_axes, sum_dtype, copies)[0]


def _multiply_forward(
  inputs: jax.Array,
  kernel: jax.Array,
  kernel_axes: tuple[str | None, str | None],
  sum_dtype: str,
  copies: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array | None]]:
  del sum_dtype
  # The matmul itself, not `_multiply`, so that remat policies recognize it.
  outputs = jnp.dot(inputs, _cast(kernel, inputs.dtype, kernel_axes))
  return outputs, (inputs, kernel, copies)


def _multiply_backward(
  kernel_axes: tuple[str | None, str | None],
  sum_dtype: str,
  residuals: tuple[jax.Array, jax.Array, jax.Array | None],
  gradient: jax.Array,
) -> tuple[jax.Array | None, jax.Array, jax.Array | None]:
  inputs, kernel, copies = residuals

  def over_positions(left: jax.Array, right: jax.Array) -> jax.Array:
    positions = tuple(range(left.ndim - 1))
    return jax.lax.dot_general(
      left,
      right,
      ((positions, positions), ((), ())),
      preferred_element_type=sum_dtype,
    )

  def kernel_gradient(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
    if inputs.shape[-1] <= gradient.shape[-1]:
      return over_positions(inputs, gradient)
    return matmuls.as_written(over_positions(gradient, inputs)).T

  batch = ("batch", *[None] * (inputs.ndim - 2))
  summed = row_sums.row_sum(
    kernel_gradient,
    (inputs, gradient),
    logical_axes=[(*batch, axis) for axis in kernel_axes],
    result_axes=kernel_axes,
  )
  summed = summed.astype(kernel.dtype)
  kernel_in_dtype = _cast(kernel, inputs.dtype, kernel_axes)
  if copies is None:
    return jnp.dot(gradient, kernel_in_dtype.T), summed, None
  num_shards = len(copies)
  copies_gradient = jnp.einsum(
    "bsmj,dmj->mbsd",
    gradient.reshape(*gradient.shape[:-1], num_shards, -1),
    kernel_in_dtype.reshape(len(kernel), num_shards, -1),
  )
  return None, summed, _one_on_each_shard(copies_gradient, kernel_axes[1])


_multiply.defvjp(_multiply_forward, _multiply_backward)


def _cast(
  kernel: jax.Array, dtype: jnp.dtype, kernel_axes: tuple[str | None, ...]
) -> jax.Array:
  """Casts a kernel on the shard of each device, before it is all-gathered."""
  return row_sums.gathered(kernel.astype(dtype), kernel_axes)


class RMSNorm(nn.Module):
  """T5's layer norm: divides by the root mean square, without mean or bias.

  The scale is also applied in float32; only the result is rounded to the
  compute dtype.
  """

  config: t5_config.T5Config

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Computes `inputs / sqrt(mean(inputs ** 2) + epsilon) * scale`."""
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
  """The embedding table that both stacks share."""

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
    """Returns the rows of `tokens_BT`, `[B, T, D]`.

    The embedding of a token outside the vocabulary is NaN, which stops
    training; a clipped index would silently train on a wrong token.
    """
    rows_BTD = _rows(
      self.embedding,
      tokens_BT,
      self.config.dtype,
      self.config.gradient_sum_dtype,
    )
    return nn.with_logical_constraint(rows_BTD, ("batch", "length", "embed"))

  def logits(self, hidden_BTD: jax.Array) -> jax.Array:
    """Computes the tied head's float32 logits, scaled by `D ** -0.5`."""
    return _float32_matmul(
      hidden_BTD, self.embedding.T, self.config
    ) * jnp.float32(self.config.embed_dim**-0.5)


class LogitsHead(nn.Module):
  """The untied head, T5 1.1's own output kernel."""

  config: t5_config.T5Config

  @nn.compact
  def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
    """Computes the logits, float32 `[B, T, V]`."""
    kernel_DV = self.param(
      "kernel",
      nn.with_logical_partitioning(mlp_init, ("embed", "vocab")),
      (self.config.embed_dim, self.config.vocab_size),
      self.config.param_dtype,
    )
    return _float32_matmul(hidden_BTD, kernel_DV, self.config)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rows(
  table_VD: jax.Array, tokens_BT: jax.Array, dtype: str, sum_dtype: str
) -> jax.Array:
  """Returns the tokens' rows in `dtype`, `[B, T, D]`.

  A table that is sharded along `embed` is all-gathered in `dtype`: a gather by
  sharded tokens from a sharded table would move whole rows of all devices. The
  gradient of a row is summed in float32 on each device, since frequent tokens
  have thousands of terms, and in `sum_dtype` over devices.
  """
  del sum_dtype
  gathered_VD = row_sums.gathered(table_VD.astype(dtype), ("vocab", "embed"))
  whole_VD = nn.with_logical_constraint(gathered_VD, ("vocab", None))
  # A negative index would count from the end, as in NumPy.
  tokens_BT = jnp.where(tokens_BT < 0, len(whole_VD), tokens_BT)
  return jnp.take(whole_VD, tokens_BT, axis=0, mode="fill")


def _rows_forward(
  table_VD: jax.Array, tokens_BT: jax.Array, dtype: str, sum_dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  rows_BTD = _rows(table_VD, tokens_BT, dtype, sum_dtype)
  return rows_BTD, (table_VD, tokens_BT)


def _rows_backward(
  dtype: str,
  sum_dtype: str,
  residuals: tuple[jax.Array, jax.Array],
  rows_BTD: jax.Array,
) -> tuple[jax.Array, None]:
  table_VD, tokens_BT = residuals
  own_dtype = "float64" if dtype == "float64" else "float32"

  def summed(
    tokens_BT: jax.Array, rows_BTD: jax.Array, ids_V: jax.Array
  ) -> jax.Array:
    own_BT = tokens_BT - ids_V[0]
    own_BT = jnp.where(own_BT < 0, len(ids_V), own_BT)
    zeros_VD = jnp.zeros((len(ids_V), rows_BTD.shape[-1]), own_dtype)
    sums_VD = zeros_VD.at[own_BT].add(rows_BTD.astype(own_dtype), mode="drop")
    return sums_VD.astype(sum_dtype)

  gradient_VD = row_sums.row_sum(
    summed,
    (tokens_BT, rows_BTD, jnp.arange(len(table_VD))),
    logical_axes=[("batch", None), ("batch", None, "embed"), ("vocab",)],
    result_axes=("vocab", "embed"),
  )
  return gradient_VD.astype(table_VD.dtype), None


_rows.defvjp(_rows_forward, _rows_backward)


def _float32_matmul(
  hidden_BTD: jax.Array, kernel_DV: jax.Array, config: t5_config.T5Config
) -> jax.Array:
  """Multiplies in the compute dtype; accumulates and returns float32."""
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
    """Computes `wo(product of activation_i(wi_i(inputs)))`, `[B, T, D]`."""
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
  """Returns T5's dropout, with one mask for all positions of a sequence.

  Like T5X, it drops the same features at every position (axis -2), which
  requires fewer random numbers.
  """
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))
