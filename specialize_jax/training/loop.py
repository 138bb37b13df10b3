"""The one training loop: steps, and what happens between them.

What differs between experiments is an argument: the step (network, loss,
optimizer), the iterator (data), the evaluators. The loop knows none of them
but by what it calls.
"""

import dataclasses
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np
import optax
from absl import logging

from specialize_jax import errors
from specialize_jax.checkpoints import manager as managers
from specialize_jax.parallel import placement as placements
from specialize_jax.training import progress, run_log, state, step

Evaluator = Callable[[optax.Params, int], Mapping[str, float]]


class BatchIterator(Protocol):
  """Where batches come from."""

  def __next__(self) -> Mapping[str, np.ndarray]:
    """This process's rows of the next global batch."""

  def state(self) -> bytes:
    """Where it stands, after the batches given so far."""

  def restore(self, state: bytes) -> None:
    """Goes to where `state` was taken."""


class Preempted(SystemExit):
  """The machine is about to go; the step is saved, start again to go on.

  A `SystemExit` with a status of its own (75, sysexits' "try again"), so that
  a launcher can tell it from success and from failure.
  """

  def __init__(self, at_step: int) -> None:
    super().__init__(75)
    self.at_step = at_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
  """When the loop does what.

  Attributes:
    num_steps: the step to stop after, counted from the first start.
    log_every: steps from one row of training metrics to the next; the first
      and the last step have one too. A row holds its own step's values.
    eval_every: steps from one evaluation to the next, the last step included;
      None for none at all.
    evaluate_first: whether to evaluate before the first step too.
    checkpoint_every: steps from one checkpoint to the next; None for the last
      step alone, which always has one.
    max_skipped_in_a_row: how many non-finite steps one after the other are
      skipped before the run ends.
  """

  num_steps: int
  log_every: int = 10
  eval_every: int | None = None
  evaluate_first: bool = False
  checkpoint_every: int | None = None
  max_skipped_in_a_row: int = 10

  def __post_init__(self) -> None:
    """Raises UserError for a number that counts nothing."""
    for name in ("num_steps", "log_every", "eval_every", "checkpoint_every"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise errors.UserError(
          f"LoopConfig.{name}={value} is not possible: expected 1 or more, or "
          "None for never where that is allowed."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What stays as it is from step to step.

  Attributes:
    train_step: from `step.make_train_step`.
    placement: where arrays lie.
    manager: of MODEL_DIR/checkpoints.
    log: of MODEL_DIR.
    config: when to do what.
    evaluators: each called with parameters and step; their values, whose names
      must differ, make one row.
    metadata: JSON-able, saved with every checkpoint.
  """

  train_step: step.TrainStep
  placement: placements.Placement
  manager: managers.CheckpointManager
  log: run_log.RunLog
  config: LoopConfig
  evaluators: Sequence[Evaluator] = ()
  metadata: Mapping[str, object] = dataclasses.field(default_factory=dict)


def resume_or_start(
  run: Run,
  iterator: BatchIterator,
  *,
  abstract_state: state.TrainState,
  initial_state_fn: Callable[[], state.TrainState],
) -> state.TrainState:
  """Gives the state to go on from, and puts iterator and log beside it.

  Which one wins:
    1. the latest checkpoint in MODEL_DIR: the run goes on, data included;
    2. otherwise `initial_state_fn`, at step zero: the parameters of another
       checkpoint, or random ones. It is not called in the first case.

  Args:
    run: the run.
    iterator: new; goes to where the checkpoint was saved.
    abstract_state: from `state.abstract`.
    initial_state_fn: makes the state of step zero.

  Raises:
    UserError: MODEL_DIR holds another model's checkpoints.
  """
  restored_step = run.manager.latest_step()
  if restored_step is None:
    # First what may fail: a run that cannot start leaves nothing behind.
    initial_state = initial_state_fn()
    run.log.start_after(None)
    return initial_state
  restored, iterator_state, _ = run.manager.restore(abstract_state)
  iterator.restore(iterator_state)
  run.log.start_after(restored_step)
  logging.info("Resuming after step %d.", restored_step)
  return restored


def train(
  run: Run, train_state: state.TrainState, iterator: BatchIterator
) -> state.TrainState:
  """Steps until `num_steps` or a preemption; saves, logs and evaluates.

  Args:
    run: the run.
    train_state: from `resume_or_start`; donated.
    iterator: stands where the state does.

  Returns:
    The last state, saved.

  Raises:
    Preempted: on SIGTERM, after the step was saved. A second SIGTERM ends the
      process at once.
    FloatingPointError: too many steps in a row were not finite.
    OSError: a checkpoint could not be written.
  """
  config = run.config
  reporter = _Reporter(run)
  with run.placement.entered(), _TerminationSignal() as termination:
    step_number = int(train_state.step)
    if config.evaluate_first and step_number == 0:
      _evaluate(run, train_state, 0)

    while step_number < config.num_steps:
      # --- Start the step; the device may still be busy with the last one.
      with reporter.throughput.data_wait():
        batch = next(iterator)
      train_state, metrics = run.train_step(
        train_state, run.placement.put_batch(batch)
      )
      step_number += 1

      # --- Only now read the last step's metrics, so the device never waits.
      reporter.read_pending()
      reporter.add(step_number, metrics)

      # --- What is due after this step. The signal is looked at once: one
      # that comes later is for the next step, and nothing leaves unsaved.
      preempted = termination.received
      last = step_number == config.num_steps
      evaluates = not preempted and (
        _is_due(step_number, config.eval_every) or (last and config.eval_every)
      )
      saves = preempted or last or _is_due(step_number, config.checkpoint_every)
      if evaluates or saves:
        # 1. Its row, then 2. its evaluation, then 3. its checkpoint: whatever
        # moment a kill comes at, the rows up to a saved step are complete.
        reporter.read_pending()
        with reporter.throughput.pause():
          if evaluates:
            _evaluate(run, train_state, step_number)
          if saves:
            _save(run, train_state, step_number, iterator)
      if preempted:
        run.manager.wait()
        run.log.flush()
        raise Preempted(step_number)

  run.manager.wait()
  run.log.flush()
  return train_state


def _is_due(step_number: int, every: int | None) -> bool:
  return every is not None and step_number % every == 0


def _evaluate(
  run: Run, train_state: state.TrainState, step_number: int
) -> None:
  values: dict[str, float] = {}
  for evaluator in run.evaluators:
    values.update(evaluator(train_state.params, step_number))
  if values:
    run.log.write(step_number, "evaluation", values)


def _save(
  run: Run,
  train_state: state.TrainState,
  step_number: int,
  iterator: BatchIterator,
) -> None:
  run.log.flush()
  run.manager.save(step_number, train_state, iterator.state(), run.metadata)


class _Reporter:
  """Reads a step's metrics when asked, and passes them on."""

  def __init__(self, run: Run) -> None:
    self.throughput = progress.Throughput()
    self._run = run
    self._line = progress.ProgressLine(run.config.num_steps)
    self._pending: tuple[int, step.Metrics] | None = None

  def add(self, step_number: int, metrics: step.Metrics) -> None:
    """Takes metrics that are still being computed."""
    self._pending = (step_number, metrics)

  def read_pending(self) -> None:
    """Waits for the metrics, checks, logs and shows them."""
    if self._pending is None:
      return
    step_number, metrics = self._pending
    self._pending = None
    values = {k: v.item() for k, v in jax.device_get(metrics).items()}
    config = self._run.config
    if values["num_skipped_in_a_row"] > config.max_skipped_in_a_row:
      raise FloatingPointError(
        f"Step {step_number}: the loss is {values['loss']}, the gradient's "
        f"norm {values['gradient_norm']}; "
        f"{values['num_skipped_in_a_row']} steps in a row were skipped for "
        "not being finite."
      )
    self.throughput.step_done(
      num_tokens=values["num_tokens"], num_examples=values["num_rows"]
    )
    self._line.show(
      step_number, loss=values["loss"], num_tokens=values["num_tokens"]
    )
    if step_number in (1, config.num_steps) or _is_due(
      step_number, config.log_every
    ):
      self._run.log.write(
        step_number, "train", values | self.throughput.rates()
      )


class _TerminationSignal:
  """Remembers a SIGTERM; a second one has its usual effect."""

  def __enter__(self) -> "_TerminationSignal":
    self.received = False
    self._before = None
    # Python gives signals to the main thread only, and lets no other ask.
    if threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._remember)
    return self

  def _remember(self, *_: object) -> None:
    self.received = True
    logging.warning("SIGTERM: saving after this step.")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def __exit__(self, *exception: object) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
