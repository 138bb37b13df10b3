"""Ours -> T5X -> ours, bit for bit, and Adafactor's moments with them."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testdata import tiny_checkpoints

from specialize_jax import errors
from specialize_jax.checkpoints import (
  adafactor_moments,
  conversion,
  manager,
  manifests,
  name_table,
  opening,
  sources,
)
from specialize_jax.training import optimizer, state

# Some kernels have 128 entries on both sides, and are factored by everyone.
CONFIG = tiny_checkpoints.config(
  "t5_1_1", embed_dim=128, mlp_dim=130, relative_attention_max_distance=128
)
LAYERS = pytest.mark.parametrize("layers", ["listed", "scanned"])


@functools.cache
def trained(relative_bias):
  """A config, parameters, and an optimizer's state after two updates."""
  config = dataclasses.replace(CONFIG, relative_bias=relative_bias)
  adafactor = optimizer.build(
    optimizer.OptimizerConfig(name="adafactor", learning_rate=1e-3)
  )
  tensors = tiny_checkpoints.random_tensors(config)
  params = name_table.assemble(config, tiny_checkpoints.source_of(tensors))
  start = state.from_params(params, adafactor)
  # Compiled whole, not operation by operation for every shape.
  direction = jax.jit(
    lambda gradients, opt_state: adafactor.direction(
      gradients, opt_state, params, finite=jnp.array(True)
    )
  )
  rng = np.random.default_rng(1)
  opt_state = start.opt_state
  for _ in range(2):
    gradients = jax.tree.map(
      lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
    )
    _, opt_state = direction(gradients, opt_state)
  return config, dataclasses.replace(
    start, step=jnp.array(2, jnp.int32), opt_state=opt_state
  )


def saved(tmp_path, relative_bias="per_stack"):
  config, train_state = trained(relative_bias)
  with manager.CheckpointManager(tmp_path / "run" / "checkpoints") as steps:
    steps.save(2, train_state, b"", {"model": dataclasses.asdict(config)})
  return opening.open_checkpoint(tmp_path / "run")


def exported(checkpoint, tmp_path, layers):
  planned = conversion.plan(checkpoint, to="t5x")
  path = conversion.write_t5x(planned, tmp_path / "t5x", layers=layers)
  assert path.name == "checkpoint_2"
  return opening.open_checkpoint(path)


@LAYERS
@pytest.mark.parametrize("relative_bias", ["per_stack", "per_layer"])
def test_parameters_go_to_t5x_and_back_bit_for_bit(
  tmp_path, relative_bias, layers
):
  ours = saved(tmp_path, relative_bias)
  theirs = exported(ours, tmp_path, layers)
  assert theirs.config.relative_bias == relative_bias
  back = conversion.write_ours(
    conversion.plan(theirs, to="ours"), tmp_path / "back"
  )
  again = opening.open_checkpoint(back)
  assert again.step == 2
  for name, shape in ours.source.shapes.items():
    value = ours.source.read(name)
    assert value.shape == shape
    np.testing.assert_array_equal(again.source.read(name), value)


@LAYERS
def test_moments_go_with_them(tmp_path, layers):
  ours = saved(tmp_path)
  theirs = exported(ours, tmp_path, layers)
  mine, yours = ours.moments(), theirs.moments()
  assert mine.count == yours.count == 2
  for name in ours.source.shapes:
    if layers == "scanned" and name.endswith("rel_embedding"):
      continue  # a stack's one table is every layer's there
    one, other = mine.second_moment(name), yours.second_moment(name)
    if other.whole is not None:
      np.testing.assert_array_equal(one.whole, other.whole, err_msg=name)
    else:
      for value, expected in zip(other.factors(), one.factors(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)
  factored = mine.second_moment("encoder/layers_1/mlp/wi_0/kernel")
  assert factored.whole is None


def test_a_moment_that_was_factored_is_the_product_of_its_factors():
  moment = adafactor_moments.SecondMoment(
    over_b=np.array([1.0, 3.0], np.float32),
    over_a=np.array([2.0, 1.0, 3.0], np.float32),
  )
  whole = adafactor_moments.SecondMoment(whole=moment.product())
  for value, expected in zip(whole.factors(), moment.factors(), strict=True):
    np.testing.assert_allclose(value, expected)


def test_a_run_of_another_optimizer_leaves_zeros(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  path = tiny_checkpoints.write_t5x(tmp_path / "checkpoint_2", tensors)
  without = opening.open_checkpoint(path)
  with pytest.raises(errors.UserError, match="no state of T5X's Adafactor"):
    without.moments()
  theirs = exported(without, tmp_path, "listed")
  moments = theirs.moments()
  assert not moments.second_moment("decoder/decoder_norm/scale").whole.any()


@pytest.mark.parametrize(
  ("value", "dtype", "message"),
  [(np.nan, "float32", "NaN or infinite"), (7e4, "float16", "too large for")],
)
def test_a_weight_that_is_not_finite_is_refused(
  tmp_path, value, dtype, message
):
  """In the export's dtype, as in the other formats."""
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  tensors[sources.EMBEDDING][3, 5] = value
  tiny_checkpoints.write_t5x(tmp_path / "theirs" / "checkpoint_2", tensors)
  theirs = opening.open_checkpoint(tmp_path / "theirs")
  planned = conversion.plan(theirs, to="t5x", dtype=dtype)
  with pytest.raises(errors.UserError, match=message):
    conversion.write_t5x(planned, tmp_path / "t5x")
  assert not list((tmp_path / "t5x").glob("checkpoint_*"))


def test_what_lies_there_already_is_left_alone(tmp_path, monkeypatch):
  ours = saved(tmp_path)
  monkeypatch.chdir(tmp_path)  # and a relative path is as good as another
  planned = conversion.plan(ours, to="t5x")
  assert conversion.write_t5x(planned, "t5x").is_dir()
  with pytest.raises(errors.UserError, match="holds something already"):
    exported(ours, tmp_path, "listed")


def test_an_export_is_compared_with_its_manifest(tmp_path):
  theirs = exported(saved(tmp_path), tmp_path, "listed")
  num_tensors = len(name_table.tensors(theirs.config))
  assert theirs.verify().num_arrays == num_tensors
  whole = tmp_path / "t5x/checkpoint_2"
  files = [f for f in whole.rglob("*") if f.is_file() and f.stat().st_size]
  largest = max(files, key=lambda file: file.stat().st_size)
  harms = {
    "content": lambda f: f.write_bytes(f.read_bytes()[::-1]),
    "bytes instead": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "missing": lambda f: f.unlink(),
  }
  for problem, harm in harms.items():
    for file in (largest, files[0]):
      copy = tmp_path / "copy"
      shutil.copytree(whole, copy)
      harm(copy / file.relative_to(whole))
      with pytest.raises(errors.UserError, match=f"is damaged .*{problem}"):
        opening.open_checkpoint(copy).verify()
      shutil.rmtree(copy)
  shutil.copytree(whole, tmp_path / "copy")
  (tmp_path / "copy/state/one_more").write_text("0")
  (tmp_path / "copy/notes.txt").write_text("about it")
  with pytest.raises(errors.UserError, match="one_more is not among the files"):
    opening.open_checkpoint(tmp_path / "copy")
  unchecked = opening.open_checkpoint(tmp_path / "copy", verify=False)
  assert unchecked.config == theirs.config
  (tmp_path / "copy/state/one_more").unlink()
  (tmp_path / "copy/state/.nfs0001").write_text("removed while it was open")
  assert opening.open_checkpoint(tmp_path / "copy").verify().unverified == (
    "notes.txt",
  )


def test_one_without_digests_is_read_with_a_notice(tmp_path, caplog):
  """An export whose manifest is lost, and a checkpoint of T5X itself."""
  exported(saved(tmp_path), tmp_path, "listed")
  (tmp_path / "t5x/checkpoint_2" / manifests.NAME).unlink()
  theirs = tiny_checkpoints.write_t5x(
    tmp_path / "theirs/checkpoint_2", tiny_checkpoints.random_tensors(CONFIG)
  )
  for path, reason in (
    (tmp_path / "t5x", "which it was written with, is missing"),
    (theirs, "T5X saves no digests"),
  ):
    caplog.clear()
    with caplog.at_level("WARNING"):
      opened = opening.open_checkpoint(path)
    assert f"{path} is not verified: " in caplog.text
    assert reason in caplog.text
    with pytest.raises(errors.UserError, match="has no digests to compare"):
      opened.verify()
    caplog.clear()
    opening.open_checkpoint(path, verify=False)
    assert reason not in caplog.text
