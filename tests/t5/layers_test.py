"""The norm and the feed-forward block on numbers worked by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize_jax.parallel import mesh as meshes
from specialize_jax.parallel import placement
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import layers
from specialize_jax.tpu import hlo_cost, hlo_text

CONFIG = t5_config.T5Config(
  vocab_size=4,
  embed_dim=2,
  mlp_dim=1,
  num_heads=1,
  head_dim=1,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_activations=("relu",),
  tied_head=True,
  dropout_rate=0.5,
  dtype="float32",
)


def test_the_norm_divides_by_the_root_mean_square():
  norm = layers.RMSNorm(CONFIG)
  params = {"params": {"scale": jnp.array([1.0, 10.0])}}
  # mean(3^2, 4^2) = 12.5
  normed = norm.apply(params, jnp.array([[3.0, 4.0]]))
  np.testing.assert_allclose(
    normed, [[3 / 12.5**0.5, 40 / 12.5**0.5]], rtol=1e-6
  )
  assert np.isfinite(norm.apply(params, jnp.zeros((1, 2)))).all()


def test_the_norm_is_taken_in_float32():
  norm = layers.RMSNorm(dataclasses.replace(CONFIG, dtype="bfloat16"))
  params = {"params": {"scale": jnp.ones(2)}}
  # 300^2 + 1 is 300^2 in bfloat16 as in float32; 256 + 1 is 256 in bfloat16.
  inputs = jnp.array([[256.0, 16.0]], jnp.bfloat16)
  normed = norm.apply(params, inputs)
  exact = np.array([[256.0, 16.0]]) / ((256.0**2 + 16.0**2) / 2) ** 0.5
  assert normed.dtype == jnp.bfloat16
  np.testing.assert_allclose(normed.astype(jnp.float32), exact, rtol=2**-8)


def test_a_relu_block_keeps_the_positive_part():
  block = layers.MlpBlock(CONFIG)
  params = {
    "wi": {"kernel": jnp.array([[1.0], [-1.0]])},
    "wo": {"kernel": jnp.array([[2.0, 3.0]])},
  }
  inputs = jnp.array([[[5.0, 1.0], [1.0, 5.0]]])
  out = block.apply({"params": params}, inputs, deterministic=True)
  np.testing.assert_allclose(out, [[[8.0, 12.0], [0.0, 0.0]]])


def test_a_gated_block_multiplies_tanh_gelu_by_a_linear_part():
  gated = dataclasses.replace(CONFIG, mlp_activations=("gelu", "linear"))
  block = layers.MlpBlock(gated)
  params = {
    "wi_0": {"kernel": jnp.array([[1.0], [0.0]])},
    "wi_1": {"kernel": jnp.array([[0.0], [1.0]])},
    "wo": {"kernel": jnp.array([[1.0, 2.0]])},
  }
  out = block.apply(
    {"params": params}, jnp.array([[[1.0, 7.0]]]), deterministic=True
  )
  gelu = 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (1 + 0.044715)))
  np.testing.assert_allclose(out, [[[7 * gelu, 14 * gelu]]], rtol=1e-6)


def test_dropout_drops_a_feature_at_all_positions():
  dropped = layers.dropout(CONFIG).apply(
    {},
    jnp.ones((2, 3, 8)),
    deterministic=False,
    rngs={"dropout": jax.random.key(0)},
  )
  assert set(np.unique(dropped)) == {0.0, 2.0}
  np.testing.assert_array_equal(dropped[:, :1] + 0 * dropped, dropped)
  assert (dropped[0] != dropped[1]).any()


@pytest.mark.parametrize("widths", [(3, 7), (7, 3)])
def test_a_product_has_the_gradients_of_its_definition(widths):
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(2, 4, widths[0])).astype(np.float32)
  kernel = rng.normal(size=widths).astype(np.float32)
  gradient = rng.normal(size=(2, 4, widths[1])).astype(np.float32)
  outputs, pull_back = jax.vjp(
    lambda inputs, kernel: layers._multiply(
      inputs, kernel, ("embed", "mlp"), "float32"
    ),
    inputs,
    kernel,
  )
  np.testing.assert_allclose(outputs, inputs @ kernel, atol=1e-5)
  to_inputs, to_kernel = pull_back(jnp.asarray(gradient))
  np.testing.assert_allclose(to_inputs, gradient @ kernel.T, atol=1e-5)
  np.testing.assert_allclose(
    to_kernel, np.einsum("btk,btn->kn", inputs, gradient), atol=1e-5
  )


def test_the_gradient_of_a_shared_input_is_summed_over_devices_once():
  """Of three scanned kernels whose columns are sharded over four devices."""
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(4, 6, 8)).astype(np.float32)
  kernels = rng.normal(size=(3, 8, 16)).astype(np.float32)
  place = placement.Placement(mesh=meshes.make_mesh(data=1, fsdp=2, model=4))

  def gradients_and_sums(share):
    def loss(inputs, kernels):
      shared = share(inputs)

      def layer(total, kernel):
        outputs = layers._multiply(
          shared.array,
          kernel,
          ("embed", "joined_kv"),
          "float32",
          shared.copies,
        )
        return total + jnp.sum(jnp.sin(outputs)), None

      return jax.lax.scan(layer, 0.0, kernels)[0]

    with place.entered():
      compiled = (
        jax.jit(jax.grad(loss, argnums=(0, 1)))
        .lower(
          jax.device_put(inputs, place.rules.batch_sharding(place.mesh)),
          jax.device_put(
            kernels, jax.NamedSharding(place.mesh, jax.P(None, "fsdp", "model"))
          ),
        )
        .compile()
      )
      gradients = compiled(inputs, kernels)
    exchanges = hlo_cost.cost(
      hlo_text.parse(compiled.as_text()), num_devices=8
    ).exchanges
    rows_on_a_device = inputs.size // 2
    return gradients, sum(
      one.count
      for one in exchanges
      if any(array.num_elements == rows_on_a_device for array in one.shapes)
    )

  found, num_sums = gradients_and_sums(
    functools.partial(layers.Shared.over, "joined_kv", num_columns=16)
  )
  expected, num_sums_of_each = gradients_and_sums(layers.Shared)
  assert (num_sums, num_sums_of_each) == (1, 3)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
  ("sum_dtype", "error"), [("float32", 1e-6), ("bfloat16", 1e-2)]
)
def test_a_kernels_gradient_is_rounded_to_the_dtype_it_is_summed_in(
  sum_dtype, error
):
  """Eight devices sum 64 rows: 0 to 2 bits of bfloat16's 8 are lost."""
  rng = np.random.default_rng(0)
  inputs = jnp.asarray(rng.normal(size=(64, 4, 16)), jnp.bfloat16)
  gradient = jnp.asarray(rng.normal(size=(64, 4, 256)), jnp.bfloat16)
  kernel = jnp.zeros((16, 256), jnp.float32)
  place = placement.Placement(mesh=meshes.make_mesh(data=1, fsdp=8))
  rows = place.rules.batch_sharding(place.mesh)
  with place.entered():
    pull_back = jax.jit(
      lambda inputs, gradient: jax.vjp(
        lambda kernel: layers._multiply(
          inputs, kernel, ("embed", "mlp"), sum_dtype
        ),
        kernel,
      )[1](gradient)[0]
    )
    found = pull_back(*(jax.device_put(x, rows) for x in (inputs, gradient)))
  assert found.dtype == jnp.float32
  wide = (np.asarray(x, np.float64) for x in (inputs, gradient))
  expected = np.einsum("btk,btn->kn", *wide)
  off = np.linalg.norm(found - expected) / np.linalg.norm(expected)
  assert error / 20 < off < error if sum_dtype == "bfloat16" else off < error
