"""The chunked loss is the whole loss, in less memory, sharded or not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import test_util

from specialize_jax import errors
from specialize_jax.losses import (
  normalization,
  sample_matching,
  sparse_kl,
  vocab_chunks,
)

BATCH, LENGTH, EMBED, VOCAB, CANDIDATES = 4, 10, 6, 24, 3


def _case(seed=0, dtype=np.float32, vocab_size=VOCAB):
  rng = np.random.default_rng(seed)
  shape = (BATCH, LENGTH)
  ids = np.argsort(rng.random((*shape, vocab_size)), -1)[..., :CANDIDATES]
  probs = rng.dirichlet(np.ones(CANDIDATES), shape) * 0.95
  probs[..., -1] *= rng.integers(0, 2, shape)
  batch = {
    "decoder_target_tokens": rng.integers(0, vocab_size, shape).astype("i4"),
    "decoder_loss_weights": rng.integers(0, 2, shape).astype(np.float32),
    "decoder_teacher_top_ids": np.where(probs > 0, ids, 0).astype(np.int32),
    "decoder_teacher_top_probs": probs.astype(np.float32),
    "decoder_teacher_top_mask": rng.integers(0, 2, shape).astype(np.int32),
  }
  hidden = rng.standard_normal((*shape, EMBED)).astype(dtype)
  kernel = rng.standard_normal((EMBED, vocab_size)).astype(dtype)
  return hidden, kernel, batch


def _mean_loss(hidden, kernel, batch, config):
  output = vocab_chunks.distillation_loss(hidden, kernel, batch, config=config)
  return normalization.normalize(output.loss_BT, output.weights_BT)[0]


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
def test_chunked_equals_whole_and_plain_autodiff(num_chunks, missing_mass):
  """24 tokens are not cut into 10, but into 8; 64 are more than there are."""
  hidden, kernel, batch = _case()

  def plain(hidden, kernel):
    logits = hidden @ kernel
    mask = batch["decoder_teacher_top_mask"] > 0
    loss = jnp.where(
      mask,
      sparse_kl.sparse_kl(
        logits,
        batch["decoder_teacher_top_ids"],
        batch["decoder_teacher_top_probs"],
        missing_mass=missing_mass,
      ),
      sample_matching.cross_entropy(logits, batch["decoder_target_tokens"]),
    )
    return normalization.normalize(loss, batch["decoder_loss_weights"])[0]

  _assert_close(
    _value_and_gradients(
      hidden,
      kernel,
      batch,
      vocab_chunks.LossConfig(num_chunks=num_chunks, missing_mass=missing_mass),
    ),
    jax.jit(jax.value_and_grad(plain, (0, 1)))(hidden, kernel),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("objective", ["distribution", "sample"])
def test_gradients_equal_finite_differences(objective):
  with jax.enable_x64(True):
    hidden, kernel, batch = jax.tree.map(jnp.asarray, _case(1, np.float64))
    config = vocab_chunks.LossConfig(
      objective=f"{objective}_matching", num_chunks=3, z_loss=0.01
    )
    test_util.check_grads(
      jax.jit(
        lambda h, k: vocab_chunks.distillation_loss(
          h, k, batch, config=config
        ).loss_BT.sum()
      ),
      (hidden, kernel),
      order=1,
      modes=["rev"],
      rtol=1e-6,
    )


def test_sample_matching_is_cross_entropy_everywhere():
  hidden, kernel, batch = _case(2)
  output = vocab_chunks.distillation_loss(
    hidden,
    kernel,
    batch,
    config=vocab_chunks.LossConfig(objective="sample_matching"),
  )
  _assert_close(
    output.loss_BT,
    sample_matching.cross_entropy(
      hidden @ kernel, batch["decoder_target_tokens"]
    ),
    rtol=1e-5,
  )
  assert not output.has_teacher_BT.any()


def test_parts_add_up_and_accuracy_is_the_argmax():
  hidden, kernel, batch = _case(3)
  output = vocab_chunks.distillation_loss(
    hidden, kernel, batch, config=vocab_chunks.LossConfig(z_loss=0.1)
  )
  _assert_close(
    output.kl_BT + output.one_hot_BT + output.z_loss_BT,
    output.loss_BT,
    rtol=1e-6,
  )
  assert ((output.kl_BT != 0) == output.has_teacher_BT).all()
  logits = hidden @ kernel
  _assert_close(
    output.correct_BT, logits.argmax(-1) == batch["decoder_target_tokens"]
  )
  _assert_close(
    output.z_loss_BT, 0.1 * jax.nn.logsumexp(logits, -1) ** 2, rtol=1e-5
  )


def test_both_objectives_measure_the_same_likelihood():
  hidden, kernel, batch = _case(3)
  by_samples, by_distribution = (
    vocab_chunks.distillation_loss(
      hidden,
      kernel,
      batch,
      config=vocab_chunks.LossConfig(objective=objective),
    )
    for objective in ("sample_matching", "distribution_matching")
  )
  _assert_close(by_samples.nll_BT, by_samples.one_hot_BT)
  _assert_close(by_distribution.nll_BT, by_samples.nll_BT, rtol=1e-5)
  assert (by_distribution.nll_BT != by_distribution.loss_BT).any()


def test_ignored_positions_lose_their_weight():
  hidden, kernel, batch = _case(4)
  ignoring = vocab_chunks.LossConfig(masked_out="ignore", num_chunks=2)
  removed = dict(
    batch,
    decoder_loss_weights=batch["decoder_loss_weights"]
    * batch["decoder_teacher_top_mask"],
  )
  _assert_close(
    _value_and_gradients(hidden, kernel, batch, ignoring),
    _value_and_gradients(
      hidden, kernel, removed, vocab_chunks.LossConfig(num_chunks=2)
    ),
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
def test_masked_equals_removed_and_padding_never_changes_the_loss(masked_out):
  """What lies at weight zero may be anything, even a nan."""
  hidden, kernel, batch = _case(5)
  config = vocab_chunks.LossConfig(masked_out=masked_out, num_chunks=2)
  keep = 6
  batch["decoder_loss_weights"][:, keep:] = 0
  removed = {name: array[:, :keep] for name, array in batch.items()}
  value, (hidden_gradient, kernel_gradient) = _value_and_gradients(
    hidden[:, :keep], kernel, removed, config
  )
  rng = np.random.default_rng(6)
  for noise in (hidden, 100 * rng.standard_normal(hidden.shape), np.nan):
    padded = np.where(
      np.arange(LENGTH)[None, :, None] < keep, hidden, noise
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


def test_bfloat16_hidden_states_give_float32_losses_and_kernel_gradients():
  hidden, kernel, batch = _case(7)
  config = vocab_chunks.LossConfig(num_chunks=2)
  exact = _value_and_gradients(hidden, kernel, batch, config)
  narrow = _value_and_gradients(
    jnp.asarray(hidden, jnp.bfloat16), kernel, batch, config
  )
  assert narrow[0].dtype == np.float32
  assert narrow[1][0].dtype == jnp.bfloat16
  assert narrow[1][1].dtype == np.float32
  _assert_close(narrow[0], exact[0], rtol=0.02)
  _assert_close(narrow[1][1], exact[1][1], atol=0.02)


def test_the_backward_pass_keeps_no_logits():
  """Peak temporary memory falls with the chunks; nothing is [B, T, V]."""
  hidden, kernel, batch = _case(8, vocab_size=4096)

  def temporary_bytes(num_chunks):
    config = vocab_chunks.LossConfig(num_chunks=num_chunks)
    compiled = (
      jax.jit(jax.grad(lambda h, k: _mean_loss(h, k, batch, config), (0, 1)))
      .lower(hidden, kernel)
      .compile()
    )
    assert (f"[{BATCH},{LENGTH},4096]" in compiled.as_text()) == (
      num_chunks == 1
    )
    return compiled.memory_analysis().temp_size_in_bytes

  whole, chunked = temporary_bytes(1), temporary_bytes(LENGTH)
  assert whole > BATCH * LENGTH * 4096 * 4
  assert chunked < 0.5 * whole


def test_sharded_vocabulary_is_never_gathered():
  """Under a kernel sharded along V, collectives carry [B, T, C] at most."""
  hidden, kernel, batch = _case(9, vocab_size=64)
  config = vocab_chunks.LossConfig(num_chunks=2)
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
    actual = step(*arguments)
  _assert_close(actual, expected, rtol=1e-5, atol=1e-6)
  collectives = [
    line
    for line in hlo.splitlines()
    if re.search(r"= .*(all-gather|all-reduce|all-to-all|permute)\(", line)
  ]
  assert collectives
  widest = max(
    int(np.prod([int(n) for n in dims.split(",")]))
    for line in collectives
    for dims in re.findall(r"f32\[([\d,]+)\]", line.split(" = ")[1])
  )
  # The hidden states' gradient is [2, 10, 6]; a piece's local logits would be
  # [2, 10, 8], those of all shards [2, 10, 32].
  assert widest <= 2 * LENGTH * EMBED, collectives


@pytest.mark.parametrize(
  ("setting", "message"),
  [
    ({"objective": "matching"}, "objective='matching' is unknown"),
    ({"masked_out": "onehot"}, "masked_out='onehot' is unknown"),
    ({"missing_mass": "top"}, "missing_mass='top' is unknown"),
    ({"num_chunks": 0}, "num_chunks=0 is not possible"),
  ],
)
def test_a_setting_that_names_no_loss_is_refused(setting, message):
  with pytest.raises(errors.UserError, match=message):
    vocab_chunks.LossConfig(**setting)
