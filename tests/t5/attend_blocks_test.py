"""Attention in blocks is whole attention, and reads no block it may skip."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from specialize_jax.parallel import mesh, placement
from specialize_jax.t5 import attend, attend_blocks, attention, masks
from specialize_jax.t5 import config as t5_config

BATCH, HEADS, HEAD_DIM = 4, 2, 5
SOURCES = [[7, 6, 2, 5], [20], [3, 9], [1, 1, 1, 1]]
TARGETS = [[4, 3, 1, 2], [9], [6, 7], [2, 2, 2, 2]]


def segments(lengths, total):
  rows = np.zeros((len(lengths), total), np.int32)
  for row, of_row in zip(rows, lengths, strict=True):
    row[: sum(of_row)] = np.repeat(np.arange(1, len(of_row) + 1), of_row)
  return jnp.asarray(rows)


SOURCE_IDS, TARGET_IDS = segments(SOURCES, 22), segments(TARGETS, 13)
MASKS = {
  "encoder": masks.encoder(SOURCE_IDS).mask(22, 22),
  "decoder": masks.decoder(TARGET_IDS).mask(13, 13),
  "cross": masks.cross(SOURCE_IDS, TARGET_IDS).mask(13, 22),
  "causal": masks.decoder().mask(13, 13),
  "padding": masks.cross(SOURCE_IDS).mask(13, 22),
}


def arrays(mask, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  num_queries, num_keys = max(mask.shape[2], 13), mask.shape[3]

  def random(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  keys = (BATCH, HEADS, num_keys, HEAD_DIM)
  return (
    random(BATCH, HEADS, num_queries, HEAD_DIM),
    random(*keys),
    random(*keys),
    random(HEADS, num_queries, num_keys).astype(jnp.float32),
  )


def of_whole_and_of_blocks(run):
  """Returns `run` of both kinds of attention."""
  return run(attend.attend), run(
    lambda *arguments: attend_blocks.attend_in_blocks(
      *arguments, block_sizes=(5, 4)
    )
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_blocks_give_what_whole_attention_gives(name, biased, dtype):
  mask = MASKS[name]
  *of_tokens, bias = arrays(mask, dtype)
  biases = (bias,) if biased else ()

  def run(function):
    def output(*arguments):
      found = function(*arguments, *(() if biased else (None,)), mask)
      return found.astype(jnp.float32)

    numbers = range(3 + biased)
    gradients = jax.grad(
      lambda *arguments: jnp.sum(jnp.sin(output(*arguments))), tuple(numbers)
    )
    arguments = (*of_tokens, *biases)
    return output(*arguments), *gradients(*arguments)

  atol = 2e-6 if dtype == "float32" else 4e-2
  for whole, blocks in zip(*of_whole_and_of_blocks(run), strict=True):
    assert whole.dtype == blocks.dtype
    np.testing.assert_allclose(
      blocks.astype(jnp.float32), whole.astype(jnp.float32), atol=atol
    )


def test_a_block_that_no_query_may_look_at_is_not_read():
  # 22 keys make six blocks of four: the last holds keys 20 to 23, which are
  # padding in every row.
  queries, keys, values, bias = arrays(MASKS["encoder"])
  keys = keys.at[:, :, 20:].set(jnp.nan)
  values = values.at[:, :, 20:].set(jnp.nan)
  whole, blocks = of_whole_and_of_blocks(
    lambda function: function(queries, keys, values, bias, MASKS["encoder"])
  )
  assert np.isfinite(blocks).all()
  assert np.isnan(whole).any()


@pytest.mark.parametrize(
  "function",
  [
    attend.attend,
    functools.partial(attend_blocks.attend_in_blocks, block_sizes=(5, 4)),
  ],
)
def test_a_query_that_may_look_at_nothing_gets_zeros_and_teaches_nothing(
  function,
):
  mask = MASKS["encoder"]
  of_tokens = arrays(mask)
  padding = ~mask.any(axis=-1)[..., None]
  assert padding.any()

  def loss(*arguments):
    found = function(*arguments, mask)
    return jnp.sum(jnp.where(padding, found + found**2, 0.0))

  value, gradients = jax.value_and_grad(loss, (0, 1, 2, 3))(*of_tokens)
  assert value == 0
  assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize(
  "axes", [{"model": 2}, {"fsdp": 2, "model": 2}, {"model": 4}]
)
def test_each_device_visits_its_own_rows_and_heads(axes):
  """As far as their numbers divide: four devices share two heads."""
  mask = MASKS["encoder"]
  of_tokens = arrays(mask)

  def loss(*arguments):
    return jnp.sum(
      jnp.sin(
        attend_blocks.attend_in_blocks(*arguments, mask, block_sizes=(5, 4))
      )
    )

  run = jax.value_and_grad(loss, (0, 1, 2, 3))
  expected = run(*of_tokens)
  devices = jax.devices()[: math.prod(axes.values())]
  placed = placement.Placement(
    mesh=mesh.make_mesh(data=1, devices=devices, **axes)
  )

  def constrained(*arguments):
    *heads, bias = arguments
    names = ("batch", "heads", "length", "kv")
    heads = [nn.with_logical_constraint(array, names) for array in heads]
    return run(*heads, nn.with_logical_constraint(bias, ("heads", None, None)))

  with placed.entered():
    compiled = jax.jit(constrained).lower(*of_tokens).compile()
    got = compiled(*of_tokens)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  if HEADS % axes["model"] == 0:
    assert "all-gather" not in compiled.as_text()


def test_short_memories_are_looked_at_whole():
  config = t5_config.T5Config(
    vocab_size=4,
    embed_dim=6,
    mlp_dim=4,
    num_heads=HEADS,
    head_dim=HEAD_DIM,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("relu",),
    tied_head=True,
    dropout_rate=0.0,
    dtype="float32",
    attention_block_sizes=(5, 4),
  )
  module = attention.Attention(config)

  def lowered(num_keys):
    memory = jnp.ones((1, num_keys, 6))

    def attend_to(module, memory):
      return module(
        memory,
        module.keys_values(memory),
        attention.Scope(mask=jnp.ones((1, 1, num_keys, num_keys), bool)),
        deterministic=True,
      )

    return str(
      jax.make_jaxpr(
        lambda: module.init_with_output(
          jax.random.key(0), memory, method=attend_to
        )[0]
      )()
    )

  assert "while" in lowered(9)
  assert "while" not in lowered(8)
