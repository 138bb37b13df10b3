"""Optimizers and learning rate schedules, from optax."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from specialize_jax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """The optimizer and its learning rate schedule.

  Attributes:
    name: "adamw"; "adafactor" as T5 was trained with: factored second
      moments, updates scaled by the parameter's root mean square and clipped
      to a root mean square of 1, decay rate 1 - step ** -0.8 (for layers
      stacked by a scan, both are taken over the whole stack); or "muon": the
      momentum of each layer's kernel orthogonalized, AdamW for the rest.
    learning_rate: peak learning rate, reached after the warm-up.
    schedule: the learning rate after the warm-up: "constant"; "cosine" decay to
      `final_learning_rate` at `num_steps`; "rsqrt", proportional to
      1 / sqrt(step).
    warmup_steps: number of steps of linear warm-up; the first step has rate
      `learning_rate / warmup_steps`.
    num_steps: step at which the cosine ends; only read by "cosine".
    final_learning_rate: learning rate at the end of the cosine.
    weight_decay: decoupled weight decay: each step subtracts
      `rate * weight_decay * parameter`.
    no_decay: parameters whose name ends in one of these are not decayed: a last
      part, "scale", or several, "logits_dense/kernel".
    max_gradient_norm: gradients with a larger global norm are scaled down to
      it; None for no clipping.
    beta1: AdamW's decay rate of the first moment; Muon's momentum is 0.95.
    beta2: AdamW's decay rate of the second moment.
    epsilon: added to AdamW's denominator.
    first_moment_dtype: "float32", or "bfloat16", which saves 2 bytes per
      parameter; Muon's momentum too. AdamW's second moment and Adafactor's
      state are float32 whatever the dtype of the parameters: with `beta2` 0.999
      a step changes a second moment by less than bfloat16 resolves.
  """

  name: Literal["adamw", "adafactor", "muon"] = "adamw"
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

  def __post_init__(self) -> None:
    """Raises UserError for a number that no optimizer can take."""
    require = functools.partial(_require, self)
    require("learning_rate", above=0.0, below=math.inf)
    require("warmup_steps", at_least=0, at_most=errors.MAX_STEPS)
    require("num_steps", at_least=1, at_most=errors.MAX_STEPS)
    require("final_learning_rate", at_least=0.0, below=math.inf)
    require("weight_decay", at_least=0.0, below=math.inf)
    require("max_gradient_norm", above=0.0)
    require("beta1", at_least=0.0, below=1.0)
    require("beta2", at_least=0.0, below=1.0)
    require("epsilon", at_least=0.0, below=math.inf)


def _require(config: OptimizerConfig, name: str, **limits: float) -> None:
  value = getattr(config, name)
  errors.require_range(f"OptimizerConfig.{name}", value, **limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """A gradient transformation and, separately, a learning rate schedule.

  The schedule is a function of the train step. It does not use optax's step
  counters, which do not advance when a non-finite step is skipped.

  Attributes:
    transformation: maps gradients to the direction of ascent.
    learning_rate: maps a step to a float32 rate; the update is
      `-rate * direction`.
    max_gradient_norm: see `OptimizerConfig`.
  """

  transformation: optax.GradientTransformation
  learning_rate: optax.Schedule
  max_gradient_norm: float | None = None

  def init(self, params: optax.Params) -> optax.OptState:
    """Returns the initial state, float32 even for narrower parameters."""
    return self.transformation.init(at_least_float32(params))

  def clip_factor(self, gradient_norm: jax.Array) -> jax.Array:
    """Computes the factor that clips gradients of a given global norm.

    The step multiplies it into another factor at no cost, whereas
    `optax.clip_by_global_norm` reads and writes all gradients once more.

    Args:
      gradient_norm: float32 scalar.

    Returns:
      `min(1, max_gradient_norm / gradient_norm)`.
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
    """Computes the direction and the optimizer's next state.

    Args:
      gradients: gradients of the loss, clipped by `clip_factor`.
      opt_state: from `init` or the previous step.
      params: the parameters.
      finite: bool scalar. If false, the state is returned unchanged and the
        direction is meaningless.

    Returns:
      The direction and the next state.
    """
    with _standard_dtype_promotion():
      return self.transformation.update(
        at_least_float32(gradients),
        opt_state,
        at_least_float32(params),
        finite=finite,
      )


def build(config: OptimizerConfig) -> Optimizer:
  """Builds the optimizer that a config describes.

  Args:
    config: the configuration.

  Returns:
    The optimizer.

  Raises:
    UserError: a name or dtype is unknown, or the end of the cosine is missing
      or within the warm-up.
  """
  links = []
  if config.max_gradient_norm is not None:
    # Keeps the structure of the state, and so of checkpoints, that optax's
    # own clipping would have.
    links.append(optax.identity())
  if config.first_moment_dtype not in ("float32", "bfloat16"):
    raise errors.UserError(
      f"OptimizerConfig.first_moment_dtype={config.first_moment_dtype!r} is "
      "not possible: expected float32 or bfloat16."
    )
  if config.name == "adamw":
    links.append(_adam(config))
  elif config.name == "muon":
    links.append(_muon(config))
  elif config.name == "adafactor":
    # optax's chain ends with a negation; ours negates in the train step.
    links += [
      _unchanged_if_not_finite(optax.adafactor(learning_rate=None)),
      optax.scale(-1.0),
    ]
  else:
    raise errors.UserError(
      f"OptimizerConfig.name={config.name!r} is unknown: expected adamw, "
      "adafactor or muon."
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


def _unchanged_if_not_finite(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Wraps a transformation to keep its state where `finite` is false."""

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
  """Optax's Adam, with the direction computed from the new moments.

  Optax's own update computes direction and new moments together from the old
  moments, so the old ones cannot be overwritten first: XLA's CPU backend copies
  all of them. Computed from the new moments, the direction needs no copy.
  """
  narrow = config.first_moment_dtype != "float32"
  inner = _unchanged_if_not_finite(
    optax.scale_by_adam(
      b1=config.beta1,
      b2=config.beta2,
      eps=config.epsilon,
      mu_dtype="bfloat16" if narrow else None,
    )
  )
  if narrow:
    # Optax computes the direction from the moment before it is rounded.
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


# The root mean square of an orthogonalized update of a kernel, that of AdamW.
_MUON_RMS = 0.2


def _muon(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
  """Muon on the kernels of the layers, Adam on all other parameters."""
  dtype = config.first_moment_dtype
  muon = optax.chain(
    # The momentum alone: the iterations follow, on all kernels together.
    optax.contrib.scale_by_muon(
      mu_dtype=dtype, ns_steps=0, weight_dimension_numbers=_matrix_axes
    ),
    optax.stateless(lambda updates, _: _orthogonalize(updates)),
    optax.stateless_with_tree_map(
      lambda update, _: _MUON_RMS * math.sqrt(max(update.shape[-2:])) * update
    ),
  )
  adam = optax.scale_by_adam(
    b1=config.beta1, b2=config.beta2, eps=config.epsilon, mu_dtype=dtype
  )
  return _unchanged_if_not_finite(
    optax.partition({"muon": muon, "adam": adam}, _muon_or_adam)
  )


def _orthogonalize(updates: optax.Updates) -> optax.Updates:
  """Orthogonalizes each matrix of a tree by Newton-Schulz iterations.

  Matrices of one shape are stacked and the stack is sharded over all devices,
  so that each device orthogonalizes its share of the matrices instead of all of
  them, in a few batched matmuls. A tall matrix is transposed, which transposes
  the result, and shares the stack of the wide ones.

  Args:
    updates: a tree of matrices `[..., in, out]`.

  Returns:
    The orthogonalized matrices, the same tree.
  """
  leaves, structure = jax.tree.flatten(updates)
  tall = [leaf.shape[-2] > leaf.shape[-1] for leaf in leaves]
  wide = [x.mT if t else x for x, t in zip(leaves, tall, strict=True)]
  results = list(wide)
  for shape in dict.fromkeys(leaf.shape[-2:] for leaf in wide):
    members = [i for i, leaf in enumerate(wide) if leaf.shape[-2:] == shape]
    parts = [wide[i].reshape(-1, *shape) for i in members]
    done = _newton_schulz(jnp.concatenate(parts))
    ends = list(itertools.accumulate(len(part) for part in parts))
    for i, end, part in zip(members, ends, parts, strict=True):
      results[i] = done[end - len(part) : end].reshape(wide[i].shape)
  return structure.unflatten(
    x.mT if t else x for x, t in zip(results, tall, strict=True)
  )


def _newton_schulz(stack: jax.Array) -> jax.Array:
  """Orthogonalizes matrices `[N, in, out]`, each device an equal share.

  Zero matrices are appended to a stack that the devices do not divide.
  """
  mesh, spec = jax.sharding.get_abstract_mesh(), jax.sharding.PartitionSpec

  def placed(matrices: jax.Array, *axes: object) -> jax.Array:
    if mesh.empty:
      return matrices
    return jax.lax.with_sharding_constraint(matrices, spec(*axes))

  # The matrices are concatenated as they are sharded, and the stack as a whole
  # is resharded: else the partitioner reshards each matrix by itself.
  stack = placed(stack, None, spec.UNCONSTRAINED, spec.UNCONSTRAINED)
  missing = 0 if mesh.empty else -len(stack) % mesh.size
  padded = jnp.pad(stack, ((0, missing), (0, 0), (0, 0)))
  shared = placed(padded, mesh.axis_names)
  iterations = optax.contrib.scale_by_muon(
    beta=0.0, nesterov=False, weight_dimension_numbers=_matrix_axes
  )
  done, _ = iterations.update(shared, iterations.init(shared))
  done = placed(done, mesh.axis_names)
  # Parameters keep their sharding: none of them takes that of the stack.
  return placed(
    done[: len(stack)], None, spec.UNCONSTRAINED, spec.UNCONSTRAINED
  )


def _muon_or_adam(params: optax.Params) -> object:
  """Returns a tree of "muon" for the layers' kernels and "adam" elsewhere."""

  def label(path: tuple, _: jax.Array) -> str:
    *parents, name = jax.tree_util.keystr(
      path, simple=True, separator="/"
    ).split("/")
    of_layer = name == "kernel" and "logits_dense" not in parents
    return "muon" if of_layer else "adam"

  return jax.tree_util.tree_map_with_path(label, params)


def _matrix_axes(params: optax.Params) -> object:
  """Returns the axes of kernels `[..., in, out]`: leading ones are batched."""
  axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
  return jax.tree.map(lambda _: axes, params)


def at_least_float32(tree: optax.Params) -> optax.Params:
  """Casts leaves narrower than float32, such as bfloat16, to float32."""
  return jax.tree.map(
    lambda leaf: leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf,
    tree,
  )


def _decays(params: optax.Params, no_decay: tuple[str, ...]) -> optax.Params:
  """Returns a tree of bools, False where a name ends in one of `no_decay`."""

  def decays(path: tuple, _: jax.Array) -> bool:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return not any(f"/{name}".endswith(f"/{end}") for end in no_decay)

  return jax.tree_util.tree_map_with_path(decays, params)


def _schedule(config: OptimizerConfig) -> optax.Schedule:
  """Builds the schedule of a config; steps count from zero."""
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
    with _standard_dtype_promotion():
      return jnp.asarray(joined(step), jnp.float32)

  return rate


@contextlib.contextmanager
def _standard_dtype_promotion() -> Iterator[None]:
  """Lets optax mix int32 counters with floats under strict promotion."""
  with jax.numpy_dtype_promotion("standard"):
    yield
