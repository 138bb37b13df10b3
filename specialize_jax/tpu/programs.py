"""Compiles the training and decoding steps ahead of time, for absent chips.

Inputs are abstract: shapes with shardings. Nothing is computed or allocated.
"""

import dataclasses
import pathlib
import re
import tempfile
import time

import jax

from specialize_jax.checkpoints import name_table
from specialize_jax.data import packing
from specialize_jax.decoding import loop, strategies
from specialize_jax.losses import distillation
from specialize_jax.parallel import chips
from specialize_jax.parallel import placement as placements
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network
from specialize_jax.training import optimizer as optimizers
from specialize_jax.training import state, step

_SIZE = r"([\d.]+)([KMGT]?)"
# The compiler's messages for a program that needs too much memory: at buffer
# assignment, or before (arguments are counted in both).
_OVER = (
  re.compile(f"Used {_SIZE} of {_SIZE} hbm"),
  re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """The model, batch and loss that run on a slice.

  Attributes:
    config: the network.
    batch_size: number of rows of a global batch.
    input_length: length of encoder rows, in tokens.
    target_length: length of decoder rows, or of a decoded output, in tokens.
    optimizer: the optimizer of the training step.
    loss: the loss of the training step.
    num_microbatches: number of microbatches, processed one after the other.
  """

  config: t5_config.T5Config
  batch_size: int
  input_length: int
  target_length: int
  optimizer: optimizers.OptimizerConfig
  loss: distillation.LossConfig
  num_microbatches: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A compiled program, or the memory that it would need.

  Attributes:
    compile_seconds: time of the compilation.
    peak_bytes: peak of HBM per chip, with program and arguments.
    limit_bytes: the compiler's limit of HBM for a program; None if the program
      fits, since the compiler reports it only otherwise.
    text: the optimized program; empty if it does not fit.
  """

  compile_seconds: float
  peak_bytes: float
  limit_bytes: float | None
  text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateBytes:
  """Bytes of the state of a step on each chip.

  Attributes:
    parameters: bytes of the parameters.
    optimizer: bytes of the optimizer's moments; 0 for decoding.
  """

  parameters: int
  optimizer: int


def check(job: Job, placement: placements.Placement) -> None:
  """Raises UserError if the batch is not divisible over the mesh."""
  placement.check_batch(
    job.batch_size, job.num_microbatches, name="--batch_size"
  )


def state_bytes(
  job: Job, placement: placements.Placement, step_name: str
) -> StateBytes:
  """Returns the bytes per chip of a step's state.

  Args:
    job: the model, batch and optimizer.
    placement: the mesh and the axis rules.
    step_name: "train" or "decode".
  """
  if step_name == "decode":
    params = name_table.abstract_params(
      _model(job, step_name).config, placement
    )
    return StateBytes(parameters=state.bytes_per_device(params), optimizer=0)
  whole = _abstract_state(job, placement)
  return StateBytes(
    parameters=state.bytes_per_device(whole.params),
    optimizer=state.bytes_per_device(whole.opt_state),
  )


def lower(
  job: Job, placement: placements.Placement, step_name: str
) -> jax.stages.Lowered:
  """Lowers the training step of `experiment.train`, or greedy decoding.

  Args:
    job: the model, batch and loss.
    placement: the mesh of the devices of a topology, with its axis rules.
    step_name: "train", or "decode": a batch is encoded, and `target_length`
      tokens of each row are decoded greedily.
  """
  check(job, placement)
  model = _model(job, step_name)
  # On the CPU: within the mesh it would run on chips that are not there.
  dropout_rng = jax.random.key(0)
  with placement.entered():
    if step_name == "decode":
      batch = abstract_batch(job, placement)
      return jax.jit(
        lambda params, inputs_BS: loop.decode(
          model,
          params,
          inputs_BS,
          max_new_tokens=job.target_length,
          strategy=strategies.Greedy(),
        )
      ).lower(
        name_table.abstract_params(model.config, placement),
        batch["encoder_input_tokens"],
      )
    train_step = step.make_train_step(
      model,
      optimizers.build(job.optimizer),
      job.loss,
      dropout_rng=dropout_rng,
      num_microbatches=job.num_microbatches,
      compiler_options=placement.compiler_options,
    )
    return train_step.lower(
      _abstract_state(job, placement), abstract_batch(job, placement)
    )


def compiled(lowered: jax.stages.Lowered) -> Program:
  """Compiles; a program too large for the memory is a result, not an error."""
  start = time.monotonic()
  try:
    with tempfile.TemporaryDirectory() as folder:
      # The compiler dumps the program itself: for chips with sparse cores
      # (v5p, v6e) it emits programs that `as_text` of this jaxlib cannot parse.
      program = lowered.compile(
        compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
      )
      seconds = time.monotonic() - start
      (text,) = (
        path.read_text()
        for path in pathlib.Path(folder).glob("*after_optimizations.txt")
      )
  except jax.errors.JaxRuntimeError as error:
    searched = (pattern.search(str(error)) for pattern in _OVER)
    found = next(filter(None, searched), None)
    if found is None:
      raise
    used, used_unit, limit, limit_unit = found.groups()
    return Program(
      compile_seconds=time.monotonic() - start,
      peak_bytes=float(used) * _UNITS[used_unit],
      limit_bytes=float(limit) * _UNITS[limit_unit],
      text="",
    )
  return Program(
    compile_seconds=seconds,
    peak_bytes=float(program.memory_analysis().peak_memory_in_bytes),
    limit_bytes=None,
    text=text,
  )


def abstract_batch(
  job: Job, placement: placements.Placement
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a packed batch, sharded along its rows."""
  row = packing.empty_batch(1, job.input_length, job.target_length)
  return placement.abstract_batch(row, job.batch_size)


def gib(num_bytes: float) -> float:
  """Returns bytes in GiB, 2 ** 30 bytes each."""
  return num_bytes / chips.GIB


def _model(job: Job, step_name: str) -> network.EncoderDecoder:
  config = job.config
  if step_name == "decode":
    config = dataclasses.replace(config, remat_policy="none")
  return network.EncoderDecoder(config)


def _abstract_state(
  job: Job, placement: placements.Placement
) -> state.TrainState:
  return state.abstract(
    _model(job, "train"), optimizers.build(job.optimizer), placement
  )
