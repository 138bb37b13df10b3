"""Checkpoints come back as saved, onto any sharding, or say why not."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from specialize_jax import errors
from specialize_jax.checkpoints import manager
from specialize_jax.parallel import mesh


def _state(scale=1.0, width=4, extra=False):
  params = {
    "encoder": {"kernel": scale * jnp.arange(8.0 * width).reshape(8, width)},
    "scale": jnp.full((width,), scale),
  }
  if extra:
    params["decoder"] = jnp.ones(3)
  optimizer = optax.chain(optax.clip(1.0), optax.scale_by_adam())
  return {
    "step": jnp.int32(7),
    "params": params,
    "opt_state": optimizer.init(params),
  }


def _abstract(state, sharding=None):
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
  )


def _assert_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture
def saved(tmp_path):
  """A directory with steps 10 and 20."""
  with manager.CheckpointManager(tmp_path / "run" / "checkpoints") as writer:
    for step in (10, 20):
      writer.save(
        step, _state(step), f"at {step}".encode() + b"\xff", {"step": step}
      )
  return tmp_path / "run" / "checkpoints"


def test_state_iterator_and_metadata_come_back_together(saved):
  with manager.CheckpointManager(saved) as reader:
    assert reader.all_steps() == [10, 20]
    assert reader.latest_step() == 20
    restored = reader.restore(_abstract(_state()))
    assert restored.step == 20
    _assert_equal(restored.state, _state(20))
    assert restored.iterator_state == b"at 20\xff"
    assert restored.metadata == {"step": 20}
    restored = reader.restore(_abstract(_state()), step=10)
    _assert_equal(restored.state, _state(10))
    assert restored.iterator_state == b"at 10\xff"
    assert reader.metadata(10) == {"step": 10}


def test_a_state_is_restored_onto_another_mesh(saved):
  cube = mesh.make_mesh(data=2, fsdp=2, model=2)
  abstract = _abstract(_state(), NamedSharding(cube, PartitionSpec()))
  cut = NamedSharding(cube, PartitionSpec("fsdp", "model"))
  kernel = abstract["params"]["encoder"]["kernel"]
  abstract["params"]["encoder"]["kernel"] = kernel.update(sharding=cut)
  with manager.CheckpointManager(saved) as reader:
    state = reader.restore(abstract).state
  _assert_equal(state, _state(20))
  assert state["params"]["encoder"]["kernel"].sharding == cut


def test_parameters_are_restored_without_the_optimizer(saved):
  with manager.CheckpointManager(saved) as reader:
    params = reader.restore_params(_abstract(_state()["params"]), step=10)
  _assert_equal(params, _state(10)["params"])


def test_arrays_may_be_donated_while_their_save_is_under_way(tmp_path):
  """1 MiB each: more than is written before the next step starts."""
  count_up = jax.jit(
    lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0
  )
  state = {f"array_{i}": jnp.zeros((512, 512)) for i in range(8)}
  with manager.CheckpointManager(tmp_path, keep=None) as writer:
    for step in range(5):
      writer.save(step, state, b"", {})
      for _ in range(3):
        state = count_up(state)
    writer.wait()
    for step in range(5):
      restored = writer.restore(_abstract(state), step).state
      assert {np.unique(x).item() for x in restored.values()} == {3 * step}


def test_keep_and_keep_period_delete_the_others(tmp_path):
  with manager.CheckpointManager(tmp_path, keep=1, keep_period=20) as writer:
    for step in (10, 20, 30, 40, 50):
      writer.save(step, _state(), b"", {})
    writer.wait()
    assert writer.all_steps() == [20, 40, 50]


def test_of_equal_scores_the_earliest_is_the_best(tmp_path):
  with manager.CheckpointManager(tmp_path, keep=1, keep_best=1) as writer:
    for step, score in ((10, 0.2), (20, 0.5), (30, 0.5), (40, 0.1)):
      writer.save(step, _state(), b"", {}, score=score)
    writer.wait()
    assert writer.all_steps() == [20, 40]


def test_an_existing_step_stays(tmp_path):
  with manager.CheckpointManager(tmp_path) as writer:
    writer.save(1, _state(1), b"first", {})
    writer.wait()
    writer.save(1, _state(2), b"second", {})
    assert writer.restore(_abstract(_state())).iterator_state == b"first"


def test_a_half_written_newest_step_is_ignored_and_cleaned_up(saved):
  """What a kill in mid-save leaves: a temporary name without its commit."""
  half = pathlib.Path(saved) / "30.orbax-checkpoint-tmp-1"
  (half / "state").mkdir(parents=True)
  (half / "state" / "_METADATA").write_text("{")
  with manager.CheckpointManager(saved) as reader:
    assert reader.latest_step() == 20
    _assert_equal(reader.restore(_abstract(_state())).state, _state(20))
    assert half.exists()  # another process may be writing it
    reader.save(30, _state(30), b"", {})
    reader.wait()
    assert reader.latest_step() == 30
  assert "orbax-checkpoint-tmp" not in " ".join(os.listdir(saved))


def test_another_models_directory_lists_the_differing_names(saved):
  other = _abstract(_state(width=5, extra=True))
  with (
    manager.CheckpointManager(saved) as reader,
    pytest.raises(errors.UserError) as caught,
  ):
    reader.restore(other)
  message = str(caught.value)
  assert "of another model" in message
  assert "missing opt_state/1/mu/decoder" in message
  assert "params/encoder/kernel (8, 4) instead of (8, 5)" in message


def test_parameters_of_another_model_are_refused_too(saved):
  wanted = _abstract(_state()["params"])
  wanted["head"] = wanted.pop("scale")
  with (
    manager.CheckpointManager(saved) as reader,
    pytest.raises(
      errors.UserError, match="missing params/head; unexpected params/scale"
    ),
  ):
    reader.restore_params(wanted)


@pytest.mark.parametrize(
  ("step", "message"),
  [
    (5, r"a checkpoint of step 5 \(steps there: 10, 20\)"),
  ],
)
def test_a_step_that_is_not_there_is_refused(saved, step, message):
  with (
    manager.CheckpointManager(saved) as reader,
    pytest.raises(errors.UserError, match=message),
  ):
    reader.restore(_abstract(_state()), step=step)


def test_an_empty_directory_is_refused(tmp_path):
  with (
    manager.CheckpointManager(tmp_path / "no") as reader,
    pytest.raises(errors.UserError, match=r"hold a checkpoint \(.* none\)"),
  ):
    reader.restore(_abstract(_state()))
  assert not (tmp_path / "no").exists()
