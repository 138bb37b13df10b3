"""Trains a student from a configuration.

An `Experiment` is everything that a run depends on. `train` is the only place
that connects data, network, loss, optimizer, mesh, checkpoints and evaluators.
"""

import contextlib
import dataclasses
import functools
import math
import os
import time
import uuid
from collections.abc import Mapping, Sequence

import jax
import seqio
from etils import epath

import specialize_jax
from specialize_jax import errors, revision
from specialize_jax.checkpoints import best, manifests, opening, tokenizers
from specialize_jax.checkpoints import manager as managers
from specialize_jax.data import (
  example_stream,
  identity,
  packing,
  pipeline,
  task_parts,
)
from specialize_jax.decoding import bucketing
from specialize_jax.evaluation import evaluator
from specialize_jax.files import locks, reading, writing
from specialize_jax.losses import distillation
from specialize_jax.parallel import axis_rules, chips, placement, processes
from specialize_jax.parallel import mesh as meshes
from specialize_jax.runs import choosing, held_out, keeping, resuming
from specialize_jax.t5 import arithmetic, network
from specialize_jax.t5 import config as t5_config
from specialize_jax.training import (
  loop,
  metric_writers,
  optimizer,
  profiling,
  progress,
  run_log,
  state,
  step,
)
from specialize_jax.training import narrator as narrators

# A network's file system may say for a minute that what another host has made
# is not there.
_SHARED_SECONDS = 90
_SAME_FILES = "give every host the same files (--data_dir, --tfds_data_dir)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
  """The shape of the mesh; an axis of -1 takes the remaining devices.

  Attributes:
    data: number of replicas of the parameters; the batch is sharded over data
      and fsdp.
    fsdp: number of shards of the parameters' embed axis, and of the batch.
    model: number of shards of heads, mlp and vocabulary.
    rules: the mapping of logical axes to mesh axes.
  """

  data: int = -1
  fsdp: int = 1
  model: int = 1
  rules: axis_rules.AxisRules = dataclasses.field(
    default_factory=axis_rules.AxisRules
  )

  def placement(self, num_devices: int | None = None) -> placement.Placement:
    """Builds the mesh of all devices, or of the first ones, with its rules."""
    mesh = meshes.make_mesh(
      data=self.data,
      fsdp=self.fsdp,
      model=self.model,
      devices=jax.devices()[:num_devices],
    )
    return placement.Placement(mesh=mesh, rules=self.rules)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """The configuration of an evaluation.

  Attributes:
    mixture_or_task_name: a name registered with seqio.
    task_feature_lengths: maximum lengths of "inputs" and "targets", in tokens.
    split: the split of each task. None for "validation" if the mixture's name
      contains it, otherwise "test".
    batch_size: number of examples decoded together.
    max_new_tokens: maximum number of decoded tokens.
    num_examples: number of examples of each task, the first ones; None for all.
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  split: str | None = "validation"
  batch_size: int = 64
  max_new_tokens: int = 256
  num_examples: int | None = None

  def __post_init__(self) -> None:
    """Raises UserError for a number below 1."""
    held_out.require_lengths(
      "Evaluation", self.task_feature_lengths, ("inputs",)
    )
    for name in ("batch_size", "max_new_tokens", "num_examples"):
      errors.require_range(
        f"Evaluation.{name}",
        getattr(self, name),
        at_least=1,
        at_most=errors.MAX_COUNT,
      )

  def task_names(self) -> list[str]:
    """Returns the names of the tasks."""
    return evaluator.task_names(self.mixture_or_task_name, self.split)

  def num_questions(self) -> dict[str, int]:
    """Returns the number of questions of each task."""
    return evaluator.num_questions(
      self.mixture_or_task_name, self.split, self.num_examples
    )

  def data_identity(self) -> dict[str, str]:
    """Returns hashes of the questions, prompts and vocabulary."""
    return evaluator.data_identity(self.mixture_or_task_name, self.split)

  def evaluator(self, model: network.EncoderDecoder) -> evaluator.Evaluator:
    """Reads the examples and returns a callable `(params, step)`."""
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name != "mixture_or_task_name"
    }
    return evaluator.Evaluator(self.mixture_or_task_name, model=model, **fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Everything that a training run depends on.

  Attributes:
    model_dir: directory of checkpoints, metrics and predictions.
    model: the network.
    mixture_or_task_name: the training data, registered with seqio.
    task_feature_lengths: row lengths of "inputs" and "targets", in tokens.
    batch_size: number of rows of a global batch.
    loss: the objective.
    optimizer: the optimizer and its learning rate schedule.
    loop: the schedule of steps, evaluations and checkpoints.
    mesh: the mesh of the devices of all hosts.
    pack: whether several examples may share a row.
    num_microbatches: number of microbatches, processed one after the other.
    seed: seed of parameters, dropout and data.
    evaluations: evaluations to run every `loop.eval_every` steps.
    initial_checkpoint_path: checkpoint to start from, of any kind that
      `opening.open_checkpoint` reads; None for random initialization.
    verify_checkpoint: whether to compare it with the digests saved with it.
    initial_optimizer: whether to start from that checkpoint's Adafactor moments
      too, T5X's or ours; the optimizer must then be Adafactor.
    held_out_losses: losses on splits that are not trained on, computed whenever
      `evaluations` are.
    keep: number of newest checkpoints to keep; None for all.
    keep_period: checkpoints at multiples of this step are kept forever.
    keep_best: number of checkpoints with the best mean of `loop.best_metrics`
      to keep in addition to the newest.
    metric_writers: where metrics go besides metrics.jsonl: "tensorboard",
      "wandb", "mlflow".
  """

  model_dir: str
  model: t5_config.T5Config
  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  batch_size: int
  loss: distillation.LossConfig
  optimizer: optimizer.OptimizerConfig
  loop: loop.LoopConfig
  mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
  pack: bool = True
  num_microbatches: int = 1
  seed: int = 0
  evaluations: Sequence[Evaluation] = ()
  initial_checkpoint_path: str | None = None
  verify_checkpoint: bool = True
  initial_optimizer: bool = False
  held_out_losses: Sequence[held_out.HeldOutLoss] = ()
  keep: int | None = 3
  keep_period: int | None = None
  keep_best: int = 0
  metric_writers: Sequence[str] = ("tensorboard",)

  def __post_init__(self) -> None:
    """Raises UserError for numbers that are out of range or inconsistent."""
    held_out.require_lengths(
      "Experiment", self.task_feature_lengths, ("inputs", "targets")
    )
    for name, limits in (
      ("batch_size", {"at_least": 1, "at_most": errors.MAX_COUNT}),
      ("num_microbatches", {"at_least": 1, "at_most": errors.MAX_COUNT}),
      ("seed", {"at_least": 0, "at_most": errors.MAX_SEED}),
      ("keep", {"at_least": 1}),
      ("keep_period", {"at_least": 1}),
      ("keep_best", {"at_least": 0}),
    ):
      errors.require_range(f"Experiment.{name}", getattr(self, name), **limits)
    metric_writers.check(self.metric_writers)
    if self.keep_best and not self.loop.best_metrics:
      raise errors.UserError(
        f"keep_best={self.keep_best} needs metrics to compare by: set "
        "LoopConfig.best_metrics to names of evaluation metrics, such as "
        '["svamp_zero_shot_chain_of_thought_v1/accuracy"].'
      )
    every, saved = self.loop.eval_every, self.loop.checkpoint_every
    if self.keep_best and every is None:
      raise errors.UserError(
        f"keep_best={self.keep_best} keeps checkpoints by their evaluations,"
        " and there are none: set EVAL_EVERY (LoopConfig.eval_every)."
      )
    if self.keep_best and math.lcm(saved or every, every) > self.loop.num_steps:
      raise errors.UserError(
        f"keep_best={self.keep_best} compares the checkpoints that are"
        f" evaluated, and with checkpoint_every={saved} and eval_every={every}"
        f" no step up to {self.loop.num_steps} is both: make one a multiple of"
        " the other."
      )


def train(
  experiment: Experiment,
  *,
  config_text: str = "",
  files: Mapping[str, bytes] | None = None,
  selected_by: Sequence[str] = (),
) -> state.TrainState:
  """Trains until the experiment's last step, resuming if it was interrupted.

  On CPUs and TPUs the train step is compiled in a thread while data and
  parameters are read. If training fails meanwhile, the process ends only after
  the compiler.

  Args:
    experiment: the run.
    config_text: the configuration's text, saved with every checkpoint.
    files: contents by name of files to keep in `model_dir`, such as the dataset
      file; see `keeping`.
    selected_by: the tasks by whose mean the best checkpoint is named at the
      end; empty for the paper's.

  Returns:
    The last state, which has been saved.

  Raises:
    UserError: the experiment does not match the data, the devices or existing
      checkpoints, or another process writes to `model_dir`.
    Preempted, FloatingPointError, OSError: see `loop.train`.
  """
  _agree(
    {
      field.name: getattr(experiment, field.name)
      for field in dataclasses.fields(experiment)
    }
  )
  with _held(experiment.model_dir, "MODEL_DIR"):
    _check_shared(experiment.model_dir)
    return _train(experiment, config_text, files or {}, selected_by)


def _train(
  experiment: Experiment,
  config_text: str,
  files: Mapping[str, bytes],
  selected_by: Sequence[str],
) -> state.TrainState:
  model = network.EncoderDecoder(experiment.model)
  placed = experiment.mesh.placement()
  optimizer_ = optimizer.build(experiment.optimizer)
  # One seed for everything random except the data, which use it separately.
  init_rng, dropout_rng = jax.random.split(jax.random.key(experiment.seed))
  check_data(experiment)
  check_evaluations(experiment, placed)
  profiling.check(experiment.loop.profile_steps)
  train_step = step.make_train_step(
    model,
    optimizer_,
    experiment.loss,
    dropout_rng=dropout_rng,
    num_microbatches=experiment.num_microbatches,
    compiler_options=placed.compiler_options,
  )
  abstract_state = state.abstract(model, optimizer_, placed)
  create_state = state.creation_fn(model, optimizer_, abstract_state)

  def initial_state() -> state.TrainState:
    if experiment.initial_checkpoint_path is None:
      with placed.entered():
        return create_state(init_rng)
    checkpoint = opening.open_checkpoint(
      experiment.initial_checkpoint_path, verify=experiment.verify_checkpoint
    )
    _check_same_content(checkpoint, "INITIAL_CHECKPOINT_PATH")
    _check_vocabulary(
      checkpoint,
      experiment.mixture_or_task_name,
      "give the --data_dir that has that one, or convert the checkpoint with"
      " the other (specialize convert --vocabulary)",
    )
    params = checkpoint.params(placed, experiment.model)
    start = state.start_from(params, model, optimizer_, placed)
    if not experiment.initial_optimizer:
      return start
    return state.with_moments(start, checkpoint.moments())

  with contextlib.ExitStack() as stack:
    compilation = None
    steps = managers.listed_steps(
      epath.Path(experiment.model_dir) / "checkpoints"
    )
    if not steps:
      _check_anew(experiment.model_dir)
    if _compiles_ahead(experiment, steps):
      row = packing.empty_batch(
        1, *map(experiment.task_feature_lengths.get, ("inputs", "targets"))
      )
      batch = placed.abstract_batch(row, experiment.batch_size)
      calls = [(train_step, (abstract_state, batch))]
      if not steps and experiment.initial_checkpoint_path is None:
        calls.append((create_state, (init_rng,)))
      compilation = stack.enter_context(step.Compilation(calls, placed))
    iterator = batches(experiment, placed)
    data = identity.of_mixture(experiment.mixture_or_task_name)
    processes.agree(data, _SAME_FILES)
    predictions_dir = os.path.join(experiment.model_dir, "predictions")
    evaluators = [
      functools.partial(evaluation.evaluator(model), output_dir=predictions_dir)
      for evaluation in experiment.evaluations
    ] + [one.evaluator(model, placed) for one in experiment.held_out_losses]
    evaluated = evaluated_data(
      experiment.evaluations, experiment.held_out_losses
    )
    processes.agree(evaluated, _SAME_FILES)
    settings = resuming.settings(
      experiment, data, files.get(keeping.DATASET), evaluated
    )
    # Until here, a refused start leaves no log and no checkpoint.
    manager = stack.enter_context(_checkpoints(experiment))
    log = stack.enter_context(
      contextlib.closing(
        run_log.RunLog(experiment.model_dir, experiment.metric_writers)
      )
    )
    if compilation is not None:
      stack.push(compilation)  # cancelled before log and manager are closed
    narrator = narrators.Narrator(
      experiment.loop.num_steps, speaks=jax.process_index() == 0
    )
    narrator.facts(facts(experiment, placed, abstract_state))
    run = loop.Run(
      train_step=train_step,
      placement=placed,
      manager=manager,
      log=log,
      config=experiment.loop,
      evaluators=evaluators,
      metadata=_metadata(experiment, config_text, settings),
      compilation=compilation,
      efficiency=_efficiency(experiment),
      narrator=narrator,
    )
    manager.set_unreadable_aside()
    if not manager.all_steps():
      _check_anew(experiment.model_dir)
    resuming.check(manager, settings)
    train_state = loop.resume_or_start(
      run,
      iterator,
      abstract_state=abstract_state,
      initial_state_fn=initial_state,
      on_resume=lambda step, metadata: resuming.record(
        experiment.model_dir, step, metadata, settings
      ),
    )
    # A start that is refused leaves the run's own description as it is.
    if jax.process_index() == 0:
      keeping.keep(
        experiment.model_dir,
        mixture_or_task_name=experiment.mixture_or_task_name,
        config_text=config_text,
        files=files,
      )
    narrator.facts({"start": start_in_words(experiment, int(train_state.step))})
    train_state = loop.train(run, train_state, iterator)
    narrator.finished(
      int(train_state.step),
      choosing.best_in_words(
        experiment.model_dir, experiment.loop.best_metrics, selected_by
      )
      if jax.process_index() == 0  # which wrote the metrics, and speaks
      else "",
    )
    return train_state


def _check_anew(model_dir: str | os.PathLike[str]) -> None:
  """Checks that a run that begins is not taken for one that was here before.

  Raises:
    UserError: the best checkpoint of such a run is left, to which the values of
      the new run's step of that number would be ascribed.
  """
  for name in (best.NAME, choosing.IN_DISTRIBUTION_BEST):
    step = best.step_in(model_dir, name)
    if step is not None:
      raise errors.UserError(
        f"MODEL_DIR={os.fspath(model_dir)} has no checkpoints, but {name}/ of"
        f" an earlier run, at step {step:,}: move that run's files away, or"
        " give another MODEL_DIR"
      )


def _compiles_ahead(experiment: Experiment, steps: Sequence[int]) -> bool:
  """Returns whether to compile the step while data and parameters are read.

  Not on GPUs, whose compiler times kernels on the devices, which other work
  would slow; nor for a run that is at its end.

  Args:
    experiment: the run.
    steps: the steps of its checkpoints.
  """
  is_over = max(steps, default=0) >= experiment.loop.num_steps
  return not is_over and jax.devices()[0].platform != "gpu"


def check_data(experiment: Experiment) -> None:
  """Checks the training data as far as that needs no example.

  Raises:
    UserError: the name is unknown, or the vocabulary is not the model's.
  """
  name = experiment.mixture_or_task_name
  example_stream.find_provider(name)
  task_parts.check_eos(name, experiment.model.eos_ids)
  task_parts.check_size(name, experiment.model.vocab_size)


def check_evaluations(
  experiment: Experiment, placed: placement.Placement
) -> None:
  """Checks, before the first step, what else fails at the first evaluation.

  Raises:
    UserError: two evaluations report the same values, one has another
      vocabulary than the training data, none reports one of the best metrics,
      or the mesh does not divide the batch of one or of training.
  """
  if len(experiment.held_out_losses) > 1:
    raise errors.UserError(
      f"HELD_OUT_LOSSES has {len(experiment.held_out_losses)} entries, which"
      " would report their values under the same names: give one"
    )
  placed.check_batch(
    experiment.batch_size, experiment.num_microbatches, name="BATCH_SIZE"
  )
  for one in experiment.held_out_losses:
    placed.check_batch(one.batch_size, name="HeldOutLoss.batch_size")
  for one in (*experiment.evaluations, *experiment.held_out_losses):
    _check_same_vocabulary(experiment, one.mixture_or_task_name)
  first: dict[str, str] = {}
  for one in experiment.evaluations:
    bucketing.batch_axes(placed.mesh, one.batch_size)
    tasks = one.task_names()
    for task in tasks:
      if task in first:
        raise errors.UserError(
          f"EVALUATIONS has the task {task} twice, in"
          f" {first[task]} and in {one.mixture_or_task_name}: the values of one"
          " would replace those of the other; leave one out"
        )
    first |= dict.fromkeys(tasks, one.mixture_or_task_name)
  for name in experiment.loop.best_metrics:
    task, _, metric = name.rpartition("/")
    if task not in first and not (
      experiment.held_out_losses and name in held_out.METRICS
    ):
      raise errors.UserError(
        f"BEST_METRICS names {name!r}, and no evaluation has that task:"
        f" expected TASK/{metric or 'accuracy'} with one of"
        f" {', '.join(first) or '-'}"
      )


def evaluated_data(
  evaluations: Sequence[Evaluation],
  held_out_losses: Sequence[held_out.HeldOutLoss] = (),
) -> dict[str, str]:
  """Returns hashes of the data and prompts of evaluations.

  Args:
    evaluations: those that decode.
    held_out_losses: those of losses.
  """
  hashes = [("", one.data_identity()) for one in evaluations] + [
    ("held-out ", identity.of_mixture(one.mixture_or_task_name, one.split))
    for one in held_out_losses
  ]
  # Rates and vocabularies are those of the training data, or unused.
  return {
    f"{kind}{name}": value
    for kind, found in hashes
    for name, value in found.items()
    if not name.startswith(("rate of ", "vocabulary of "))
  }


def facts(
  experiment: Experiment,
  placed: placement.Placement,
  abstract_state: state.TrainState,
) -> dict[str, str]:
  """Returns descriptions of a run's parts before its first step, by name."""
  devices = placed.mesh.devices
  first = devices.flat[0]
  mesh = ", ".join(f"{name}={n}" for name, n in placed.mesh.shape.items())
  num_processes = jax.process_count()
  several = f" of {num_processes} processes" if num_processes > 1 else ""
  lengths = experiment.task_feature_lengths
  config = experiment.model
  evaluations = ", ".join(
    one.mixture_or_task_name for one in experiment.evaluations
  )
  schedule = experiment.loop
  never = ""
  if evaluations and not (schedule.eval_every or schedule.evaluate_first):
    never = ", but never, since EVAL_EVERY (LoopConfig.eval_every) is None"
  rows = config.vocab_size
  tokens = task_parts.num_tokens(
    example_stream.find_provider(experiment.mixture_or_task_name)
  )
  unused = {}
  if rows - tokens >= tokenizers.ROWS_MULTIPLE:
    unused["vocabulary"] = (
      f"{tokens:,} tokens, {rows - tokens:,} fewer than T5Config.vocab_size="
      f"{rows:,}: the other rows are never used, and other programs may refuse"
      " a vocabulary of another size than the model's"
    )
  return {
    "devices": f"{devices.size} x {first.device_kind} ({first.platform})"
    f"{several}, mesh {mesh}",
    "model": f"{num_parameters(abstract_state):,} parameters in "
    f"{config.param_dtype}, computing in {config.dtype}",
    **unused,
    "data": f"{experiment.mixture_or_task_name}, batches of "
    f"{experiment.batch_size} rows, {lengths['inputs']} + "
    f"{lengths['targets']} tokens each"
    + (", packed" if experiment.pack else ""),
    "evaluations": f"{evaluations or 'none'}{never}",
    "MODEL_DIR": str(experiment.model_dir),
  }


def num_parameters(abstract_state: state.TrainState) -> int:
  """Returns the number of parameters of a network."""
  return sum(leaf.size for leaf in jax.tree.leaves(abstract_state.params))


def start_in_words(experiment: Experiment, step_number: int) -> str:
  """Describes the initial state of a run, and the steps it will run."""
  config = experiment.loop
  if step_number >= config.num_steps:
    return (
      f"already finished at step {step_number:,} (TRAIN_STEPS is "
      f"{config.num_steps:,})"
    )
  every = [
    f"{what} every {number:,} steps"
    for what, number in (
      ("an evaluation", config.eval_every),
      ("a checkpoint", config.checkpoint_every),
    )
    if number is not None
  ]
  steps = ", ".join(
    [f"steps {step_number + 1:,} to {config.num_steps:,}", *every]
  )
  if step_number:
    return f"resumed at step {step_number:,}; {steps}"
  if experiment.initial_checkpoint_path is not None:
    return f"the parameters of {experiment.initial_checkpoint_path}; {steps}"
  return f"random parameters of seed {experiment.seed}; {steps}"


def evaluate_checkpoint(
  checkpoint_path: str | os.PathLike[str],
  *,
  evaluations: Sequence[Evaluation],
  output_dir: str | os.PathLike[str],
  mesh: MeshShape | None = None,
  verify: bool = True,
) -> dict[str, float]:
  """Evaluates one checkpoint; see `CheckpointEvaluator`."""
  evaluate = CheckpointEvaluator(evaluations, mesh=mesh, verify=verify)
  return evaluate(checkpoint_path, output_dir)


class CheckpointEvaluator:
  """Evaluates checkpoints, reading the examples once for all of them."""

  def __init__(
    self,
    evaluations: Sequence[Evaluation],
    *,
    mesh: MeshShape | None = None,
    verify: bool = True,
  ) -> None:
    """Initializes without reading anything.

    Args:
      evaluations: the evaluations to run.
      mesh: the mesh of the devices of all hosts; data parallel by default.
      verify: whether to compare a checkpoint with the digests saved with it.
    """
    self._evaluations = evaluations
    self._mesh = mesh or MeshShape()
    self._verify = verify
    self._made_of = None
    self._evaluators: list[evaluator.Evaluator] = []

  def __call__(
    self,
    checkpoint_path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
  ) -> dict[str, float]:
    """Evaluates a checkpoint; its network is built from its own config.

    Writes predictions to `output_dir/STEP/TASK.jsonl` and the returned values
    to `output_dir/metrics.jsonl`, as one row. An evaluation that was killed
    resumes without decoding completed examples again.

    Args:
      checkpoint_path: a checkpoint of any kind, see `opening.open_checkpoint`;
        if it has no step, its step is 0.
      output_dir: the output directory.

    Returns:
      "TASK/accuracy", "TASK/n", "TASK/low" and "TASK/high" for each task.

    Raises:
      UserError: the checkpoint does not exist, a task cannot be evaluated, or
        another process writes to `output_dir`.
    """
    _agree(
      {
        "CHECKPOINT_PATH": os.fspath(checkpoint_path),
        "evaluations": self._evaluations,
        "EVAL_OUTPUT_DIR": os.fspath(output_dir),
        "mesh": self._mesh,
      }
    )
    if (epath.Path(output_dir) / "checkpoints").is_dir():
      raise errors.UserError(
        f"EVAL_OUTPUT_DIR={os.fspath(output_dir)} is the MODEL_DIR of a run,"
        " whose metrics.jsonl would be replaced: give another directory"
      )
    with _held(output_dir, "EVAL_OUTPUT_DIR"):
      return self._evaluate(checkpoint_path, output_dir)

  def _evaluate(
    self,
    checkpoint_path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
  ) -> dict[str, float]:
    checkpoint = opening.open_checkpoint(checkpoint_path, verify=self._verify)
    _check_same_content(checkpoint, "CHECKPOINT_PATH")
    step_number = checkpoint.step or 0
    # Of the first process: those of copies on other hosts may differ.
    mine = {"identity": checkpoint.fingerprint().encode()}
    identity = processes.gather(mine)["identity"].decode()
    metrics_path = epath.Path(output_dir) / "metrics.jsonl"
    described = {"step": step_number, "checkpoint": identity, "values": {}}
    _check_other_rows(metrics_path, described)
    for evaluation in self._evaluations:
      _check_vocabulary(
        checkpoint,
        evaluation.mixture_or_task_name,
        "give the --data_dir that has that one",
      )
    self._read(checkpoint.config)
    placed = self._mesh.placement()
    params = checkpoint.params(placed)
    values: dict[str, float] = {}
    with placed.entered():
      for evaluate in self._evaluators:
        values |= evaluate(
          params, step_number, output_dir=output_dir, checkpoint=identity
        )
    if jax.process_index() == 0:
      row = {**described, "group": "evaluation", "values": values}
      rows = [*_other_rows(metrics_path, row), row]
      writing.write_rows(metrics_path, rows, sealed=True)
    return values

  def _read(self, config: t5_config.T5Config) -> None:
    """Reads the examples, unless they are those of the call before."""
    data = [one.data_identity() for one in self._evaluations]
    # Else a host would grade what another one has asked.
    processes.agree(
      {name: value for one in data for name, value in one.items()}, _SAME_FILES
    )
    made_of = config, data
    if made_of == self._made_of:
      return
    model = network.EncoderDecoder(config)
    self._evaluators = [one.evaluator(model) for one in self._evaluations]
    self._made_of = made_of


def _agree(settings: Mapping[str, object]) -> None:
  """Raises UserError if versions or settings differ between processes."""
  versions = {
    "the version of specialize": specialize_jax.__version__,
    "the commit of specialize": revision.find(),
    "the version of jax": jax.__version__,
  }
  processes.agree(
    {**versions, **settings},
    "start the same version on all, with the same gin files and flags",
  )


def _held(
  output_dir: str | os.PathLike[str], flag: str
) -> contextlib.AbstractContextManager[None]:
  """Locks an output directory, in the first process of a run."""
  if jax.process_index() != 0:
    return contextlib.nullcontext()
  return locks.directory(output_dir, flag)


def _check_shared(model_dir: str | os.PathLike[str]) -> None:
  """Raises UserError if each host has a MODEL_DIR of its own by that name.

  Each would keep its own part of a checkpoint, and none could be restored.
  """
  if jax.process_count() == 1:
    return
  directory = epath.Path(model_dir)
  is_first = jax.process_index() == 0
  mine = {"name": f".shared_{uuid.uuid4().hex}".encode()} if is_first else {}
  if is_first:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / mine["name"].decode()).write_text("")
  mark = directory / processes.gather(mine)["name"].decode()
  deadline = time.monotonic() + _SHARED_SECONDS
  while not (is_there := mark.exists()) and time.monotonic() < deadline:
    time.sleep(0.5)
  is_alone = processes.anywhere(not is_there)
  if is_first:
    mark.unlink()
  if is_alone:
    raise errors.UserError(
      f"MODEL_DIR={os.fspath(model_dir)} is another directory on each host:"
      " give one that all share, in a bucket or on a mounted disk"
    )


def _check_same_content(checkpoint: opening.Checkpoint, flag: str) -> None:
  """Raises UserError if hosts have other copies of a checkpoint of others."""
  if jax.process_count() > 1:
    processes.agree(
      {f"the content of {flag}={checkpoint.path}": checkpoint.sampled_digest()},
      "give every host the same files",
    )


def _check_other_rows(path: epath.Path, row: Mapping[str, object]) -> None:
  """Raises UserError on all hosts if the first has another checkpoint's rows.

  The others need not see its directory.
  """
  problem = None
  if jax.process_index() == 0:
    try:
      _other_rows(path, row)
    except errors.UserError as error:
      problem = error
  if processes.anywhere(problem is not None):
    raise problem or errors.UserError(
      "the first process has refused EVAL_OUTPUT_DIR: see its error"
    )


def _other_rows(
  path: epath.Path, row: Mapping[str, object]
) -> list[Mapping[str, object]]:
  """Returns the metrics of other evaluations in the same directory.

  They are of other steps, or of other tasks of the same checkpoint.
  """
  found = []
  for other in reading.read_rows(path) if path.is_file() else ():
    if other.get("step") != row["step"]:
      found.append(other)
      continue
    if other.get("checkpoint", row["checkpoint"]) != row["checkpoint"]:
      raise errors.UserError(
        f"{path} has the evaluation of another checkpoint of step"
        f" {row['step']}, which would be replaced: give another EVAL_OUTPUT_DIR"
      )
    values = {
      name: value
      for name, value in other.get("values", {}).items()
      if name not in row["values"]
    }
    if values and other.get("checkpoint") == row["checkpoint"]:
      found.append({**other, "values": values})
  return found


def _check_vocabulary(
  checkpoint: opening.Checkpoint, mixture_or_task_name: str, way_out: str
) -> None:
  """Raises UserError if a task's vocabulary is not that of a checkpoint."""
  provider = example_stream.find_provider(mixture_or_task_name)
  vocabulary = provider.output_features["inputs"].vocabulary
  file = getattr(vocabulary, "sentencepiece_model_file", None)
  if file is not None:
    checkpoint.check_vocabulary(file, mixture_or_task_name, way_out)


def _check_same_vocabulary(experiment: Experiment, evaluated: str) -> None:
  """Raises UserError if an evaluation's vocabulary is not that of training."""
  trained = experiment.mixture_or_task_name
  for feature in ("inputs", "targets"):
    mine, other = (
      example_stream.find_provider(name).output_features[feature].vocabulary
      for name in (trained, evaluated)
    )
    if not _are_same(mine, other):
      raise errors.UserError(
        f"the vocabulary of {evaluated}, {_shown(other)}, is not that of"
        f" {trained}, {_shown(mine)}, so that ids would mean other words: leave"
        " it out of EVALUATIONS and HELD_OUT_LOSSES"
      )


def _are_same(one: seqio.Vocabulary, other: seqio.Vocabulary) -> bool:
  """Returns whether ids mean the same in both, as far as is known."""
  if any(isinstance(v, seqio.PassThroughVocabulary) for v in (one, other)):
    return True  # of a task whose source has ids
  files = [getattr(v, "sentencepiece_model_file", None) for v in (one, other)]
  if one.extra_ids != other.extra_ids:
    return False
  if None in files:
    # Of a class of the user's own without `==` nothing is known.
    kinds = type(one), type(other)
    is_known = kinds[0].__eq__ is not object.__eq__
    return kinds[0] is kinds[1] and (one == other or not is_known)
  return files[0] == files[1] or tokenizers.have_same_ids(
    *map(reading.read_bytes, files)
  )


def _shown(vocabulary: seqio.Vocabulary) -> str:
  kind = type(vocabulary).__name__
  file = getattr(vocabulary, "sentencepiece_model_file", kind)
  return f"{file} with {vocabulary.extra_ids} extra ids"


def batches(
  experiment: Experiment, placed: placement.Placement
) -> pipeline.TrainIterator:
  """Opens this process's rows of the batches of a run's data."""
  return pipeline.TrainIterator(
    experiment.mixture_or_task_name,
    task_feature_lengths=experiment.task_feature_lengths,
    batch_size=experiment.batch_size,
    seed=experiment.seed,
    pack=experiment.pack,
    rows=placed.local_rows(experiment.batch_size),
    decoder_start_id=experiment.model.decoder_start_id,
    sums_up=jax.process_count() > 1,
    gather=processes.gather,
  )


def _checkpoints(experiment: Experiment) -> managers.CheckpointManager:
  return managers.CheckpointManager(
    os.path.join(experiment.model_dir, "checkpoints"),
    keep=experiment.keep,
    keep_period=experiment.keep_period,
    keep_best=experiment.keep_best,
  )


def _metadata(
  experiment: Experiment, config_text: str, settings: Mapping[str, object]
) -> dict[str, object]:
  """Returns the metadata saved with a checkpoint."""
  vocabulary = keeping.vocabulary_files(experiment.mixture_or_task_name)
  return {
    "settings": settings,
    "num_steps": experiment.loop.num_steps,
    "model": dataclasses.asdict(experiment.model),
    # The other file is written by us: other releases may write it differently.
    opening.VOCABULARY_DIR: manifests.entries_of(
      {
        name: content
        for name, content in vocabulary.items()
        if name == tokenizers.SENTENCEPIECE
      }
    ),
    "config": config_text,
    "version": specialize_jax.__version__,
    "revision": revision.find(),
  }


def _efficiency(experiment: Experiment) -> progress.Efficiency:
  """Returns the flops of a step, and peak flops if the devices are TPUs."""
  forward = arithmetic.forward_flops(
    experiment.model,
    batch_size=experiment.batch_size,
    input_length=experiment.task_feature_lengths["inputs"],
    target_length=experiment.task_feature_lengths["targets"],
  )
  chip = chips.of_device_kind(jax.devices()[0].device_kind)
  return progress.Efficiency(
    step_flops=3 * forward,  # the backward pass takes twice as many
    peak_flops=chip.peak_flops * jax.device_count() if chip else None,
    devices=jax.local_devices(),
  )
