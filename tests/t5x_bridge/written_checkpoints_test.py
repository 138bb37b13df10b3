"""Checkpoints that T5X's own code writes, in every layout it has."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from specialize_jax.checkpoints import conversion, name_table, opening
from specialize_jax.cli import main
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
  if through == "orbax":
    check_round_trip(checkpoint, tmp_path, "scanned" if changes else "listed")


def check_round_trip(checkpoint, tmp_path, layers):
  """T5X -> ours -> T5X, bit for bit."""
  ours = conversion.write_ours(
    conversion.plan(checkpoint, to="ours"), tmp_path / "ours"
  )
  again = opening.open_checkpoint(
    conversion.write_t5x(
      conversion.plan(opening.open_checkpoint(ours), to="t5x"),
      tmp_path / "again",
      layers=layers,
    )
  )
  assert again.config == checkpoint.config
  assert again.source.shapes == checkpoint.source.shapes
  for name in checkpoint.source.shapes:
    np.testing.assert_array_equal(
      again.source.read(name), checkpoint.source.read(name), err_msg=name
    )


@pytest.mark.parametrize(
  ("name", "changes", "through"),
  [
    ("scalable_t5", {"param_scan_axis": 1}, "orbax"),
    ("scalable_t5", {"param_scan_axis": 0}, "legacy"),
    ("t5", {}, "legacy"),
  ],
)
def test_generate_scores_targets_as_t5x_does(
  tmp_path, t5x_models, name, changes, through
):
  module = t5x_models.module(name, "t5_1_1", **changes)
  state, _ = t5x_models.random_state(module)
  t5x_models.save(tmp_path / "run", state, through=through)
  rows = [
    {"input_ids": source.tolist(), "target_ids": target.tolist()}
    for source, target in zip(t5x_models.SOURCE, t5x_models.TARGET, strict=True)
  ]
  inputs, outputs = tmp_path / "inputs.jsonl", tmp_path / "outputs.jsonl"
  inputs.write_text("".join(json.dumps(row) + "\n" for row in rows))
  arguments = [f"--inputs={inputs}", f"--outputs={outputs}", "--batch_size=8"]
  assert (
    main.main(["generate", f"--checkpoint={tmp_path}/run", *arguments]) == 0
  )
  scored = [json.loads(row) for row in outputs.open()]
  log_probs = jax.nn.log_softmax(t5x_models.logits(module, state.params))
  for row, target, theirs in zip(
    scored, t5x_models.TARGET, log_probs, strict=True
  ):
    np.testing.assert_allclose(
      row["target_log_probs"], theirs[np.arange(len(target)), target], atol=1e-4
    )
