"""Builds a training run up to its first step, without writing anything."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import seqio

from specialize_jax.checkpoints import opening
from specialize_jax.parallel import placement
from specialize_jax.runs import choosing, experiment
from specialize_jax.t5 import network
from specialize_jax.training import optimizer, state

_EXAMPLES = 3
_MAX_CHARACTERS = 800


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRun:
  """A run before its first step.

  Attributes:
    facts: descriptions of model, data, optimizer and so on, by name.
    examples: the first examples of the first batch, as text.
  """

  facts: Mapping[str, str]
  examples: list[str]


def dry_run(run: experiment.Experiment, placed: placement.Placement) -> DryRun:
  """Builds everything that a run needs, and the first batch of its data.

  Args:
    run: the run.
    placed: the mesh: the run's, or one device in its place.

  Returns:
    A description of the run and of its first batch.

  Raises:
    UserError: the errors that `experiment.train` raises before its first step.
  """
  model = network.EncoderDecoder(run.model)
  abstract_state = state.abstract(model, optimizer.build(run.optimizer), placed)
  facts = experiment.facts(run, placed, abstract_state)
  facts["state"] = (
    f"{state.bytes_per_device(abstract_state) / 2**30:.2f} GiB a device: "
    "parameters and optimizer, without activations"
  )
  experiment.check_data(run)
  experiment.check_evaluations(run, placed)
  facts["start"] = _start(run)
  questions = [
    f"{number:,}: {task}"
    for evaluation in run.evaluations
    for task, number in evaluation.num_questions().items()
  ]
  if questions:
    facts["questions"] = "\n".join(questions)
  with contextlib.closing(experiment.batches(run, placed)) as iterator:
    batch = next(iterator)
    dropped = iterator.dropped()
  facts["first batch"] = _shares(batch)
  if dropped:
    facts["dropped"] = dropped
  return DryRun(facts=facts, examples=list(_as_text(run, batch)))


def _start(run: experiment.Experiment) -> str:
  steps = choosing.steps_of(run.model_dir)
  if not steps and run.initial_checkpoint_path is not None:
    opened = opening.open_checkpoint(
      run.initial_checkpoint_path, verify=run.verify_checkpoint
    )
    opened.check_fits(run.model)
  return experiment.start_in_words(run, max(steps, default=0))


def _shares(batch: Mapping[str, np.ndarray]) -> str:
  """Describes the content of a batch: examples, padding, teacher targets."""
  targets = batch["decoder_target_tokens"] > 0
  inputs = batch["encoder_input_tokens"] > 0
  filled = (targets.sum() + inputs.sum()) / (targets.size + inputs.size)
  segments = batch.get("decoder_segment_ids")
  num_examples = (
    len(targets) if segments is None else int(segments.max(axis=1).sum())
  )
  text = f"{num_examples:,} examples, {1 - filled:.1%} padding"
  mask = batch.get("decoder_teacher_top_mask")
  if mask is not None:
    share = (mask.astype(bool) & targets).sum() / max(1, targets.sum())
    text += f", {share:.1%} of the targets with a teacher distribution"
  return text


def _as_text(
  run: experiment.Experiment, batch: Mapping[str, np.ndarray]
) -> Iterator[str]:
  """Yields the first examples of a batch, decoded."""
  features = seqio.get_mixture_or_task(run.mixture_or_task_name).output_features
  sides = (
    ("inputs", "encoder_input_tokens", "encoder_segment_ids"),
    ("targets", "decoder_target_tokens", "decoder_segment_ids"),
  )
  shown = 0
  for row in range(len(batch["decoder_target_tokens"])):
    segments = batch.get("decoder_segment_ids")
    last = 1 if segments is None else int(segments[row].max())
    for segment in range(1, last + 1):
      if shown == _EXAMPLES:
        return
      shown += 1
      parts = [f"row {row}, example {segment}"]
      for feature, tokens_name, segments_name in sides:
        tokens = batch[tokens_name][row]
        if segments_name in batch:
          tokens = tokens[batch[segments_name][row] == segment]
        tokens = tokens[tokens > 0]
        text = features[feature].vocabulary.decode([int(t) for t in tokens])
        if len(text) > _MAX_CHARACTERS:
          text = f"{text[:_MAX_CHARACTERS]} ..."
        parts.append(f"  {feature} ({len(tokens)} tokens): {text}")
      yield "\n".join(parts)
