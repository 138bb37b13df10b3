"""The project's objective as a T5X model, for `t5x.train`.

T5X keeps its own network, optimizer, partitioner and checkpoints. With T5X's
own networks the loss is computed from the hidden states in chunks, so that no
`[B, T, V]` logits exist, as in `specialize train`; with any other network it is
computed from whole logits.
"""

import dataclasses
import functools
import importlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import seqio
from absl import logging

from specialize_jax import errors
from specialize_jax.data import feature_converter
from specialize_jax.losses import distillation, head, normalization
from specialize_jax.t5 import network
from specialize_jax.t5x_bridge import features

INSTALL = (
  "pip install grain chex fiddle jaxtyping cached_property && "
  "pip install --no-deps git+https://github.com/google-research/t5x "
  "git+https://github.com/google/airio "
  "git+https://github.com/google-research/jestimator"
)

# Their last step is `logits_dense(hidden)`, or `token_embedder.attend(hidden)`
# divided by sqrt(D), as `network.output_kernel` has it for our own parameters.
_KNOWN_NETWORKS = (
  "t5x.examples.t5.network",
  "t5x.examples.scalable_t5.network",
)
_HEADS = {"logits_dense": "__call__", "token_embedder": "attend"}


def distillation_model(
  *,
  loss: distillation.LossConfig,
  base: Any = None,
  **arguments: object,
) -> object:
  """Returns the model for `t5x.train`'s `MODEL`.

  Its loss is the sum of the weighted losses divided by T5X's
  `loss_normalizing_factor`, like T5X's own; with "NUM_REAL_TARGET_TOKENS" it is
  the mean that `specialize train` minimizes. A batch of a task that has no
  teacher is trained on with the cross-entropy.

  Args:
    loss: the objective; its `num_chunks` and `chunk_axis` have an effect only
      if the network is one of T5X's own.
    base: a `t5x.models.EncoderDecoderModel`, as the gin files of T5X's models
      define it; its module, vocabularies, optimizer and z-loss are used.
    **arguments: arguments of `t5x.models.EncoderDecoderModel` (`module`,
      `input_vocabulary`, `output_vocabulary`, `optimizer_def`, ...); they
      override those of `base`.

  Returns:
    An instance of a subclass of `t5x.models.EncoderDecoderModel`.

  Raises:
    UserError: T5X is not installed or fails to import; `label_smoothing` is not
      0; `z_loss` and `LossConfig.z_loss` differ; or `feature_converter_cls`
      drops the teacher.
  """
  arguments = _arguments_of(base) | arguments
  z_loss = float(arguments.pop("z_loss", 0.0))
  if z_loss and loss.z_loss not in (0.0, z_loss):
    raise errors.UserError(
      f"distillation_model.z_loss={z_loss} and LossConfig.z_loss={loss.z_loss} "
      "differ: set one of them."
    )
  if smoothing := arguments.pop("label_smoothing", 0.0):
    raise errors.UserError(
      f"distillation_model.label_smoothing={smoothing} is not possible: a "
      "teacher's distribution is smooth already; leave it out."
    )
  _check_converter(
    arguments.setdefault("feature_converter_cls", features.FeatureConverter)
  )
  model = _model_class()(**arguments)
  model.loss_config = dataclasses.replace(loss, z_loss=loss.z_loss or z_loss)
  return model


def _check_converter(converter: Any) -> None:
  """Refuses converters of seqio, which would drop the teacher in silence.

  Raises:
    UserError: it is a feature converter without the teacher's features.
  """
  kept = feature_converter.DistillationFeatureConverter
  if (
    isinstance(converter, type)
    and issubclass(converter, seqio.FeatureConverter)
    and not issubclass(converter, kept)
  ):
    raise errors.UserError(
      f"distillation_model.feature_converter_cls={converter.__name__} drops "
      "the teacher's candidates, with pack=True or without: leave it out, and "
      "t5x_bridge.features.FeatureConverter keeps and packs them."
    )


def _arguments_of(base: Any) -> dict[str, Any]:
  """Returns the arguments that a model of T5X was built with."""
  if base is None:
    return {}
  return {
    "module": base.module,
    "input_vocabulary": base.input_vocabulary,
    "output_vocabulary": base.output_vocabulary,
    "optimizer_def": base.optimizer_def,
    "decode_fn": base.decode_fn,
    "label_smoothing": base._label_smoothing,
    "z_loss": base._z_loss,
    "loss_normalizing_factor": base._loss_normalizing_factor,
    "default_decoder_params": base._default_decoder_params,
  }


@functools.cache
def _model_class() -> type:
  """Returns the class, which needs T5X for its base."""
  models, t5x_losses = t5x_module("models"), t5x_module("losses")
  clu_metrics = importlib.import_module("clu.metrics")

  class DistillationModel(models.EncoderDecoderModel):
    """An encoder-decoder of T5X with the project's loss."""

    loss_config: distillation.LossConfig

    def loss_fn(
      self,
      params: Mapping,
      batch: Mapping[str, jax.Array],
      dropout_rng: jax.Array | None,
    ) -> tuple[jax.Array, Mapping]:
      """Computes the loss, T5X's metrics and the project's."""
      check_mesh()
      config = _config_for(self.loss_config, batch)
      weighted = {**batch, "decoder_loss_weights": _weights(config, batch)}
      factor, weights_BT = t5x_losses.get_loss_normalizing_factor_and_weights(
        self._loss_normalizing_factor, weighted
      )
      total, output = self._weighted_loss(
        params,
        {**batch, "decoder_loss_weights": weights_BT},
        dropout_rng,
        config,
      )
      factor = 1.0 if factor is None else factor
      loss = total / factor
      metrics = self._compute_metrics(
        **_as_logits(output.correct_BT),
        mask=output.weights_BT,
        loss=loss,
        z_loss=normalization.weighted_sum(output.z_loss_BT, output.weights_BT)
        / factor,
        segment_ids=_segment_ids(batch),
      )
      num_positions = output.weights_BT.sum()
      for name, values_BT in (
        ("kl", output.kl_BT),
        ("one_hot", output.one_hot_BT),
        ("nll", output.nll_BT),
        ("teacher_share", output.has_teacher_BT.astype(jnp.float32)),
      ):
        metrics[f"distillation/{name}"] = clu_metrics.Average(
          total=normalization.weighted_sum(values_BT, output.weights_BT),
          count=num_positions,
        )
      return loss, metrics

    def _weighted_loss(
      self,
      params: Mapping,
      batch: Mapping[str, jax.Array],
      dropout_rng: jax.Array | None,
      config: distillation.LossConfig,
    ) -> tuple[jax.Array, distillation.LossOutput]:
      """Computes the sum of the weighted losses, and its terms by position."""
      if _is_known(self.module):
        hidden_BTD = _hidden(
          functools.partial(self._compute_logits, params, batch, dropout_rng)
        )
        return head.weighted_loss(
          hidden_BTD.astype(jnp.float32),  # as T5X's own head is
          network.output_kernel(params),
          batch,
          config=config,
        )
      logging.info(
        "%s is none of %s: the loss is computed from whole logits.",
        type(self.module),
        ", ".join(_KNOWN_NETWORKS),
      )
      output = distillation.loss_from_logits(
        self._compute_logits(params, batch, dropout_rng), batch, config=config
      )
      return (
        normalization.weighted_sum(output.loss_BT, output.weights_BT),
        output,
      )

  return DistillationModel


def check_mesh() -> None:
  """Refuses to be traced where Flax would drop sharding constraints silently.

  Flax applies logical constraints only if JAX knows the mesh: under
  `jax.set_mesh`, or inside `pjit`, as T5X's partitioners call it, under `with
  mesh:`; but not inside a plain `jax.jit` under `with mesh:`.

  Raises:
    UserError: there are rules for logical axes but no mesh.
  """
  no_mesh = jax.sharding.get_abstract_mesh().empty
  if nn.get_logical_axis_rules() and no_mesh and jax.device_count() > 1:
    raise errors.UserError(
      "the loss is traced with logical axis rules but without a mesh, so that "
      "every sharding constraint would be dropped: compile the step within "
      "jax.set_mesh(mesh), or by t5x.partitioning.PjitPartitioner."
    )


def _is_known(module: nn.Module) -> bool:
  return any(
    kind.__module__ in _KNOWN_NETWORKS for kind in type(module).__mro__
  )


def _hidden(compute_logits: Callable[[], jax.Array]) -> jax.Array:
  """Computes the input of the output head of T5X's network, `[B, T, D]`.

  The head itself is skipped, so that no logits are computed.
  """
  found: list[jax.Array] = []

  def intercept(
    next_fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    if _HEADS.get(context.module.name) != context.method_name:
      return next_fn(*args, **kwargs)
    found.append(args[0])
    return jnp.zeros((*args[0].shape[:-1], 1), jnp.float32)

  with nn.intercept_methods(intercept):
    compute_logits()
  (hidden_BTD,) = found
  return hidden_BTD


def _weights(
  config: distillation.LossConfig, batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Computes the weights that T5X's normalizing factor counts."""
  weights_BT = batch["decoder_loss_weights"].astype(jnp.float32)
  ignored = (
    config.objective == "distribution_matching"
    and config.masked_out == "ignore"
  )
  if not ignored:
    return weights_BT
  return jnp.where(batch["decoder_teacher_top_mask"] > 0, weights_BT, 0.0)


def _as_logits(correct_BT: jax.Array) -> Mapping[str, jax.Array]:
  """Returns logits and targets of two classes; the target is always class 1.

  T5X's metrics use logits only to see whether the target's is the largest.
  """
  correct_BT = correct_BT.astype(jnp.float32)
  return {
    "logits": jnp.stack([0.5 * jnp.ones_like(correct_BT), correct_BT], axis=-1),
    "targets": jnp.ones(correct_BT.shape, jnp.int32),
  }


def _segment_ids(batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
  """Returns the segment ids of both sides, 0 where there is padding."""
  tokens = {
    "encoder": "encoder_input_tokens",
    "decoder": "decoder_target_tokens",
  }
  return {
    side: batch.get(f"{side}_segment_ids", batch[name] != 0)
    for side, name in tokens.items()
  }


def _config_for(
  config: distillation.LossConfig, batch: Mapping[str, jax.Array]
) -> distillation.LossConfig:
  """Returns the configured loss, or cross-entropy if there is no teacher."""
  if "decoder_teacher_top_ids" in batch:
    return config
  return dataclasses.replace(config, objective="sample_matching")


def t5x_module(name: str) -> types.ModuleType:
  """Imports a module of T5X.

  Raises:
    UserError: T5X is not installed, or its import fails.
  """
  try:
    return importlib.import_module(f"t5x.{name}")
  except ModuleNotFoundError as error:
    if error.name != "t5x":
      raise _broken(name, error) from error
    raise errors.UserError(
      f"t5x.{name} cannot be imported, since T5X is not installed: install it "
      f"with `{INSTALL}`, or train with `specialize train`, which does not "
      "need it."
    ) from error
  except Exception as error:
    raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> errors.UserError:
  return errors.UserError(
    f"t5x.{name} is installed but cannot be imported "
    f"({type(error).__name__}: {error}): install T5X as docs/t5x.md says, or "
    "train with `specialize train`, which does not need it."
  )
