"""What the way of decoding is worth: one model, one task, several ways.

Greedy decoding is what the main table has. Beside it: greedy with the
calculator, and self-consistency over samples, each with its accuracy and the
difference from greedy on the same questions, which a report shows whether it
is a gain or not.
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
  """One way to decode.

  Attributes:
    name: what a report calls it.
    changes: of `requests.Settings`, from greedy decoding.
  """

  name: str
  changes: dict[str, object] = dataclasses.field(default_factory=dict)


GREEDY = Way(name="greedy")
CALCULATOR = Way(name="greedy, calculator", changes={"calculator": True})
# The paper of self-consistency samples at 0.5 to 0.7 (section 3.1).
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
  """A task's examples as the ways share them.

  Attributes:
    asked: one request an example.
    targets: what each is graded against.
    metric: what grades.
  """

  asked: Sequence[requests.Request]
  targets: Sequence[str]
  metric: metrics.Accuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What came of one way.

  Attributes:
    name: the way's.
    texts: what answers each question.
    verdicts: whether it is right.
    seconds: that decoding took, compilation included.
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
  """Evaluates one task in several ways, the first being what others beat.

  Writes `output_dir/decoding.json`, what is returned, and
  `output_dir/predictions/decoding/TASK.jsonl`, every way's text and verdict.

  Args:
    checkpoint_path: as `opening.open_checkpoint` takes it.
    evaluation: of one task, which is graded by its own first metric.
    vocabulary_path: the model's SentencePiece file.
    output_dir: where to.
    mesh: over the devices; data parallel by default.
    ways: to decode.

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
  # Decoding wants each layer's parameters apart.
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
  writing.write_json(output_dir / "decoding.json", result)
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
  """Decodes and grades all questions in one way; see `compare`."""
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
  """Gives the rows "ways" of `compare`, the first being what others beat."""
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
  """Tokenises a task's examples, as evaluation does."""
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
