"""The chunked loss equals the whole one, in less memory, sharded or not."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import test_util

from losses import random_case
from specialize_jax.losses import (
  distillation,
  divergence,
  head,
  normalization,
  sample_matching,
)

both_axes = pytest.mark.parametrize("chunk_axis", ["vocabulary", "targets"])


def _mean_loss(hidden, kernel, batch, config):
  total, output = head.weighted_loss(hidden, kernel, batch, config=config)
  return normalization.divide(total, output.weights_BT.sum())


def _value_and_gradients(hidden, kernel, batch, config):
  return jax.jit(
    jax.value_and_grad(lambda h, k: _mean_loss(h, k, batch, config), (0, 1))
  )(hidden, kernel)


def _assert_close(actual, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
    actual,
    expected,
  )


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 10, 64])
@pytest.mark.parametrize("missing_mass", ["tail", "zero"])
@both_axes
def test_chunked_losses_equal_plain_autodiff_of_whole_logits(
  num_chunks, missing_mass, chunk_axis
):
  """10 chunks of 24 tokens become 8; 3 of 10 positions are 4, 4 and 2."""
  hidden, kernel, batch = random_case.draw()

  def plain(hidden, kernel):
    logits = hidden @ kernel
    mask = batch["decoder_teacher_top_mask"] > 0
    loss = jnp.where(
      mask,
      divergence.sparse_kl(
        logits,
        batch["decoder_teacher_top_ids"],
        batch["decoder_teacher_top_probs"],
        missing_mass=missing_mass,
      ),
      sample_matching.cross_entropy(logits, batch["decoder_target_tokens"]),
    )
    weights = batch["decoder_loss_weights"]
    return jnp.sum(loss * weights) / jnp.sum(weights)

  _assert_close(
    _value_and_gradients(
      hidden,
      kernel,
      batch,
      distillation.LossConfig(
        num_chunks=num_chunks, missing_mass=missing_mass, chunk_axis=chunk_axis
      ),
    ),
    jax.jit(jax.value_and_grad(plain, (0, 1)))(hidden, kernel),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("objective", ["distribution", "sample"])
@both_axes
def test_gradients_equal_finite_differences(objective, chunk_axis):
  with jax.enable_x64(True):
    hidden, kernel, batch = jax.tree.map(
      jnp.asarray, random_case.draw(1, np.float64)
    )
    config = distillation.LossConfig(
      objective=f"{objective}_matching",
      num_chunks=3,
      chunk_axis=chunk_axis,
      z_loss=0.01,
    )
    test_util.check_grads(
      jax.jit(lambda h, k: head.weighted_loss(h, k, batch, config=config)[0]),
      (hidden, kernel),
      order=1,
      modes=["rev"],
      rtol=1e-6,
    )


@both_axes
def test_ignored_positions_lose_their_weight(chunk_axis):
  hidden, kernel, batch = random_case.draw(4)
  config = distillation.LossConfig(num_chunks=2, chunk_axis=chunk_axis)
  ignoring = dataclasses.replace(config, masked_out="ignore")
  removed = dict(
    batch,
    decoder_loss_weights=batch["decoder_loss_weights"]
    * batch["decoder_teacher_top_mask"],
  )
  _assert_close(
    _value_and_gradients(hidden, kernel, batch, ignoring),
    _value_and_gradients(hidden, kernel, removed, config),
    rtol=1e-6,
    atol=1e-7,
  )
  ids = np.zeros_like(batch["decoder_target_tokens"])
  _assert_close(
    _value_and_gradients(hidden, kernel, batch, ignoring)[0],
    _value_and_gradients(
      hidden,
      kernel,
      dict(
        batch,
        decoder_target_tokens=np.where(
          batch["decoder_teacher_top_mask"] > 0,
          batch["decoder_target_tokens"],
          ids,
        ),
      ),
      ignoring,
    )[0],
  )


@pytest.mark.parametrize("masked_out", ["one_hot", "ignore"])
@both_axes
def test_masked_equals_removed_and_padding_never_changes_the_loss(
  masked_out, chunk_axis
):
  """Positions of weight zero may hold anything; the value, even nan."""
  hidden, kernel, batch = random_case.draw(5)
  config = distillation.LossConfig(
    masked_out=masked_out, num_chunks=2, chunk_axis=chunk_axis
  )
  keep = 6
  batch["decoder_loss_weights"][:, keep:] = 0
  removed = {name: array[:, :keep] for name, array in batch.items()}
  value, (hidden_gradient, kernel_gradient) = _value_and_gradients(
    hidden[:, :keep], kernel, removed, config
  )
  rng = np.random.default_rng(6)
  for noise in (hidden, 100 * rng.standard_normal(hidden.shape), np.nan):
    padded = np.where(
      np.arange(random_case.LENGTH)[None, :, None] < keep, hidden, noise
    ).astype(np.float32)
    if np.isnan(noise).any():
      assert np.isfinite(_mean_loss(padded, kernel, batch, config))
      continue
    padded_value, gradients = _value_and_gradients(
      padded, kernel, batch, config
    )
    _assert_close(padded_value, value, rtol=1e-6)
    _assert_close(gradients[0][:, :keep], hidden_gradient, atol=1e-7)
    _assert_close(gradients[0][:, keep:], 0.0)
    _assert_close(gradients[1], kernel_gradient, rtol=1e-5, atol=1e-7)


@both_axes
def test_bfloat16_hidden_states_give_float32_losses_and_kernel_gradients(
  chunk_axis,
):
  hidden, kernel, batch = random_case.draw(7)
  config = distillation.LossConfig(num_chunks=2, chunk_axis=chunk_axis)
  exact = _value_and_gradients(hidden, kernel, batch, config)
  narrow = _value_and_gradients(
    jnp.asarray(hidden, jnp.bfloat16), kernel, batch, config
  )
  assert narrow[0].dtype == np.float32
  assert narrow[1][0].dtype == jnp.bfloat16
  assert narrow[1][1].dtype == np.float32
  _assert_close(narrow[0], exact[0], rtol=0.02)
  _assert_close(narrow[1][1], exact[1][1], atol=0.02)


@both_axes
def test_the_backward_pass_keeps_no_logits(chunk_axis):
  """Peak temporary memory falls with the chunks; nothing is [B, T, V]."""
  hidden, kernel, batch = random_case.draw(8, vocab_size=4096)

  def temporary_bytes(num_chunks):
    config = distillation.LossConfig(
      num_chunks=num_chunks, chunk_axis=chunk_axis
    )
    compiled = (
      jax.jit(jax.grad(lambda h, k: _mean_loss(h, k, batch, config), (0, 1)))
      .lower(hidden, kernel)
      .compile()
    )
    assert (
      f"[{random_case.BATCH},{random_case.LENGTH},4096]" in compiled.as_text()
    ) == (num_chunks == 1)
    return compiled.memory_analysis().temp_size_in_bytes

  whole, chunked = temporary_bytes(1), temporary_bytes(random_case.LENGTH)
  assert whole > random_case.BATCH * random_case.LENGTH * 4096 * 4
  assert chunked < 0.5 * whole


def _on_a_mesh(chunk_axis):
  """Value and gradients on 2 x 4 devices, on one, and the mesh's HLO."""
  hidden, kernel, batch = random_case.draw(9, vocab_size=64)
  config = distillation.LossConfig(num_chunks=2, chunk_axis=chunk_axis)
  expected = _value_and_gradients(hidden, kernel, batch, config)
  mesh = jax.make_mesh(
    (2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )

  def place(array, *axes):
    return jax.device_put(
      array, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    )

  batch = {name: place(array, "data") for name, array in batch.items()}
  step = jax.jit(
    jax.value_and_grad(lambda h, k, b: _mean_loss(h, k, b, config), (0, 1))
  )
  arguments = (place(hidden, "data"), place(kernel, None, "model"), batch)
  rules = [("batch", "data"), ("vocab", "model")]
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    hlo = step.lower(*arguments).compile().as_text()
    return step(*arguments), expected, hlo


def _communicated(hlo):
  """Returns the float32 shapes of all collectives."""
  collectives = [
    line
    for line in hlo.splitlines()
    if re.search(r"= .*(all-gather|all-reduce|all-to-all|permute)\(", line)
  ]
  return [
    tuple(int(n) for n in dims.split(","))
    for line in collectives
    for dims in re.findall(r"f32\[([\d,]+)\]", line.split(" = ")[1])
  ]


@both_axes
def test_sharded_vocabulary_is_never_gathered(chunk_axis):
  """Under a kernel sharded along V, collectives carry [B, T, C] at most."""
  actual, expected, hlo = _on_a_mesh(chunk_axis)
  _assert_close(actual, expected, rtol=1e-5, atol=1e-6)
  shapes = _communicated(hlo)
  assert shapes
  # The hidden states' gradient is [2, 10, 6]; the local logits of a chunk
  # would be [2, 10, 8], those of all shards [2, 10, 32].
  most = 2 * random_case.LENGTH * random_case.EMBED
  assert max(np.prod(shape) for shape in shapes) <= most, shapes


def test_in_one_pass_the_kernels_gradient_is_summed_over_devices_once():
  """After the loop over chunks, not in it."""
  _, _, hlo = _on_a_mesh("targets")
  in_loops, entry = hlo.split("\nENTRY ")
  shard = (random_case.EMBED, 64 // 4)
  assert _communicated(entry).count(shard) == 1
  assert _communicated(in_loops)
  assert shard not in [shape[-2:] for shape in _communicated(in_loops)]
