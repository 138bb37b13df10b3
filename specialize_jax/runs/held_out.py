"""The divergence from the teacher on questions that nobody trained on."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from specialize_jax.data import pipeline
from specialize_jax.losses import distillation
from specialize_jax.parallel import placement
from specialize_jax.t5 import network
from specialize_jax.training import metrics, step

Evaluator = Callable[[optax.Params, int], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
  """The training loss on a split that is not trained on.

  Its values are `held_out/loss`, `held_out/loss_kl` (the divergence from the
  teacher), `held_out/loss_one_hot`, `held_out/nll` and
  `held_out/token_accuracy`, means over all target tokens of the split as
  `training.metrics.shares` defines them.

  Attributes:
    mixture_or_task_name: of teacher data, registered with seqio.
    task_feature_lengths: row lengths "inputs" and "targets", in tokens.
    split: "validation", as `specialize prepare` writes it.
    batch_size: rows of a global batch.
    loss: what is computed; the same as in training, to compare.
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  split: str = "validation"
  batch_size: int = 64
  loss: distillation.LossConfig = dataclasses.field(
    default_factory=distillation.LossConfig
  )

  def evaluator(
    self,
    model: network.EncoderDecoder,
    placed: placement.Placement,
  ) -> Evaluator:
    """Returns a callable of `(params, step)`.

    Args:
      model: the network.
      placed: the mesh that the parameters are on.

    Raises:
      UserError: there is no such mixture, or no such split.
    """
    sums_of = jax.jit(
      lambda params, batch: step.loss_sums(model, self.loss, params, batch)
    )

    def batches() -> pipeline.TrainIterator:
      return pipeline.TrainIterator(
        self.mixture_or_task_name,
        task_feature_lengths=self.task_feature_lengths,
        batch_size=self.batch_size,
        seed=0,
        split=self.split,
        num_epochs=1,
        rows=placed.local_rows(self.batch_size),
      )

    def evaluate(params: optax.Params, _: int) -> Mapping[str, float]:
      totals = None
      with contextlib.closing(batches()) as iterator, placed.entered():
        for rows in iterator:
          sums = sums_of(params, placed.put_batch(rows))
          totals = (
            sums if totals is None else jax.tree.map(jnp.add, totals, sums)
          )
      values = jax.device_get(metrics.shares(totals))
      return {f"held_out/{name}": float(values[name]) for name in _REPORTED}

    batches().close()  # A wrong name or split is an error now.
    return evaluate


_REPORTED = ("loss", "loss_kl", "loss_one_hot", "nll", "token_accuracy")
