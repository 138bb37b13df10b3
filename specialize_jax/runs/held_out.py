"""The training loss on held-out samples of the teacher."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from specialize_jax import errors
from specialize_jax.data import pipeline
from specialize_jax.losses import distillation
from specialize_jax.parallel import placement
from specialize_jax.t5 import network
from specialize_jax.training import metrics, step

Evaluator = Callable[[optax.Params, int], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
  """The training loss on a held-out split.

  Its metrics are `held_out/loss`, `held_out/loss_kl` (the divergence from the
  teacher), `held_out/loss_one_hot`, `held_out/nll` and
  `held_out/token_accuracy`, means over the target tokens of the split as
  defined by `training.metrics.shares`.

  Attributes:
    mixture_or_task_name: the teacher's data, registered with seqio.
    task_feature_lengths: row lengths of "inputs" and "targets", in tokens.
    split: the split, such as the "validation" of `specialize prepare`.
    batch_size: number of rows of a global batch.
    loss: the loss; to be comparable, that of the training.
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  split: str = "validation"
  batch_size: int = 64
  loss: distillation.LossConfig = dataclasses.field(
    default_factory=distillation.LossConfig
  )

  def __post_init__(self) -> None:
    """Raises UserError for a number below 1."""
    require_lengths(
      "HeldOutLoss", self.task_feature_lengths, ("inputs", "targets")
    )
    errors.require_range(
      "HeldOutLoss.batch_size",
      self.batch_size,
      at_least=1,
      at_most=errors.MAX_COUNT,
    )

  def evaluator(
    self,
    model: network.EncoderDecoder,
    placed: placement.Placement,
  ) -> Evaluator:
    """Returns a callable `(params, step) -> metrics`.

    Args:
      model: the network.
      placed: the mesh that the parameters are sharded over.

    Raises:
      UserError: there is no such mixture, or no such split.
    """
    sums_of = jax.jit(
      lambda params, batch: step.loss_sums(model, self.loss, params, batch)
    )

    # Opened once, which takes a second or more; every evaluation rewinds it.
    batches = pipeline.TrainIterator(
      self.mixture_or_task_name,
      task_feature_lengths=self.task_feature_lengths,
      batch_size=self.batch_size,
      seed=0,
      split=self.split,
      num_epochs=1,
      rows=placed.local_rows(self.batch_size),
      decoder_start_id=model.config.decoder_start_id,
    )
    beginning = batches.state()

    def evaluate(params: optax.Params, _: int) -> Mapping[str, float]:
      totals = None
      batches.restore(beginning)
      try:
        with placed.entered():
          for rows in batches:
            sums = sums_of(params, placed.put_batch(rows))
            totals = (
              sums if totals is None else jax.tree.map(jnp.add, totals, sums)
            )
      except BaseException:
        batches.close()  # or its thread would read on while the process ends
        raise
      values = jax.device_get(metrics.shares(totals))
      return {
        metric: float(values[name])
        for metric, name in zip(METRICS, _REPORTED, strict=True)
      }

    return evaluate


def require_lengths(
  owner: str, lengths: Mapping[str, int], needed: Sequence[str]
) -> None:
  """Checks TASK_FEATURE_LENGTHS.

  Args:
    owner: the dataclass that has them.
    lengths: the lengths by feature name.
    needed: the features that have to be among them.

  Raises:
    UserError: they lack a feature, have one that no task has, or a length is
      not a positive integer.
  """
  shown = f"{owner}.task_feature_lengths={dict(lengths)} (TASK_FEATURE_LENGTHS)"
  expected = 'expected {"inputs": S, "targets": T}, lengths in tokens.'
  for feature in needed:
    if feature not in lengths:
      raise errors.UserError(f'{shown} has no "{feature}": {expected}')
  for feature, length in lengths.items():
    if feature not in ("inputs", "targets"):
      raise errors.UserError(f'{shown} has "{feature}": {expected}')
    errors.require_range(
      f"{owner}.task_feature_lengths[{feature!r}]",
      length,
      at_least=1,
      at_most=errors.MAX_COUNT,
    )


_REPORTED = ("loss", "loss_kl", "loss_one_hot", "nll", "token_accuracy")

METRICS: tuple[str, ...] = tuple(f"held_out/{name}" for name in _REPORTED)
"""The names of what a held-out loss reports."""
