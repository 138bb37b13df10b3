"""Compares ways of decoding: one model, one task, several strategies.

Greedy decoding, which the main table uses, is compared with greedy decoding
with a calculator and with self-consistency over samples. Each has its accuracy
and its difference from greedy decoding on the same questions, reported whether
it is a gain or not.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Iterable, Sequence

import seqio
import tensorflow_datasets as tfds

from specialize_jax import errors
from specialize_jax.checkpoints import opening
from specialize_jax.decoding import generator, requests
from specialize_jax.decoding import vocabulary as vocabularies
from specialize_jax.evaluation import intervals, metrics
from specialize_jax.files import writing
from specialize_jax.runs import experiment
from specialize_jax.t5 import network

NUM_SAMPLES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
  """A way of decoding.

  Attributes:
    name: its name in the report.
    changes: fields of `requests.Settings` that differ from greedy decoding.
  """

  name: str
  changes: dict[str, object] = dataclasses.field(default_factory=dict)


GREEDY = Way(name="greedy")
CALCULATOR = Way(name="greedy, calculator", changes={"calculator": True})
# The self-consistency paper samples at temperatures 0.5 to 0.7 (section 3.1).
_VOTING = {
  "strategy": "sample",
  "temperature": 0.7,
  "num_samples": NUM_SAMPLES,
  "self_consistency": True,
}
SELF_CONSISTENCY = Way(
  name=f"self-consistency of {NUM_SAMPLES}", changes=_VOTING
)
WAYS = (GREEDY, CALCULATOR, SELF_CONSISTENCY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
  """The examples of a task.

  Attributes:
    asked: one request per example.
    targets: the answers to grade against.
    metric: the grader.
  """

  asked: Sequence[requests.Request]
  targets: Sequence[str]
  metric: metrics.Accuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """The outcome of one way of decoding.

  Attributes:
    name: the name of the way.
    texts: the answer to each question.
    verdicts: whether each answer is correct.
    seconds: duration of decoding, including compilation.
  """

  name: str
  texts: Sequence[str]
  verdicts: Sequence[bool]
  seconds: float


def compare(
  checkpoint_path: str | os.PathLike,
  *,
  evaluation: experiment.Evaluation,
  vocabulary_path: str | os.PathLike,
  output_dir: str | os.PathLike,
  mesh: experiment.MeshShape | None = None,
  ways: Sequence[Way] = WAYS,
) -> dict[str, object]:
  """Evaluates a task with several ways of decoding.

  Writes the returned value to `output_dir/decoding.json`, and all texts and
  verdicts to `output_dir/predictions/decoding/TASK.jsonl`.

  Args:
    checkpoint_path: a checkpoint of any kind, see `opening.open_checkpoint`.
    evaluation: the evaluation of one task, graded by its first metric.
    vocabulary_path: the model's SentencePiece file.
    output_dir: the output directory.
    mesh: the mesh; data parallel by default.
    ways: the ways of decoding, the first of which is the baseline.

  Returns:
    `{"task", "n", "step", "ways": [{"name", "accuracy", "low", "high",
    "difference": {"estimate", "low", "high"} | None, "seconds"}]}`.

  Raises:
    UserError: the checkpoint, the task or the vocabulary cannot be used.
  """
  checkpoint = opening.open_checkpoint(checkpoint_path)
  vocabulary = vocabularies.from_file(vocabulary_path)
  vocabularies.check_size(
    vocabulary, checkpoint.config.vocab_size, vocabulary_path
  )
  task = evaluation.mixture_or_task_name
  questions = _read(evaluation)
  placed = (mesh or experiment.MeshShape()).placement()
  # Decoding uses unrolled layers.
  config = dataclasses.replace(checkpoint.config, scan_layers=False)
  params = checkpoint.params(placed, config)
  with placed.entered():
    outcomes = [
      decode(
        way,
        network.EncoderDecoder(config),
        params,
        questions,
        vocabulary=vocabulary,
        evaluation=evaluation,
      )
      for way in ways
    ]
  result = {
    "task": task,
    "n": len(questions.targets),
    "step": checkpoint.step,
    "ways": rows(outcomes),
  }
  output_dir = pathlib.Path(output_dir)
  writing.write_json(output_dir / "decoding.json", result, sealed=True)
  writing.write_rows(
    output_dir / "predictions" / "decoding" / f"{task}.jsonl",
    _prediction_rows(questions.targets, outcomes),
  )
  return result


def decode(
  way: Way,
  model: network.EncoderDecoder,
  params: network.Params,
  questions: Questions,
  *,
  vocabulary: vocabularies.Vocabulary,
  evaluation: experiment.Evaluation,
) -> Outcome:
  """Decodes and grades all questions with one way; see `compare`."""
  decoder = generator.Generator(
    model,
    requests.Settings(max_new_tokens=evaluation.max_new_tokens, **way.changes),
    vocabulary=vocabulary,
    batch_size=evaluation.batch_size,
    input_limit=evaluation.task_feature_lengths["inputs"],
  )
  start = time.monotonic()
  texts: dict[int, str] = {}
  for batch in decoder.run(params, questions.asked, ahead=1):
    texts |= {place: result.output.text for place, result in batch.items()}
  seconds = time.monotonic() - start
  in_order = [texts[place] for place in range(len(questions.asked))]
  return Outcome(
    name=way.name,
    texts=in_order,
    verdicts=[
      questions.metric.grade(text, target).correct
      for text, target in zip(in_order, questions.targets, strict=True)
    ],
    seconds=round(seconds, 1),
  )


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
  """Returns the "ways" of `compare`; the first is the baseline."""
  first, *others = outcomes
  differences = [
    intervals.paired_bootstrap(first.verdicts, other.verdicts)
    for other in others
  ]
  return [
    {
      "name": outcome.name,
      **metrics.summarize(outcome.verdicts),
      "difference": difference and dataclasses.asdict(difference),
      "seconds": outcome.seconds,
    }
    for outcome, difference in zip(outcomes, [None, *differences], strict=True)
  ]


def _read(evaluation: experiment.Evaluation) -> Questions:
  """Tokenizes the examples of a task as for evaluation."""
  task_name = evaluation.mixture_or_task_name
  if task_name not in seqio.TaskRegistry.names():
    raise errors.UserError(
      f"task {task_name!r} is not registered with seqio: name an evaluation "
      "task, such as mini_gsm_zero_shot_chain_of_thought_v1."
    )
  task = seqio.TaskRegistry.get(task_name)
  graders = [m for m in task.metric_fns if isinstance(m, metrics.Accuracy)]
  if not graders or evaluation.split not in task.splits:
    raise errors.UserError(
      f"task {task_name!r} has no accuracy or no split {evaluation.split!r}: "
      "name an evaluation task."
    )
  dataset = task.get_dataset(
    sequence_length=evaluation.task_feature_lengths,
    split=evaluation.split,
    shuffle=False,
  ).take(evaluation.num_examples or -1)
  asked, targets = [], []
  for number, example in enumerate(tfds.as_numpy(dataset)):
    asked.append(requests.Request(number=number, input_ids=example["inputs"]))
    targets.append(metrics.as_text(example["answer"]))
  if not asked:
    raise errors.UserError(
      f"task {task_name!r} is empty: expected at least one example."
    )
  return Questions(asked=asked, targets=targets, metric=graders[0])


def _prediction_rows(
  targets: Sequence[str], outcomes: Sequence[Outcome]
) -> Iterable[dict[str, object]]:
  for place, target in enumerate(targets):
    yield {
      "target": target,
      "ways": {
        one.name: {
          "prediction": one.texts[place],
          "correct": one.verdicts[place],
        }
        for one in outcomes
      },
    }
