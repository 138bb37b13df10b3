"""Optimizers and learning rate schedules, from optax."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from specialize_jax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """How gradients become updates.

  Attributes:
    name: "adamw", or "adafactor" as T5 was trained with: second moments by
      rows and columns, updates scaled by the parameter's own size and clipped
      at a root mean square of 1, decay rate 1 - step ** -0.8. (Of layers
      stacked by a scan, size and clipping are those of the whole stack.)
    learning_rate: its peak, reached after the warm-up.
    schedule: after the warm-up "constant"; "cosine" down to
      `final_learning_rate` at `num_steps`; "rsqrt", falling as 1 / sqrt(step).
    warmup_steps: steps over which the rate rises linearly; the first step has
      `learning_rate / warmup_steps`.
    num_steps: where the cosine ends; the others do not read it.
    final_learning_rate: where the cosine ends.
    weight_decay: decoupled: each step takes `rate * weight_decay * parameter`.
    no_decay: last parts of the names that do not decay.
    max_gradient_norm: gradients of a larger global norm are scaled down to it;
      None for no limit.
    beta1: AdamW's decay of the first moment.
    beta2: AdamW's decay of the second moment.
    epsilon: AdamW's floor of the denominator.
    first_moment_dtype: "float32", or "bfloat16", which takes 2 bytes a
      parameter less. AdamW's second moment and all of Adafactor's are float32
      whatever the parameters are: with `beta2` of 0.999 a step changes a
      second moment by less than bfloat16 can tell.
  """

  name: Literal["adamw", "adafactor"] = "adamw"
  learning_rate: float
  schedule: Literal["constant", "cosine", "rsqrt"] = "constant"
  warmup_steps: int = 0
  num_steps: int | None = None
  final_learning_rate: float = 0.0
  weight_decay: float = 0.0
  no_decay: tuple[str, ...] = ("scale", "rel_embedding")
  max_gradient_norm: float | None = 1.0
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  first_moment_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """A direction, and how far to go along it.

  The rate is kept apart from optax's own step counters, which stand still when
  a non-finite step is skipped: it is a function of the step alone.

  Attributes:
    transformation: gradients to the direction of descent, times minus one.
    learning_rate: float32 rate by step; the update is `-rate * direction`.
    max_gradient_norm: see `OptimizerConfig`.
  """

  transformation: optax.GradientTransformation
  learning_rate: optax.Schedule
  max_gradient_norm: float | None = None

  def init(self, params: optax.Params) -> optax.OptState:
    """Gives the state before the first step, float32 for narrow parameters."""
    return self.transformation.init(at_least_float32(params))

  def clip_factor(self, gradient_norm: jax.Array) -> jax.Array:
    """Gives what gradients of this global norm are to be multiplied by.

    A factor that is joined with others costs nothing, where clipping of its
    own (`optax.clip_by_global_norm`) reads and writes all gradients again.
    """
    if self.max_gradient_norm is None:
      return jnp.ones_like(gradient_norm)
    return jnp.minimum(1.0, self.max_gradient_norm / gradient_norm)

  def direction(
    self,
    gradients: optax.Updates,
    opt_state: optax.OptState,
    params: optax.Params,
    *,
    finite: jax.Array,
  ) -> tuple[optax.Updates, optax.OptState]:
    """Gives the direction and the optimizer's next state.

    Args:
      gradients: of the loss, clipped (`clip_factor`).
      opt_state: from `init` or the step before.
      params: what the gradients are of.
      finite: bool scalar. Where it is false the state stays as it is, and the
        direction means nothing.
    """
    with _promotion_as_optax_wants():
      return self.transformation.update(
        at_least_float32(gradients),
        opt_state,
        at_least_float32(params),
        finite=finite,
      )


def build(config: OptimizerConfig) -> Optimizer:
  """Gives the optimizer that a config describes.

  Raises:
    UserError: a name or type is unknown, or the cosine's end is missing or
      too early.
  """
  links = []
  if config.max_gradient_norm is not None:
    # Where optax would clip: its place in the state of a checkpoint.
    links.append(optax.identity())
  if config.first_moment_dtype not in ("float32", "bfloat16"):
    raise errors.UserError(
      f"OptimizerConfig.first_moment_dtype={config.first_moment_dtype!r} is "
      "not possible: expected float32 or bfloat16."
    )
  if config.name == "adamw":
    links.append(_adam(config))
  elif config.name == "adafactor":
    # optax's chain ends by turning to descent; ours turns in the step.
    links += [
      _kept_if_not_finite(optax.adafactor(learning_rate=None)),
      optax.scale(-1.0),
    ]
  else:
    raise errors.UserError(
      f"OptimizerConfig.name={config.name!r} is unknown: expected adamw or "
      "adafactor."
    )
  if config.weight_decay:
    links.append(
      optax.add_decayed_weights(
        config.weight_decay,
        mask=lambda params: _decays(params, config.no_decay),
      )
    )
  return Optimizer(
    transformation=optax.chain(*links),
    learning_rate=_schedule(config),
    max_gradient_norm=config.max_gradient_norm,
  )


def _kept_if_not_finite(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """A transformation whose state stays where `finite` is false."""

  def update(
    gradients: optax.Updates,
    old: optax.OptState,
    params: optax.Params | None = None,
    *,
    finite: jax.Array,
  ) -> tuple[optax.Updates, optax.OptState]:
    direction, new = inner.update(gradients, old, params)
    kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    return direction, kept

  return optax.GradientTransformationExtraArgs(inner.init, update)


def _adam(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
  """Optax's Adam; the direction is that of the moments that are kept.

  Computed beside them, it would read the old moments too, which then are not
  overwritten before it is known: XLA's CPU copies them first, all of them.
  """
  narrow = config.first_moment_dtype != "float32"
  inner = _kept_if_not_finite(
    optax.scale_by_adam(
      b1=config.beta1,
      b2=config.beta2,
      eps=config.epsilon,
      mu_dtype="bfloat16" if narrow else None,
    )
  )
  if narrow:
    # Optax takes the direction from the moment before it is rounded.
    return inner

  def update(
    gradients: optax.Updates,
    old: optax.OptState,
    params: optax.Params | None = None,
    *,
    finite: jax.Array,
  ) -> tuple[optax.Updates, optax.OptState]:
    _, new = inner.update(gradients, old, params, finite=finite)
    mean, square = (
      optax.tree.bias_correction(moment, decay, new.count)
      for moment, decay in ((new.mu, config.beta1), (new.nu, config.beta2))
    )
    direction = jax.tree.map(
      lambda m, v: m / (jnp.sqrt(v) + config.epsilon), mean, square
    )
    return direction, new

  return optax.GradientTransformationExtraArgs(inner.init, update)


def at_least_float32(tree: optax.Params) -> optax.Params:
  """Widens what is narrower, such as bfloat16; the rest is left as it is."""
  return jax.tree.map(
    lambda leaf: leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf,
    tree,
  )


def _decays(params: optax.Params, no_decay: tuple[str, ...]) -> optax.Params:
  """A tree of bools, False where the last part of a name is in `no_decay`."""

  def decays(path: tuple, _: jax.Array) -> bool:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return name.split("/")[-1] not in no_decay

  return jax.tree_util.tree_map_with_path(decays, params)


def _schedule(config: OptimizerConfig) -> optax.Schedule:
  """The rate of step n, counted from zero."""
  peak, warmup = config.learning_rate, config.warmup_steps
  if config.schedule == "constant":
    after = optax.constant_schedule(peak)
  elif config.schedule == "cosine":
    if config.num_steps is None or config.num_steps <= warmup:
      raise errors.UserError(
        f"OptimizerConfig.num_steps={config.num_steps} cannot end a cosine: "
        f"expected more than warmup_steps={warmup}."
      )
    after = optax.cosine_decay_schedule(
      peak,
      config.num_steps - warmup,
      alpha=config.final_learning_rate / peak,
    )
  elif config.schedule == "rsqrt":
    start = max(warmup, 1)

    def after(step: jax.Array) -> jax.Array:
      return peak * jax.lax.rsqrt(1.0 + step / start)

  else:
    raise errors.UserError(
      f"OptimizerConfig.schedule={config.schedule!r} is unknown: expected "
      "constant, cosine or rsqrt."
    )
  rising = optax.linear_schedule(
    peak / max(warmup, 1), peak, max(warmup - 1, 1)
  )
  joined = optax.join_schedules([rising, after], [warmup])

  def rate(step: jax.Array) -> jax.Array:
    with _promotion_as_optax_wants():
      return jnp.asarray(joined(step), jnp.float32)

  return rate


@contextlib.contextmanager
def _promotion_as_optax_wants() -> Iterator[None]:
  """Lets optax mix int32 counters with floats where our own code may not."""
  with jax.numpy_dtype_promotion("standard"):
    yield
