"""The one training loop: steps, and what happens between them.

What differs between experiments is an argument: the step (network, loss,
optimizer), the iterator (data), the evaluators. The loop knows none of them
but by what it calls.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np
import optax
from absl import logging

from specialize_jax import errors
from specialize_jax.checkpoints import manager as managers
from specialize_jax.parallel import placement as placements
from specialize_jax.parallel import processes
from specialize_jax.training import metrics as metrics_
from specialize_jax.training import (
  non_finite,
  profiling,
  progress,
  run_log,
  state,
  step,
  termination,
)

Evaluator = Callable[[optax.Params, int], Mapping[str, float]]


class BatchIterator(Protocol):
  """Where batches come from."""

  def __next__(self) -> Mapping[str, np.ndarray]:
    """This process's rows of the next global batch."""

  def example_ids(self) -> list[list[str]]:
    """Names the examples of each row of the global batch given last."""

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
    best_metrics: names of evaluation values whose mean is a checkpoint's
      score, for `Experiment.keep_best`; none for no score.
    log_example_ids: whether examples.jsonl names the examples of each batch.
    profile_steps: the first and the last step that a trace is written of.
  """

  num_steps: int
  log_every: int = 10
  eval_every: int | None = None
  evaluate_first: bool = False
  checkpoint_every: int | None = None
  max_skipped_in_a_row: int = 10
  best_metrics: Sequence[str] = ()
  log_example_ids: bool = False
  profile_steps: tuple[int, int] | None = None

  def __post_init__(self) -> None:
    """Raises UserError for a number that counts nothing."""
    for name in ("num_steps", "log_every", "eval_every", "checkpoint_every"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise errors.UserError(
          f"LoopConfig.{name}={value} is not possible: expected 1 or more, or "
          "None for never where that is allowed."
        )
    first, last = self.profile_steps or (1, 1)
    if not 1 <= first <= last:
      raise errors.UserError(
        f"profile_steps={first},{last} is not possible: expected the first and "
        "the last step of a trace, such as 10,12."
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
    efficiency: what the hardware could do, for the metrics.
  """

  train_step: step.TrainStep
  placement: placements.Placement
  manager: managers.CheckpointManager
  log: run_log.RunLog
  config: LoopConfig
  evaluators: Sequence[Evaluator] = ()
  metadata: Mapping[str, object] = dataclasses.field(default_factory=dict)
  efficiency: progress.Efficiency = progress.Efficiency()


def resume_or_start(
  run: Run,
  iterator: BatchIterator,
  *,
  abstract_state: state.TrainState,
  initial_state_fn: Callable[[], state.TrainState],
) -> state.TrainState:
  """Gives the state to go on from, and puts iterator and log beside it.

  Which one wins:
    1. the latest readable checkpoint in MODEL_DIR: the run goes on, data
       included;
    2. otherwise `initial_state_fn`, at step zero: the parameters of another
       checkpoint, or random ones. It is not called in the first case.

  Args:
    run: the run.
    iterator: new; goes to where the checkpoint was saved.
    abstract_state: from `state.abstract`.
    initial_state_fn: makes the state of step zero.

  Raises:
    UserError: MODEL_DIR holds another model's checkpoints, or damaged ones
      alone.
  """
  newest = run.manager.restore_newest(abstract_state)
  if newest is None:
    # First what may fail: a run that cannot start leaves nothing behind.
    initial_state = initial_state_fn()
    run.log.start_after(None)
    return initial_state
  iterator.restore(newest.iterator_state)
  run.log.start_after(newest.step)
  logging.info("Resuming after step %d.", newest.step)
  return newest.state


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
    Preempted: on SIGTERM to any process, after all saved the same step. A
      second SIGTERM ends the process at once.
    FloatingPointError: too many steps in a row were not finite; their examples
      are in MODEL_DIR/non_finite.json.
    OSError: a checkpoint could not be written.
    UserError: there is no space left for it.
  """
  config = run.config
  reporter = _Reporter(run)
  with run.placement.entered(), termination.TerminationSignal() as sigterm:
    stops = termination.Agreement(run.placement.mesh)
    step_number = int(train_state.step)
    preempted = False
    compiled = False
    if config.evaluate_first and step_number == 0:
      _evaluate(run, train_state, 0)

    while step_number < config.num_steps:
      # --- Start the step; the device may still be busy with the last one.
      with reporter.throughput.data_wait():
        batch = run.placement.put_batch(next(iterator))
      if not compiled:
        step.compile_ahead(run.train_step, train_state, batch)
        # Some take longer than others wait for them in the middle of a step.
        processes.meet("first step")
        compiled = True
      step_number += 1
      with reporter.profiler.step(step_number):
        train_state, metrics = run.train_step(train_state, batch)

      # --- Only now read the last step's metrics, so the device never waits.
      reporter.read_pending()
      reporter.add(step_number, metrics, iterator.example_ids())
      run.manager.check()

      # --- What is due after this step. The signal is looked at once: one
      # that comes later is for the next step, and nothing leaves unsaved.
      preempted = stops.any(sigterm.received)
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
          values = {}
          if evaluates:
            values = _evaluate(run, train_state, step_number)
          if saves:
            run.log.flush()
            run.manager.save(
              step_number,
              train_state,
              iterator.state(),
              run.metadata,
              score=_score(config, values),
            )
      if preempted:
        break

    reporter.profiler.close()
    run.manager.wait()
    run.log.flush()
  if preempted:
    raise Preempted(step_number)
  return train_state


def _is_due(step_number: int, every: int | None) -> bool:
  return every is not None and step_number % every == 0


def _evaluate(
  run: Run, train_state: state.TrainState, step_number: int
) -> dict[str, float]:
  values: dict[str, float] = {}
  for evaluator in run.evaluators:
    values.update(evaluator(train_state.params, step_number))
  if values:
    run.log.write(step_number, "evaluation", values)
  missing = [name for name in run.config.best_metrics if name not in values]
  if missing:
    raise errors.UserError(
      f"best_metrics names {', '.join(missing)}, which no evaluation gives: "
      f"expected some of {', '.join(sorted(values)) or 'those of EVALUATIONS'}."
    )
  return values


def _score(config: LoopConfig, values: Mapping[str, float]) -> float | None:
  """The mean of the metrics that checkpoints are kept by, where known."""
  if not config.best_metrics or not values:
    return None
  return float(np.mean([values[name] for name in config.best_metrics]))


class _Reporter:
  """Reads a step's metrics when asked, and passes them on."""

  def __init__(self, run: Run) -> None:
    self.throughput = progress.Throughput(run.efficiency)
    self.profiler = profiling.Profiler(
      run.config.profile_steps, run.log.directory / "profile"
    )
    self._run = run
    self._line = progress.ProgressLine(run.config.num_steps)
    self._skipped = non_finite.Skipped(run.config.max_skipped_in_a_row)
    self._pending: tuple[int, step.Metrics, list[list[str]]] | None = None

  def add(
    self, step_number: int, metrics: step.Metrics, ids: list[list[str]]
  ) -> None:
    """Takes metrics that are still being computed."""
    self._pending = (step_number, metrics, ids)

  def read_pending(self) -> None:
    """Waits for the metrics, checks, logs and shows them."""
    if self._pending is None:
      return
    step_number, metrics, example_ids = self._pending
    self._pending = None
    values = {k: v.item() for k, v in jax.device_get(metrics).items()}
    config, log = self._run.config, self._run.log
    self.profiler.step_read(step_number)
    if config.log_example_ids:
      log.write_examples(step_number, example_ids)
    self._skipped.add(step_number, values, example_ids, log=log)
    self.throughput.step_done(
      num_tokens=values["num_tokens"], num_examples=values["num_rows"]
    )
    self._line.show(
      step_number, loss=values["loss"], num_tokens=values["num_tokens"]
    )
    if step_number in (1, config.num_steps) or _is_due(
      step_number, config.log_every
    ):
      log.write(
        step_number, "train", metrics_.known(values) | self.throughput.rates()
      )
