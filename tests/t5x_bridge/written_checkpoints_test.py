"""Checkpoints that T5X's own code writes, in every layout it has."""

import dataclasses

import jax
import numpy as np
import pytest

from specialize_jax.checkpoints import name_table, opening
from specialize_jax.t5 import network

pytestmark = pytest.mark.t5x

LAYOUTS = [
  ("t5", {}),
  ("scalable_t5", {"scan_layers": False}),
  ("scalable_t5", {"param_scan_axis": 0}),
  ("scalable_t5", {"param_scan_axis": 1}),
  # As many layers as there are embedding dimensions: the norms say nothing.
  ("scalable_t5", {"param_scan_axis": 0, "emb_dim": 3}),
  ("scalable_t5", {"param_scan_axis": 1, "emb_dim": 3}),
]


def our_logits(t5x_models, checkpoint):
  config = dataclasses.replace(checkpoint.config, dtype="float32")
  params = name_table.assemble(config, checkpoint.source)
  return jax.jit(
    lambda params: network.EncoderDecoder(config).apply(
      {"params": params},
      t5x_models.SOURCE,
      t5x_models.INPUTS,
      deterministic=True,
    )
  )(params)


@pytest.mark.parametrize("through", ["legacy", "orbax"])
@pytest.mark.parametrize("family", ["t5_1_0", "t5_1_1"])
@pytest.mark.parametrize(("name", "changes"), LAYOUTS)
def test_our_logits_are_t5x_s(
  tmp_path, t5x_models, name, changes, family, through
):
  module = t5x_models.module(name, family, **changes)
  state, _ = t5x_models.random_state(module, with_optimizer=family == "t5_1_1")
  path = t5x_models.save(tmp_path, state, through=through)
  # The directory of all steps stands for its newest.
  checkpoint = opening.open_checkpoint(tmp_path if through == "orbax" else path)
  assert (checkpoint.kind, checkpoint.step) == ("t5x", 7)
  assert checkpoint.config.relative_bias == (
    "per_stack" if name == "t5" else "per_layer"
  )
  np.testing.assert_allclose(
    our_logits(t5x_models, checkpoint),
    t5x_models.logits(module, state.params),
    atol=1e-4,
  )
