"""Metrics over positions, against sums computed by hand."""

import math

import jax.numpy as jnp
import numpy as np

from specialize_jax.losses import distillation
from specialize_jax.training import metrics


def _output(kl_BT, has_teacher_BT, weights_BT):
  zeros_BT = jnp.zeros_like(jnp.asarray(kl_BT))
  fields = dict.fromkeys(distillation.LossOutput.__dataclass_fields__, zeros_BT)
  fields |= {
    "loss_BT": jnp.asarray(kl_BT),
    "kl_BT": jnp.asarray(kl_BT),
    "weights_BT": jnp.asarray(weights_BT),
    "has_teacher_BT": jnp.asarray(has_teacher_BT),
    "correct_BT": zeros_BT > 0,
  }
  return distillation.LossOutput(**fields)


def test_the_kl_of_each_format_is_the_mean_of_its_own_positions():
  """Numbers 2 and 4 are in_context_ and zero_shot_chain_of_thought."""
  kl_BT = np.float32([[1.0, 3.0, 8.0, 5.0], [-0.5, 7.0, 9.0, 0.0]])
  teacher_BT = np.array([[1, 1, 0, 1], [1, 1, 1, 0]], bool)
  weights_BT = np.float32([[1, 1, 1, 1], [1, 1, 0, 1]])
  batch = {
    "encoder_input_tokens": jnp.ones((2, 3), jnp.int32),
    "decoder_target_tokens": jnp.ones((2, 4), jnp.int32),
    "decoder_data_formats": jnp.array([[2, 2, 2, 4], [4, 4, 4, 4]]),
  }
  sums = metrics.position_sums(_output(kl_BT, teacher_BT, weights_BT), batch)
  values = {k: float(v) for k, v in metrics.shares(sums).items()}
  assert values["kl/in_context_chain_of_thought"] == 2.0
  np.testing.assert_allclose(
    values["kl/zero_shot_chain_of_thought"], (5.0 - 0.5 + 7.0) / 3, rtol=1e-6
  )
  assert math.isnan(values["kl/zero_shot_answer_only"])
  assert values["negative_kl_rate"] == np.float32(1 / 5)
  known = metrics.without_absent_formats(values)
  assert {name for name in known if name.startswith("kl/")} == {
    "kl/in_context_chain_of_thought",
    "kl/zero_shot_chain_of_thought",
  }
  del batch["decoder_data_formats"]
  sums = metrics.position_sums(_output(kl_BT, teacher_BT, weights_BT), batch)
  assert not [name for name in metrics.shares(sums) if name.startswith("kl/")]
