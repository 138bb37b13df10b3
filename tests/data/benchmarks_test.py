import collections
import json
import os
import pathlib
import types

import pytest

from specialize_jax import errors
from specialize_jax.data import (
  benchmarks,
  big_bench_hard,
  questions,
  record_filter,
  sources,
  splits,
)

DATASETS = ("gsm8k", "multiarith", "asdiv", "svamp")


@pytest.fixture(scope="session")
def real():
  """Every split of the real files, read once."""
  try:
    directory = sources.data_dir()
  except errors.UserError:
    pytest.skip("the real data are not here; SPECIALIZE_DATA names them")
  if not os.path.isdir(os.path.join(directory, "gsm8k")):
    pytest.skip(f"{directory} has no gsm8k")
  return {
    (dataset, split): benchmarks.read(dataset, split)
    for dataset in DATASETS
    for split in benchmarks.SPLITS[dataset]
  }


def words(rows):
  return {splits.words_of(row.question) for row in rows}


def test_every_real_split_has_its_size(real):
  assert {key: len(rows) for key, rows in real.items()} == {
    ("gsm8k", "train"): 6973,
    ("gsm8k", "validation"): 500,
    ("gsm8k", "test"): 1319,
    ("multiarith", "validation"): 150,
    ("multiarith", "test"): 450,
    ("asdiv", "validation"): 500,
    ("asdiv", "test"): 1593,
    ("svamp", "validation"): 500,
    ("svamp", "test"): 500,
  }


def test_no_question_is_trained_on_and_held_out(real):
  training = words(real["gsm8k", "train"])
  for (dataset, split), rows in real.items():
    if split != "train":
      assert not training & words(rows), (dataset, split)


def test_no_question_is_in_validation_and_in_test(real):
  validation = set().union(
    *(words(rows) for (_, split), rows in real.items() if split == "validation")
  )
  test = set().union(
    *(words(rows) for (_, split), rows in real.items() if split == "test")
  )
  assert not validation & test


def test_no_held_out_question_is_a_demonstration(real):
  shown = {splits.words_of(one.question) for one in benchmarks.demonstrations()}
  assert shown == words(real["gsm8k", "train"])


def test_question_ids_are_unique(real):
  ids = [row.question_id for rows in real.values() for row in rows]
  assert len(ids) == len(set(ids))


def test_every_real_row_is_clean(real):
  for (dataset, split), rows in real.items():
    for row in rows:
      where = f"{dataset} {split} {row.question_id}"
      assert row.question == row.question.strip() != "", where
      assert "<<" not in row.rationale, where
      assert row.rationale.endswith(f"The answer is {row.answer}"), where
      assert benchmarks.one_number(row.answer) == row.answer, where
      if dataset == "svamp":
        assert row.question.endswith("?"), where


def test_the_first_gsm8k_question_reads_as_in_the_docstring(real):
  first = real["gsm8k", "train"][0]
  assert first.question_id == "gsm8k/train/0"
  assert first.answer == "72"
  assert first.rationale == (
    "Natalia sold 48/2 = 24 clips in May.\n"
    "Natalia sold 48+24 = 72 clips altogether in April and May.\n"
    "The answer is 72"
  )


def test_asdiv_keeps_the_problems_with_one_number(real):
  kept = real["asdiv", "validation"] + real["asdiv", "test"]
  assert len(kept) == 2093
  answers = collections.Counter(
    "fraction" if "/" in row.answer else "plain" for row in kept
  )
  assert answers["fraction"] == 9


@pytest.mark.parametrize(
  ("answer", "number"),
  [
    ("9 (apples)", "9"),
    ("14  (seats)", "14"),
    ("12 ( cookies)", "12"),
    ("0.46 (dollars)", "0.46"),
    ("65", "65"),
    ("7/9", "7/9"),
    ("-(1/3)", "-1/3"),
    ("5:6", None),
    ("13; 39", None),
    ("36 (km); 4 (km/hour)", None),
    ("3:30 p.m.", None),
    ("6th", None),
    ("Mrs. Hilt", None),
    ("The 60th caller.", None),
    ("", None),
  ],
)
def test_an_asdiv_answer_is_one_number_or_none(answer, number):
  assert benchmarks.one_number(answer) == number


@pytest.mark.parametrize(
  ("body", "question", "joined"),
  [
    ("A. If he buys 2", "How many?", "A. If he buys 2, how many?"),
    ("He ate 2", "How many?", "He ate 2. How many?"),
    ("He ate 2.", "How many?", "He ate 2. How many?"),
    ("He ate 2.", "How many 3", "He ate 2. How many?"),
    (" He ate. ", " How? ", "He ate. How?"),
  ],
)
def test_svamp_gets_the_punctuation_it_lacks(body, question, joined):
  assert benchmarks.join_svamp(body, question) == joined


def test_svamp_s_real_gaps_are_closed(real):
  rows = real["svamp", "validation"] + real["svamp", "test"]
  by_id = {row.question_id: row.question for row in rows}
  assert by_id["svamp/chal-1"].endswith(
    "on each pack, how much do you have to pay to buy each pack?"
  )
  assert by_id["svamp/chal-774"].endswith("How many old games do they have?")


def test_validation_is_a_quarter_of_a_small_dataset_and_500_of_a_large():
  rows = [
    questions.Question(
      question_id=str(i), question=f"q {i}", rationale="", answer="1"
    )
    for i in range(1000)
  ]
  assert [len(part) for part in splits.split_validation(rows)] == [500, 500]
  assert [len(p) for p in splits.split_validation(rows[:400])] == [100, 300]


def test_validation_depends_on_neither_order_nor_numbering():
  rows = [
    questions.Question(
      question_id=str(i), question=f"q {i % 300}", rationale="", answer="1"
    )
    for i in range(350)
  ]
  validation, rest = splits.split_validation(rows)
  assert words(splits.split_validation(rows[::-1])[0]) == words(validation)
  assert not words(validation) & words(rest)
  assert len(validation) + len(rest) == 350


def test_gsm8k_without_its_answer_mark_is_an_error(tmp_path):
  file = tmp_path / "train.jsonl"
  file.write_text(json.dumps({"question": "q", "answer": "72"}) + "\n")
  with pytest.raises(errors.UserError, match="row 1: .*#### NUMBER"):
    benchmarks.read_gsm8k(str(file), "train")


@pytest.mark.parametrize("content", ["{", "[1]", '[{"ID": 1}]'])
def test_a_file_that_is_not_the_benchmark_is_an_error(tmp_path, content):
  file = tmp_path / "SVAMP.json"
  file.write_text(content)
  with pytest.raises(errors.UserError, match="SVAMP.json"):
    benchmarks.read_svamp(str(file))
  with pytest.raises(errors.UserError, match="ASDiv's XML"):
    benchmarks.read_asdiv(str(file))


@pytest.mark.parametrize(
  ("dataset", "content", "message"),
  [
    (
      "multiarith",
      '[{"iIndex": 1, "sQuestion": "q", "lSolutions": []}]',
      " is not as its authors released it (IndexError: list index out of"
      " range): download it again",
    ),
    (
      "multiarith",
      '[{"iIndex": 1, "sQuestion": "q"}]',
      ": expected a JSON list of objects with iIndex, sQuestion, lSolutions",
    ),
    (
      "svamp",
      '[{"ID": 1, "Body": null, "Question": "q", "Answer": 2}]',
      " is not as its authors released it (AttributeError: 'NoneType' object"
      " has no attribute 'strip'): download it again",
    ),
    (
      "svamp",
      '[{"ID": 1, "Body": "b", "Question": "q", "Answer": NaN}]',
      " is not as its authors released it (ValueError: an answer cannot be"
      " nan): download it again",
    ),
    (
      "asdiv",
      "<r><Problem></r>",
      ": expected ASDiv's XML, got mismatched tag: line 1, column 14",
    ),
  ],
)
def test_a_file_with_other_values_than_its_authors_is_named(
  tmp_path, dataset, content, message
):
  file = tmp_path / "file"
  file.write_text(content)
  with pytest.raises(errors.UserError) as caught:
    benchmarks.rows_of(dataset, "test", lambda name: str(file))
  assert str(caught.value) == f"{file}{message}"


def test_a_benchmark_that_is_not_here_is_named_by_its_file(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(sources, "_chosen", {"path": str(tmp_path)})
  (tmp_path / "tfds" / "svamp" / "1.0.0").mkdir(parents=True)  # not finished
  with pytest.raises(errors.UserError) as caught:
    benchmarks.read("svamp", "test")
  assert str(caught.value) == (
    f"{tmp_path}/svamp/SVAMP.json does not exist: expected svamp/SVAMP.json"
    " under the data directory, which --data_dir or SPECIALIZE_DATA sets"
  )


def test_a_broken_line_is_named(tmp_path):
  file = tmp_path / "train.jsonl"
  file.write_text('{"question": "q", "answer": "#### 1"}\n{"ques')
  with pytest.raises(errors.UserError, match="line 2"):
    benchmarks.read_gsm8k(str(file), "train")
  file.write_text('{"question": "q"}\n')
  with pytest.raises(errors.UserError, match="missing answer"):
    benchmarks.read_gsm8k(str(file), "train")


def test_the_real_prompts_have_three_graded_demonstrations(real):
  del real  # skips where the data are not
  folder = sources.find("bbh/cot-prompts")
  names = sorted(name.removesuffix(".txt") for name in os.listdir(folder))
  assert len(names) == 27
  for name in names:
    path = pathlib.Path(folder, f"{name}.txt")
    prompt = big_bench_hard.parse_prompt(path.read_text("utf-8"), str(path))
    assert len(prompt.demonstrations) == 3, name
    for chain_of_thought in (True, False):
      text = big_bench_hard.render(
        prompt, "Why?", chain_of_thought=chain_of_thought
      )
      assert "canary" not in text.lower()
      assert text.count("\n\nQ: ") == 4, name
      assert text.count("step by step") == 4 * chain_of_thought, name
      assert ("So the answer is" in text) == chain_of_thought, name


def test_a_prompt_file_that_was_cleared_of_its_canary_keeps_its_instruction():
  shown = "Add.\n\nQ: 1 + 1\nA: Let's think. So the answer is 2.\n"
  canary = "BIG-bench canary GUID\n-----\n"
  bare, marked = (
    big_bench_hard.parse_prompt(text, "p") for text in (shown, canary + shown)
  )
  assert bare == marked
  assert bare.instruction == "Add."


def test_a_dataset_of_tfds_s_own_is_not_taken_for_ours():
  info = types.SimpleNamespace(features={"question": 0, "answer": 0})
  theirs = types.SimpleNamespace(
    info=info, data_dir="tfds/gsm8k/1.0.0", name="gsm8k"
  )
  with pytest.raises(errors.UserError, match="is a dataset of TFDS's own"):
    benchmarks.check_ours(theirs)


def test_an_answer_only_prompt_has_questions_and_final_answers():
  prompt = big_bench_hard.parse_prompt(
    "canary\n-----\nAdd.\n\nQ: 1 + 1\nA: Let's think step by step.\n"
    "It is 2. So the answer is 2.\n",
    "add.txt",
  )
  assert (
    big_bench_hard.render(prompt, "3 + 4", chain_of_thought=False)
    == "Add.\n\nQ: 1 + 1\nA: 2\n\nQ: 3 + 4\nA:"
  )
  assert big_bench_hard.render(prompt, "3 + 4", chain_of_thought=True) == (
    "Add.\n\nQ: 1 + 1\nA: Let's think step by step.\n"
    "It is 2. So the answer is 2.\n\nQ: 3 + 4\nA: Let's think step by step."
  )


def test_the_paper_s_code_leaks_a_chain_of_thought_and_loses_a_shot():
  demonstrations = "".join(
    f"\n\nQ: q{i}\nA: Let's think. c{i} So the answer is a{i}."
    for i in range(3)
  )
  text = f"canary\n-----\nAdd.{demonstrations}"
  assert big_bench_hard.render_as_paper_code(text, "q") == (
    "canary\n-----\nAdd.\n\nQ: q0\nA: the answer is a0.\n\n"
    "Q: q1\nA: Let's think. c1 So \n\nQ: q\nA: the answer is "
  )


@pytest.mark.parametrize(
  "body", ["Add.\n", "Add.\n\nQ: 1 + 1\nA: It is 2.\n", "Add.\n\nQ: 1\n"]
)
def test_a_prompt_without_final_answers_is_an_error(body):
  with pytest.raises(errors.UserError, match="add.txt"):
    big_bench_hard.parse_prompt(f"canary\n-----\n{body}", "add.txt")


def test_a_task_file_that_is_not_one_is_an_error(tmp_path):
  file = tmp_path / "add.json"
  file.write_text('{"examples": [{"input": "q"}]}')
  with pytest.raises(errors.UserError, match="add.json"):
    big_bench_hard.read_questions(str(file), "add")


def test_the_teacher_s_real_first_question_may_be_trained_on(real):
  del real  # skips where the data are not
  training = benchmarks.gsm8k_training()
  rows, index = training.asked, record_filter.QuestionIndex(training)
  assert not index.is_held_out(rows[0].question)
  assert sum(index.is_held_out(row.question) for row in rows) == 500


def test_xml_that_declares_entities_is_refused(tmp_path):
  levels = "".join(
    f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12)
  )
  path = tmp_path / "ASDiv.xml"
  path.write_text(
    f'<!DOCTYPE r [<!ENTITY e0 "lol">{levels}]><r><Problem ID="1"><Body>&e11;'
    "</Body><Answer>1</Answer></Problem></r>"
  )
  with pytest.raises(errors.UserError, match="expected ASDiv's XML, got a DOC"):
    benchmarks.read_asdiv(path)
