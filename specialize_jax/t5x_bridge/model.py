"""The project's objective as a T5X model, for `t5x.train`.

T5X keeps its own network, optimizer, partitioner and checkpoints. It hands
whole `[B, T, V]` logits to the loss, so that the chunked loss of
`specialize train`, and its memory, are not to be had here; the teacher is
sparse all the same.
"""

import dataclasses
import functools
import importlib
import types
from collections.abc import Mapping

import jax

from specialize_jax import errors
from specialize_jax.losses import distillation, normalization
from specialize_jax.t5x_bridge import features

INSTALL = "pip install git+https://github.com/google-research/t5x"


def distillation_model(
  *, loss: distillation.LossConfig, **arguments: object
) -> object:
  """Gives the model for `t5x.train`'s `MODEL`.

  Its loss is the sum of the weighted losses, divided by T5X's
  `loss_normalizing_factor`, as T5X's own is: "NUM_REAL_TARGET_TOKENS" gives
  the mean that `specialize train` minimises. A batch without a teacher takes
  the cross-entropy. `loss.num_chunks` is not read.

  Args:
    loss: what is minimised.
    **arguments: of `t5x.models.EncoderDecoderModel`: `module`,
      `input_vocabulary`, `output_vocabulary`, `optimizer_def`, ...

  Returns:
    An instance of a subclass of `t5x.models.EncoderDecoderModel`.

  Raises:
    UserError: t5x is not installed, or has a loss of its own in `arguments`.
  """
  for name in ("label_smoothing", "z_loss"):
    if arguments.get(name):
      raise errors.UserError(
        f"distillation_model.{name}={arguments[name]} is not read: set "
        "LossConfig.z_loss, or leave it out."
      )
  arguments.setdefault("feature_converter_cls", features.FeatureConverter)
  model = _model_class()(**arguments)
  model.loss_config = loss
  return model


@functools.cache
def _model_class() -> type:
  """The class, which can only be made where its base is installed."""
  models, t5x_losses = _t5x_module("models"), _t5x_module("losses")
  clu_metrics = importlib.import_module("clu.metrics")

  class DistillationModel(models.EncoderDecoderModel):
    """An encoder-decoder whose loss is the project's."""

    loss_config: distillation.LossConfig

    def loss_fn(
      self,
      params: Mapping,
      batch: Mapping[str, jax.Array],
      dropout_rng: jax.Array | None,
    ) -> tuple[jax.Array, Mapping]:
      """Computes the loss, T5X's metrics and ours."""
      logits_BTV = self._compute_logits(params, batch, dropout_rng)
      factor, weights_BT = t5x_losses.get_loss_normalizing_factor_and_weights(
        self._loss_normalizing_factor, batch
      )
      output = distillation.loss_from_logits(
        logits_BTV,
        {**batch, "decoder_loss_weights": weights_BT},
        config=_config_for(self.loss_config, batch),
      )

      def total(values_BT: jax.Array) -> jax.Array:
        summed = normalization.weighted_sum(values_BT, output.weights_BT)
        return summed if factor is None else summed / factor

      loss = total(output.loss_BT)
      metrics = self._compute_metrics(
        logits=logits_BTV,
        targets=batch["decoder_target_tokens"],
        mask=output.weights_BT,
        loss=loss,
        z_loss=total(output.z_loss_BT),
        segment_ids={
          side: batch[f"{side}_segment_ids"] for side in ("encoder", "decoder")
        },
      )
      num_positions = output.weights_BT.sum()
      for name, values_BT in (
        ("kl", output.kl_BT),
        ("one_hot", output.one_hot_BT),
        ("teacher_share", output.has_teacher_BT.astype(logits_BTV.dtype)),
      ):
        metrics[f"distillation/{name}"] = clu_metrics.Average(
          total=normalization.weighted_sum(values_BT, output.weights_BT),
          count=num_positions,
        )
      return loss, metrics

  return DistillationModel


def _config_for(
  config: distillation.LossConfig, batch: Mapping[str, jax.Array]
) -> distillation.LossConfig:
  """The configured loss, or cross-entropy where there is no teacher."""
  if "decoder_teacher_top_ids" in batch:
    return config
  return dataclasses.replace(config, objective="sample_matching")


def _t5x_module(name: str) -> types.ModuleType:
  try:
    return importlib.import_module(f"t5x.{name}")
  except ImportError as error:
    raise errors.UserError(
      f"t5x.{name} cannot be imported ({error}): the bridge needs T5X beside "
      f"this package, install it with `{INSTALL}`, or train with `specialize "
      "train`, which does not."
    ) from error
