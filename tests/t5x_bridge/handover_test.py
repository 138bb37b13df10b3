"""A run that changes its trainer in the middle goes on as if it had not.

Both trainers take two steps on their own; then each takes the third, from the
checkpoint of the other too. The losses before that step are those of the same
parameters on the same batch, and the parameters after it are equal, since
Adafactor's moments go along.
"""

import dataclasses
import functools

import flax.core
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testdata import taught_rows, tiny_checkpoints

from specialize_jax.checkpoints import (
  conversion,
  manager,
  name_table,
  opening,
)
from specialize_jax.losses import distillation
from specialize_jax.t5 import network
from specialize_jax.t5x_bridge import model as bridge
from specialize_jax.training import optimizer, state, step

pytestmark = pytest.mark.t5x

# The embedding and half of the kernels are large enough to be factored.
CONFIG = tiny_checkpoints.config(
  "t5_1_1",
  vocab_size=384,
  embed_dim=128,
  mlp_dim=130,
  relative_attention_num_buckets=32,
  relative_attention_max_distance=128,
  scan_layers=False,
  dropout_rate=0.0,
)
LOSS = distillation.LossConfig(num_chunks=3)
RATE = 1e-2
ADAFACTOR = optimizer.build(
  optimizer.OptimizerConfig(
    name="adafactor", learning_rate=RATE, max_gradient_norm=None
  )
)
NUM_STEPS = 2


@functools.cache
def our_step():
  return step.make_train_step(
    network.EncoderDecoder(CONFIG),
    ADAFACTOR,
    LOSS,
    dropout_rng=jax.random.key(0),
  )


def take_our_step(train_state, number):
  """Our state after one step, and the loss before it."""
  train_state = jax.tree.map(jnp.copy, train_state)  # the step donates it
  after, metrics = our_step()(train_state, taught_rows.batch(True, number))
  return after, float(metrics["loss"])


def t5x_module(t5x_models, layers="listed"):
  name = "t5" if layers == "listed" else "scalable_t5"
  return t5x_models.module(name, emb_dim=128, mlp_dim=130)


@functools.cache
def t5x_step(t5x_models, layers):
  from t5x import trainer, utils

  built = bridge.distillation_model(
    base=t5x_models.model(
      t5x_module(t5x_models, layers),
      loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
    ),
    loss=LOSS,
  )
  partitioner = t5x_models.partitioner()
  rows = taught_rows.batch(True)
  axes = utils.TrainStateInitializer(
    optimizer_def=built.optimizer_def,
    init_fn=built.get_initial_variables,
    input_shapes={name: value.shape for name, value in rows.items()},
    partitioner=partitioner,
  ).train_state_axes

  def train_step(train_state, rows):
    return trainer.train_with_lr(
      train_state,
      rows,
      learning_rate=jnp.float32(RATE),
      dropout_rng=jax.random.PRNGKey(0),
      model=built,
      num_microbatches=None,
      data_partition_spec=partitioner.data_partition_spec,
    )

  return partitioner.partition(
    train_step,
    in_axis_resources=(axes, partitioner.data_partition_spec),
    out_axis_resources=(axes, None),
  )


def take_t5x_step(t5x_models, train_state, number, layers="listed"):
  """T5X's state after one step, and the loss before it."""
  after, metrics = t5x_step(t5x_models, layers)(
    train_state, taught_rows.batch(True, number)
  )
  return after, float(metrics["loss"].compute())


def flat(params):
  return flax.traverse_util.flatten_dict(flax.core.unfreeze(params), sep="/")


def assert_equal_params(params, others):
  params, others = flat(params), flat(others)
  assert params.keys() == others.keys()
  for name, value in params.items():
    np.testing.assert_allclose(value, others[name], atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
  """Our state after two steps, and its checkpoint."""
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  params = name_table.assemble(CONFIG, tiny_checkpoints.source_of(tensors))
  train_state = state.from_params(params, ADAFACTOR)
  for number in range(NUM_STEPS):
    train_state, _ = take_our_step(train_state, number)
  place = tmp_path_factory.mktemp("ours")
  with manager.CheckpointManager(place / "checkpoints") as steps:
    steps.save(
      NUM_STEPS, train_state, b"", {"model": dataclasses.asdict(CONFIG)}
    )
  return train_state, opening.open_checkpoint(place)


@pytest.mark.parametrize("layers", ["listed", "scanned"])
def test_t5x_goes_on_from_our_checkpoint(t5x_models, ours, tmp_path, layers):
  train_state, checkpoint = ours
  path = conversion.write_t5x(
    conversion.plan(checkpoint, to="t5x"), tmp_path / "t5x", layers=layers
  )
  theirs = t5x_models.restored(t5x_module(t5x_models, layers), path)
  assert int(theirs.step) == NUM_STEPS
  after, loss = take_our_step(train_state, NUM_STEPS)
  their_after, their_loss = take_t5x_step(t5x_models, theirs, NUM_STEPS, layers)
  assert their_loss == pytest.approx(loss, abs=1e-5)
  if layers == "listed":  # a scanned layer's moments have other factors
    assert_equal_params(their_after.params, after.params)
  _, loss = take_our_step(after, NUM_STEPS + 1)
  _, their_loss = take_t5x_step(t5x_models, their_after, NUM_STEPS + 1, layers)
  tolerance = 1e-4 if layers == "listed" else 0.05
  assert their_loss == pytest.approx(loss, abs=tolerance)


@pytest.mark.parametrize("through", ["legacy", "orbax"])
def test_our_trainer_goes_on_from_t5x_s_checkpoint(
  t5x_models, tmp_path, through
):
  theirs, _ = t5x_models.random_state(t5x_module(t5x_models))
  # Random parameters, but the moments of a run of its own.
  theirs = theirs.replace_params(jax.tree.map(lambda p: 0.3 * p, theirs.params))
  for number in range(NUM_STEPS):
    theirs, _ = take_t5x_step(t5x_models, theirs, number)
  t5x_models.save(tmp_path, theirs, through=through)

  checkpoint = opening.open_checkpoint(tmp_path)
  ours = state.with_moments(
    state.from_params(
      name_table.assemble(CONFIG, checkpoint.source), ADAFACTOR
    ),
    checkpoint.moments(),
  )
  after, loss = take_our_step(ours, NUM_STEPS)
  their_after, their_loss = take_t5x_step(t5x_models, theirs, NUM_STEPS)
  assert loss == pytest.approx(their_loss, abs=1e-5)
  assert_equal_params(after.params, their_after.params)
  _, loss = take_our_step(after, NUM_STEPS + 1)
  _, their_loss = take_t5x_step(t5x_models, their_after, NUM_STEPS + 1)
  assert loss == pytest.approx(their_loss, abs=1e-4)
