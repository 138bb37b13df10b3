"""The TPU compiler's collectives for kernels and their gradients."""

import jax
import jax.numpy as jnp
import pytest

from specialize_jax.parallel import mesh as meshes
from specialize_jax.parallel import placement
from specialize_jax.t5 import layers
from specialize_jax.tpu import hlo_cost, hlo_text, programs, topology

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")

_WIDTH = 2048


def _exchanges(slice_name, kernel_axes, sum_dtype, *, model=1, columns=_WIDTH):
  """Every collective of one kernel, forward and backward."""
  slice_ = topology.load(slice_name)
  place = placement.Placement(
    mesh=meshes.make_mesh(data=1, fsdp=-1, model=model, devices=slice_.devices)
  )
  kernel = jax.ShapeDtypeStruct(
    (_WIDTH, columns),
    jnp.float32,
    sharding=jax.NamedSharding(
      place.mesh, place.rules.partition_spec(kernel_axes)
    ),
  )
  inputs, gradient = (
    jax.ShapeDtypeStruct(
      (slice_.num_chips, 128, width),
      jnp.bfloat16,
      sharding=place.rules.batch_sharding(place.mesh),
    )
    for width in kernel.shape
  )

  def updated(kernel, inputs, gradient):
    outputs, pull_back = jax.vjp(
      lambda kernel: layers._multiply(inputs, kernel, kernel_axes, sum_dtype),
      kernel,
    )
    return kernel - pull_back(gradient)[0], jax.nn.gelu(outputs)

  with place.entered():
    lowered = jax.jit(
      updated, compiler_options=place.compiler_options, donate_argnums=0
    ).lower(kernel, inputs, gradient)
  program = hlo_text.parse(programs.compiled(lowered).text)
  return hlo_cost.cost(program, num_devices=slice_.num_chips).sent_bytes()


@pytest.mark.parametrize(
  ("kernel_axes", "columns"),
  [
    (("embed", "joined_kv"), _WIDTH),
    (("joined_kv", "embed"), _WIDTH),
    # 1,004 on a chip are no whole registers.
    (("embed", "vocab"), 4016),
  ],
)
def test_a_kernel_that_is_sharded_over_model_too_is_sent_likewise(
  kernel_axes, columns
):
  """Not around a ring of chips, whose links are those of one axis."""
  sent = _exchanges("v5e:8x8", kernel_axes, "float32", model=4, columns=columns)
  share = _WIDTH * columns / 4 * 15 / 16
  assert sent["all-gather"] == pytest.approx(2 * share)
  assert sent["reduce-scatter"] == pytest.approx(4 * share)
  assert sent["collective-permute"] == 0


@pytest.mark.parametrize(
  ("slice_name", "chips", "kernel_axes", "sum_dtype"),
  [
    ("v5e:4x4", 16, ("embed", "joined_kv"), "float32"),
    ("v5e:8x8", 64, ("joined_kv", "embed"), "float32"),
    ("v5e:8x8", 64, ("embed", "joined_kv"), "bfloat16"),
    ("v5e:16x16", 256, ("embed", "joined_kv"), "float32"),
    ("v5p:4x4x4", 64, ("embed", "joined_kv"), "float32"),
    ("v4:2x2x2", 8, ("joined_kv", "embed"), "float32"),
  ],
)
def test_a_kernel_is_gathered_and_its_gradient_reduce_scattered(
  slice_name, chips, kernel_axes, sum_dtype
):
  sent = _exchanges(slice_name, kernel_axes, sum_dtype)
  share = _WIDTH**2 * (chips - 1) / chips
  assert sent["all-gather"] == pytest.approx(2 * share)
  width = jnp.dtype(sum_dtype).itemsize
  assert sent["reduce-scatter"] == pytest.approx(width * share)
  assert sum(sent.values()) == pytest.approx((2 + width) * share)
