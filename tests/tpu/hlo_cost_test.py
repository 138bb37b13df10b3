"""Costs of compiled programs equal a count by hand."""

import jax
import jax.numpy as jnp
import pytest

from specialize_jax.t5 import attend_tpu, masks
from tests.tpu import programs_for_v5e as v5e

FSDP = {"fsdp": 4, "data": 1}
MODEL = {"model": 4, "data": 1}
BF16 = jnp.bfloat16


def test_a_product_is_two_operations_an_element_met():
  rows = v5e.array((512, 256), BF16, "fsdp", **FSDP)
  kernel = v5e.array((256, 384), BF16, **FSDP)
  cost = v5e.cost(jnp.dot, rows, kernel, **FSDP)
  # A chip has 128 of the rows; it reads both operands and writes its rows.
  assert cost.flops == 2 * 128 * 256 * 384
  assert cost.hbm_bytes == 2 * (128 * 256 + 256 * 384 + 128 * 384)
  assert sum(cost.sent_bytes().values()) == 0


def _attention(length, num_heads=4):
  """Counts the attention kernel, forward, the same on all chips."""
  joined = v5e.array((2, length, 64 * num_heads), BF16, **FSDP)
  ids = v5e.array((2, length), jnp.int32, **FSDP)

  @jax.shard_map(in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
  def attend(joined, ids):
    return attend_tpu.attend_on_tpu(
      joined, joined, joined, masks.encoder(ids), num_heads=num_heads
    )

  return v5e.cost(attend, joined, ids, **FSDP)


def test_a_kernel_counts_as_its_block_specs_move_and_its_matmuls():
  cost = _attention(2048)
  # Two matmuls of each row and head; nothing of the size of the scores moves.
  assert cost.flops == 2 * (2 * 2 * 4 * 2048 * 2048 * 64)
  joined = 2 * 2048 * 256 * 2
  assert 4 * joined <= cost.hbm_bytes < 5.5 * joined
  assert 4 * joined < 2 * 4 * 2048 * 2048 * 2, "the scores in bfloat16"


def _layers(inputs, kernels):
  def layer(hidden, kernel):
    return jnp.tanh(hidden @ kernel), None

  return jax.lax.scan(layer, inputs, kernels)[0]


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
  inputs = v5e.array((512, 256), BF16, "fsdp", **FSDP)
  kernels = v5e.array((7, 256, 256), BF16, **FSDP)
  cost = v5e.cost(_layers, inputs, kernels, **FSDP)
  assert cost.flops == 7 * 2 * 128 * 256 * 256
  assert cost.unknown_loops == 0
  # The kernels are read once each, never all at every round.
  least = 2 * (7 * 256 * 256 + 2 * 128 * 256)
  assert least <= cost.hbm_bytes < 2.5 * least


def test_a_loop_in_a_loop_multiplies():
  def twice(inputs, kernels):
    return jax.lax.fori_loop(
      0, 5, lambda _, hidden: _layers(hidden, kernels), inputs
    )

  inputs = v5e.array((512, 256), BF16, "fsdp", **FSDP)
  kernels = v5e.array((3, 256, 256), BF16, **FSDP)
  cost = v5e.cost(twice, inputs, kernels, **FSDP)
  assert cost.flops == 5 * 3 * 2 * 128 * 256 * 256


def test_what_remat_computes_again_is_counted_again():
  def loss(kernels, inputs, layer):
    return _run(layer, inputs, kernels).astype(jnp.float32).sum()

  def _run(layer, inputs, kernels):
    return jax.lax.scan(lambda h, k: (layer(h, k), None), inputs, kernels)[0]

  def layer(hidden, kernels):
    # The second product's gradient needs the first product.
    return jnp.tanh(hidden @ kernels[0]) @ kernels[1]

  inputs = v5e.array((512, 256), BF16, "fsdp", **FSDP)
  kernels = v5e.array((3, 2, 256, 256), BF16, **FSDP)
  flops = {
    name: v5e.cost(
      lambda k, x, kept=kept: jax.grad(loss, (0, 1))(k, x, kept),
      kernels,
      inputs,
      **FSDP,
    ).flops
    for name, kept in (("kept", layer), ("again", jax.checkpoint(layer)))
  }
  one = 2 * 128 * 256 * 256
  # Forward two products a layer, backward four; again, one forward more.
  assert flops["kept"] == 3 * (2 + 4) * one
  assert flops["again"] == 3 * (2 + 4 + 1) * one


def test_an_all_gather_sends_what_the_others_lack():
  def gathered(inputs, kernel):
    return jax.lax.with_sharding_constraint(
      jnp.tanh(inputs @ kernel), jax.sharding.PartitionSpec(None, None)
    )

  inputs = v5e.array((4096, 2048), BF16, **MODEL)
  kernel = v5e.array((2048, 1024), BF16, None, "model", **MODEL)
  cost = v5e.cost(gathered, inputs, kernel, **MODEL)
  sent = {kind: n for kind, n in cost.sent_bytes().items() if n}
  # Each chip makes 4096 x 256 of 4096 x 1024, and gets the three others.
  assert sent == {"all-gather": pytest.approx(3 * 4096 * 256 * 2)}
  assert cost.flops == 2 * 4096 * 2048 * 256
  # Inputs and kernel are read, and the whole product is written: a chip's own
  # part of it stays in VMEM.
  moved = 4096 * 2048 + 2048 * 256 + 4096 * 1024
  assert cost.hbm_bytes == pytest.approx(2 * moved, rel=0.01)


def test_an_all_reduce_sends_everything_twice_but_for_its_own_part():
  def summed(inputs, kernel):
    return inputs @ kernel

  inputs = v5e.array((512, 1024), BF16, None, "model", **MODEL)
  kernel = v5e.array((1024, 256), BF16, "model", **MODEL)
  cost = v5e.cost(summed, inputs, kernel, **MODEL)
  (kind,) = [kind for kind, n in cost.sent_bytes().items() if n]
  assert kind == "all-reduce"
  # Partial sums of bfloat16 or float32, as the compiler likes.
  assert cost.sent_bytes()[kind] in [
    2 * 3 / 4 * 512 * 256 * size for size in (2, 4)
  ]
