"""States are initialized sharded, with the same values on every mesh."""

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from specialize_jax import errors
from specialize_jax.checkpoints import adafactor_moments
from specialize_jax.parallel import axis_rules, mesh, placement
from specialize_jax.training import optimizer, state
from training import tiny_run


@pytest.fixture(scope="module")
def cube():
  return placement.Placement(mesh=mesh.make_mesh(data=2, fsdp=2, model=2))


def test_a_state_is_the_same_on_every_mesh(cube):
  cut = state.create(
    tiny_run.model(), tiny_run.adamw(), cube, init_rng=jax.random.key(0)
  )
  whole = tiny_run.new_state()
  jax.tree.map(np.testing.assert_array_equal, whole, cut)
  expected = state.abstract(tiny_run.model(), tiny_run.adamw(), cube)
  for leaf, planned in zip(
    jax.tree.leaves(cut), jax.tree.leaves(expected), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(planned.sharding, leaf.ndim)


def test_moments_are_sharded_like_their_parameters(cube):
  planned = state.abstract(tiny_run.model(), tiny_run.adamw(), cube)
  assert planned.params["token_embedder"]["embedding"].sharding.spec == (
    PartitionSpec("model", "fsdp")
  )
  adam = planned.opt_state[1]
  for moment in (adam.mu, adam.nu):
    jax.tree.map(
      lambda p, m: np.testing.assert_equal(p.sharding, m.sharding),
      planned.params,
      moment,
    )


def test_factored_moments_are_sharded_along_their_remaining_axes(cube):
  model = tiny_run.model(embed_dim=128, mlp_dim=256)
  adafactor = optimizer.build(
    optimizer.OptimizerConfig(name="adafactor", learning_rate=1e-3)
  )
  planned = state.abstract(model, adafactor, cube)
  factored = next(
    node
    for node in jax.tree.leaves(
      planned.opt_state, is_leaf=lambda node: hasattr(node, "v_row")
    )
    if hasattr(node, "v_row")
  )

  def kernel(tree):
    return tree["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]

  # layers, embed, mlp: the row sums lack mlp, the column sums embed.
  assert kernel(factored.v_row).shape == (2, 128)
  assert kernel(factored.v_row).sharding.spec == PartitionSpec(None, "fsdp")
  assert kernel(factored.v_col).shape == (2, 256)
  assert kernel(factored.v_col).sharding.spec == PartitionSpec(None, "model")


def test_muon_s_momentum_is_sharded_like_the_kernels(cube):
  muon = optimizer.build(
    optimizer.OptimizerConfig(name="muon", learning_rate=1e-3)
  )
  planned = state.abstract(tiny_run.model(), muon, cube)
  shardings = {
    jax.tree_util.keystr(path[-2:], simple=True, separator="/"): leaf.sharding
    for path, leaf in jax.tree_util.tree_leaves_with_path(planned.opt_state)
    if "mu" in jax.tree_util.keystr(path)
  }
  assert shardings["wi_0/kernel"].spec == PartitionSpec(None, "fsdp", "model")
  assert shardings["token_embedder/embedding"].spec == (
    PartitionSpec("model", "fsdp")
  )


def test_a_state_starts_from_given_parameters(cube):
  params = jax.tree.map(np.asarray, tiny_run.new_state().params)
  started = state.start_from(params, tiny_run.model(), tiny_run.adamw(), cube)
  jax.tree.map(np.testing.assert_array_equal, started.params, params)
  assert int(started.step) == 0
  kernel = started.params["decoder"]["logits_dense"]["kernel"]
  assert kernel.sharding.spec == PartitionSpec("fsdp", "model")


def test_rules_that_cannot_shard_a_parameter_name_it():
  where = placement.Placement(
    mesh=mesh.make_mesh(), rules=axis_rules.AxisRules(mlp="fsdp")
  )
  with pytest.raises(errors.UserError, match="wi_0/kernel are both sharded"):
    state.abstract(tiny_run.model(), tiny_run.adamw(), where)


def moments_of(train_state):
  """Reads a state's Adafactor moments as if from one of our checkpoints."""
  (factored,) = (
    node
    for node in jax.tree.leaves(
      train_state.opt_state, is_leaf=lambda node: hasattr(node, "v_row")
    )
    if hasattr(node, "v_row")
  )

  def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")

  return adafactor_moments.OptaxMoments(
    where="checkpoint 1",
    count=int(factored.count),
    arrays={
      kind: jax.tree.map(np.asarray, flat(getattr(factored, kind)))
      for kind in adafactor_moments.KINDS
    },
    shapes={
      name: leaf.shape for name, leaf in flat(train_state.params).items()
    },
  )


def test_the_moments_of_another_run_are_taken_over(cube):
  # Kernels of 128 and more rows are factored; norms are not.
  model = tiny_run.model(embed_dim=128, mlp_dim=128)
  adafactor = optimizer.build(
    optimizer.OptimizerConfig(name="adafactor", learning_rate=1e-3)
  )
  start = state.create(model, adafactor, cube, init_rng=jax.random.key(0))
  rng = np.random.default_rng(0)
  gradients = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), start.params
  )
  _, opt_state = jax.jit(adafactor.direction)(
    gradients, start.opt_state, start.params, finite=jnp.array(True)
  )
  updated = dataclasses.replace(start, opt_state=opt_state)
  again = state.with_moments(start, moments_of(updated))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    again.opt_state,
    updated.opt_state,
  )
  for new, old in zip(
    jax.tree.leaves(again.opt_state),
    jax.tree.leaves(start.opt_state),
    strict=True,
  ):
    assert new.sharding.is_equivalent_to(old.sharding, new.ndim)

  other = state.from_params(tiny_run.new_state().params, adafactor)
  with pytest.raises(errors.UserError, match="moments .* do not fit"):
    state.with_moments(other, moments_of(updated))


def test_an_optimizer_other_than_adafactor_takes_over_no_moments():
  adafactor = optimizer.build(
    optimizer.OptimizerConfig(name="adafactor", learning_rate=1e-3)
  )
  start = tiny_run.new_state()
  moments = moments_of(state.from_params(start.params, adafactor))
  with pytest.raises(errors.UserError, match="this run's optimizer is another"):
    state.with_moments(start, moments)


def test_moments_that_are_averages_over_layers_are_refused():
  leaf = "encoder/layers/mlp/wi_0/kernel"
  moments = adafactor_moments.OptaxMoments(
    where="checkpoint 1", count=1, arrays={}, shapes={leaf: (256, 128, 64)}
  )
  with pytest.raises(errors.UserError, match="averages over its 256 layers"):
    moments.second_moment("encoder/layers_0/mlp/wi_0/kernel")
