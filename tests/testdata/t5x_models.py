"""Tiny models of T5X's own networks, and the checkpoints that T5X writes.

Needs T5X: a test that imports this is marked `t5x`.
"""

import functools

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import seqio
from t5x import adafactor, checkpoints, models, partitioning, train_state, utils
from t5x.examples.scalable_t5 import network as scalable_network
from t5x.examples.t5 import network as t5_network

NETWORKS = {"t5": t5_network, "scalable_t5": scalable_network}
SIZES = {
  "vocab_size": 384,
  "emb_dim": 16,
  "num_heads": 3,
  "num_encoder_layers": 3,
  "num_decoder_layers": 2,
  "head_dim": 6,
  "mlp_dim": 20,
  "dropout_rate": 0.0,
  "dtype": "float32",
}
FAMILIES = {
  "t5_1_0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
  "t5_1_1": {
    "mlp_activations": ("gelu", "linear"),
    "logits_via_embedding": False,
  },
}
SOURCE = np.random.default_rng(0).integers(2, 384, (3, 9)).astype(np.int32)
TARGET = np.random.default_rng(1).integers(2, 384, (3, 5)).astype(np.int32)
INPUTS = np.pad(TARGET, ((0, 0), (1, 0)))[:, :-1]


def module(network="t5", family="t5_1_1", **changes):
  """A network of T5X."""
  sizes = SIZES | FAMILIES[family] | changes
  if network == "t5":
    sizes.pop("scan_layers", None)
  which = NETWORKS[network]
  return which.Transformer(config=which.T5Config(**sizes))


def optimizer():
  """Adafactor as T5X's own gin files have it."""
  return adafactor.Adafactor(
    decay_rate=0.8,
    step_offset=0,
    logical_factor_rules=adafactor.standard_logical_factor_rules(),
  )


def model(network_module, model_class=models.EncoderDecoderModel, **arguments):
  """A model of T5X around a network."""
  vocabulary = seqio.ByteVocabulary()
  return model_class(
    module=network_module,
    input_vocabulary=vocabulary,
    output_vocabulary=vocabulary,
    optimizer_def=optimizer(),
    **arguments,
  )


@functools.cache
def partitioner():
  """One device for everything: T5X's own on a CPU would take all eight."""

  class OneDevice(partitioning.PjitPartitioner):
    mesh = jax.sharding.Mesh(
      np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model")
    )

  return OneDevice(num_partitions=1)


def random_state(network_module, *, with_optimizer=True, seed=0):
  """A train state whose every array is random, and its initializer."""
  built = model(network_module)
  shapes = {"encoder_input_tokens": (1, 4), "decoder_input_tokens": (1, 4)}
  initializer = utils.TrainStateInitializer(
    optimizer_def=built.optimizer_def if with_optimizer else None,
    init_fn=built.get_initial_variables,
    input_shapes=shapes,
    partitioner=partitioner(),
  )
  rng = np.random.default_rng(seed)

  def draw(leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.asarray(7, leaf.dtype)
    values = np.abs(0.3 * rng.normal(size=leaf.shape))
    return jnp.asarray(values, leaf.dtype)

  def signed(leaf):
    return jnp.asarray(rng.choice([-1, 1], leaf.shape), leaf.dtype) * leaf

  # Moments are squares, parameters of any sign.
  state = jax.tree.map(draw, initializer.global_train_state_shape)
  state = state.replace_params(jax.tree.map(signed, state.params))
  return state, initializer


def save(directory, state, *, through):
  """Writes a checkpoint by T5X's own code; returns `checkpoint_<step>`.

  Args:
    directory: where T5X's model_dir is.
    state: a train state.
    through: "legacy" (msgpack and zarr) or "orbax".
  """
  directory.mkdir(parents=True, exist_ok=True)
  if through == "legacy":
    writer = checkpoints.Checkpointer(state, partitioner(), str(directory))
    writer.save(state)
  else:
    writer = checkpoints.OrbaxCheckpointManagerInterface(
      str(directory), state, partitioner(), save_dtype=jnp.float32
    )
    writer.save(state)
    writer.close()
  return directory / f"checkpoint_{int(state.step)}"


def restored(network_module, path):
  """Restores a checkpoint by T5X's own code, as t5x.train does by default."""
  _, initializer = random_state(network_module)
  train_state, _ = utils.create_checkpoint_manager_and_restore(
    initializer,
    partitioner(),
    utils.RestoreCheckpointConfig(path=str(path), mode="specific"),
    str(path),
    None,
    use_orbax=True,
  )
  return train_state


def state_of(params, step=7):
  """A train state without an optimizer around any tree of parameters."""
  return train_state.InferenceState(
    step=jnp.asarray(step), params=flax.core.freeze(params)
  )


def logits(network_module, params):
  """T5X's logits at `SOURCE` and `TARGET`."""
  return jax.jit(
    lambda params: network_module.apply(
      {"params": params}, SOURCE, INPUTS, TARGET, enable_dropout=False
    )
  )(params)
