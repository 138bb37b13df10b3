"""A tiny network, batches and an iterator that the training tests share.

Also what `crash_run.py` runs, in a process of its own, to be killed.
"""

import functools
import json
import time

import jax
import numpy as np

from specialize_jax.checkpoints import manager
from specialize_jax.data import packing
from specialize_jax.losses import distillation
from specialize_jax.parallel import mesh, placement
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network
from specialize_jax.training import loop, optimizer, run_log, state, step

VOCAB, CANDIDATES = 64, 5
NUM_CHUNKS = 2  # of the vocabulary, in the loss
SOURCE_LENGTH, TARGET_LENGTH, BATCH_SIZE = 16, 12, 8


def model(**changes):
  """A T5 1.1 of 2 + 2 layers in float32."""
  return network.EncoderDecoder(
    t5_config.T5Config(
      **{
        "vocab_size": VOCAB,
        "embed_dim": 16,
        "mlp_dim": 32,
        "num_heads": 2,
        "head_dim": 8,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "mlp_activations": ("gelu", "linear"),
        "tied_head": False,
        "dropout_rate": 0.0,
        "dtype": "float32",
        **changes,
      }
    )
  )


def adamw(**changes):
  """AdamW with everything on."""
  return optimizer.build(
    optimizer.OptimizerConfig(
      **{
        "learning_rate": 1e-2,
        "schedule": "cosine",
        "warmup_steps": 2,
        "num_steps": 50,
        "weight_decay": 0.01,
        **changes,
      }
    )
  )


@functools.cache
def one_device():
  """Everything on the first device."""
  return placement.Placement(mesh=mesh.make_mesh(devices=jax.devices()[:1]))


def make_step(**changes):
  """A jitted step of the tiny network."""
  arguments = {
    "model": model(),
    "optimizer": adamw(),
    "loss_config": distillation.LossConfig(num_chunks=NUM_CHUNKS),
    "dropout_rng": jax.random.key(1),
    **changes,
  }
  return step.make_train_step(
    arguments.pop("model"),
    arguments.pop("optimizer"),
    arguments.pop("loss_config"),
    **arguments,
  )


@functools.cache
def plain_step():
  """`make_step()`, compiled once for all tests of a process."""
  return make_step()


@functools.cache
def dropout_step():
  """A step with dropout, compiled once for all tests of a process."""
  return make_step(model=model(dropout_rate=0.2))


@functools.cache
def _first_state():
  """The state of seed 0, on the host."""
  first = state.create(
    model(), adamw(), one_device(), init_rng=jax.random.key(0)
  )
  return jax.tree.map(np.asarray, first)


@functools.cache
def _shardings(where):
  planned = state.abstract(model(), adamw(), where)
  return jax.tree.map(lambda leaf: leaf.sharding, planned)


def new_state(where=None):
  """A fresh copy of the tiny network's state from seed 0, to be donated."""
  shardings = _shardings(where or one_device())
  # Copies, because a donated buffer may be the host array itself.
  return jax.device_put(jax.tree.map(np.copy, _first_state()), shardings)


def example(rng, source_length, target_length):
  """One task example, with teacher distributions at most positions."""
  targets = rng.integers(2, VOCAB, target_length).astype(np.int32)
  targets[-1] = 1
  ids = np.argsort(rng.random((target_length, VOCAB - 2)), -1) + 2
  probs = rng.dirichlet(np.ones(CANDIDATES), target_length) * 0.9
  mask = rng.random(target_length) < 0.7
  mask[-1] = False
  one_hot = np.eye(1, CANDIDATES)[0]
  return {
    "inputs": rng.integers(2, VOCAB, source_length),
    "targets": targets,
    "teacher_top_ids": np.where(
      mask[:, None], ids[:, :CANDIDATES], targets[:, None] * (one_hot > 0)
    ),
    "teacher_top_probs": np.where(mask[:, None], probs, one_hot),
    "teacher_top_mask": mask,
  }


def pack(rows):
  """The batch of some rows, each a list of examples, empty for padding."""
  return packing.to_batch(
    rows, {"inputs": SOURCE_LENGTH, "targets": TARGET_LENGTH}
  )


def batch(number, batch_size=BATCH_SIZE):
  """Batch n, a function of n alone: two or three examples a row."""
  rng = np.random.default_rng(number)
  return pack(
    [
      [
        example(rng, rng.integers(2, 6), rng.integers(2, 5))
        for _ in range(rng.integers(2, 4))
      ]
      for _ in range(batch_size)
    ]
  )


_STATE_COPIES = 2**21  # more than one message of the coordination service


class Batches:
  """An iterator over batches 0, 1, ... that can be restored."""

  def __init__(
    self, seconds_per_batch=0.0, rows=range(BATCH_SIZE), gather=dict
  ):
    self.number = 0
    self._seconds_per_batch = seconds_per_batch
    self._rows = [int(row) for row in rows]
    self._gather = gather

  def __next__(self):
    time.sleep(self._seconds_per_batch)
    self.number += 1
    whole = batch(self.number - 1)
    return {name: array[self._rows] for name, array in whole.items()}

  def example_ids_fn(self):
    """Names every row by its batch and index; each process its own."""
    number = self.number - 1
    own = {f"{row}": f"{number}/{row}".encode() for row in self._rows}

    def example_ids():
      ids = self._gather(own)
      return [[ids[f"{row}"].decode()] for row in range(BATCH_SIZE)]

    return example_ids

  def digests(self):
    """All processes make the same batches, each its own rows."""
    rows = {f"row {row}": self.number for row in self._rows}
    return {"the number of batches": self.number, **rows}

  def dropped(self):
    """All examples fit."""
    return ""

  def state(self):
    """Serializes the position, which each process has for its own rows."""
    content = f"{self.number}".encode() * _STATE_COPIES
    parts = self._gather({f"{row}": content for row in self._rows})
    assert len(parts) == BATCH_SIZE and {*parts.values()} == {content}
    return json.dumps({"next": self.number}).encode()

  def restore(self, saved):
    """Moves to a serialized position."""
    self.number = json.loads(saved)["next"]


def run_steps(train_step, train_state, where, num_steps=3):
  """Steps over batches 0, 1, ...; returns the last state and all metrics."""
  history = []
  with where.entered():
    for number in range(num_steps):
      train_state, metrics = train_step(
        train_state, where.put_batch(batch(number))
      )
      history.append({name: float(x) for name, x in metrics.items()})
  return train_state, history


def loop_run(model_dir, *, config, evaluators=(), train_step=None, **kept):
  """A run of the loop in a directory, on one device."""
  return loop.Run(
    train_step=train_step or plain_step(),
    placement=one_device(),
    manager=manager.CheckpointManager(model_dir / "checkpoints", **kept),
    log=run_log.RunLog(model_dir),
    config=loop.LoopConfig(**config),
    evaluators=evaluators,
  )


def finish(run, iterator=None):
  """Resumes or starts a run, and trains to its end."""
  iterator = iterator or Batches()
  train_state = loop.resume_or_start(
    run,
    iterator,
    abstract_state=state.abstract(model(), adamw(), run.placement),
    initial_state_fn=new_state,
  )
  try:
    return loop.train(run, train_state, iterator)
  finally:
    run.log.close()
    run.manager.close()
