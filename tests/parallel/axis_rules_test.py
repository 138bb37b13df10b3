"""Shardings by logical axes, and that constraints reach the compiler."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from specialize_jax import errors
from specialize_jax.parallel import axis_rules, mesh


@pytest.fixture
def cube():
  return mesh.make_mesh(data=2, fsdp=2, model=2)


def _boxed(shape, *names):
  return nn.LogicallyPartitioned(
    jax.ShapeDtypeStruct(shape, jnp.float32), names
  )


def test_parameters_are_sharded_by_name_and_the_rest_is_replicated(cube):
  shardings = axis_rules.AxisRules().tree_shardings(
    cube,
    {
      "embedding": _boxed((6, 4), "vocab", "embed"),
      "query": _boxed((2, 4, 2, 3), "layers", "embed", "heads", "kv"),
      "odd": _boxed((6, 3), "relpos_buckets", "heads"),
      "step": jax.ShapeDtypeStruct((), jnp.int32),
    },
  )
  assert {name: s.spec for name, s in shardings.items()} == {
    "embedding": PartitionSpec("model", "fsdp"),
    "query": PartitionSpec(None, "fsdp", "model", None),
    "odd": PartitionSpec(None, None),
    "step": PartitionSpec(),
  }


def test_two_logical_axes_on_one_mesh_axis_is_an_error(cube):
  rules = axis_rules.AxisRules(embed="model")
  with pytest.raises(
    errors.UserError,
    match="'embed' and 'mlp' of layer/kernel are both sharded over .* 'model'",
  ):
    rules.tree_shardings(
      cube, {"layer": {"kernel": _boxed((4, 4), "embed", "mlp")}}
    )


def test_a_misspelled_mesh_axis_is_an_error_and_a_list_is_a_tuple(cube):
  with pytest.raises(errors.UserError, match="'fdsp': expected data, fsdp"):
    axis_rules.AxisRules(embed="fdsp")
  rules = axis_rules.AxisRules(batch=["data", "fsdp"])
  assert rules == axis_rules.AxisRules(batch=("data", "fsdp"))


def test_an_axis_without_a_rule_is_an_error():
  with pytest.raises(errors.UserError, match="'embde' of an array has no rule"):
    axis_rules.AxisRules().partition_spec(("embde",))


def test_the_batch_is_sharded_over_data_and_fsdp(cube):
  rules = axis_rules.AxisRules()
  assert rules.batch_shards(cube) == 4
  assert rules.batch_sharding(cube).spec == PartitionSpec(("data", "fsdp"))


def test_a_logical_constraint_reaches_the_compiled_program(cube):
  """Flax silently drops constraints if no mesh is set."""
  rules = axis_rules.AxisRules().logical_rules()

  def lowered():
    with nn.logical_axis_rules(rules):
      return (
        jax.jit(
          lambda x: nn.with_logical_constraint(
            2 * x, ("batch", "length", "embed")
          )
        )
        .lower(jnp.zeros((8, 3, 4)))
        .compile()
      )

  with jax.set_mesh(cube):
    (sharding,) = jax.tree.leaves(lowered().output_shardings)
    assert sharding.shard_shape((8, 3, 4)) == (2, 3, 4)
  (sharding,) = jax.tree.leaves(lowered().output_shardings)
  assert sharding.shard_shape((8, 3, 4)) == (8, 3, 4)
