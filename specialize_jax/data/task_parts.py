"""The parts of seqio tasks, by the kind of task.

A task file names its dataset's source and its formats; these give the rest
as the arguments of `seqio.TaskRegistry.add`:

  evaluation    text in, text out; decoded and graded
  pretraining   the row's own rationale or answer as a one-hot target
  distillation  the teacher's distributions as the target

Evaluation and distillation in a zero-shot format can be cached offline by
`seqio_cache_tasks`: their examples are finished before the placeholder of the
cache. In-context formats cannot: they draw new demonstrations in every epoch,
which a cache would freeze.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import (
  comparison,
  features,
  preprocessors,
  teacher_formats,
  teacher_source,
  vocabularies,
)

ReadDemonstrations = Callable[[], Sequence[formats.Demonstration]]


def add_once(name: str, **arguments: object) -> None:
  """Registers a task, unless an identical one is: modules may be reloaded.

  Args:
    name: the task's.
    **arguments: those of `seqio.TaskRegistry.add`.

  Raises:
    UserError: the name is taken by another task, or by a mixture.
  """
  if name in seqio.MixtureRegistry.names():
    raise errors.UserError(
      f"task {name!r} cannot be registered: a mixture has this name; give the"
      " dataset or the set that it is of another name"
    )
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(name, **arguments)
  elif _made_of(seqio.TaskRegistry.get(name)) != _made_of(
    seqio.Task(name, **arguments)
  ):
    raise errors.UserError(
      f"task {name!r} is registered already, with other data, words or answers:"
      " a registered task never changes, so give this one, or the dataset that"
      " it is of, a name of its own"
    )


def _made_of(task: seqio.Task) -> object:
  return comparison.described(
    (
      task.source,
      task.output_features,
      task.preprocessors,
      task.postprocessor,
      task.metric_fns,
    )
  )


def evaluation_features(
  vocabulary: seqio.Vocabulary,
) -> Mapping[str, seqio.Feature]:
  """Returns the output features of a task that is only decoded."""
  return {
    features.INPUTS: seqio.Feature(vocabulary, add_eos=True),
    features.TARGETS: seqio.Feature(vocabulary, add_eos=True),
  }


def training_features(
  vocabulary: seqio.Vocabulary,
) -> Mapping[str, seqio.Feature]:
  """Returns the output features of a task with a target distribution."""
  ids = seqio.PassThroughVocabulary(size=0)
  return {
    **evaluation_features(vocabulary),
    features.TEACHER_TOP_IDS: seqio.Feature(ids, add_eos=False, rank=2),
    features.TEACHER_TOP_PROBS: seqio.Feature(
      ids, add_eos=False, dtype=tf.float32, rank=2
    ),
    features.TEACHER_TOP_MASK: seqio.Feature(ids, add_eos=False),
    features.EXAMPLE_ID: seqio.Feature(
      ids, add_eos=False, dtype=tf.string, rank=0
    ),
    features.DATA_FORMAT: seqio.Feature(ids, add_eos=False, rank=0),
  }


def evaluation(
  source: seqio.DataSource,
  vocabulary: seqio.Vocabulary,
  *,
  data_format: formats.DataFormat,
  read_demonstrations: ReadDemonstrations | None = None,
  num_demonstrations: int = 4,
) -> Mapping[str, object]:
  """Returns the parts of a task that is decoded and graded.

  Its examples carry `question_id`, `answer` and the texts beside the ids.

  Args:
    source: question rows.
    vocabulary: the student's.
    data_format: how rows are written.
    read_demonstrations: what in-context formats draw from.
    num_demonstrations: how many they show.
  """
  return {
    "source": source,
    "output_features": evaluation_features(vocabulary),
    "preprocessors": [
      rendering(data_format, read_demonstrations, num_demonstrations),
      preprocessors.tokenize,
      *_cache(data_format),
    ],
    "shuffle_buffer_size": None,
  }


def written_prompt(
  source: seqio.DataSource, vocabulary: seqio.Vocabulary
) -> Mapping[str, object]:
  """Returns the parts of an evaluated task whose rows are prompts already.

  Args:
    source: rows with the texts `inputs` and `targets`.
    vocabulary: the student's.
  """
  return {
    "source": source,
    "output_features": evaluation_features(vocabulary),
    "preprocessors": [
      preprocessors.tokenize,
      seqio.CacheDatasetPlaceholder(),
    ],
    "shuffle_buffer_size": None,
  }


def pretraining(
  source: seqio.DataSource,
  vocabulary: seqio.Vocabulary,
  *,
  to_text: Sequence[Callable],
) -> Mapping[str, object]:
  """Returns the parts of a task whose rows are their own, certain target.

  Args:
    source: any rows.
    vocabulary: the student's.
    to_text: preprocessors that end with `inputs` and `targets`, as text or
      as ids, and keep `question_id`.
  """
  return {
    "source": source,
    "output_features": training_features(vocabulary),
    "preprocessors": [
      *to_text,
      preprocessors.add_one_hot_teacher,
      preprocessors.name_examples,
    ],
    "shuffle_buffer_size": None,
  }


def distillation(
  source: teacher_source.TeacherSource,
  vocabulary: vocabularies.LocatedSentencePieceVocabulary,
  *,
  data_format: formats.DataFormat,
  read_demonstrations: ReadDemonstrations | None = None,
  num_demonstrations: int = 4,
) -> Mapping[str, object]:
  """Returns the parts of a task that learns from the teacher.

  Chain-of-thought formats take the teacher's distributions; answer-only
  formats have "The answer is X", certain, as their target.

  Args:
    source: teacher rows.
    vocabulary: the student's, that the rows were aligned to.
    data_format: how rows are written.
    read_demonstrations: what in-context formats draw from.
    num_demonstrations: how many they show.
  """
  return {
    "source": source,
    "output_features": training_features(vocabulary),
    "preprocessors": [
      functools.partial(
        teacher_formats.render,
        source=source,
        data_format=data_format,
        read_demonstrations=read_demonstrations,
        num_demonstrations=num_demonstrations,
      ),
      *_cache(data_format),
    ],
    "shuffle_buffer_size": None,
  }


def _cache(
  data_format: formats.DataFormat,
) -> Sequence[seqio.CacheDatasetPlaceholder]:
  """Returns the placeholder of the offline cache, if a format can be cached."""
  return () if data_format.in_context else (seqio.CacheDatasetPlaceholder(),)


def rendering(
  data_format: formats.DataFormat,
  read_demonstrations: ReadDemonstrations | None = None,
  num_demonstrations: int = 4,
) -> Callable:
  """Returns the preprocessor that writes question rows in a format."""
  return functools.partial(
    preprocessors.render,
    data_format=data_format,
    read_demonstrations=read_demonstrations,
    num_demonstrations=num_demonstrations,
  )


def num_tokens(provider: seqio.Task | seqio.Mixture) -> int:
  """Returns the number of tokens of a task's vocabulary, extra ids included."""
  return provider.output_features[features.TARGETS].vocabulary.vocab_size


def check_size(mixture_or_task_name: str, vocab_size: int) -> None:
  """Raises UserError where a task's vocabulary has more tokens than the model.

  Args:
    mixture_or_task_name: a name registered with seqio; one that is not is left
      to what reads it.
    vocab_size: rows of the model's embedding.
  """
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if mixture_or_task_name not in known:
    return
  given = num_tokens(seqio.get_mixture_or_task(mixture_or_task_name))
  if given > vocab_size:
    raise errors.UserError(
      f"T5Config.vocab_size={vocab_size:,}: the vocabulary of"
      f" {mixture_or_task_name!r} has {given:,} tokens, its"
      " extra ids included; give the model as many rows or, padded, up to 127"
      " more."
    )


def check_eos(mixture_or_task_name: str, eos_ids: Collection[int]) -> None:
  """Raises UserError where a task's texts do not end as the model's do.

  Args:
    mixture_or_task_name: a name registered with seqio; one that is not is left
      to what reads it.
    eos_ids: the tokens that end a sequence of the model.
  """
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if mixture_or_task_name not in known:
    return
  named = seqio.get_mixture_or_task(mixture_or_task_name)
  for task in seqio.get_subtasks(named):
    for feature in task.output_features.values():
      eos_id = feature.vocabulary.eos_id
      if eos_id is not None and eos_id not in eos_ids:
        raise errors.UserError(
          f"task {task.name!r} ends its texts with token {eos_id}, its "
          f"vocabulary's end of sequence, and the model's are "
          f"{', '.join(map(str, eos_ids))} (T5Config.eos_ids): give the "
          "vocabulary and the model that belong together."
        )
