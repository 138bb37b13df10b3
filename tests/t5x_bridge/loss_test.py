"""Our loss through T5X's model, beside our own network's and T5X's own."""

import functools
import math
import re

import flax.core
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testdata.taught_rows import batch

from specialize_jax import errors
from specialize_jax.checkpoints import name_table, sources
from specialize_jax.losses import distillation, head, normalization
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network
from specialize_jax.t5x_bridge import model as bridge

pytestmark = pytest.mark.t5x

NETWORKS = [
  ("t5", "t5_1_1", {}),
  ("t5", "t5_1_0", {}),
  ("scalable_t5", "t5_1_1", {"scan_layers": True, "remat_policy": "minimal"}),
]


def our_tree(params, config):
  leaves = flax.traverse_util.flatten_dict(flax.core.unfreeze(params), sep="/")
  return name_table.assemble(config, sources.Leaves("memory", leaves))


def our_config(family):
  one_zero = family == "t5_1_0"
  return t5_config.T5Config(
    vocab_size=384,
    embed_dim=16,
    mlp_dim=20,
    num_heads=3,
    head_dim=6,
    num_encoder_layers=3,
    num_decoder_layers=2,
    mlp_activations=("relu",) if one_zero else ("gelu", "linear"),
    tied_head=one_zero,
    dropout_rate=0.0,
    dtype="float32",
    scan_layers=False,
  )


def t5x_model(t5x_models, name, family, changes, loss):
  module = t5x_models.module(name, family, **changes)
  built = bridge.distillation_model(
    base=t5x_models.model(
      module, loss_normalizing_factor="NUM_REAL_TARGET_TOKENS"
    ),
    loss=loss,
  )
  state, _ = t5x_models.random_state(module, with_optimizer=False)
  return built, state.params


DISTRIBUTION = distillation.LossConfig(num_chunks=3)
IGNORE = distillation.LossConfig(masked_out="ignore", chunk_axis="targets")
SAMPLE = distillation.LossConfig(objective="sample_matching", z_loss=1e-4)


@pytest.mark.parametrize(
  ("family", "loss", "packed"),
  [
    ("t5_1_0", DISTRIBUTION, False),
    ("t5_1_1", DISTRIBUTION, True),
    ("t5_1_1", IGNORE, True),
    ("t5_1_1", SAMPLE, False),
    ("t5_1_0", SAMPLE, True),
  ],
)
def test_loss_and_gradients_are_those_of_our_trainer(
  t5x_models, family, loss, packed
):
  built, params = t5x_model(t5x_models, "t5", family, {}, loss)
  config = our_config(family)
  ours = network.EncoderDecoder(config)

  def our_loss(params):
    rows = batch(packed)
    hidden = ours.apply(
      {"params": params},
      rows["encoder_input_tokens"],
      rows["decoder_input_tokens"],
      encoder_segment_ids_BS=rows["encoder_segment_ids"],
      decoder_segment_ids_BT=rows["decoder_segment_ids"],
      deterministic=True,
      method="hidden",
    )
    total, output = head.weighted_loss(
      hidden, network.output_kernel(params), rows, config=loss
    )
    return normalization.divide(total, output.weights_BT.sum())

  def t5x_loss(params):
    return built.loss_fn(params, batch(packed), None)[0]

  our_params = our_tree(params, config)
  value, gradient = jax.jit(jax.value_and_grad(our_loss))(our_params)
  t5x_value, t5x_gradient = jax.jit(jax.value_and_grad(t5x_loss))(params)
  assert float(value) > 0.5
  np.testing.assert_allclose(t5x_value, value, atol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-4),
    our_tree(t5x_gradient, config),
    gradient,
  )


@pytest.mark.parametrize(
  ("name", "family", "changes", "packed"),
  [(*one, packed) for one, packed in zip(NETWORKS, (0, 1, 1), strict=True)],
)
def test_sample_matching_is_t5x_s_own_loss(
  t5x_models, name, family, changes, packed
):
  built, params = t5x_model(t5x_models, name, family, changes, SAMPLE)
  stock = t5x_models.model(
    t5x_models.module(name, family, **changes),
    z_loss=1e-4,
    loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
  )

  def both(params):
    rows = batch(packed)
    return built.loss_fn(params, rows, None), stock.loss_fn(params, rows, None)

  (ours, metrics), (theirs, stock_metrics) = jax.jit(both)(params)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)
  assert metrics.keys() >= stock_metrics.keys()
  for metric in stock_metrics:
    if not metric.startswith("timing"):
      np.testing.assert_allclose(
        jax.tree.leaves(metrics[metric]),
        jax.tree.leaves(stock_metrics[metric]),
        atol=1e-4,
        err_msg=metric,
      )


def largest_product(loss, params):
  """The number of elements of the largest matmul's output in a gradient.

  Not of any tensor: T5X embeds tokens by one-hot vectors of the vocabulary.
  """
  text = jax.jit(jax.grad(loss)).lower(params).as_text()
  shapes = re.findall(r"dot_general.*-> tensor<((?:\d+x)+)[a-z]", text)
  return max(math.prod(map(int, one[:-1].split("x"))) for one in shapes)


def test_no_logits_are_computed_whole_of_t5x_s_networks(t5x_models):
  loss = distillation.LossConfig(num_chunks=4)
  rows = {k: np.repeat(v, 8, axis=0) for k, v in batch(packed=True).items()}
  whole_logits = rows["decoder_target_tokens"].size * 384
  for name, family, changes in NETWORKS:
    built, params = t5x_model(t5x_models, name, family, changes, loss)
    largest = largest_product(
      lambda p, m=built: m.loss_fn(p, rows, None)[0], params
    )
    assert largest < whole_logits, name
    # What fails where they are: the same loss of a network that is not known.
    built.module = Wrapped(built.module)
    largest = largest_product(
      lambda p, m=built: m.loss_fn({"inner": p}, rows, None)[0], params
    )
    assert largest >= whole_logits, name


class Wrapped(nn.Module):
  """A network that is none of T5X's own."""

  inner: nn.Module

  def __call__(self, *args, **kwargs):
    return self.inner(*args, **kwargs)


def test_whole_logits_of_another_network_give_the_same_loss(t5x_models):
  loss = distillation.LossConfig()
  built, params = t5x_model(t5x_models, "t5", "t5_1_1", {}, loss)
  known = jax.jit(lambda p: built.loss_fn(p, batch(True), None)[0])(params)

  built.module = Wrapped(built.module)
  whole = jax.jit(lambda p: built.loss_fn({"inner": p}, batch(True), None)[0])(
    params
  )
  np.testing.assert_allclose(known, whole, atol=1e-5)


def test_a_batch_without_a_teacher_takes_the_cross_entropy(t5x_models):
  built, params = t5x_model(
    t5x_models, "t5", "t5_1_1", {}, distillation.LossConfig()
  )
  rows = {k: v for k, v in batch(False).items() if "teacher" not in k}
  loss, metrics = jax.jit(lambda p: built.loss_fn(p, rows, None))(params)
  assert loss == metrics["distillation/nll"].compute()


def sharded(t5x_models, num_model):
  """T5X's train step on 4 devices, or 1: its state, step and lowered text."""
  from t5x import partitioning, trainer, utils

  count = 4 if num_model > 1 else 1
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:count]).reshape(-1, num_model), ("data", "model")
  )

  class Partitioner(partitioning.PjitPartitioner):
    pass

  Partitioner.mesh = mesh
  partitioner = Partitioner(num_partitions=num_model)
  module = t5x_models.module("t5", "t5_1_1", num_heads=4)
  built = bridge.distillation_model(
    base=t5x_models.model(
      module, loss_normalizing_factor="NUM_REAL_TARGET_TOKENS"
    ),
    loss=distillation.LossConfig(num_chunks=3),
  )
  rows = {
    k: np.tile(v, (2,) + (1,) * (v.ndim - 1))[:4]
    for k, v in batch(True).items()
  }
  initializer = utils.TrainStateInitializer(
    optimizer_def=built.optimizer_def,
    init_fn=built.get_initial_variables,
    input_shapes={k: v.shape for k, v in rows.items()},
    partitioner=partitioner,
  )

  def step(state, rows):
    return trainer.train_with_lr(
      state,
      rows,
      learning_rate=jnp.float32(1e-2),
      dropout_rng=jax.random.PRNGKey(0),
      model=built,
      num_microbatches=None,
      data_partition_spec=partitioner.data_partition_spec,
    )

  partitioned = partitioner.partition(
    step,
    in_axis_resources=(
      initializer.train_state_axes,
      partitioner.data_partition_spec,
    ),
    out_axis_resources=(initializer.train_state_axes, None),
  )
  return initializer, partitioned, rows


def test_four_devices_train_as_one_does(t5x_models):
  losses, states = [], []
  for num_model in (1, 2):
    initializer, step, rows = sharded(t5x_models, num_model)
    state, of_run = initializer.from_scratch(jax.random.PRNGKey(0)), []
    for _ in range(3):
      state, metrics = step(state, rows)
      of_run.append(float(metrics["loss"].total))
    losses.append(of_run)
    states.append(state)
  np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
  assert losses[0][2] < losses[0][0]
  text = step.lower(state, rows).compile().as_text()
  # Rows and hidden units are sharded, 2 rows of 4 and 10 of 20 a device.
  assert "f32[2,10,10]" in text
  assert "f32[2,10,20]" not in text


def test_constraints_that_would_be_dropped_are_refused(t5x_models):
  built, params = t5x_model(
    t5x_models, "t5", "t5_1_1", {}, distillation.LossConfig()
  )
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model")
  )
  rows = batch(False)
  with nn.logical_axis_rules([("batch", "data"), ("mlp", "model")]):
    with pytest.raises(errors.UserError, match="without a mesh"):
      jax.eval_shape(lambda p: built.loss_fn(p, rows, None)[0], params)
    with jax.set_mesh(mesh):
      jax.eval_shape(lambda p: built.loss_fn(p, rows, None)[0], params)


def test_losses_of_t5x_that_ours_replaces_are_refused(t5x_models):
  base = t5x_models.model(t5x_models.module(), z_loss=1e-4)
  built = bridge.distillation_model(base=base, loss=distillation.LossConfig())
  assert built.loss_config.z_loss == 1e-4
  with pytest.raises(errors.UserError, match="differ: set one of them"):
    bridge.distillation_model(
      base=base, loss=distillation.LossConfig(z_loss=1e-3)
    )
  smooth = t5x_models.model(t5x_models.module(), label_smoothing=0.1)
  with pytest.raises(errors.UserError, match="label_smoothing=0.1 is not"):
    bridge.distillation_model(base=smooth, loss=distillation.LossConfig())
