"""The TPU's attention kernel, interpreted, against the plain form.

Blocks of 128 and rows of 200 to 300 positions: two or three blocks of queries
and keys, the last of which is partly beyond the row's end.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize_jax import errors
from specialize_jax.parallel import mesh, placement
from specialize_jax.t5 import (
  attend,
  attend_tpu,
  attention,
  masks,
  network,
  relative_position,
)
from specialize_jax.t5 import config as t5_config

BATCH, HEADS, HEAD_DIM = 2, 4, 64
LENGTHS = {"encoder": (200, 200), "decoder": (200, 200), "cross": (130, 300)}
NAMES = ("output", "queries", "keys", "values", "table")
CONFIG = t5_config.T5Config(
  vocab_size=64,
  embed_dim=32,
  mlp_dim=32,
  num_heads=2,
  head_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_activations=("gelu", "linear"),
  tied_head=False,
  dtype="float32",
  remat_policy="minimal",
  attention="tpu_interpreted",
)


def segments(lengths, total):
  rows = np.zeros((len(lengths), total), np.int32)
  for row, of_row in zip(rows, lengths, strict=True):
    row[: sum(of_row)] = np.repeat(np.arange(1, len(of_row) + 1), of_row)
  return jnp.asarray(rows)


def pairs_of(name):
  num_queries, num_keys = LENGTHS[name]
  target_ids = segments([[40, 50, 20], [128]], num_queries)
  source_ids = segments([[90, 7, 60], [131, 2]], num_keys)
  return {
    "encoder": masks.encoder(source_ids),
    "decoder": masks.decoder(target_ids),
    "cross": masks.cross(source_ids, target_ids),
  }[name]


def of_both(pairs, lengths, *, dtype, bidirectional=None, scaled=False):
  """Returns output and gradients of the plain form and of the kernel."""
  rng = np.random.default_rng(0)
  num_queries, num_keys = lengths

  def random(*shape, dtype=dtype):
    return jnp.asarray(rng.normal(size=shape), dtype)

  queries = random(BATCH, num_queries, HEADS * HEAD_DIM) / 8
  keys = random(BATCH, num_keys, HEADS * HEAD_DIM)
  values = random(BATCH, num_keys, HEADS * HEAD_DIM)
  table = random(HEADS, 32, dtype=jnp.float32)
  weights = random(BATCH, num_queries, HEADS * HEAD_DIM)
  scale = None
  if scaled:
    kept = rng.random((BATCH, HEADS, num_keys)) < 0.8
    scale = jnp.asarray(kept / 0.8, jnp.float32)

  def bias_of(table):
    if bidirectional is None:
      return None
    return relative_position.Bias(
      table_HN=table, bidirectional=bidirectional, max_distance=128
    )

  def split(joined):
    heads = joined.reshape(*joined.shape[:2], HEADS, HEAD_DIM)
    return heads.swapaxes(1, 2)

  def plain(queries, keys, values, table):
    bias, values = bias_of(table), split(values)
    if scaled:
      values = (values.astype(jnp.float32) * scale[..., None]).astype(dtype)
    output = attend.attend(
      split(queries),
      split(keys),
      values,
      None if bias is None else bias.on_plane(*lengths),
      pairs.mask(*lengths),
    )
    return output.swapaxes(1, 2).reshape(queries.shape)

  def kernel(queries, keys, values, table):
    return attend_tpu.attend_on_tpu(
      queries,
      keys,
      values,
      pairs,
      bias_of(table),
      values_scale_BHS=scale,
      num_heads=HEADS,
      block_size=128,
      interpret=True,
    )

  @jax.jit(static_argnums=0)
  def run(function, *arrays):
    output, pull_back = jax.vjp(function, *arrays)
    return output, *pull_back(weights)

  arrays = queries, keys, values, table
  return run(plain, *arrays), run(kernel, *arrays)


@pytest.mark.parametrize(
  ("name", "bidirectional", "scaled"),
  [
    ("encoder", True, True),
    ("decoder", False, False),
    ("cross", None, True),
    # Distances of the second sort of table where keys and queries differ.
    ("cross", True, False),
  ],
)
def test_the_kernel_is_the_plain_form(name, bidirectional, scaled):
  plain, kernel = of_both(
    pairs_of(name),
    LENGTHS[name],
    dtype=jnp.float32,
    bidirectional=bidirectional,
    scaled=scaled,
  )
  for what, a, b in zip(NAMES, kernel, plain, strict=True):
    # Relative to the largest: a query's gradient sums over hundreds of keys.
    atol = 1e-5 * max(1.0, float(jnp.abs(b).max()))
    np.testing.assert_allclose(a, b, atol=atol, err_msg=what)


def test_the_kernel_rounds_as_the_plain_form_does_in_bfloat16():
  plain, kernel = of_both(
    pairs_of("encoder"),
    LENGTHS["encoder"],
    dtype=jnp.bfloat16,
    bidirectional=True,
    scaled=True,
  )
  for what, a, b in zip(NAMES, kernel, plain, strict=True):
    assert a.dtype == b.dtype
    atol = 2e-2 * max(1.0, float(jnp.abs(b).max()))
    np.testing.assert_allclose(
      a.astype(jnp.float32), b.astype(jnp.float32), atol=atol, err_msg=what
    )


def test_rows_and_blocks_that_see_nothing_give_zeros_and_finite_gradients():
  # No input in row 1, and the second block of row 0 is padding.
  ids = segments([[100], []], 200)
  _, kernel = of_both(
    masks.encoder(ids), (200, 200), dtype=jnp.float32, bidirectional=True
  )
  output, *gradients = kernel
  assert (output[ids == 0] == 0).all()
  assert (output[ids == 1] != 0).all()
  for gradient in gradients[:3]:
    assert (gradient[ids == 0] == 0).all()
    assert np.isfinite(gradient).all()


def test_a_block_whose_pairs_are_all_hidden_is_not_read():
  keys = jnp.ones((1, 256, 32)).at[:, 128:].set(jnp.nan)
  output = attend_tpu.attend_on_tpu(
    jnp.ones((1, 128, 32)),
    keys,
    jnp.ones((1, 256, 32)),
    masks.cross(segments([[128]], 256)),
    num_heads=2,
    block_size=128,
    interpret=True,
  )
  np.testing.assert_allclose(output, 1.0, rtol=1e-6)


def test_only_blocks_that_the_causal_mask_leaves_count_as_visited():
  plan = attend_tpu._Plan.of(
    num_heads=2,
    head_dim=64,
    num_queries=512,
    num_keys=512,
    dtype=jnp.dtype("bfloat16"),
    bias=None,
    causal=True,
    scaled=False,
    block_size=128,
    interpret=True,
  )
  assert plan.visited_blocks() == 4 * 5 // 2
  assert dataclasses.replace(plan, causal=False).visited_blocks() == 16


def _assert_close(got, expected):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_network_learns_the_same_with_the_kernel():
  """Twenty steps with dropout, all but the encoder's attention recomputed."""
  source, target = jax.random.randint(jax.random.key(0), (2, 2, 12), 1, 64)
  source = source.at[1, 8:].set(0)

  def loss(params, attention, key):
    logits = network.EncoderDecoder(
      dataclasses.replace(CONFIG, attention=attention)
    ).apply(
      {"params": params},
      source,
      target,
      deterministic=False,
      rngs={"dropout": key},
    )
    return jnp.mean(jax.nn.log_softmax(logits)[..., 1] ** 2)

  @jax.jit(static_argnums=1)
  def step(params, attention, key):
    value, gradients = jax.value_and_grad(loss)(params, attention, key)
    return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients), value

  def losses(attention):
    params = network.EncoderDecoder(
      dataclasses.replace(CONFIG, attention="plain")
    ).init(jax.random.key(2), source, target, deterministic=True)["params"]
    params, found = network.nn.meta.unbox(params), []
    for number in range(20):
      params, value = step(params, attention, jax.random.key(number))
      found.append(value)
    return jnp.stack(found)

  plain = losses("plain")
  assert plain[-1] < 0.9 * plain[0]
  np.testing.assert_allclose(losses("tpu_interpreted"), plain, rtol=1e-4)


def test_each_device_attends_to_its_own_rows_and_heads():
  placed = placement.Placement(
    mesh=mesh.make_mesh(fsdp=2, model=2, data=1, devices=jax.devices()[:4])
  )
  rng = np.random.default_rng(0)
  config = dataclasses.replace(CONFIG, num_heads=4)
  joined = jnp.asarray(rng.normal(size=(4, 12, 64)), jnp.float32)
  table = jnp.asarray(rng.normal(size=(4, 32)), jnp.float32)
  ids = segments([[5, 7], [12], [3], [1, 1]], 12)
  scale = jnp.asarray(rng.integers(0, 2, size=(4, 4, 12)), jnp.float32)

  def loss(joined, table):
    bias = relative_position.Bias(
      table_HN=table, bidirectional=True, max_distance=128
    )
    output = attention.attention(
      joined,
      attention.KeysValues(keys_BSJ=joined, values_BSJ=joined),
      attention.Scope.of(config, masks.encoder(ids), (12, 12), bias),
      config,
      values_scale_BHS=scale,
    )
    return jnp.sum(jnp.sin(output))

  run = jax.jit(jax.value_and_grad(loss, (0, 1)))
  alone = run(joined, table)
  jax.clear_caches()
  with placed.entered():
    compiled = run.lower(joined, table).compile()
    _assert_close(compiled(joined, table), alone)


def test_the_kernel_is_for_tpus():
  config = dataclasses.replace(CONFIG, attention="tpu")
  with pytest.raises(errors.UserError, match="kernel for TPUs.*runs on cpu"):
    attention.runs_kernel(config, (4, 4), None)
  default = dataclasses.replace(CONFIG, attention="default")
  assert not attention.runs_kernel(default, (4, 4), None)


@pytest.mark.parametrize("block", [0, 100, 192, 128.0, True])
def test_a_block_is_whole_registers(block):
  with pytest.raises(errors.UserError, match="multiple of 128"):
    dataclasses.replace(CONFIG, attention_kernel_block=block)


def test_an_attention_that_is_unknown_is_refused():
  with pytest.raises(errors.UserError, match="attention is 'flash'.*tpu"):
    dataclasses.replace(CONFIG, attention="flash")
