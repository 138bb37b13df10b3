"""The objectives, their terms, and invalid settings."""

import jax
import numpy as np
import pytest

from losses import random_case
from specialize_jax import errors
from specialize_jax.losses import distillation, sample_matching


def test_sample_matching_is_cross_entropy_everywhere():
  hidden, kernel, batch = random_case.draw(2)
  output = distillation.loss_from_logits(
    hidden @ kernel,
    batch,
    config=distillation.LossConfig(objective="sample_matching"),
  )
  np.testing.assert_allclose(
    output.loss_BT,
    sample_matching.cross_entropy(
      hidden @ kernel, batch["decoder_target_tokens"]
    ),
    rtol=1e-5,
  )
  assert not output.has_teacher_BT.any()


def test_parts_add_up_and_accuracy_is_the_argmax():
  hidden, kernel, batch = random_case.draw(3)
  output = distillation.loss_from_logits(
    hidden @ kernel, batch, config=distillation.LossConfig(z_loss=0.1)
  )
  np.testing.assert_allclose(
    output.kl_BT + output.one_hot_BT + output.z_loss_BT,
    output.loss_BT,
    rtol=1e-6,
  )
  assert ((output.kl_BT != 0) == output.has_teacher_BT).all()
  logits = hidden @ kernel
  np.testing.assert_allclose(
    output.correct_BT, logits.argmax(-1) == batch["decoder_target_tokens"]
  )
  np.testing.assert_allclose(
    output.z_loss_BT, 0.1 * jax.nn.logsumexp(logits, -1) ** 2, rtol=1e-5
  )


def test_both_objectives_report_the_same_likelihood():
  hidden, kernel, batch = random_case.draw(3)
  by_samples, by_distribution = (
    distillation.loss_from_logits(
      hidden @ kernel,
      batch,
      config=distillation.LossConfig(objective=objective),
    )
    for objective in ("sample_matching", "distribution_matching")
  )
  np.testing.assert_allclose(by_samples.nll_BT, by_samples.one_hot_BT)
  np.testing.assert_allclose(
    by_distribution.nll_BT, by_samples.nll_BT, rtol=1e-5
  )
  assert (by_distribution.nll_BT != by_distribution.loss_BT).any()


@pytest.mark.parametrize(
  ("setting", "message"),
  [
    ({"objective": "matching"}, "objective='matching' is unknown"),
    ({"masked_out": "onehot"}, "masked_out='onehot' is unknown"),
    ({"missing_mass": "top"}, "missing_mass='top' is unknown"),
    ({"chunk_axis": "length"}, "chunk_axis='length' is unknown"),
    ({"num_chunks": 0}, "num_chunks=0 is not possible"),
  ],
)
def test_an_invalid_setting_is_refused(setting, message):
  with pytest.raises(errors.UserError, match=message):
    distillation.LossConfig(**setting)
