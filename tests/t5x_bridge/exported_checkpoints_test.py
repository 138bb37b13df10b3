"""T5X's own code restores the checkpoints of `specialize convert --to=t5x`."""

import dataclasses

import flax.core
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testdata import tiny_checkpoints

from specialize_jax.checkpoints import (
  conversion,
  manager,
  name_table,
  opening,
)
from specialize_jax.training import optimizer, state

pytestmark = pytest.mark.t5x

CONFIG = tiny_checkpoints.config(
  "t5_1_1",
  vocab_size=384,
  embed_dim=128,
  mlp_dim=130,
  relative_attention_num_buckets=32,
  relative_attention_max_distance=128,
  scan_layers=False,
)
RATE = 1e-2


def gradients_like(params, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params
  )


def updated(adafactor, train_state, seed):
  direction, opt_state = adafactor.direction(
    gradients_like(train_state.params, seed),
    train_state.opt_state,
    train_state.params,
    finite=jnp.array(True),
  )
  params = jax.tree.map(
    lambda p, d: p - RATE * d, train_state.params, direction
  )
  return dataclasses.replace(
    train_state, step=train_state.step + 1, params=params, opt_state=opt_state
  )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Our optimizer, our state after two updates, and its checkpoint."""
  adafactor = optimizer.build(
    optimizer.OptimizerConfig(
      name="adafactor", learning_rate=RATE, max_gradient_norm=None
    )
  )
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  params = name_table.assemble(CONFIG, tiny_checkpoints.source_of(tensors))
  train_state = state.from_params(params, adafactor)
  with jax.numpy_dtype_promotion("standard"):
    for seed in range(2):
      train_state = updated(adafactor, train_state, seed)
  place = tmp_path_factory.mktemp("ours")
  with manager.CheckpointManager(place / "checkpoints") as steps:
    steps.save(2, train_state, b"", {"model": dataclasses.asdict(CONFIG)})
  return adafactor, train_state, opening.open_checkpoint(place)


def restored(t5x_models, run, tmp_path, layers):
  *_, checkpoint = run
  path = conversion.write_t5x(
    conversion.plan(checkpoint, to="t5x"), tmp_path / "t5x", layers=layers
  )
  module = t5x_models.module(
    "t5" if layers == "listed" else "scalable_t5", emb_dim=128, mlp_dim=130
  )
  return module, t5x_models.restored(module, path)


def test_t5x_goes_on_where_our_run_stopped(t5x_models, run, tmp_path):
  adafactor, train_state, _ = run
  module, theirs = restored(t5x_models, run, tmp_path, "listed")
  assert int(theirs.step) == 2
  flat = flax.traverse_util.flatten_dict(train_state.params, sep="/")
  for name, value in flax.traverse_util.flatten_dict(
    flax.core.unfreeze(theirs.params), sep="/"
  ).items():
    np.testing.assert_array_equal(value, flat[name], err_msg=name)
  logits = t5x_models.logits(module, theirs.params)
  ours = tiny_checkpoints.network.EncoderDecoder(CONFIG).apply(
    {"params": train_state.params},
    t5x_models.SOURCE,
    t5x_models.INPUTS,
    deterministic=True,
  )
  np.testing.assert_allclose(logits, ours, atol=1e-4)

  # The next update is the same on both sides: the moments went along.
  after = updated(adafactor, train_state, seed=2)
  gradients = flax.core.freeze(gradients_like(train_state.params, seed=2))
  optimizer_after = theirs.apply_gradient(gradients, learning_rate=RATE)
  flat = flax.traverse_util.flatten_dict(after.params, sep="/")
  moved = flax.traverse_util.flatten_dict(
    flax.core.unfreeze(optimizer_after.params), sep="/"
  )
  assert moved.keys() == flat.keys()
  for name, value in moved.items():
    np.testing.assert_allclose(value, flat[name], atol=1e-5, err_msg=name)


def test_t5x_s_scanned_network_restores_it_too(t5x_models, run, tmp_path):
  _, train_state, _ = run
  module, theirs = restored(t5x_models, run, tmp_path, "scanned")
  assert int(theirs.step) == 2
  ours = tiny_checkpoints.network.EncoderDecoder(CONFIG).apply(
    {"params": train_state.params},
    t5x_models.SOURCE,
    t5x_models.INPUTS,
    deterministic=True,
  )
  np.testing.assert_allclose(
    t5x_models.logits(module, theirs.params), ours, atol=1e-4
  )
  state_of = theirs.param_states["encoder"]["encoder"]["mlp"]["wo"]["kernel"]
  assert state_of.v_row.shape == (3, 128)  # layers and embed, by T5X's rules
  assert float(state_of.v_row.min()) > 0


def test_our_run_goes_on_where_t5x_stopped(t5x_models, run, tmp_path):
  adafactor, train_state, _ = run
  restored(t5x_models, run, tmp_path, "listed")
  checkpoint = opening.open_checkpoint(tmp_path / "t5x")
  start = state.from_params(train_state.params, adafactor)
  again = state.with_moments(start, checkpoint.moments())
  jax.tree.map(
    np.testing.assert_array_equal, again.opt_state, train_state.opt_state
  )
