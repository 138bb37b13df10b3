"""Which teacher records a student may learn from.

A verdict is derived here from the record's text, by the dataset's own rule, and
never taken from the record, whose writer may have known another rule.

Right and finished ones, of training questions: wrong answers teach wrong
steps, one that was cut off teaches to stop anywhere, and a validation or test
question that is trained on measures nothing.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence

from specialize_jax.cot import answer_rules
from specialize_jax.data import questions, splits
from specialize_jax.records import columnar, schema

WRONG = "wrong answer"
HELD_OUT = "validation or test question"
"""Of validation questions only where their records are not asked for."""
UNKNOWN = "question not in the training file"
REPEATED = "sample occurs twice"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingQuestions:
  """The questions that a teacher was asked, and those to keep out.

  Attributes:
    asked: every question of the training file, in its order.
    held_out: what must not be trained on, whether in that file or not.
    validation: those of `held_out` whose records a student is validated by.
    words_fn: what makes two questions the same.
  """

  asked: Sequence[questions.Question]
  held_out: Sequence[questions.Question] = ()
  validation: Sequence[questions.Question] = ()
  words_fn: Callable[[str], str] = splits.words_of


class QuestionIndex:
  """Finds a record's question, and whether it is held out.

  A question is known by its words; where a record does not hold them, as the
  paper's released ones do not, by its id or its number in the file.
  """

  def __init__(
    self, training: TrainingQuestions, *, validation: bool = True
  ) -> None:
    """Indexes questions.

    Args:
      training: the questions; the numbers of validation questions that are not
        in the training file follow its own.
      validation: whether records of validation questions are picked too.
    """
    # Teachers are asked the same question many times over.
    words_of = functools.lru_cache(maxsize=1 << 15)(training.words_fn)
    self._words_of = words_of
    self._num_in_file = len(training.asked)
    validated = training.validation if validation else ()
    known = {words_of(one.question) for one in training.asked}
    self._validation = {words_of(one.question) for one in validated}
    self.file_order = [
      *training.asked,
      *(q for q in validated if words_of(q.question) not in known),
    ]
    numbers = range(len(self.file_order))
    # The last of repeated questions, as a dictionary has it.
    self._by_id = {self.file_order[n].question_id: n for n in numbers}
    self._by_words = {words_of(self.file_order[n].question): n for n in numbers}
    self._held_out = {words_of(one.question) for one in training.held_out}

  def find(self, head: schema.RecordHead) -> int | None:
    """Returns the number of a question in the training file, None for none."""
    if head.question:
      return self._by_words.get(self._words_of(head.question))
    if isinstance(head.question_id, int):
      known = 0 <= head.question_id < self._num_in_file
      return head.question_id if known else None
    return self._by_id.get(head.question_id)

  def is_held_out(self, question: str) -> bool:
    """Returns whether a question must not be trained on."""
    return self._words_of(question) in self._held_out

  def is_validation(self, number: int) -> bool:
    """Returns whether a question is one of validation."""
    words = self._words_of(self.file_order[number].question)
    return words in self._validation


class RightTrainingRows:
  """Picks the rows to learn from, and counts the others by reason.

  Those of validation questions are picked too: ask the index which they are.

  Attributes:
    dropped: how many rows were dropped, by reason.
  """

  def __init__(
    self,
    index: QuestionIndex,
    *,
    rule: answer_rules.AnswerRule = answer_rules.NUMBER,
    keep_truncated: bool = False,
  ) -> None:
    """Starts with no row seen.

    Args:
      index: the training file's questions.
      rule: what an answer is.
      keep_truncated: whether samples that are not finished answers are kept.
    """
    self._index = index
    self._rule = rule
    self._keep_truncated = keep_truncated
    self._seen: set[tuple[int, int]] = set()
    self.dropped: collections.Counter[str] = collections.Counter()

  def pick(self, row: columnar.Row) -> int | None:
    """Returns the number of a row's question, or None for a row to drop."""
    reason, number = _judge(row, self._index, self._rule)
    if number is not None and not self._keep_truncated:
      reason = schema.why_unfinished(row.head, len(row.steps)) or reason
    if reason is None and (number, row.head.sample) in self._seen:
      reason = REPEATED
    if reason is not None:
      self.dropped[reason] += 1
      return None
    self._seen.add((number, row.head.sample))
    return number


def _judge(
  row: columnar.Row, index: QuestionIndex, rule: answer_rules.AnswerRule
) -> tuple[str | None, int | None]:
  """Returns why a row is dropped, or None, and its question's number."""
  number = index.find(row.head)
  if number is None:
    asked = row.head.question
    held_out = bool(asked) and index.is_held_out(asked)
    return (HELD_OUT if held_out else UNKNOWN), None
  question = index.file_order[number]
  if index.is_held_out(question.question) and not index.is_validation(number):
    return HELD_OUT, None
  if not rule.finds(row.text, question.answer):
    return WRONG, number
  return None, number
