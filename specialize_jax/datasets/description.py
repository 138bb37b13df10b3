"""The description of a domain: its questions, answer rules and prompts."""

import dataclasses
import typing
from collections.abc import Callable, Sequence

from specialize_jax.cot import answer_rules, formats
from specialize_jax.data import questions, record_filter

if typing.TYPE_CHECKING:
  import seqio

Questions = Sequence[questions.Question]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
  """A student's SentencePiece model.

  Attributes:
    path: the file; a relative path is relative to the data directory.
    extra_ids: number of sentinel tokens, whose ids follow those of the pieces.
  """

  path: str
  extra_ids: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenPrompt:
  """A prompt by a benchmark's authors, used instead of our formats.

  Attributes:
    name: the end of the task's name, before its version.
    source: a seqio source of rows with the texts `inputs` and `targets`.
    chain_of_thought: whether it asks for a chain of thought.
    grader: the grader whose rule decides if an answer is correct.
  """

  name: str
  source: "seqio.DataSource"
  chain_of_thought: bool
  grader: typing.Literal["fixed", "paper_code"] = "fixed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """The questions of a benchmark, and the rule that judges answers.

  Attributes:
    name: the beginning of the names of its tasks.
    read: reads the questions of a split.
    splits: its splits: "validation", "test" or both.
    answer: the rule that finds an answer and compares it.
    read_demonstrations: reads the demonstrations of in-context prompts.
    prompts: its own prompts, each of which is one task; if it has any, there
      are no tasks in our formats.
  """

  name: str
  read: Callable[[str], Questions]
  splits: tuple[str, ...] = ("validation", "test")
  answer: answer_rules.AnswerRule = answer_rules.NUMBER
  read_demonstrations: Callable[[], Sequence[formats.Demonstration]] | None = (
    None
  )
  prompts: tuple[WrittenPrompt, ...] = ()

  def task(self, data_format: formats.DataFormat) -> str:
    """Returns the name of its task in a format."""
    return f"{self.name}_{data_format.name}_v1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """A domain: its training questions, benchmarks, vocabulary and prompts.

  Attributes:
    name: the beginning of the names of its mixtures.
    vocabulary: the student's vocabulary.
    in_distribution: held-out questions of the distribution of the training
      questions.
    out_of_distribution: benchmarks of the same ability from other sources, by
      which checkpoints are selected.
    general: benchmarks of other abilities, to measure the cost of
      specialization.
    read_training: reads the training questions, which the teacher answers, from
      the file that a user names or from the dataset's own.
    wording: the student's prompts and statements of answers.
    num_demonstrations: number of demonstrations in an in-context prompt.
    teacher_prompt: the template of the teacher's prompt, which has `{question}`
      exactly once; None for the command's default.
    tfds_dir: the directory to which `specialize prepare` writes the teacher's
      data; None for `tfds/` in the data directory.
  """

  name: str
  vocabulary: Vocabulary
  in_distribution: Benchmark
  read_training: Callable[[str | None], record_filter.TrainingQuestions]
  out_of_distribution: tuple[Benchmark, ...] = ()
  general: tuple[Benchmark, ...] = ()
  wording: formats.Wording = formats.PAPER
  num_demonstrations: int = 4
  teacher_prompt: str | None = None
  tfds_dir: str | None = None

  @property
  def teacher_name(self) -> str:
    """Name of the dataset of the teacher's samples."""
    return f"{self.in_distribution.name}_teacher"

  @property
  def benchmarks(self) -> tuple[Benchmark, ...]:
    """All benchmarks, the one in distribution first."""
    return (self.in_distribution, *self.out_of_distribution, *self.general)

  def selection_tasks(self) -> tuple[list[str], str]:
    """Returns the tasks that checkpoints are selected by.

    Returns:
      The tasks whose mean decides: those out of distribution with validation
      questions, or else the one in distribution; and the one in distribution.
    """
    shown = formats.ZERO_SHOT_CHAIN_OF_THOUGHT
    inside = self.in_distribution.task(shown)
    outside = [
      one.task(shown)
      for one in self.out_of_distribution
      if "validation" in one.splits
    ]
    return outside or [inside], inside

  @property
  def formats(self) -> tuple[formats.DataFormat, ...]:
    """The four formats with this dataset's wording."""
    return formats.worded(self.wording)
