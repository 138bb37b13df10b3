"""The training loop: steps, evaluation, checkpoints, logs and preemption.

Whatever differs between experiments is an argument: the step (network, loss,
optimizer), the iterator (data) and the evaluators. The loop only calls them.
"""

import dataclasses
import json
import time
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
from specialize_jax.training import narrator as narrators
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
ExampleIds = Callable[[], list[list[str]]]


class BatchIterator(Protocol):
  """A resumable iterator over global batches."""

  def __next__(self) -> Mapping[str, np.ndarray]:
    """Returns this process's rows of the next global batch."""

  def example_ids_fn(self) -> ExampleIds:
    """Returns a function that looks up the ids of the last global batch.

    It returns the example ids of each row. All processes call it together, also
    after later batches.
    """

  def digests(self) -> Mapping[str, object]:
    """Returns values that processes with the same data have in common.

    By name; a process may lack names that others have.
    """

  def dropped(self) -> str:
    """Describes the examples dropped so far; "" if there are none."""

  def state(self) -> bytes:
    """Serializes the position after the batches returned so far.

    All processes call it together; any one's bytes are the position of all.
    """

  def restore(self, state: bytes) -> None:
    """Moves to the position that `state` serialized."""


class Preempted(SystemExit):
  """The run was preempted after saving a step; start it again to resume.

  A `SystemExit` of status 75 (`EX_TEMPFAIL` of sysexits.h), so that a launcher
  can tell a preemption from success and from failure.
  """

  def __init__(self, at_step: int) -> None:
    super().__init__(75)
    self.at_step = at_step


class Interrupted(SystemExit):
  """The user pressed Ctrl-C, and the step was saved; status 130, as in shells.

  A launcher that starts preempted runs again leaves this one ended.
  """

  def __init__(self, at_step: int) -> None:
    super().__init__(130)
    self.at_step = at_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
  """The schedule of the loop.

  Attributes:
    num_steps: the last step, counted from the first start of the run.
    log_every: interval in steps between rows of training metrics; the first
      and the last step are logged too. A row has the values of its own step.
    eval_every: interval in steps between evaluations; the last step is
      evaluated too. None for no evaluation.
    evaluate_first: whether to evaluate before the first step too.
    checkpoint_every: interval in steps between checkpoints; the last step is
      always saved. None to save the last step only.
    max_skipped_in_a_row: number of consecutive non-finite steps that are
      skipped before the run fails.
    best_metrics: names of evaluation metrics whose mean is the score of a
      checkpoint, for `Experiment.keep_best`; empty for no score.
    log_example_ids: whether to write the example ids of each batch to
      examples.jsonl.
    profile_steps: the first and the last step to profile.
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
    """Validates the intervals."""
    for name in ("num_steps", "log_every", "eval_every", "checkpoint_every"):
      errors.require_range(
        f"LoopConfig.{name}",
        getattr(self, name),
        at_least=1,
        at_most=errors.MAX_STEPS,
      )
    errors.require_range(
      "LoopConfig.max_skipped_in_a_row", self.max_skipped_in_a_row, at_least=0
    )
    first, last = self.profile_steps or (1, 1)
    if not 1 <= first <= last:
      raise errors.UserError(
        f"profile_steps={first},{last} is not possible: expected the first and "
        "the last step to profile, such as 10,12."
      )
    if self.profile_steps and first > self.num_steps:
      raise errors.UserError(
        f"profile_steps={first},{last} is not possible: the last step is"
        f" {self.num_steps}."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The parts of a run that do not change from step to step.

  Attributes:
    train_step: from `step.make_train_step`.
    placement: the mesh, and the sharding of arrays over it.
    manager: the checkpoint manager of MODEL_DIR/checkpoints.
    log: the log in MODEL_DIR.
    config: the schedule.
    evaluators: callables `(params, step) -> metrics`; the metrics of all
      evaluators form one row, so their names must differ.
    metadata: JSON-serializable, saved with every checkpoint.
    compilation: the compilation of the step, begun earlier; None to compile
      when the first batch has been read.
    efficiency: the flops of a step and of the hardware, for the metrics.
    narrator: prints the run's progress; None for a silent run.
  """

  train_step: step.TrainStep
  placement: placements.Placement
  manager: managers.CheckpointManager
  log: run_log.RunLog
  config: LoopConfig
  evaluators: Sequence[Evaluator] = ()
  metadata: Mapping[str, object] = dataclasses.field(default_factory=dict)
  compilation: step.Compilation | None = None
  efficiency: progress.Efficiency = progress.Efficiency()
  narrator: narrators.Narrator | None = None


def resume_or_start(
  run: Run,
  iterator: BatchIterator,
  *,
  abstract_state: state.TrainState,
  initial_state_fn: Callable[[], state.TrainState],
  on_resume: Callable[[int, Mapping[str, object]], None] | None = None,
) -> state.TrainState:
  """Restores the newest checkpoint, or creates the initial state.

  If MODEL_DIR holds a readable checkpoint, its newest one is restored, and the
  iterator and the log are moved to its step. Otherwise `initial_state_fn` makes
  the state of step zero, from the parameters of another checkpoint or from
  random ones.

  Args:
    run: the run.
    iterator: a new iterator; moved to the step of the checkpoint.
    abstract_state: from `state.abstract`.
    initial_state_fn: returns the state of step zero; only called if there is
      no checkpoint.
    on_resume: called with the step and the metadata of the checkpoint that
      was restored, before the log is opened.

  Returns:
    The state to continue from.

  Raises:
    UserError: MODEL_DIR holds checkpoints of another model, or only damaged
      ones.
  """
  newest = run.manager.restore_newest(abstract_state)
  if newest is None:
    # Before the log is opened: a run that fails here leaves no files behind.
    initial_state = initial_state_fn()
    run.log.start_after(None)
    return initial_state
  iterator.restore(newest.iterator_state)
  if on_resume is not None:
    on_resume(newest.step, newest.metadata)
  run.log.start_after(newest.step)
  logging.info("Resuming after step %d.", newest.step)
  return newest.state


def train(
  run: Run, train_state: state.TrainState, iterator: BatchIterator
) -> state.TrainState:
  """Trains until `num_steps` or a preemption; saves, logs and evaluates.

  Args:
    run: the run.
    train_state: from `resume_or_start`; donated.
    iterator: at the position that belongs to the state.

  Returns:
    The last state, which has been saved.

  Raises:
    Preempted: any process received SIGTERM; all have saved the same step. A
      second SIGTERM ends the process at once.
    Interrupted: the same, of Ctrl-C.
    FloatingPointError: too many consecutive steps were not finite; the ids of
      their examples are in MODEL_DIR/non_finite.json.
    OSError: a checkpoint could not be written.
    UserError: the disk is full.
  """
  config = run.config
  step_number = int(train_state.step)
  if config.profile_steps and config.profile_steps[1] <= step_number:
    logging.warning(
      "No step is profiled: profile_steps ends at %d, and step %d is done.",
      config.profile_steps[1],
      step_number,
    )
  narrator = run.narrator or narrators.Narrator(config.num_steps, speaks=False)
  reporter = _Reporter(run, narrator)
  with (
    run.placement.entered(),
    termination.TerminationSignal() as signals,
    narrator.starts_after(step_number),
  ):
    agreement = termination.Agreement(run.placement.mesh)
    stops = termination.Reason.NONE
    compiled = False
    if config.evaluate_first and step_number == 0:
      _evaluate(run, train_state, 0, narrator)
    if step_number and run.evaluators:
      _make_up_evaluation(run, train_state, step_number, narrator)

    while step_number < config.num_steps:
      # --- Dispatch the step; the device may still run the previous one.
      with reporter.throughput.data_wait():
        batch = run.placement.put_batch(next(iterator))
      if not compiled:
        narrator.drops(iterator.dropped())
        iterator.state()  # a source that cannot be saved fails now, not later
        if run.compilation is None or not run.compilation.is_done:
          narrator.compiles()
        if run.compilation is not None:
          run.compilation.wait()
        step.compile_ahead(run.train_step, train_state, batch)
        # Compile times differ by more than the timeout of a collective.
        processes.meet("first step")
        _check_same_data(iterator)
        compiled = True
      step_number += 1
      with reporter.profiler.step(step_number):
        train_state, metrics = run.train_step(train_state, batch)

      # --- Only now read the previous step's metrics: the device stays busy.
      reporter.read_pending()
      reporter.add(step_number, metrics, iterator.example_ids_fn())
      run.manager.check()

      # --- Decide what is due after this step. The signal is read only once;
      # one that arrives later takes effect after the next step.
      stops = agreement.reason(signals.received)
      last = step_number == config.num_steps
      evaluates = not stops and _evaluates(step_number, config)
      saves = stops or last or _is_due(step_number, config.checkpoint_every)
      if evaluates or saves:
        # The log row first, then the checkpoint, then the evaluation: however
        # the process is killed, all rows of training up to a saved step are
        # complete, and an evaluation that takes longer than a machine has until
        # it is taken away costs no step; a resumed run makes up for it. Only a
        # checkpoint that is kept for its score has to wait for that.
        reporter.read_pending()
        with reporter.throughput.pause():
          values = {}
          if evaluates and config.best_metrics:
            values = _evaluate(run, train_state, step_number, narrator)
          if saves:
            narrator.saves(step_number, run.log.directory / "checkpoints")
            run.log.flush()
            _check_same_data(iterator)
            run.manager.save(
              step_number,
              train_state,
              iterator.state(),
              run.metadata,
              score=_score(config, values),
            )
          if evaluates and not config.best_metrics:
            _evaluate(run, train_state, step_number, narrator)
            run.log.flush()
      if stops:
        break

    reporter.profiler.close()
    run.manager.wait()
    run.log.flush()
  if compiled:
    narrator.drops(iterator.dropped())
  if stops == termination.Reason.INTERRUPTED:
    narrator.stopped(step_number, "interrupted")
    raise Interrupted(step_number)
  if stops == termination.Reason.PREEMPTED:
    narrator.stopped(step_number, "preempted")
    raise Preempted(step_number)
  return train_state


def _make_up_evaluation(
  run: Run,
  train_state: state.TrainState,
  step_number: int,
  narrator: narrators.Narrator,
) -> None:
  """Evaluates the step that was resumed, if it was saved without.

  A run that was ended as it evaluated had saved its step before. The scores of
  steps that were made up for are in the log alone.
  """
  config = run.config
  if not config.best_metrics and not _evaluates(step_number, config):
    return
  known = run.log.rows("evaluation")
  if config.best_metrics:
    scores = [
      (s, _score(config, values)) for s, values in (known or {}).items()
    ]
    mine = {} if known is None else {"scores": json.dumps(scores).encode()}
    for scored_step, score in json.loads(processes.gather(mine)["scores"]):
      run.manager.set_score(scored_step, score)
  lacks = known is not None and step_number not in known
  if _evaluates(step_number, config) and processes.anywhere(lacks):
    values = _evaluate(run, train_state, step_number, narrator)
    run.log.flush()
    run.manager.set_score(step_number, _score(config, values))


def _check_same_data(iterator: BatchIterator) -> None:
  """Raises UserError if the batches of several processes differ."""
  processes.agree(
    iterator.digests(),
    "give every host the same files (--data_dir, --tfds_data_dir), and resume"
    " from a checkpoint of before they differed",
    # Those of the rows of a batch that a process reads.
    only_shared=True,
  )


def _evaluates(step_number: int, config: LoopConfig) -> bool:
  """Returns whether a step is evaluated: every nth, and the last one."""
  return config.eval_every is not None and (
    _is_due(step_number, config.eval_every) or step_number == config.num_steps
  )


def _is_due(step_number: int, every: int | None) -> bool:
  return every is not None and step_number % every == 0


def _next_due(step_number: int, config: LoopConfig) -> int | None:
  """Returns the step of the next evaluation, None after the last one."""
  if config.eval_every is None or step_number >= config.num_steps:
    return None
  following = (step_number // config.eval_every + 1) * config.eval_every
  return min(following, config.num_steps)


def _evaluate(
  run: Run,
  train_state: state.TrainState,
  step_number: int,
  narrator: narrators.Narrator,
) -> dict[str, float]:
  began = time.monotonic()
  values: dict[str, float] = {}
  for evaluator in run.evaluators:
    values.update(evaluator(train_state.params, step_number))
  if values:
    run.log.write(step_number, "evaluation", values)
    narrator.evaluated(
      step_number,
      values,
      seconds=time.monotonic() - began,
      next_step=_next_due(step_number, run.config),
    )
  missing = [name for name in run.config.best_metrics if name not in values]
  if missing:
    known = ", ".join(sorted(values)) or "those of EVALUATIONS"
    raise errors.UserError(
      f"best_metrics names {', '.join(missing)}, which no evaluation reports: "
      f"expected some of {known}."
    )
  return values


def _score(config: LoopConfig, values: Mapping[str, float]) -> float | None:
  """Computes the mean of `best_metrics`; None if one is missing."""
  if not config.best_metrics or not {*config.best_metrics} <= {*values}:
    return None
  return float(np.mean([values[name] for name in config.best_metrics]))


class _Reporter:
  """Reads the metrics of steps, one step late, then checks and logs them."""

  def __init__(self, run: Run, narrator: narrators.Narrator) -> None:
    self.throughput = progress.Throughput(run.efficiency)
    self.profiler = profiling.Profiler(
      run.config.profile_steps, run.log.directory / "profile"
    )
    self._run = run
    self._narrator = narrator
    self._rates: dict[str, float] = {}
    self._skipped = non_finite.Skipped(run.config.max_skipped_in_a_row)
    self._pending: tuple[int, step.Metrics, ExampleIds] | None = None

  def add(
    self, step_number: int, metrics: step.Metrics, example_ids_fn: ExampleIds
  ) -> None:
    """Stores metrics that are still being computed."""
    self._pending = (step_number, metrics, example_ids_fn)

  def read_pending(self) -> None:
    """Waits for the stored metrics; checks, logs and shows them."""
    if self._pending is None:
      return
    step_number, metrics, example_ids_fn = self._pending
    self._pending = None
    values = {k: v.item() for k, v in jax.device_get(metrics).items()}
    config, log = self._run.config, self._run.log
    self.profiler.step_read(step_number)
    if config.log_example_ids:
      log.write_examples(step_number, example_ids_fn())
    self._skipped.add(step_number, values, example_ids_fn, log=log)
    self.throughput.step_done(
      num_tokens=values["num_tokens"], num_examples=values["num_rows"]
    )
    if step_number in (1, config.num_steps) or _is_due(
      step_number, config.log_every
    ):
      self._rates = self.throughput.rates()
      log.write(
        step_number,
        "train",
        metrics_.without_absent_formats(values) | self._rates,
      )
    self._narrator.step(step_number, loss=values["loss"], rates=self._rates)
