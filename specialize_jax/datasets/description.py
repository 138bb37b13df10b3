"""What a domain is: its questions, its answers and the words around them."""

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
    path: the file; a relative path is looked for in the data directory.
    extra_ids: sentinels above its pieces.
  """

  path: str
  extra_ids: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenPrompt:
  """A prompt that a benchmark's authors wrote, instead of our formats.

  Attributes:
    name: what the task's name ends with, before its version.
    source: a seqio source of rows with the texts `inputs` and `targets`.
    chain_of_thought: whether it asks for one.
    grader: whose rule decides.
  """

  name: str
  source: "seqio.DataSource"
  chain_of_thought: bool
  grader: typing.Literal["fixed", "paper_code"] = "fixed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """Questions that a model is evaluated on, and the rule that judges it.

  Attributes:
    name: what the names of its tasks begin with.
    read: reads a split's questions.
    splits: the splits that it has, "validation", "test" or both.
    answer: what an answer is.
    read_demonstrations: what in-context prompts show.
    prompts: where it has its own: one task for each, and none for our formats.
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
  """Everything that specialization to one domain needs to know of it.

  Attributes:
    name: what the names of its mixtures begin with.
    vocabulary: the student's.
    in_distribution: the questions of the same kind as those that the teacher
      was asked, held out.
    out_of_distribution: of the same ability, from elsewhere; checkpoints are
      selected by them.
    general: other abilities; what they lose is the price.
    read_training: reads what the teacher was asked, from the file that a user
      names or from the dataset's own.
    wording: how the student is asked.
    num_demonstrations: how many an in-context prompt shows.
    teacher_prompt: how the teacher is asked, `{question}` in it once; None for
      the prompt that a command has by default.
    tfds_dir: where `specialize prepare` writes the teacher's data; None for
      `tfds/` in the data directory.
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
    """The name of the dataset of the teacher's rows."""
    return f"{self.in_distribution.name}_teacher"

  @property
  def benchmarks(self) -> tuple[Benchmark, ...]:
    """All that is evaluated on, in distribution first."""
    return (self.in_distribution, *self.out_of_distribution, *self.general)

  @property
  def formats(self) -> tuple[formats.DataFormat, ...]:
    """The four formats in this dataset's words."""
    return formats.worded(self.wording)
