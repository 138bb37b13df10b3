import collections
import dataclasses

from specialize_jax.data import questions, record_filter
from specialize_jax.records import schema


def question(number, answer="5"):
  return questions.Question(
    question_id=f"set/train/{number}",
    question=f"What is {number} and so on?",
    rationale=f"The answer is {answer}",
    answer=answer,
  )


def record(**changes):
  return dataclasses.replace(
    schema.TeacherRecord(
      question_id="set/train/1",
      sample=0,
      question="",
      gold_answer="",
      text="It is. The answer is 5",
      steps=(),
      finish_reason="stop",
      request={},
      verdicts={},
    ),
    **changes,
  )


INDEX = record_filter.QuestionIndex(
  [question(0), question(1), question(2)], held_out=[question(2)]
)


def kept(*records):
  dropped = collections.Counter()
  rows = list(record_filter.right_training_records(records, INDEX, dropped))
  return rows, dict(dropped)


def test_a_right_record_gets_its_question_and_answer():
  rows, dropped = kept(record())
  assert not dropped
  assert rows[0].question == "What is 1 and so on?"
  assert rows[0].gold_answer == "5"


def test_a_question_is_found_by_words_by_number_and_by_id():
  rows, _ = kept(
    record(question_id="elsewhere", question="what is 0, and so on"),
    record(question_id=1),
    record(question_id="set/train/1", sample=1),
  )
  assert [row.question_id for row in rows] == [
    "set/train/0",
    "set/train/1",
    "set/train/1",
  ]


def test_wrong_answers_are_dropped_by_verdict_or_by_grading():
  _, dropped = kept(
    record(verdicts={"fixed": False}),
    record(text="The answer is 6"),
    record(verdicts={"fixed": True}, text="The answer is 6"),
  )
  assert dropped == {record_filter.WRONG: 2}


def test_held_out_questions_are_dropped_however_they_are_named():
  rows, dropped = kept(
    record(question_id=2),
    record(question_id="set/train/2"),
    record(question_id="new", question="WHAT is 2 and so on?"),
  )
  assert not rows
  assert dropped == {record_filter.HELD_OUT: 3}


def test_unknown_questions_and_repeated_samples_are_dropped():
  rows, dropped = kept(
    record(question_id=7),
    record(question_id=-1),
    record(question="Something else?"),
    record(),
    record(),
  )
  assert len(rows) == 1
  assert dropped == {record_filter.UNKNOWN: 3, record_filter.REPEATED: 1}
