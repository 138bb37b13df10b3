"""The laws of the network, float32 unless a test says otherwise."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testdata import tiny_t5

from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

T5_1_1 = dataclasses.replace(
  tiny_t5.T5_1_1, vocab_size=40, num_encoder_layers=3
)
T5_1_0 = dataclasses.replace(
  T5_1_1,
  num_encoder_layers=1,
  mlp_activations=("relu",),
  tied_head=True,
  scan_layers=False,
)
BOTH = pytest.mark.parametrize("config", [T5_1_1, T5_1_0], ids=["1_1", "1_0"])


def tokens(shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(2, 40, shape), jnp.int32)


init = functools.partial(tiny_t5.init, std=1.0)


@functools.cache
def _apply(model, deterministic, method):
  return jax.jit(
    functools.partial(
      model.apply, deterministic=deterministic, method=method or "__call__"
    )
  )


def forward(model, params, *args, method=None, dropout_rng=None, **kwargs):
  rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
  run = _apply(model, dropout_rng is None, method)
  return run({"params": params}, *args, rngs=rngs, **kwargs)


def pad(tokens_BT, length):
  return jnp.pad(tokens_BT, ((0, 0), (0, length - tokens_BT.shape[1])))


def close(left, right, tolerance=1e-5):
  np.testing.assert_allclose(left, right, atol=tolerance, rtol=0)


@BOTH
def test_padding_never_changes_the_logits(config):
  model, params = init(config)
  source, target = tokens((2, 5)), tokens((2, 4), seed=1)
  plain = forward(model, params, source, target)
  padded = forward(model, params, pad(source, 9), pad(target, 7))
  assert plain.dtype == jnp.float32
  close(plain, padded[:, :4])
  changed = forward(model, params, source.at[:, -1].set(0), target)
  assert np.abs(changed - plain).max() > 1e-2


@BOTH
def test_packed_examples_have_the_logits_they_have_alone(config):
  model, params = init(config)
  sources = tokens((1, 5)), tokens((1, 3), seed=1)
  targets = tokens((1, 4), seed=2), tokens((1, 6), seed=3)
  # The decoder starts with the padding token in every segment.
  targets = [target.at[:, 0].set(0) for target in targets]
  packed = forward(
    model,
    params,
    pad(jnp.concatenate(sources, axis=1), 10),
    pad(jnp.concatenate(targets, axis=1), 12),
    encoder_segment_ids_BS=jnp.array([[1] * 5 + [2] * 3 + [0] * 2]),
    decoder_segment_ids_BT=jnp.array([[1] * 4 + [2] * 6 + [0] * 2]),
  )
  alone = [
    forward(model, params, source, target)
    for source, target in zip(sources, targets, strict=True)
  ]
  close(packed[:, :4], alone[0])
  close(packed[:, 4:10], alone[1])
  assert np.isfinite(packed).all()


@BOTH
def test_no_gradient_flows_from_a_position_to_a_later_one(config):
  model, params = init(config)
  source, target = tokens((1, 5)), tokens((1, 6), seed=1)
  encoded = forward(model, params, source, method="encode")

  def hidden(embedded_BTD):
    def decode(model, encoded, embedded_BTD):
      from specialize_jax.t5 import masks

      segments = masks.segments_of_tokens(source, pad_id=0)
      both = masks.decoder(), masks.cross(segments)
      return model.decoder(embedded_BTD, encoded, both, deterministic=True)

    return model.apply({"params": params}, encoded, embedded_BTD, method=decode)

  embedded = params["token_embedder"]["embedding"][target]
  jacobian = jax.jit(jax.jacobian(lambda x: hidden(x).sum((0, 2))))(embedded)
  influence = np.abs(np.asarray(jacobian)).sum((1, 3))
  assert (influence[np.triu_indices(6, 1)] == 0).all()
  assert (influence[np.tril_indices(6)] > 0).all()


@BOTH
def test_a_row_without_any_input_stays_finite(config):
  model, params = init(config)
  source = tokens((2, 5)).at[1].set(0)
  target = tokens((2, 4), seed=1)

  def loss(params):
    logits = model.apply({"params": params}, source, target, deterministic=True)
    return logits.sum(), logits

  gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
  assert np.isfinite(logits).all()
  for leaf in jax.tree.leaves(gradients):
    assert np.isfinite(leaf).all()
  close(logits[:1], forward(model, params, source[:1], target[:1]))


PER_LAYER = dataclasses.replace(T5_1_1, relative_bias="per_layer")


@pytest.mark.parametrize("config", [T5_1_1, PER_LAYER])
def test_scanned_layers_equal_listed_layers(config):
  scanned, params = init(config)
  listed, listed_params = network.unrolled(scanned, params)
  _, expected = init(listed.config)
  assert jax.tree.structure(listed_params) == jax.tree.structure(expected)
  source, target = tokens((2, 5)), tokens((2, 4), seed=1)
  close(
    forward(scanned, params, source, target),
    forward(listed, listed_params, source, target),
  )
  assert network.unrolled(listed, listed_params)[0] is listed


def test_layers_with_equal_tables_are_a_stack_with_one():
  per_stack, params = init(T5_1_1)
  per_layer, _ = init(PER_LAYER)
  depths = {
    "encoder": T5_1_1.num_encoder_layers,
    "decoder": T5_1_1.num_decoder_layers,
  }
  copied = dict(params)
  for stack, depth in depths.items():
    stack_params = dict(params[stack])
    table = stack_params.pop("relpos_bias")["rel_embedding"]
    stack_params["layers"] = stack_params["layers"] | {
      "relpos_bias": {"rel_embedding": jnp.stack([table] * depth)}
    }
    copied[stack] = stack_params
  source, target = tokens((2, 5)), tokens((2, 4), seed=1)
  close(
    forward(per_layer, copied, source, target),
    forward(per_stack, params, source, target),
  )
  table = copied["decoder"]["layers"]["relpos_bias"]["rel_embedding"]
  copied["decoder"]["layers"]["relpos_bias"]["rel_embedding"] = table.at[
    1
  ].multiply(-1)
  assert not np.allclose(
    forward(per_layer, copied, source, target),
    forward(per_stack, params, source, target),
  )


@pytest.mark.parametrize(
  ("config", "policy"),
  [
    (T5_1_1, "minimal"),
    (T5_1_1, "lean"),
    (T5_1_1, "dots"),
    (T5_1_1, "full"),
    (T5_1_0, "minimal"),
  ],
)
def test_rematerialisation_changes_no_gradient(config, policy):
  _, params = init(config)
  config = dataclasses.replace(config, dropout_rate=0.1)
  plain = _gradients(config, params)
  again = _gradients(dataclasses.replace(config, remat_policy=policy), params)
  jax.tree.map(close, plain, again)


@functools.cache
def _gradient_fn(config):
  model = network.EncoderDecoder(config)

  def loss(params):
    logits = model.apply(
      {"params": params},
      tokens((2, 5)),
      tokens((2, 4), seed=1),
      deterministic=False,
      rngs={"dropout": jax.random.key(3)},
    )
    return jnp.square(logits).mean()

  return jax.jit(jax.value_and_grad(loss))


def _gradients(config, params):
  return _gradient_fn(config)(params)


@pytest.mark.parametrize("attention", ["plain", "tpu_interpreted"])
def test_rematerialisation_saves_fewer_activations(attention):
  source, target = tokens((4, 32)), tokens((4, 32), seed=1)
  config = dataclasses.replace(T5_1_1, attention=attention, head_dim=16)
  _, params = init(config)
  sizes = {}
  for policy in t5_config.REMAT_POLICIES:
    config = dataclasses.replace(config, remat_policy=policy)
    model = network.EncoderDecoder(config)
    vjp = jax.eval_shape(
      lambda params, model=model: jax.vjp(
        lambda params: model.apply(
          {"params": params}, source, target, deterministic=True
        ),
        params,
      )[1],
      params,
    )
    sizes[policy] = sum(
      leaf.size * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(vjp)
      if leaf.size > 1  # a single value is no activation
    )
  order = list(sizes.values())
  assert order == sorted(order, reverse=True)
  # Matmuls without parameters are those of attention. The plain form computes
  # its output by one, and the kernel contains all of them.
  if attention == "plain":
    assert sizes["minimal"] == sizes["lean"]
    assert len(set(order)) == 4
    return
  assert len(set(order)) == 5
  # `minimal` keeps an attention of each encoder layer, `dots` also two of each
  # decoder layer.
  of_encoder = sizes["minimal"] - sizes["lean"]
  of_decoder = sizes["dots"] - sizes["minimal"]
  assert (
    of_decoder * config.num_encoder_layers
    == of_encoder * config.num_decoder_layers * 2
  )


def test_dropout_draws_by_its_key_and_is_off_when_deterministic():
  still, params = init(T5_1_1)
  model = network.EncoderDecoder(dataclasses.replace(T5_1_1, dropout_rate=0.5))
  source, target = tokens((2, 5)), tokens((2, 4), seed=1)

  def dropped(seed):
    rng = jax.random.key(seed)
    return forward(model, params, source, target, dropout_rng=rng)

  close(dropped(0), dropped(0), 0)
  assert np.abs(dropped(0) - dropped(1)).max() > 1e-2
  close(
    forward(model, params, source, target),
    forward(still, params, source, target),
    0,
  )


def test_the_factor_of_a_tied_head_is_not_rounded_to_bfloat16():
  """768 ** -0.5 is off by 0.13 % there, and every logit with it."""
  embedding = jax.random.normal(jax.random.key(0), (512, 768), jnp.bfloat16)
  params = {"decoder": {}, "token_embedder": {"embedding": embedding}}
  kernel = network.output_kernel(params)
  assert kernel.dtype == jnp.bfloat16
  exact = np.asarray(embedding, np.float64).T / 768**0.5
  ratio = (np.asarray(kernel, np.float64) * exact).sum() / (exact**2).sum()
  assert abs(ratio - 1) < 5e-4  # what is left is the products' own rounding


@BOTH
def test_the_output_kernel_gives_the_logits(config):
  model, params = init(config)
  source, target = tokens((2, 5)), tokens((2, 4), seed=1)
  hidden = forward(model, params, source, target, method="hidden")
  logits = forward(model, params, source, target)
  close(hidden @ network.output_kernel(params), logits)


@BOTH
def test_bfloat16_runs_with_float32_parameters_and_logits(config):
  model, params = init(config)
  half = network.EncoderDecoder(dataclasses.replace(config, dtype="bfloat16"))
  source, target = tokens((2, 5)), tokens((2, 4), seed=1)
  hidden = forward(half, params, source, target, method="hidden")
  logits = forward(half, params, source, target)
  assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
  exact = forward(model, params, source, target)
  assert np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


@BOTH
def test_initial_kernels_have_t5x_variances(config):
  config = dataclasses.replace(
    config, embed_dim=256, mlp_dim=512, num_heads=4, head_dim=32
  )
  model = network.EncoderDecoder(config)
  params = jax.jit(
    lambda rng: nn.meta.unbox(
      model.init(rng, tokens((1, 4)), tokens((1, 4)), deterministic=True)
    )["params"]
  )(jax.random.key(0))
  encoder = params["encoder"]
  layer = encoder["layers" if config.scan_layers else "layers_0"]
  expected = {
    "query": (layer["attention"]["query"], (256 * 32) ** -0.5),
    "key": (layer["attention"]["key"], 256**-0.5),
    "out": (layer["attention"]["out"], 128**-0.5),
    "wo": (layer["mlp"]["wo"], 512**-0.5),
  }
  for name, (part, deviation) in expected.items():
    measured = np.std(part["kernel"])
    assert measured == pytest.approx(deviation, rel=0.03), name
  assert np.std(params["token_embedder"]["embedding"]) == pytest.approx(
    1.0, rel=0.03
  )


def test_every_parameter_has_logical_axes():
  model = network.EncoderDecoder(T5_1_1)
  boxes = jax.tree.leaves(
    network.boxed_shapes(model),
    is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
  )
  assert all(isinstance(b, nn.LogicallyPartitioned) for b in boxes)
  assert all(len(b.names) == b.value.ndim for b in boxes)
  assert {name for b in boxes for name in b.names} == {
    *("embed", "mlp", "heads", "joined_kv", "vocab"),
    *("relpos_buckets", "layers"),
  }


@pytest.mark.parametrize("token", [40, -1, -100])
def test_a_token_outside_the_vocabulary_gives_no_number(token):
  model, params = init(T5_1_1)
  logits = forward(model, params, jnp.array([[5, token]]), tokens((1, 3)))
  assert np.isnan(logits).all()


_DOT = re.compile(
  r"\[(?P<rows>\d+),[\d,]*\]\S* dot\(.*?"
  r"(?:lhs_batch_dims={(?P<batch>[\d,]+)}, )?"
  r"lhs_contracting_dims={(?P<summed>[\d,]+)}"
)


@pytest.mark.parametrize("block_sizes", [None, (4, 4)])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_no_product_of_a_cpu_has_its_left_side_turned(block_sizes, scan_layers):
  """XLA has no fast path for one that is not summed along its last axis."""
  model, params = init(
    dataclasses.replace(
      T5_1_1, scan_layers=scan_layers, attention_block_sizes=block_sizes
    )
  )

  def total(params):
    hidden_BTD = model.apply(
      {"params": params},
      tokens((2, 16)),
      tokens((2, 12)),
      deterministic=True,
      method="hidden",
    )
    return jnp.square(hidden_BTD).sum()

  hlo = jax.jit(jax.grad(total)).lower(params).compile().as_text()
  dots = [match.groupdict() for match in _DOT.finditer(hlo)]
  dots = [dot for dot in dots if dot["rows"] != "1"]  # sums by ones
  assert len(dots) > 30
  for dot in dots:
    num_batch_axes = len(dot["batch"].split(",")) if dot["batch"] else 0
    assert int(dot["summed"]) == num_batch_axes + 1
