"""Evaluates parameters on seqio tasks: decodes, grades and logs predictions.

An `Evaluator` is created once and called with `(params, step)`, by the training
loop or a command. Tokenized examples are read once and kept in memory. They are
decoded in batches of one size and few input lengths, so that all tasks and
calls share a few compiled programs.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from specialize_jax import errors
from specialize_jax.data import example_stream, identity, task_parts
from specialize_jax.decoding import generator, requests
from specialize_jax.evaluation import kept_outputs, metrics
from specialize_jax.files import paths, writing
from specialize_jax.t5 import network
from specialize_jax.terminal import progress

# Number of batches dispatched while the host reads earlier ones. A kill loses
# them, and one is enough to keep the device busy.
_BATCHES_AHEAD = 1
_NOWHERE = os.devnull  # seqio wants the name of a directory


class Evaluator:
  """Evaluates parameters on a seqio task or on all tasks of a mixture.

  Attributes:
    task_names: names of the tasks, in the order of the mixture.
  """

  def __init__(
    self,
    mixture_or_task_name: str,
    *,
    model: network.EncoderDecoder,
    task_feature_lengths: Mapping[str, int],
    split: str | None = "validation",
    batch_size: int = 64,
    max_new_tokens: int = 256,
    num_examples: int | None = None,
  ) -> None:
    """Reads and tokenizes the examples of every task.

    Args:
      mixture_or_task_name: a name registered with seqio.
      model: the network; see `specialize_jax.t5.network`.
      task_feature_lengths: maximum lengths of "inputs" and "targets", in
        tokens; longer ones are truncated, and truncated prompts are counted on
        standard error.
      split: the split of each task. None for "validation" if the mixture's name
        contains it, otherwise "test".
      batch_size: number of examples decoded together; must be a multiple of the
        mesh's `data` times `fsdp`.
      max_new_tokens: maximum number of decoded tokens.
      num_examples: number of examples of each task to use, the first ones; None
        for all.

    Raises:
      UserError: the name is not registered; a task lacks the split, a metric or
        examples; or the mixture's name contradicts the split.
    """
    split = _split_of(mixture_or_task_name, split)
    tasks = _tasks_to_evaluate(mixture_or_task_name, split)
    task_parts.check_eos(mixture_or_task_name, model.config.eos_ids)
    task_parts.check_size(mixture_or_task_name, model.config.vocab_size)
    self.task_names = [task.name for task in tasks]
    self._batch_size = batch_size
    self._max_new_tokens = max_new_tokens
    self._generator = generator.Generator(
      model,
      requests.Settings(max_new_tokens=max_new_tokens),
      batch_size=batch_size,
      input_limit=task_feature_lengths["inputs"],
    )
    with _only_errors_logged():
      self._seqio = seqio.Evaluator(
        mixture_or_task_name,
        feature_converter=_InputsAlone(pack=False),
        eval_split=split,
        sequence_length=task_feature_lengths,
        num_examples=num_examples,
        logger_cls=[_PredictionLogger],
        log_dir=_NOWHERE,  # until a call says where
        # Decoding keeps the device busy; a second thread would wait for it.
        async_compute_metrics=False,
      )
    self._examples = {
      name: _read_examples(name, dataset)
      for name, dataset in self._seqio.cached_model_datasets.items()
    }
    limit = task_feature_lengths["inputs"]
    self._notices = [
      notice for task in tasks if (notice := self._truncated(task, limit))
    ]

  def __call__(
    self,
    params: network.Params,
    step: int,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    checkpoint: str | None = None,
  ) -> Mapping[str, float]:
    """Decodes and grades every example.

    Args:
      params: the network's parameters, on one device or sharded.
      step: the step of the parameters, which names the directory of the
        predictions.
      output_dir: predictions are written to `output_dir/STEP/TASK.jsonl`; None
        to write none.
      checkpoint: identifies the parameters. If given, outputs are written as
        they are decoded (on a local disk: objects in a bucket cannot grow), and
        an evaluation of the same checkpoint that was killed resumes; see
        `kept_outputs`.

    Returns:
      "TASK/accuracy", "TASK/n", "TASK/low" and "TASK/high" for each task (the
      last two are the 95 % Wilson interval), and "TASK/accuracy_GRADER"; of a
      task with metrics of its own, each of them that is a number.

    Raises:
      UserError: the mesh of `params` does not divide the batch size.
    """
    (logger,) = self._seqio.loggers
    logger.output_dir = _NOWHERE if output_dir is None else str(output_dir)
    num_batches = sum(
      math.ceil(len(examples) / self._batch_size)
      for examples in self._examples.values()
    )
    with progress.Progress(
      num_batches,
      "batches",
      title=f"evaluating step {step}",
      speaks=jax.process_index() == 0,
    ) as bar:
      while self._notices:  # once, not with every checkpoint
        bar.say(self._notices.pop(0))

      def predict(
        dataset: tf.data.Dataset,
      ) -> Sequence[tuple[int, np.ndarray]]:
        name = self._name_of(dataset)
        path = None
        # Appending rows needs a local disk: objects in a bucket cannot grow.
        if None not in (checkpoint, output_dir) and not paths.is_in_bucket(
          output_dir
        ):
          path = epath.Path(output_dir) / str(step) / f"{name}.outputs.jsonl"
        with self._kept(name, path, checkpoint) as kept:
          self._decode(params, self._examples[name], kept, bar)
          return list(enumerate(kept.tokens_NT))

      future, _ = self._seqio.evaluate(
        compute_metrics=True, step=step, predict_fn=predict
      )
    values = {
      f"{task}/{name}": number
      for task, task_values in future.result().items()
      for name, value in task_values.items()
      if (number := metrics.as_number(value)) is not None
    }
    for name, value in values.items():
      logging.info("step %d: %s %.3f", step, name, value)
    return values

  def _truncated(self, task: seqio.Task, limit: int) -> str:
    """Returns a notice of prompts of more than `limit` tokens; "" for none."""
    full = [len(tokens) >= limit for tokens in self._examples[task.name]]
    if not any(full):
      return ""
    feature = task.output_features["inputs"]
    rows = tfds.as_numpy(self._seqio.cached_task_datasets[task.name])
    longer = unknown = 0
    for row, is_full in zip(rows, full, strict=True):
      if is_full and "inputs_pretokenized" in row:
        text = metrics.as_text(row["inputs_pretokenized"])
        length = len(feature.vocabulary.encode(text)) + feature.add_eos
        longer += length > limit
      else:  # a task that keeps no text, of which only the tokens are known
        unknown += is_full and row["inputs"][-1] != feature.vocabulary.eos_id
    number = longer + unknown
    if not number:
      return ""
    return (
      f"{task.name}: {number:,} of {len(full):,} prompts"
      f" {'may be' if unknown else 'are'} truncated, since they are"
      f" {'as long as' if unknown else 'longer than'} task_feature_lengths"
      f'["inputs"]={limit:,}'
    )

  def _name_of(self, dataset: tf.data.Dataset) -> str:
    """Returns the task of a cached dataset that seqio passes to `predict`."""
    for name, cached in self._seqio.cached_model_datasets.items():
      if cached is dataset:
        return name
    raise AssertionError("seqio passed a dataset that it does not cache")

  def _kept(
    self, name: str, path: epath.Path | None, checkpoint: str | None
  ) -> kept_outputs.KeptOutputs:
    """Opens the outputs of a task's examples that were decoded before."""
    examples = self._examples[name]
    kept = kept_outputs.KeptOutputs(
      path,
      made_of={
        "checkpoint": checkpoint,
        "max_new_tokens": self._max_new_tokens,
      },
      inputs=examples,
      # seqio stacks a task's outputs, so all have the maximum length.
      max_length=self._max_new_tokens,
    )
    if kept.done:
      logging.info(
        "%s: %d of %d examples were decoded before",
        name,
        len(kept.done),
        len(examples),
      )
    return kept

  def _decode(
    self,
    params: network.Params,
    examples: Sequence[np.ndarray],
    kept: kept_outputs.KeptOutputs,
    bar: progress.Progress,
  ) -> None:
    """Decodes the examples of a task that have no output yet."""
    asked = [
      requests.Request(number=index, input_ids=input_ids)
      for index, input_ids in enumerate(examples)
    ]
    batches = self._generator.run(
      params, asked, ahead=_BATCHES_AHEAD, done=frozenset(kept.done)
    )
    for batch in batches:
      kept.add({n: result.output.ids for n, result in batch.items()})
      bar.advance()


class _InputsAlone(seqio.EncDecFeatureConverter):
  """Converts to the network's inputs alone, which the task has trimmed.

  Generation pads them to few lengths of its own. To have SeqIO convert, pad and
  check all features takes a third of the time in which an evaluator is built.
  """

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Returns the dataset of the inputs' ids, int32[S] each."""
    del task_feature_lengths

    @tf.autograph.experimental.do_not_convert
    def inputs_of(row: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
      return {
        "inputs": tf.cast(tf.ensure_shape(row["inputs"], [None]), "int32")
      }

    return ds.map(inputs_of)


class _PredictionLogger(seqio.Logger):
  """Writes prompts, predictions and grades to `STEP/TASK.jsonl`."""

  def __call__(  # noqa: PLR0917 (seqio's signature)
    self,
    task_name: str,
    step: int | None,
    metrics: Mapping[str, object],
    dataset: tf.data.Dataset,
    inferences: Mapping[str, Sequence[str]],
    targets: Sequence[str],
  ) -> None:
    """Writes the predictions of a task; called by seqio after its metrics."""
    if self.output_dir == _NOWHERE or jax.process_index() != 0:
      return
    task = seqio.get_mixture_or_task(task_name)
    rows = prediction_rows(
      task, tfds.as_numpy(dataset), inferences["prediction"], targets
    )
    path = epath.Path(self.output_dir) / str(step) / f"{task_name}.jsonl"
    writing.write_rows(path, rows, sealed=True)


def prediction_rows(
  task: seqio.Task,
  examples: Sequence[Mapping[str, np.ndarray]],
  predictions: Sequence[str],
  targets: Sequence[str],
) -> Iterator[dict[str, object]]:
  """Yields the rows of a task's prediction file.

  The rows suffice to inspect grades and to grade again, without a model.

  Args:
    task: the task; its first `metrics.Accuracy` grades, if it has one.
    examples: the task's examples, in order.
    predictions: the decoded predictions, in the same order.
    targets: the answers to grade against.

  Yields:
    One row per example: prompt, prediction and target; the extracted answer and
    `correct` by the task's own grader; `verdicts` by every grader; and the
    dataset's own target as `reference`. A task whose metrics judge no single
    prediction has no verdicts.
  """
  metric = next(
    (fn for fn in task.metric_fns if isinstance(fn, metrics.Accuracy)), None
  )
  vocabulary = task.output_features["inputs"].vocabulary
  for index, (example, prediction, target) in enumerate(
    zip(examples, predictions, targets, strict=True)
  ):
    if "inputs_pretokenized" in example:
      prompt = metrics.as_text(example["inputs_pretokenized"])
    else:
      prompt = vocabulary.decode([int(i) for i in example["inputs"]])
    row = {
      "question_id": metrics.as_text(example.get("question_id", str(index))),
      "prompt": prompt,
      "reference": metrics.as_text(example.get("targets_pretokenized", "")),
      "prediction": _as_json(prediction),
      "target": _as_json(target),
    }
    if metric is not None:
      verdict = metric.grade(prediction, target)
      row |= {
        "extracted": verdict.extracted,
        "correct": verdict.correct,
        "verdicts": metric.verdicts(prediction, target),
      }
    yield row


def _as_json(value: object) -> object:
  """Returns a target as JSON has it: a user's postprocessor returns anything.

  Bytes become text, NumPy's numbers and arrays plain ones, and what has no
  counterpart its `repr`.
  """
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  if isinstance(value, np.ndarray | np.generic):
    return _as_json(value.tolist())
  if isinstance(value, Mapping):
    return {str(_as_json(name)): _as_json(one) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [_as_json(one) for one in value]
  if isinstance(value, set | frozenset):
    return sorted(map(_as_json, value), key=repr)
  if value is None or isinstance(value, str | int | float):
    return value
  return repr(value)


def task_names(mixture_or_task_name: str, split: str | None) -> list[str]:
  """Returns the names of the tasks that are evaluated.

  Args:
    mixture_or_task_name: see `Evaluator`.
    split: see `Evaluator`.

  Raises:
    UserError: see `Evaluator`.
  """
  split = _split_of(mixture_or_task_name, split)
  return [t.name for t in _tasks_to_evaluate(mixture_or_task_name, split)]


def num_questions(
  mixture_or_task_name: str, split: str | None, num_examples: int | None
) -> dict[str, int]:
  """Returns the number of questions of each task, without tokenizing.

  Args:
    mixture_or_task_name: see `Evaluator`.
    split: see `Evaluator`.
    num_examples: see `Evaluator`.

  Raises:
    UserError: see `Evaluator`.
  """
  split = _split_of(mixture_or_task_name, split)
  sizes = {
    task.name: task.num_input_examples(split)
    for task in _tasks_to_evaluate(mixture_or_task_name, split)
  }
  return {
    name: size if num_examples is None else min(size, num_examples)
    for name, size in sizes.items()
  }


def data_identity(
  mixture_or_task_name: str, split: str | None
) -> dict[str, str]:
  """Returns hashes of the questions, prompts and vocabulary of an evaluation.

  Args:
    mixture_or_task_name: see `Evaluator`.
    split: see `Evaluator`.

  Raises:
    UserError: see `Evaluator`.
  """
  split = _split_of(mixture_or_task_name, split)
  _tasks_to_evaluate(mixture_or_task_name, split)
  return identity.of_mixture(mixture_or_task_name, split)


def _split_of(name: str, split: str | None) -> str:
  """Returns the split to evaluate, which a mixture's name may imply.

  Example: "validation" for "math_ood_validation_v1" without a split.
  """
  if "_validation" in name and split not in (None, "validation"):
    raise errors.UserError(
      f"split={split!r} of {name}: that mixture is for choosing a checkpoint, "
      "so evaluate its split 'validation', or name a mixture for testing, such "
      "as math_all_test_v1."
    )
  return split or ("validation" if "_validation" in name else "test")


def _tasks_to_evaluate(name: str, split: str) -> Sequence[seqio.Task]:
  """Returns the tasks of a name, all of which have the split and a metric."""
  tasks = seqio.get_subtasks(example_stream.find_provider(name))
  if not tasks:
    raise errors.UserError(
      f"mixture {name!r} is empty: expected at least one task to evaluate."
    )
  for task in tasks:
    if split not in task.splits:
      raise errors.UserError(
        f"task {task.name!r} has no split {split!r}: expected one of "
        f"{', '.join(sorted(task.splits)) or 'none, it is empty'}."
      )
    if not task.metric_fns:
      raise errors.UserError(
        f"task {task.name!r} has no metric, so it cannot be evaluated: name "
        "an evaluation task, such as gsm8k_zero_shot_chain_of_thought_v1."
      )
    # Metric objects include one of each function, without its name.
    others = [
      *task.score_metric_fns,
      *task.predict_with_aux_metric_fns,
    ] or [
      type(one)
      for one in task.metric_objs
      if one.model_output_type != seqio.metrics.ModelOutputType.PREDICTION
    ]
    if others:
      names = (str(getattr(one, "__name__", one)) for one in others)
      raise errors.UserError(
        f"task {task.name!r} has a metric of scores, {', '.join(names)}: only"
        " metrics of decoded predictions, fn(targets, predictions), are"
        " computed; register the task without it"
      )
  return tasks


def _read_examples(name: str, dataset: tf.data.Dataset) -> list[np.ndarray]:
  """Returns the input ids of all examples, in order, without padding."""
  examples = []
  for _, example in tfds.as_numpy(dataset):
    tokens = example["inputs"]
    used = np.flatnonzero(tokens)
    examples.append(tokens[: used[-1] + 1 if used.size else 1])
  if not examples:
    raise errors.UserError(
      f"task {name!r} is empty: expected at least one example in its split."
    )
  return examples


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
  """Suppresses seqio's warnings about unused sequence length."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)
