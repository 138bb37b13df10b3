"""Selects the teacher records that a student is trained on.

A record is kept if its answer is correct and finished, and its question is a
training question: wrong answers teach wrong steps, truncated ones teach to stop
anywhere, and a validation or test question must not be trained on.

Answers are graded here, from the record's text and by the dataset's rule; a
verdict stored in the record is ignored, as it may be by another rule.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.data import questions, splits
from specialize_jax.records import columnar, schema

WRONG = "wrong answer"
HELD_OUT = "validation or test question"
"""Includes validation questions only if their records are not wanted."""
UNKNOWN = "question not in the training file"
REPEATED = "sample occurs twice"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingQuestions:
  """The questions that a teacher was asked, and those to exclude.

  Attributes:
    asked: Every question of the training file, in order.
    held_out: Questions that must not be trained on, in that file or not.
    validation: Those of `held_out` whose records are used for validation.
    words_fn: Maps a question to a key that is equal for equal questions.
  """

  asked: Sequence[questions.Question]
  held_out: Sequence[questions.Question] = ()
  validation: Sequence[questions.Question] = ()
  words_fn: Callable[[str], str] = splits.words_of


class QuestionIndex:
  """Finds the question of a record, and whether it is held out.

  Questions are matched by their words or, if a record has no question text (as
  in the paper's released files), by id or by number in the file.
  """

  def __init__(
    self, training: TrainingQuestions, *, validation: bool = True
  ) -> None:
    """Indexes questions.

    Args:
      training: The questions. Validation questions that are not in the training
        file are numbered after those that are.
      validation: Whether records of validation questions are wanted, too.
    """
    # A teacher is asked the same question many times.
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
    # Of repeated questions, the dictionary keeps the last.
    self._by_id = {self.file_order[n].question_id: n for n in numbers}
    # Numbering may begin anew in the file of the validation questions.
    self._shared_ids = {
      one.question_id
      for one in training.asked
      if words_of(self.file_order[self._by_id[one.question_id]].question)
      != words_of(one.question)
    }
    self._by_text = {self.file_order[n].question.strip(): n for n in numbers}
    self._by_words = {words_of(self.file_order[n].question): n for n in numbers}
    self._held_out = {words_of(one.question) for one in training.held_out}

  def find(self, head: schema.RecordHead) -> int | None:
    """Returns the number of a record's question; None if it is unknown."""
    if head.question:
      # Two questions may differ in what makes no words: "is A large" and "a".
      found = self._by_text.get(head.question.strip())
      return (
        self._by_words.get(self._words_of(head.question))
        if found is None
        else found
      )
    if str(head.question_id) in self._shared_ids:
      raise errors.UserError(
        f"a record has the question_id {head.question_id} and no question: that"
        " is the id of two questions; import the records with --questions or"
        " --dataset, so that they have their questions"
      )
    named = self._by_id.get(str(head.question_id))
    if not isinstance(head.question_id, int):
      return named
    known = 0 <= head.question_id < self._num_in_file
    numbered = head.question_id if known else None
    if named is not None and numbered is not None and named != numbered:
      raise errors.UserError(
        f"a record has the question_id {head.question_id} and no question: that"
        f" is the id of question {named + 1} of the file, and the number, from"
        f" 0, of question {numbered + 1}; import the records with --questions"
        " or --dataset, so that they have their questions"
      )
    return numbered if named is None else named

  def is_held_out(self, question: str) -> bool:
    """Returns whether a question must not be trained on."""
    return self._words_of(question) in self._held_out

  def is_validation(self, number: int) -> bool:
    """Returns whether a question is a validation question."""
    words = self._words_of(self.file_order[number].question)
    return words in self._validation


class Picked(NamedTuple):
  """A row to train on.

  Attributes:
    number: The number of its question.
    sample: Its number among the question's samples.
  """

  number: int
  sample: int


class RightTrainingRows:
  """Picks the rows to train on, and counts the others by reason.

  Rows of validation questions are picked, too; `QuestionIndex.is_validation`
  distinguishes them.

  Attributes:
    dropped: The number of rows dropped, by reason.
  """

  def __init__(
    self,
    index: QuestionIndex,
    *,
    rule: answer_rules.AnswerRule = answer_rules.NUMBER,
    keep_truncated: bool = False,
  ) -> None:
    """Creates a filter.

    Args:
      index: The training file's questions.
      rule: The rule by which answers are extracted and compared.
      keep_truncated: Whether to pick samples that are not finished answers.
    """
    self._index = index
    self._rule = rule
    self._keep_truncated = keep_truncated
    self._seen: set[Picked] = set()
    self.dropped: collections.Counter[str] = collections.Counter()

  def pick(self, row: columnar.Row) -> Picked | None:
    """Returns a row's question and sample; None if the row is dropped."""
    reason, number = _judge(row, self._index, self._rule)
    if number is not None and not self._keep_truncated:
      reason = schema.why_unfinished(row.head, len(row.steps)) or reason
    picked = None
    if reason is None:
      asked = self._index.file_order[number].question_id
      picked = Picked(number, _sample_number(row.head, {asked, number}))
      reason = REPEATED if picked in self._seen else None
    if reason is not None:
      self.dropped[reason] += 1
      return None
    self._seen.add(picked)
    return picked


def _sample_number(
  head: schema.RecordHead, question_ids: Collection[str | int]
) -> int:
  """Returns a record's number among the samples of its question.

  Records of one question may have ids of their own: each request of a batch
  file has one, and a file may ask a question twice. Their samples are numbered
  by id, and get numbers here that depend on the record alone, so that workers
  which filter in parallel agree.

  Args:
    head: The record's ids.
    question_ids: The ids of the question itself; the samples of a record with
      one of them keep their numbers.
  """
  if head.question_id in question_ids:
    return head.sample
  name = f"{head.question_id}#{head.sample}"
  digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
  return int.from_bytes(digest[:6])


def _judge(
  row: columnar.Row, index: QuestionIndex, rule: answer_rules.AnswerRule
) -> tuple[str | None, int | None]:
  """Returns the reason to drop a row (or None), and its question's number."""
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
