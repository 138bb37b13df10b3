"""Registers a dataset's tasks and mixtures with seqio.

FORMAT is one of the four formats, NAME the dataset's name, and BENCHMARK the
name of a benchmark (in distribution, out of distribution, or general):

  BENCHMARK_FORMAT_v1        evaluation
  BENCHMARK_teacher_FORMAT_v1
                             training on the teacher's data, for the benchmark
                             in distribution
  NAME_specialize            training: the four formats
  NAME_validation            in and out of distribution, for both rules of
                             checkpoint selection
  NAME_test                  in and out of distribution, for the test
  NAME_out_of_distribution_validation
                             out of distribution, for checkpoint selection
  NAME_general               general benchmarks: the cost of specialization

An evaluation mixture is zero-shot with chain of thought (the general one with
and without), or in the format named before its version, as in
NAME_test_in_context_answer_only_v1. A name without a version is the newest one.
"""

import functools
import types
from collections.abc import Callable, Mapping, Sequence

import seqio

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import (
  comparison,
  questions,
  sources,
  task_parts,
  teacher_source,
  vocabularies,
)
from specialize_jax.datasets import description
from specialize_jax.evaluation import metrics

Rate = float | Callable[[seqio.Task], float]

_COT = formats.ZERO_SHOT_CHAIN_OF_THOUGHT
_ZERO_SHOT = (_COT, formats.ZERO_SHOT_ANSWER_ONLY)


def add(dataset: description.Dataset) -> None:
  """Registers a dataset: its tasks and its mixtures. Reads no file."""
  for benchmark in dataset.benchmarks:
    add_benchmark(benchmark, dataset)
  add_teacher(dataset)
  add_mixtures(dataset)


def vocabulary_of(
  dataset: description.Dataset,
) -> vocabularies.LocatedSentencePieceVocabulary:
  """Returns a dataset's vocabulary as a seqio vocabulary."""
  return vocabularies.LocatedSentencePieceVocabulary(
    dataset.vocabulary.path, extra_ids=dataset.vocabulary.extra_ids
  )


def add_benchmark(
  benchmark: description.Benchmark, dataset: description.Dataset
) -> None:
  """Registers a benchmark's tasks, with its own prompts or in our formats."""
  vocabulary = vocabulary_of(dataset)
  for prompt in benchmark.prompts:
    task_parts.add_once(
      f"{benchmark.name}_{prompt.name}_v1",
      **task_parts.written_prompt(prompt.source, vocabulary),
      postprocess_fn=metrics.keep_answer,
      metric_fns=[
        metrics.Accuracy(
          rule=benchmark.answer,
          grader=prompt.grader,
          chain_of_thought=prompt.chain_of_thought,
        )
      ],
    )
  if benchmark.prompts:
    return
  for data_format in dataset.formats:
    task_parts.add_once(
      benchmark.task(data_format),
      **task_parts.evaluation(
        source_of(benchmark, salt=data_format.name),
        vocabulary,
        data_format=data_format,
        read_demonstrations=benchmark.read_demonstrations,
        num_demonstrations=dataset.num_demonstrations,
      ),
      postprocess_fn=metrics.keep_answer,
      metric_fns=[
        metrics.Accuracy(
          rule=benchmark.answer, chain_of_thought=data_format.chain_of_thought
        )
      ],
    )


def source_of(
  benchmark: description.Benchmark, *, salt: str = ""
) -> sources.TableSource:
  """Returns a benchmark's questions as a seqio source."""
  return sources.TableSource(
    lambda split: questions.to_columns(benchmark.read(split)),
    splits=benchmark.splits,
    description=benchmark.name,
    salt=salt,
  )


def add_teacher(dataset: description.Dataset) -> None:
  """Registers the tasks of the teacher's data, one for each format."""
  vocabulary = vocabulary_of(dataset)
  for data_format in dataset.formats:
    task_parts.add_once(
      f"{dataset.teacher_name}_{data_format.name}_v1",
      **task_parts.distillation(
        teacher_source.TeacherSource(
          dataset.teacher_name,
          vocabulary,
          one_per_question=not data_format.chain_of_thought,
          salt=data_format.name,
          directory=dataset.tfds_dir,
        ),
        vocabulary,
        data_format=data_format,
        read_demonstrations=dataset.in_distribution.read_demonstrations,
        num_demonstrations=dataset.num_demonstrations,
      ),
    )


def add_mixtures(dataset: description.Dataset) -> None:
  """Registers a dataset's mixtures; its tasks must be registered already."""
  name, inside = dataset.name, dataset.in_distribution
  specialize(name=f"{name}_specialize_v1", teacher=dataset.teacher_name)
  specialize(name=f"{name}_specialize", teacher=dataset.teacher_name)
  outside = dataset.out_of_distribution
  for kind, split, several in (
    ("validation", "validation", (inside, *outside)),
    ("out_of_distribution_validation", "validation", outside),
    ("test", "test", (inside, *outside)),
  ):
    add_in_formats(
      f"{name}_{kind}", [one for one in several if split in one.splits]
    )
  add_in_formats(f"{name}_general", dataset.general, _ZERO_SHOT)


def specialize(
  *,
  name: str,
  teacher: str,
  rates: Mapping[formats.DataFormat, Rate] | None = None,
) -> str:
  """Registers the four formats of a teacher's data as one mixture.

  Args:
    name: the name of the mixture.
    teacher: the name of the teacher's dataset, such as "gsm8k_teacher".
    rates: the mixing rates by format; None for the number of examples of each.

  Returns:
    The name of the mixture.
  """
  rates = rates or dict.fromkeys(formats.FORMATS, num_examples)
  return add_mixture(
    name,
    [(f"{teacher}_{one.name}_v1", rate) for one, rate in rates.items()],
  )


def num_examples(task: seqio.Task) -> float:
  """Returns a task's number of examples, as its mixing rate."""
  return float(task.num_input_examples("train"))


def add_in_formats(
  name: str,
  benchmarks: Sequence[description.Benchmark],
  by_default: Sequence[formats.DataFormat] = (_COT,),
) -> None:
  """Registers benchmarks as a mixture in each format, and in default ones.

  Nothing is registered without benchmarks.
  """
  if not benchmarks:
    return
  for data_format in formats.FORMATS:
    add_evaluation(
      f"{name}_{data_format.name}",
      [(one.task(data_format), 1.0) for one in benchmarks],
    )
  add_evaluation(
    name,
    [(one.task(shown), 1.0) for one in benchmarks for shown in by_default],
  )


def add_evaluation(name: str, rates: Sequence[tuple[str, Rate]]) -> None:
  """Registers a mixture for evaluation under `NAME_v1` and as `NAME`."""
  add_mixture(f"{name}_v1", rates)
  add_mixture(name, rates)


def add_mixture(name: str, rates: Sequence[tuple[str, Rate]]) -> str:
  """Registers a mixture, unless the same one is registered.

  Args:
    name: the name of the mixture.
    rates: pairs of a task and its mixing rate, which need not sum to 1. Tasks
      with a rate of 0 are left out.

  Returns:
    The name of the mixture.

  Raises:
    UserError: another mixture has the name, or no rate is above 0.
  """
  rates = [(task, rate) for task, rate in rates if rate != 0]
  if not rates:
    raise errors.UserError(
      f"mixture {name!r} is empty: expected at least one rate above 0"
    )
  if name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(name, rates)
  elif _comparable(dict(rates)) != _comparable(
    seqio.MixtureRegistry.get(name).rate_per_task_name
  ):
    raise errors.UserError(
      f"mixture {name!r} is registered with other rates: a registered mixture"
      " never changes, so give this one its own name"
    )
  return name


def _comparable(rates: Mapping[str, Rate]) -> Mapping[str, object]:
  """Describes functions by name and code, as they are after a new import."""
  return {task: _of_rate(rate) for task, rate in rates.items()}


def _of_rate(rate: Rate) -> object:
  if not callable(rate):
    return float(rate)
  function = rate.func if isinstance(rate, functools.partial) else rate
  return comparison.described(rate), _of_code(getattr(function, "__code__", 0))


def _of_code(value: object) -> object:
  """Describes a function's code, within which there may be that of others."""
  if not isinstance(value, types.CodeType):
    return repr(value)
  consts = tuple(map(_of_code, value.co_consts))
  return value.co_code, value.co_names, consts
