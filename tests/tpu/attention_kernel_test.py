"""The attention kernel, forward and backward, compiled by the TPU compiler."""

import jax
import jax.numpy as jnp
import pytest

from specialize_jax import errors
from specialize_jax.parallel import mesh as meshes
from specialize_jax.parallel import placement
from specialize_jax.t5 import attention, masks, relative_position
from specialize_jax.t5 import config as t5_config
from specialize_jax.tpu import topology

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")


def _config(**dimensions):
  return t5_config.T5Config(
    **{
      "vocab_size": 64,
      "embed_dim": 64,
      "mlp_dim": 64,
      "num_heads": 4,
      "head_dim": 64,
      "num_encoder_layers": 1,
      "num_decoder_layers": 1,
      "mlp_activations": ("relu",),
      "tied_head": True,
      "attention": "tpu",
      **dimensions,
    }
  )


def _compiled(slice_name, length, **dimensions):
  """Compiles value and gradients of one encoder attention for one chip."""
  config = _config(**dimensions)
  mesh = meshes.make_mesh(data=1, devices=topology.load(slice_name).devices[:1])

  def loss(joined, table, ids, scale):
    bias = relative_position.Bias(
      table_HN=table, bidirectional=True, max_distance=128
    )
    output = attention.attention(
      joined,
      attention.KeysValues(keys_BSJ=joined, values_BSJ=joined),
      attention.Scope.of(config, masks.encoder(ids), (length, length), bias),
      config,
      values_scale_BHS=scale,
    )
    return jnp.sum(output.astype(jnp.float32))

  def array(shape, dtype):
    sharding = jax.sharding.NamedSharding(mesh, jax.P())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  heads = config.num_heads
  with jax.set_mesh(mesh):
    return (
      jax.jit(jax.grad(loss, (0, 1)))
      .lower(
        array((2, length, config.joined_kv_dim), config.dtype),
        array((heads, 32), jnp.float32),
        array((2, length), jnp.int32),
        array((2, heads, length), jnp.float32),
      )
      .compile()
      .as_text()
    )


@pytest.mark.parametrize(
  "slice_name",
  [
    "v5e:2x2",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("v4:2x2x1", "v5p:2x2x1", "v6e:2x2")
    ),
  ],
)
def test_the_kernel_compiles_for_every_generation(slice_name):
  assert _compiled(slice_name, 768).count("tpu_custom_call") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
  ("num_heads", "head_dim"), [(8, 16), (6, 32), (3, 64), (2, 128), (1, 40)]
)
def test_heads_of_many_sizes_compile(num_heads, head_dim):
  text = _compiled("v5e:2x2", 200, num_heads=num_heads, head_dim=head_dim)
  assert text.count("tpu_custom_call") == 2


def test_what_the_kernel_cannot_do_is_refused_before_compilation():
  with pytest.raises(errors.UserError, match="head_dim is 20.*'plain'"):
    _compiled("v5e:2x2", 256, head_dim=20)
  with pytest.raises(errors.UserError, match="queries.*VMEM.*'plain'"):
    _compiled("v5e:2x2", 65_536)


def test_by_default_what_the_kernel_cannot_do_is_plain():
  text = _compiled("v5e:2x2", 256, head_dim=20, attention="default")
  assert "tpu_custom_call" not in text


@pytest.mark.parametrize(("length", "fits"), [(1024, True), (1536, False)])
def test_what_has_to_fit_into_vmem_is_what_a_device_computes(length, fits):
  """Three of FlanT5-base's heads fill no register: a block has all of them."""
  config = _config(attention="default", num_heads=12)
  placed = placement.Placement(
    mesh=meshes.make_mesh(
      data=1, model=4, devices=topology.load("v4:2x2x1").devices
    )
  )
  bias = relative_position.Bias(
    table_HN=jnp.zeros((12, 32)), bidirectional=True, max_distance=128
  )
  assert attention.runs_kernel(config, (length, length), bias) is False  # a CPU
  with placed.entered():
    assert attention.runs_kernel(config, (length, length), bias) is fits


@pytest.mark.parametrize(("length", "fits"), [(2048, True), (2304, False)])
def test_a_bias_that_a_layer_adds_must_fit_into_vmem_too(length, fits):
  """A v4 has room for 2,304 positions, but not for their bias beside them."""
  devices = topology.load("v4:2x2x1").devices[:1]
  bias = relative_position.Bias(
    table_HN=jnp.zeros((4, 32)), bidirectional=True, max_distance=128
  )
  pairs = masks.encoder(jnp.ones((1, length), jnp.int32))
  config = _config(attention="default")
  with jax.set_mesh(meshes.make_mesh(data=1, devices=devices)):
    scope = attention.Scope.of(config, pairs, (length, length))
    assert scope.pairs is not None
    with_bias = jax.eval_shape(
      lambda bias: scope.with_bias(config, bias, length), bias
    )
    assert (with_bias.pairs is not None) == fits
    if not fits:
      with pytest.raises(errors.UserError, match="2304 keys need"):
        scope.with_bias(_config(), bias, length)
