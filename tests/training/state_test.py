"""States are initialized sharded, with the same values on every mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from specialize_jax import errors
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
