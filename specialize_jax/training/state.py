"""The train state, and its initialization and sharding on a mesh."""

import dataclasses
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from specialize_jax import errors
from specialize_jax.checkpoints import adafactor_moments
from specialize_jax.parallel import placement as placements
from specialize_jax.t5 import network
from specialize_jax.training import optimizer as optimizers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """Everything that one step passes to the next.

  Attributes:
    step: int32 scalar, number of batches seen, including skipped ones.
    params: the network's parameters, in its `param_dtype`.
    opt_state: optax's state, sharded like the parameters it belongs to.
    num_skipped: int32 scalar, number of non-finite updates skipped since the
      start.
    num_skipped_in_a_row: int32 scalar, number skipped since the last finite
      update.
  """

  step: jax.Array
  params: optax.Params
  opt_state: optax.OptState
  num_skipped: jax.Array
  num_skipped_in_a_row: jax.Array


def from_params(
  params: optax.Params, optimizer: optimizers.Optimizer
) -> TrainState:
  """Returns the state of step zero with a new optimizer state; traceable."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    num_skipped=jnp.zeros((), jnp.int32),
    num_skipped_in_a_row=jnp.zeros((), jnp.int32),
  )


def abstract(
  model: network.EncoderDecoder,
  optimizer: optimizers.Optimizer,
  placement: placements.Placement,
) -> TrainState:
  """Returns shapes, dtypes and shardings of the state, computing no array.

  Args:
    model: the network.
    optimizer: the optimizer.
    placement: the mesh and the axis rules.

  Returns:
    A state of `jax.ShapeDtypeStruct`, into which a checkpoint can be restored.

  Raises:
    UserError: the rules cannot shard a parameter.
  """
  boxed = network.boxed_shapes(model)
  shapes = jax.eval_shape(
    lambda params: from_params(params, optimizer), network.unboxed(boxed)
  )
  boxed_state = dataclasses.replace(
    shapes,
    params=boxed,
    opt_state=_name_axes(shapes.opt_state, boxed),
  )
  return jax.tree.map(
    lambda leaf, sharding: leaf.update(sharding=sharding),
    shapes,
    placement.tree_shardings(boxed_state),
  )


def bytes_per_device(abstract_tree: object) -> int:
  """Returns the bytes that each device holds of sharded abstract arrays."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(abstract_tree)
  )


def create(
  model: network.EncoderDecoder,
  optimizer: optimizers.Optimizer,
  placement: placements.Placement,
  *,
  init_rng: jax.Array,
) -> TrainState:
  """Creates a randomly initialized state, sharded from the start.

  The values are the same on every mesh: no array is ever assembled on one
  device, and random numbers do not depend on the sharding.

  Args:
    model: the network.
    optimizer: the optimizer.
    placement: the mesh and the axis rules.
    init_rng: the key of the initializers.

  Returns:
    The state of step zero.
  """
  abstract_state = abstract(model, optimizer, placement)
  with placement.entered():
    return creation_fn(model, optimizer, abstract_state)(init_rng)


def creation_fn(
  model: network.EncoderDecoder,
  optimizer: optimizers.Optimizer,
  abstract_state: TrainState,
) -> jax.stages.Wrapped:
  """Returns the jitted function of a key that `create` calls.

  It is called within `Placement.entered()`.

  Args:
    model: the network.
    optimizer: the optimizer.
    abstract_state: from `abstract`.
  """
  return jax.jit(
    lambda rng: from_params(network.unboxed(_init(model, rng)), optimizer),
    out_shardings=_shardings(abstract_state),
  )


def start_from(
  params: optax.Params,
  model: network.EncoderDecoder,
  optimizer: optimizers.Optimizer,
  placement: placements.Placement,
) -> TrainState:
  """Creates the sharded state of step zero from given parameters.

  Args:
    params: the parameters; donated.
    model: the network.
    optimizer: the optimizer, whose state is new.
    placement: the mesh and the axis rules.
  """
  shardings = _shardings(abstract(model, optimizer, placement))
  params = jax.device_put(params, shardings.params)
  with placement.entered():
    return jax.jit(
      lambda params: from_params(params, optimizer),
      out_shardings=shardings,
      donate_argnums=0,
    )(params)


def with_moments(
  train_state: TrainState, moments: adafactor_moments.Moments
) -> TrainState:
  """Returns a state with the Adafactor moments of another run.

  Args:
    train_state: a state of the optimizer "adafactor".
    moments: the moments of the same parameters.

  Raises:
    UserError: the optimizer is not Adafactor, or the moments are those of
      parameters of other shapes.
  """
  shapes = {
    name: leaf.shape
    for name, leaf in flax.traverse_util.flatten_dict(
      train_state.params, sep="/"
    ).items()
  }
  found = []

  def taken_over(node: object) -> object:
    if not isinstance(node, optax.FactoredState):
      return node
    found.append(node)
    try:
      arrays = adafactor_moments.optax_state(shapes, moments)
    except ValueError as error:  # of another shape
      raise errors.UserError(
        "INITIAL_OPTIMIZER=True: the moments of the checkpoint do not fit the"
        f" parameters ({error}), perhaps since T5Config.vocab_size adds rows to"
        " its vocabulary: give as many as it has, or leave INITIAL_OPTIMIZER"
        " out"
      ) from error
    trees = {
      kind: flax.traverse_util.unflatten_dict(arrays[kind], sep="/")
      for kind in adafactor_moments.KINDS
    }
    return jax.tree.map(
      lambda old, new: jax.device_put(new.astype(old.dtype), old.sharding),
      node,
      optax.FactoredState(count=np.asarray(moments.count), **trees),
    )

  opt_state = jax.tree.map(
    taken_over,
    train_state.opt_state,
    is_leaf=lambda node: isinstance(node, optax.FactoredState),
  )
  if not found:
    raise errors.UserError(
      "INITIAL_OPTIMIZER=True takes over Adafactor's moments, and this run's "
      "optimizer is another: set OptimizerConfig.name = 'adafactor', or leave "
      "INITIAL_OPTIMIZER out."
    )
  return dataclasses.replace(train_state, opt_state=opt_state)


def _init(model: network.EncoderDecoder, rng: jax.Array) -> optax.Params:
  """Initializes the parameters, boxed with their logical axis names."""
  tokens = jnp.ones((1, 2), jnp.int32)
  return model.init(rng, tokens, tokens, deterministic=True)["params"]


def _shardings(abstract_state: TrainState) -> TrainState:
  return jax.tree.map(lambda leaf: leaf.sharding, abstract_state)


def _is_box(node: object) -> bool:
  return isinstance(node, nn.LogicallyPartitioned)


def _name_axes(opt_state: optax.OptState, boxed: optax.Params) -> object:
  """Boxes the subtrees of an optimizer state that mirror the parameters.

  A state of some of the parameters has an `optax.MaskedNode` for each other.
  """
  structure = jax.tree.structure(network.unboxed(boxed))

  def mirrors(node: object) -> bool:
    return structure == jax.tree.structure(node, is_leaf=_is_masked)

  def box(node: object) -> object:
    if not mirrors(node):
      return node
    return jax.tree.map(_like, boxed, node, is_leaf=_is_box)

  return jax.tree.map(box, opt_state, is_leaf=mirrors)


def _is_masked(node: object) -> bool:
  return isinstance(node, optax.MaskedNode)


def _like(box: object, leaf: jax.ShapeDtypeStruct) -> object:
  """Names the axes of an optimizer leaf that belongs to a boxed parameter.

  A moment has the parameter's shape, and a factored one lacks one of its axes
  (if two axes are equally long, either name is a valid sharding). All other
  leaves are placeholders of one element and are not boxed.
  """
  if not _is_box(box) or _is_masked(leaf):
    return leaf
  shape, names = box.value.shape, box.names
  if leaf.shape == shape:
    return box.replace_boxed(leaf)
  for axis in range(len(shape)):
    if leaf.shape == (*shape[:axis], *shape[axis + 1 :]):
      return nn.LogicallyPartitioned(leaf, (*names[:axis], *names[axis + 1 :]))
  return leaf
