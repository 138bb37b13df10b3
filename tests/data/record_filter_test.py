import dataclasses
import json

import pytest

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.data import preparation, questions, record_filter
from specialize_jax.records import columnar, schema


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


ASKED = [question(0), question(1), question(2)]
INDEX = record_filter.QuestionIndex(
  record_filter.TrainingQuestions(asked=ASKED, held_out=[question(2)])
)


def kept(*records, keep_truncated=False):
  """Returns the numbers of the questions of what is kept, and the dropped."""
  picker = record_filter.RightTrainingRows(INDEX, keep_truncated=keep_truncated)
  rows = [columnar.parse(columnar.to_line(one, "here")) for one in records]
  picked = [picker.pick(row) for row in rows]
  return [one.number for one in picked if one], dict(picker.dropped)


def test_a_right_record_gets_its_question():
  assert kept(record()) == ([1], {})


def test_a_question_is_found_by_words_by_number_and_by_id():
  numbers, _ = kept(
    record(question_id="elsewhere", question="what is 0, and so on"),
    record(question_id=1),
    record(question_id="set/train/1", sample=1),
  )
  assert numbers == [0, 1, 1]


def test_a_number_that_is_the_id_of_another_question_is_refused():
  asked = [
    dataclasses.replace(one, question_id=name)
    for one, name in zip(ASKED, ("1", "a", "b"), strict=True)
  ]
  index = record_filter.QuestionIndex(
    record_filter.TrainingQuestions(asked=asked)
  )
  assert index.find(record(question_id="1")) == 0
  assert index.find(record(question_id=0)) == 0
  with pytest.raises(errors.UserError, match="id of question 1 of the file"):
    index.find(record(question_id=1))


def test_an_id_of_a_training_and_of_a_validation_question_is_refused():
  """As where each file numbers its rows anew."""
  other = dataclasses.replace(question(9), question_id="set/train/1")
  index = record_filter.QuestionIndex(
    record_filter.TrainingQuestions(
      asked=ASKED, held_out=[other], validation=[other]
    )
  )
  assert index.find(record(question_id="set/train/0")) == 0
  with pytest.raises(errors.UserError, match="the id of two questions; import"):
    index.find(record(question_id="set/train/1"))
  asked = record(question_id="set/train/1", question=ASKED[1].question)
  assert index.find(asked) == 1


def test_samples_of_a_question_under_several_ids_are_all_kept():
  """A batch file has an id for each request, and each is sample 0 of its id."""
  ids = ("set/train/1", "request-1", "request-2", 7)
  rows = [
    columnar.parse(
      columnar.to_line(
        record(question_id=name, question="What is 1 and so on?"), "here"
      )
    )
    for name in (*ids, *ids)
  ]
  pickers = [record_filter.RightTrainingRows(INDEX) for _ in range(2)]
  first = [pickers[0].pick(row) for row in rows]
  assert [one.number for one in first[:4]] == [1] * 4
  assert first[0].sample == 0 and len(set(first[:4])) == 4
  assert first[4:] == [None] * 4
  assert pickers[0].dropped == {record_filter.REPEATED: 4}
  # Another worker, which reads another part of the store, numbers alike.
  assert pickers[1].pick(rows[2]) == first[2]


def test_of_questions_of_the_same_words_a_record_is_of_the_one_it_asks():
  texts = ["Is A a capital?", "Is a a capital?"]
  asked = [dataclasses.replace(question(i), question=texts[i]) for i in (0, 1)]
  index = record_filter.QuestionIndex(
    record_filter.TrainingQuestions(asked=asked)
  )
  assert [index.find(record(question=text)) for text in texts] == [0, 1]
  assert index.find(record(question="is A a capital")) == 1


def test_questions_that_differ_in_a_sign_are_two_questions(tmp_path):
  texts = {"train": "What is 8 * 2?", "validation": "What is 8 / 2?"}
  for split, text in texts.items():
    row = {"question_id": split, "question": text, "answer": "16"}
    row["rationale"] = ""
    (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
  index = record_filter.QuestionIndex(
    preparation.questions_of_files(str(tmp_path / "train.jsonl"))
  )
  train, validation = (
    index.find(record(question=f"{text} ")) for text in texts.values()
  )
  assert index.file_order[train].question == texts["train"]
  assert not index.is_validation(train)
  assert not index.is_held_out(texts["train"])
  assert index.is_validation(validation)


def test_a_verdict_is_derived_from_the_text_and_never_remembered():
  numbers, dropped = kept(
    record(verdicts={"fixed": False}),
    record(sample=1, text="The answer is 6"),
    record(sample=2, verdicts={"fixed": True}, text="The answer is 6"),
  )
  assert numbers == [1]
  assert dropped == {record_filter.WRONG: 2}


def test_a_record_is_judged_by_the_rule_of_its_dataset():
  rule = answer_rules.AnswerRule(kind="regex", pattern="queue: (?P<answer>.+)")
  labels = record_filter.QuestionIndex(
    record_filter.TrainingQuestions(asked=[question(1, answer="late parcel")])
  )
  picker = record_filter.RightTrainingRows(labels, rule=rule)
  for sample, text in enumerate(["queue: Late parcel", "queue: lost parcel"]):
    said = record(sample=sample, text=text, verdicts={"fixed": sample == 1})
    picker.pick(columnar.parse(columnar.to_line(said, "here")))
  assert dict(picker.dropped) == {record_filter.WRONG: 1}


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


@pytest.mark.parametrize(
  "reason",
  [
    "length",
    "content_filter",
    "tool_calls",
    "error",
    "",
    "STOPPED",
    "max_tokens",
  ],
)
def test_what_is_not_finished_is_dropped_with_the_servers_word(reason):
  cut = record(finish_reason=reason)
  assert kept(cut) == ([], {f"not finished: it ended by {reason!r}": 1})
  assert kept(cut, keep_truncated=True) == ([1], {})


@pytest.mark.parametrize(
  "reason", ["stop", "eos", "STOP", "eos_token", "COMPLETE", "unknown"]
)
def test_what_may_be_finished_is_kept(reason):
  assert kept(record(finish_reason=reason)) == ([1], {})


def test_without_a_reason_the_number_of_tokens_speaks():
  step = schema.TeacherStep(token="5", log_prob=-0.1, top=())

  def sample(num_tokens, reason="unknown", **request):
    return record(
      text="5",
      steps=(step,) * num_tokens,
      verdicts={"fixed": True},
      finish_reason=reason,
      request=request,
    )

  assert kept(sample(3, max_tokens=4)) == ([1], {})
  assert kept(sample(4, max_tokens=None)) == ([1], {})
  assert kept(sample(4, reason="stop", max_tokens=4)) == ([1], {})
  for name in ("max_tokens", "max_completion_tokens", "n_predict"):
    numbers, dropped = kept(sample(4, **{name: 4}))
    assert not numbers
    assert f"cut at {name}" in next(iter(dropped))
  extra = {"max_tokens": None, "max_completion_tokens": 3}
  assert kept(sample(2, max_tokens=4, extra=extra)) == ([1], {})
  assert kept(sample(3, max_tokens=4, extra=extra))[0] == []
  assert kept(sample(5, max_tokens=4, extra={"max_tokens": 9})) == ([1], {})
  assert kept(sample(3, reason="null", max_tokens=4)) == ([1], {})
  assert kept(sample(4, reason="null", max_tokens=4))[0] == []
  numbers, dropped = kept(sample(3, reason="null"))
  assert not numbers
  assert "its finish_reason is null" in next(iter(dropped))
  # A reasoning that was cut off took its share.
  usage = {"reasoning_tokens": 96}
  assert kept(sample(3, max_tokens=100, usage=usage)) == ([1], {})
  assert kept(sample(4, max_tokens=100, usage=usage))[0] == []


def test_a_wrong_answer_that_was_cut_off_is_counted_as_cut_off():
  _, dropped = kept(record(finish_reason="length", text="The answer is 6"))
  assert dropped == {"not finished: it ended by 'length'": 1}
