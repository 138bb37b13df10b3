"""One train step: a pure, jitted function of state and batch."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Self

import jax
import jax.numpy as jnp
import optax

from specialize_jax import errors
from specialize_jax.losses import distillation, head, normalization
from specialize_jax.parallel import host_cpu
from specialize_jax.parallel import placement as placements
from specialize_jax.t5 import network
from specialize_jax.training import metrics, state
from specialize_jax.training import optimizer as optimizers

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# The thread of a compilation begins with this name.
COMPILER = "compiler"
TrainStep = Callable[
  [state.TrainState, Batch], tuple[state.TrainState, Metrics]
]


def make_train_step(
  model: network.EncoderDecoder,
  optimizer: optimizers.Optimizer,
  loss_config: distillation.LossConfig,
  *,
  dropout_rng: jax.Array,
  num_microbatches: int = 1,
  compiler_options: Mapping[str, bool] | None = None,
) -> TrainStep:
  """Builds the jitted train step `(state, batch) -> (state, metrics)`.

  The gradient is that of the weighted mean loss of the batch, independent of
  the number of microbatches: losses and gradients are summed over microbatches
  and divided once, by the sum of all weights. A step whose loss or gradient is
  not finite leaves parameters and optimizer state unchanged, and is counted.

  The state is donated. Call the step within `Placement.entered()`, so that the
  model's sharding constraints apply.

  Args:
    model: the network; its config sets compute dtype and dropout.
    optimizer: from `optimizer.build`.
    loss_config: the objective.
    dropout_rng: base key; step n uses it with n folded in.
    num_microbatches: number of microbatches, processed one after the other;
      must divide the batch's rows on every device.
    compiler_options: options of XLA, see `Placement.compiler_options`.

  Returns:
    The step. Its metrics are those of `metrics.shares`, gradient_norm (before
    clipping), update_norm, learning_rate, num_skipped and
    num_skipped_in_a_row; float32 and int32 scalars.
  """

  def train_step(
    train_state: state.TrainState, batch: Batch
  ) -> tuple[state.TrainState, Metrics]:
    step_rng = jax.random.fold_in(dropout_rng, train_state.step)
    gradient_sums, sums = _summed_gradients(
      lambda params, rows, rng: _loss_sum(
        model, loss_config, params, rows, rng
      ),
      train_state.params,
      _split(batch, num_microbatches),
      jax.random.split(step_rng, num_microbatches),
    )
    new_state, update_metrics = _update(
      optimizer, train_state, gradient_sums, sums
    )
    return new_state, metrics.shares(sums) | update_metrics

  return jax.jit(
    train_step,
    donate_argnums=0,
    compiler_options=dict(compiler_options or {}),
  )


def loss_sums(
  model: network.EncoderDecoder,
  loss_config: distillation.LossConfig,
  params: optax.Params,
  batch: Batch,
) -> Metrics:
  """Computes the sums of a batch for `metrics.shares`, without dropout.

  Args:
    model: the network.
    loss_config: the objective.
    params: the network's parameters.
    batch: the batch.
  """
  _, sums = _loss_sum(model, loss_config, params, batch, None)
  return sums


def compile_ahead(
  train_step: jax.stages.Wrapped, train_state: state.TrainState, batch: Batch
) -> None:
  """Compiles a step before its first call.

  One that was compiled before, under the same settings of JAX, is not compiled
  again.

  Args:
    train_step: from `make_train_step`.
    train_state: the state of the first call; not donated.
    batch: the batch of the first call.
  """
  train_step.lower(train_state, batch).compile()
  # On a CPU the compiler has used a gigabyte for FlanT5-small.
  host_cpu.release_freed_memory()


class Compilation:
  """Compiles jitted functions in threads, while the caller does other work.

  A context, at whose end a compilation that has not begun is cancelled. One
  that has begun cannot be interrupted: Python waits for it when the process
  ends. Settings of JAX that the caller has entered as a context, such as
  `jax.default_matmul_precision`, do not hold in the threads; a function that is
  called under them is compiled once more.
  """

  def __init__(
    self,
    calls: Sequence[tuple[jax.stages.Wrapped, Sequence[object]]],
    placement: placements.Placement,
  ) -> None:
    """Starts.

    Args:
      calls: jitted functions, each with its arguments: arrays, or shapes and
        shardings of arrays.
      placement: the mesh, and the sharding of arrays over it.
    """
    self._cancelled = threading.Event()
    executor = futures.ThreadPoolExecutor(
      len(calls), thread_name_prefix=COMPILER
    )
    self._done = [
      executor.submit(self._compile, *call, placement) for call in calls
    ]
    executor.shutdown(wait=False)

  def __enter__(self) -> Self:
    """Returns itself."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Cancels what has not begun."""
    self._cancelled.set()

  @property
  def is_done(self) -> bool:
    """Whether it has ended, so that `wait` returns at once."""
    return all(one.done() for one in self._done)

  def wait(self) -> None:
    """Waits until all are compiled; raises what the compiler has raised."""
    for one in self._done:
      one.result()

  def _compile(
    self,
    jitted: jax.stages.Wrapped,
    arguments: Sequence[object],
    placement: placements.Placement,
  ) -> None:
    with placement.entered():
      lowered = jitted.lower(*arguments)
      if not self._cancelled.is_set():
        lowered.compile()
        # On a CPU the compiler has used a gigabyte for FlanT5-small.
        host_cpu.release_freed_memory()


def _loss_sum(
  model: network.EncoderDecoder,
  loss_config: distillation.LossConfig,
  params: optax.Params,
  batch: Batch,
  dropout_rng: jax.Array | None,
) -> tuple[jax.Array, Metrics]:
  """Computes the weighted sum of losses, and all sums that metrics need."""
  hidden_BTD = model.apply(
    {"params": params},
    batch["encoder_input_tokens"],
    batch["decoder_input_tokens"],
    encoder_segment_ids_BS=batch.get("encoder_segment_ids"),
    decoder_segment_ids_BT=batch.get("decoder_segment_ids"),
    deterministic=dropout_rng is None,
    rngs=None if dropout_rng is None else {"dropout": dropout_rng},
    method="hidden",
  )
  loss, output = head.weighted_loss(
    hidden_BTD, network.output_kernel(params), batch, config=loss_config
  )
  return loss, metrics.position_sums(output, batch)


def _summed_gradients(
  loss_fn: Callable[..., tuple[jax.Array, Metrics]],
  params: optax.Params,
  microbatches: Batch,
  rngs: jax.Array,
) -> tuple[optax.Updates, Metrics]:
  """Accumulates gradients and sums over microbatches (the leading axis).

  Gradients of parameters narrower than float32 are accumulated in float32.
  """

  def gradient_fn(*arguments: object) -> tuple[optax.Updates, Metrics]:
    gradients, sums = jax.grad(loss_fn, has_aux=True)(*arguments)
    return optimizers.at_least_float32(gradients), sums

  def microbatch(index: int) -> tuple:
    return jax.tree.map(lambda x: x[index], (microbatches, rngs))

  if len(rngs) == 1:
    return gradient_fn(params, *microbatch(0))

  def add_one(totals: tuple, one: tuple) -> tuple[tuple, None]:
    return jax.tree.map(jnp.add, totals, gradient_fn(params, *one)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(gradient_fn, params, *microbatch(0)),
  )
  totals, _ = jax.lax.scan(add_one, zeros, (microbatches, rngs))
  return totals


def _split(batch: Batch, num_microbatches: int) -> Batch:
  """Reshapes [B, ..] to [num_microbatches, B / num_microbatches, ..].

  Microbatch i consists of rows i, i + n, i + 2 n, ..., so that each device,
  which holds neighboring rows, keeps its rows and none is communicated.
  """

  def split(rows: jax.Array) -> jax.Array:
    if rows.shape[0] % num_microbatches:
      raise errors.UserError(
        f"num_microbatches={num_microbatches} does not divide a batch of "
        f"{rows.shape[0]} rows: expected a divisor of BATCH_SIZE."
      )
    microbatches = rows.reshape(-1, num_microbatches, *rows.shape[1:])
    return jnp.swapaxes(microbatches, 0, 1)

  return {name: split(rows) for name, rows in batch.items()}


def _update(
  optimizer: optimizers.Optimizer,
  train_state: state.TrainState,
  gradient_sums: optax.Updates,
  sums: Metrics,
) -> tuple[state.TrainState, Metrics]:
  """Applies the update, or skips it if loss or gradients are not finite."""
  norm_of_sums = optax.tree.norm(gradient_sums)
  finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm_of_sums)
  gradient_norm = normalization.divide(norm_of_sums, sums["weight"])
  # One factor both divides and clips: XLA does not merge two multiplications,
  # and each would be a pass over all gradients.
  factor = normalization.divide(
    optimizer.clip_factor(gradient_norm), sums["weight"]
  )
  gradients = jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient_sums)
  learning_rate = optimizer.learning_rate(train_state.step)
  direction, opt_state = optimizer.direction(
    gradients, train_state.opt_state, train_state.params, finite=finite
  )
  updates = jax.tree.map(
    lambda d: jnp.where(finite, -learning_rate.astype(d.dtype) * d, 0.0),
    direction,
  )
  skipped = (~finite).astype(jnp.int32)
  new_state = dataclasses.replace(
    train_state,
    step=train_state.step + 1,
    params=jax.tree.map(_add_update, train_state.params, updates),
    opt_state=opt_state,
    num_skipped=train_state.num_skipped + skipped,
    num_skipped_in_a_row=(train_state.num_skipped_in_a_row + 1) * skipped,
  )
  return new_state, {
    "gradient_norm": gradient_norm,
    "update_norm": optax.tree.norm(updates),
    "learning_rate": learning_rate,
    "num_skipped": new_state.num_skipped,
    "num_skipped_in_a_row": new_state.num_skipped_in_a_row,
  }


def _add_update(param: jax.Array, update: jax.Array) -> jax.Array:
  """Adds in the update's dtype, float32, even if `param` is narrower."""
  return (param.astype(update.dtype) + update).astype(param.dtype)
