"""Which teacher records a student may learn from.

Right ones, of training questions: wrong answers teach wrong steps, and a
validation or test question that is trained on measures nothing.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from specialize_jax.cot import answers
from specialize_jax.data import questions, splits
from specialize_jax.records import schema

WRONG = "wrong answer"
HELD_OUT = "validation or test question"
UNKNOWN = "question not in the training file"
REPEATED = "sample occurs twice"


class QuestionIndex:
  """Finds a record's question, and whether it is held out.

  A question is known by its words; where a record does not hold them, as the
  paper's released ones do not, by its id or its number in the file.
  """

  def __init__(
    self,
    file_order: Sequence[questions.Question],
    held_out: Sequence[questions.Question],
  ) -> None:
    """Indexes questions.

    Args:
      file_order: every question of the training file, in its order.
      held_out: what must not be trained on, whether in that file or not.
    """
    self._file_order = file_order
    self._by_id = {one.question_id: one for one in file_order}
    self._by_words = {splits.words_of(o.question): o for o in file_order}
    self._held_out = {splits.words_of(one.question) for one in held_out}

  def find(self, record: schema.TeacherRecord) -> questions.Question | None:
    """Gives the training file's question, or None where it has none."""
    if record.question:
      return self._by_words.get(splits.words_of(record.question))
    if isinstance(record.question_id, int):
      known = 0 <= record.question_id < len(self._file_order)
      return self._file_order[record.question_id] if known else None
    return self._by_id.get(record.question_id)

  def is_held_out(self, question: str) -> bool:
    """Tells whether a question must not be trained on."""
    return splits.words_of(question) in self._held_out


def right_training_records(
  records: Iterable[schema.TeacherRecord],
  index: QuestionIndex,
  dropped: collections.Counter[str],
) -> Iterator[schema.TeacherRecord]:
  """Gives the records to learn from, each with its question and answer.

  Args:
    records: any records, graded or not.
    index: the training file's questions.
    dropped: counts the others by reason.

  Yields:
    Records with `question_id`, `question` and `gold_answer` as the training
    file has them.
  """
  seen = set()
  for record in records:
    reason, question = _judge(record, index)
    if reason is None and (question.question_id, record.sample) in seen:
      reason = REPEATED
    if reason is not None:
      dropped[reason] += 1
      continue
    seen.add((question.question_id, record.sample))
    yield dataclasses.replace(
      record,
      question_id=question.question_id,
      question=question.question,
      gold_answer=question.answer,
    )


def _judge(
  record: schema.TeacherRecord, index: QuestionIndex
) -> tuple[str | None, questions.Question | None]:
  """Gives why a record is dropped, or None and its question."""
  if record.question and index.is_held_out(record.question):
    return HELD_OUT, None
  question = index.find(record)
  if question is None:
    return UNKNOWN, None
  if index.is_held_out(question.question):
    return HELD_OUT, None
  if not is_right(record, question.answer):
    return WRONG, None
  return None, question


def is_right(record: schema.TeacherRecord, gold_answer: str) -> bool:
  """Gives the `fixed` grader's verdict, grading where none is stored."""
  if "fixed" in record.verdicts:
    return record.verdicts["fixed"]
  return answers.grade(
    record.text, gold_answer, kind="number", grader="fixed"
  ).correct


def gsm8k_index(
  rows: Sequence[questions.Question],
) -> QuestionIndex:
  """Indexes GSM8K's training file; its validation questions are held out."""
  validation, _ = splits.split_validation(rows)
  return QuestionIndex(rows, validation)
