"""Schedules, weight decay, clipping and invalid configs."""

import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specialize_jax import errors
from specialize_jax.parallel import mesh
from specialize_jax.training import optimizer


def _rates(steps, **config):
  built = optimizer.build(
    optimizer.OptimizerConfig(learning_rate=0.8, **config)
  )
  return [float(built.learning_rate(jnp.int32(step))) for step in steps]


@pytest.mark.parametrize(
  ("config", "steps", "expected"),
  [
    ({}, (0, 9), (0.8, 0.8)),
    ({"warmup_steps": 4}, (0, 1, 3, 4, 9), (0.2, 0.4, 0.8, 0.8, 0.8)),
    ({"warmup_steps": 1}, (0, 1), (0.8, 0.8)),
    (
      {"schedule": "cosine", "warmup_steps": 2, "num_steps": 12},
      (0, 1, 2, 7, 12, 20),
      (0.4, 0.8, 0.8, 0.4, 0.0, 0.0),
    ),
    (
      {"schedule": "cosine", "num_steps": 10, "final_learning_rate": 0.2},
      (0, 5, 10),
      (0.8, 0.5, 0.2),
    ),
    (
      {"schedule": "rsqrt", "warmup_steps": 10},
      (9, 10, 40),
      (0.8, 0.8, 0.4),
    ),
  ],
)
def test_schedules_rise_and_fall_by_the_step(config, steps, expected):
  np.testing.assert_allclose(_rates(steps, **config), expected, atol=1e-6)


def _params():
  return {
    "norm": {"scale": jnp.ones(4)},
    "kernel": jnp.full((4, 3), 2.0),
  }


@pytest.mark.parametrize(
  ("no_decay", "spared"),
  [
    (("scale",), {"norm/scale"}),
    (("norm/scale", "kernel"), {"norm/scale", "kernel"}),
    (("m/scale", "ernel"), set()),
  ],
)
def test_no_decay_names_the_last_parts_of_parameters(no_decay, spared):
  decays = flax.traverse_util.flatten_dict(
    optimizer._decays(_params(), no_decay), sep="/"
  )
  assert {name for name, decayed in decays.items() if not decayed} == spared


def test_weight_decay_spares_the_norms():
  built = optimizer.build(
    optimizer.OptimizerConfig(learning_rate=1.0, weight_decay=0.5)
  )
  params = _params()
  direction, _ = built.direction(
    jax.tree.map(jnp.zeros_like, params),
    built.init(params),
    params,
    finite=jnp.bool_(True),
  )
  np.testing.assert_array_equal(direction["norm"]["scale"], 0.0)
  np.testing.assert_allclose(direction["kernel"], 1.0)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_a_step_against_the_direction_decreases_the_loss(name):
  built = optimizer.build(
    optimizer.OptimizerConfig(name=name, learning_rate=1.0)
  )
  params = _params()
  gradients = jax.tree.map(jnp.ones_like, params)
  direction, _ = built.direction(
    gradients, built.init(params), params, finite=jnp.bool_(True)
  )
  assert all((d > 0).all() for d in jax.tree.leaves(direction))


@pytest.mark.parametrize("size", [0.0, 0.01, 100.0])
def test_the_factor_clips_as_optax_does(size):
  built = optimizer.build(
    optimizer.OptimizerConfig(learning_rate=1.0, max_gradient_norm=2.0)
  )
  gradients = jax.tree.map(lambda p: size * jnp.ones_like(p), _params())
  factor = built.clip_factor(optax.tree.norm(gradients))
  theirs, _ = optax.clip_by_global_norm(2.0).update(gradients, None)
  jax.tree.map(
    lambda g, t: np.testing.assert_allclose(g * factor, t, rtol=1e-6),
    gradients,
    theirs,
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adamw_equals_optax_and_keeps_its_state_if_not_finite(dtype):
  built = optimizer.build(
    optimizer.OptimizerConfig(
      learning_rate=1.0,
      weight_decay=0.1,
      first_moment_dtype=dtype,
      max_gradient_norm=None,
      no_decay=(),
    )
  )
  theirs = optax.adamw(-1.0, mu_dtype=dtype, weight_decay=0.1)
  params = _params()
  state, their_state = built.init(params), theirs.init(params)
  rng = np.random.default_rng(0)
  for step in range(4):
    gradients = jax.tree.map(
      lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
    )
    if step == 2:
      nowhere = jax.tree.map(lambda g: g * jnp.nan, gradients)
      _, same = built.direction(nowhere, state, params, finite=jnp.bool_(False))
      jax.tree.map(np.testing.assert_array_equal, same, state)
    direction, state = built.direction(
      gradients, state, params, finite=jnp.bool_(True)
    )
    with jax.numpy_dtype_promotion("standard"):
      expected, their_state = theirs.update(gradients, their_state, params)
    for got, of_optax in zip(
      jax.tree.leaves(direction), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(got, of_optax, rtol=1e-5)


def _directions(name, gradients, *, steps=2):
  """Returns the last of some steps' directions, on parameters of zeros."""
  built = optimizer.build(
    optimizer.OptimizerConfig(name=name, learning_rate=1.0)
  )
  params = jax.tree.map(jnp.zeros_like, gradients)
  state = built.init(params)
  for step in range(1, 1 + steps):
    direction, state = built.direction(
      jax.tree.map(lambda g, k=step: g * k, gradients),
      state,
      params,
      finite=jnp.bool_(True),
    )
  return direction, state


def _random(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


def test_muon_moves_a_kernel_equally_far_along_all_its_directions():
  # A gradient whose singular values spread over two decades.
  gradient = _random(0, 12, 24) * jnp.logspace(-2, 0, 12)[:, None]
  direction, _ = _directions("muon", {"mlp": {"wi_0": {"kernel": gradient}}})
  kernel = direction["mlp"]["wi_0"]["kernel"]
  scale = 0.2 * np.sqrt(24)
  spread = np.linalg.svd(kernel, compute_uv=False) / scale
  assert spread.min() > 0.3
  assert spread.max() < 1.3
  # It still points where the gradient does.
  assert float(jnp.vdot(kernel, gradient)) > 0


def test_muon_takes_each_layer_of_a_scan_for_itself():
  layers = jnp.stack([_random(1, 6, 8), 100.0 * _random(2, 6, 8)])
  stacked, _ = _directions("muon", {"layers": {"kernel": layers}})
  for i, layer in enumerate(layers):
    alone, _ = _directions("muon", {"layers": {"kernel": layer}})
    np.testing.assert_allclose(
      stacked["layers"]["kernel"][i], alone["layers"]["kernel"], atol=1e-6
    )


def test_devices_share_the_iterations_of_muon():
  # Eleven matrices of one shape, three of them tall, over eight devices.
  gradients = {
    "mlp": {"kernel": _random(8, 8, 16, 32)},
    **{str(i): {"kernel": _random(9 + i, 32, 16)} for i in range(3)},
  }
  built = optimizer.build(
    optimizer.OptimizerConfig(name="muon", learning_rate=1.0)
  )

  def compiled(placed):
    def new_params(params, state, gradients):
      direction, _ = built.direction(
        gradients, state, params, finite=jnp.bool_(True)
      )
      return optax.apply_updates(params, direction)

    return jax.jit(new_params).lower(placed, built.init(placed), placed)

  alone = compiled(gradients).compile()
  cube = mesh.make_mesh(data=2, fsdp=2, model=2)
  spec = jax.sharding.PartitionSpec("fsdp", "model")
  sharded = jax.device_put(
    gradients,
    jax.tree.map(
      lambda g: jax.sharding.NamedSharding(
        cube, jax.sharding.PartitionSpec(*[None] * (g.ndim - 2), *spec)
      ),
      gradients,
    ),
  )
  with jax.set_mesh(cube):
    shared = compiled(sharded).compile()
    actual = shared(sharded, built.init(sharded), sharded)
  expected = alone(gradients, built.init(gradients), gradients)
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), actual, expected
  )
  for new, old in zip(
    jax.tree.leaves(actual), jax.tree.leaves(sharded), strict=True
  ):
    assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
  # Two matrices a device, and not eleven.
  flops = [step.cost_analysis()["flops"] for step in (shared, alone)]
  assert flops[0] < 0.3 * flops[1]


def test_muon_only_gathers_its_results_where_gradients_are_replicated():
  """Each device has all matrices, and takes its share of them."""
  cube = mesh.make_mesh(data=8)
  everywhere = jax.sharding.NamedSharding(cube, jax.sharding.PartitionSpec())
  gradients = jax.device_put(
    {str(i): {"kernel": _random(i, 32, 16)} for i in range(16)}, everywhere
  )
  built = optimizer.build(
    optimizer.OptimizerConfig(name="muon", learning_rate=1.0)
  )

  def direction(gradients, state):
    return built.direction(gradients, state, gradients, finite=jnp.bool_(True))

  with jax.set_mesh(cube):
    lowered = jax.jit(direction).lower(gradients, built.init(gradients))
  program = lowered.compile().as_text()
  found = re.findall(r" (all-\S+|collective-\S+|reduce-scatter)\(", program)
  assert {*found} == {"all-gather"}


def test_muon_leaves_embedding_head_and_norms_to_adam():
  gradients = {
    "token_embedder": {"embedding": _random(3, 9, 4)},
    "decoder": {
      "logits_dense": {"kernel": _random(4, 4, 9)},
      "decoder_norm": {"scale": _random(5, 4)},
    },
  }
  by_muon, _ = _directions("muon", gradients)
  by_adam, _ = _directions("adamw", gradients)
  jax.tree.map(
    lambda m, a: np.testing.assert_allclose(m, a, rtol=1e-5), by_muon, by_adam
  )


def test_muon_keeps_its_state_if_a_gradient_is_not_finite():
  gradients = {"kernel": _random(6, 4, 4), "scale": _random(7, 4)}
  built = optimizer.build(
    optimizer.OptimizerConfig(name="muon", learning_rate=1.0)
  )
  _, state = _directions("muon", gradients)
  nowhere = jax.tree.map(lambda g: g * jnp.nan, gradients)
  _, same = built.direction(nowhere, state, gradients, finite=jnp.bool_(False))
  jax.tree.map(np.testing.assert_array_equal, same, state)


def _dtypes(tree):
  return {leaf.dtype.name for leaf in jax.tree.leaves(tree) if leaf.ndim}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_moments_are_the_first_alone(dtype):
  built = optimizer.build(
    optimizer.OptimizerConfig(learning_rate=1.0, first_moment_dtype=dtype)
  )
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
  gradients = jax.tree.map(jnp.ones_like, params)
  direction, after = built.direction(
    gradients, built.init(params), params, finite=jnp.bool_(True)
  )
  (moments,) = [part for part in after if hasattr(part, "mu")]
  assert _dtypes(moments.mu) == {dtype}
  assert _dtypes(moments.nu) == {"float32"}
  # Adam's first step is the gradient's sign, however it is kept.
  for leaf in jax.tree.leaves(direction):
    np.testing.assert_allclose(np.asarray(leaf, np.float32), 1.0, rtol=0.01)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "adam"}, "name='adam' is unknown: expected adamw, adafactor"),
    ({"first_moment_dtype": "int8"}, "first_moment_dtype='int8' is not"),
    ({"schedule": "linear"}, "schedule='linear' is unknown"),
    ({"schedule": "cosine"}, "num_steps=None cannot end a cosine"),
    (
      {"schedule": "cosine", "num_steps": 5, "warmup_steps": 5},
      "num_steps=5 cannot end a cosine: expected more than warmup_steps=5",
    ),
  ],
)
def test_an_invalid_config_is_refused(config, message):
  with pytest.raises(errors.UserError, match=message):
    optimizer.build(optimizer.OptimizerConfig(learning_rate=1.0, **config))
