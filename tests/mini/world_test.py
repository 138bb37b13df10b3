"""A world on disk: whole, disjoint, the same from the same seed."""

import collections
import filecmp
import itertools
import json
import re

import pytest
import sentencepiece

from specialize_jax import errors
from specialize_jax.mini import lexicon, problems, splits, world
from specialize_jax.records import store

CONFIG = world.WorldConfig(
  train_size=60,
  out_of_distribution_train_size=20,
  validation_size=20,
  test_size=30,
  general_train_size=40,
  general_validation_size=10,
  general_test_size=20,
  weak_maths_size=30,
  samples_per_question=3,
)
MATHS = ("mini_gsm", "mini_multiarith", "mini_asdiv", "mini_svamp")
GENERAL = (
  "mini_boolean_expressions",
  "mini_word_sorting",
  "mini_object_counting",
  "mini_navigate",
)
SIZES = {
  "mini_gsm": (60, 20, 30),
  **dict.fromkeys(MATHS[1:], (20, 20, 30)),
  **dict.fromkeys(GENERAL, (40, 10, 20)),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  place = tmp_path_factory.mktemp("world")
  world.build(place, seed=0, config=CONFIG)
  return place


def rows_of(directory, name, split):
  lines = (directory / "mini" / name / f"{split}.jsonl").read_text()
  return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize("name", SIZES)
def test_every_file_has_its_rows(directory, name):
  for split, size in zip(splits.SPLITS, SIZES[name], strict=True):
    rows = rows_of(directory, name, split)
    assert [row["question_id"] for row in rows] == [
      f"{name}/{split}/{index}" for index in range(size)
    ]
    for row in rows:
      assert set(row) == {"question_id", "question", "answer", "rationale"}
      assert row["rationale"].endswith(f"The answer is {row['answer']}.")


def everything(directory):
  """Every question of the world with the split that it belongs to."""
  for name, split in itertools.product(SIZES, splits.SPLITS):
    for row in rows_of(directory, name, split):
      yield row["question_id"], row["question"], split
  for row in rows_of(directory, "weak_maths", "train"):
    yield row["question_id"], row["question"], "train"


def test_train_validation_and_test_are_disjoint_by_problem(directory):
  ids = [name for name, *_ in everything(directory)]
  assert len(ids) == len(set(ids))
  splits_of = collections.defaultdict(set)
  for name, question, split in everything(directory):
    # A general task's exercise may be about the very things it names.
    told = (
      question if name.startswith(GENERAL) else problems.normalize(question)
    )
    splits_of[told].add(split)
  assert len(splits_of) > 500
  shared = [key for key, found in splits_of.items() if len(found) > 1]
  assert not shared


@pytest.mark.parametrize("seed", [0, 1])
def test_no_story_is_in_two_splits_whatever_its_question(seed):
  drawn = world.draw_world(seed, CONFIG)
  split_of = {}
  items = [("train", item) for item in drawn.weak_maths]
  for by_split in (*drawn.maths.values(), *drawn.general.values()):
    for split, filled in by_split.items():
      items += [(split, item) for item in filled]
  for split, item in items:
    assert split_of.setdefault(item.key, split) == split


def test_questions_do_not_repeat_within_a_split(directory):
  for name, split in itertools.product(SIZES, splits.SPLITS):
    questions = [row["question"] for row in rows_of(directory, name, split)]
    assert len(questions) == len(set(questions))


def test_facts_are_bare_answers_and_rationales(directory):
  rows = rows_of(directory, "facts", "train")
  assert all(row["question"].endswith(" =") for row in rows)
  assert collections.Counter(row["format"] for row in rows) == {
    "zero_shot_answer_only": len(rows) / 2,
    "zero_shot_chain_of_thought": len(rows) / 2,
  }


def test_weak_maths_is_one_step_problems_for_bare_answers(directory):
  rows = rows_of(directory, "weak_maths", "train")
  assert len(rows) == 4 * CONFIG.weak_maths_size
  assert {row["format"] for row in rows} == {"zero_shot_answer_only"}
  assert all(row["rationale"].count("=") == 1 for row in rows)


def test_sums_are_those_of_weak_maths_and_keep_their_result(directory):
  weak = {
    row["question"]: row for row in rows_of(directory, "weak_maths", "train")
  }
  rows = rows_of(directory, "sums", "train")
  assert len(rows) == len(weak)
  for row in rows:
    problem = weak[row["question"].removesuffix(" Which sum is it?")]
    assert f" {row['answer']} = {problem['answer']} " in problem["rationale"]
    assert "=" not in row["answer"] + row["rationale"]


def test_reading_lists_names_and_numbers_of_training_stories_only(directory):
  rows = rows_of(directory, "reading", "train")
  told = {
    question
    for name, question, split in everything(directory)
    if split == "train"
  }
  assert rows
  for row in rows:
    body = row["question"].removesuffix(" List the names and numbers.")
    assert any(question.startswith(body) for question in told)
    words = re.findall(r"[A-Za-z]+|[0-9]+", body)
    listed = [w for w in words if w.isdecimal() or w in lexicon.NAMES]
    assert row["answer"].split() == listed


def test_plain_text_is_the_training_questions_alone(directory):
  trained_on = {
    question
    for name, question, split in everything(directory)
    if split == "train" and not name.startswith("weak_maths")
  }
  rows = rows_of(directory, "text", "train")
  assert {row["text"] for row in rows} == trained_on


def test_records_are_of_training_and_validation_questions(directory):
  rows = {
    row["question_id"]: row
    for split in ("train", "validation")
    for row in rows_of(directory, "mini_gsm", split)
  }
  records = list(store.read_records(directory / "mini" / "records"))
  num_questions = CONFIG.train_size + CONFIG.validation_size
  assert len(records) == num_questions * CONFIG.samples_per_question
  assert {record.question_id for record in records} == set(rows)
  for record in records:
    row = rows[record.question_id]
    assert record.question == row["question"]
    assert record.gold_answer == row["answer"]
    right = record.text.endswith(f" {row['answer']}.")
    assert record.verdicts == {"fixed": right}
    assert record.request["temperature"] == CONFIG.temperature


def test_the_student_spells_all_that_was_written(directory):
  student = sentencepiece.SentencePieceProcessor(
    model_file=str(directory / "mini" / "student.model")
  )
  for _, question, _ in everything(directory):
    ids = student.encode(question)
    assert 2 not in ids
    assert student.decode(ids) == question
  for record in store.read_records(directory / "mini" / "records"):
    assert student.decode(student.encode(record.text)) == record.text


def test_a_world_is_a_function_of_its_seed(directory, tmp_path):
  world.build(tmp_path / "same", seed=0, config=CONFIG)
  files = [p for p in (directory / "mini").rglob("*") if p.is_file()]
  assert len(files) == 8 * 3 + 5 + 4
  for path in files:
    other = tmp_path / "same" / path.relative_to(directory)
    assert filecmp.cmp(path, other, shallow=False), path


def test_another_seed_is_another_world(directory, tmp_path):
  bare = world.WorldConfig(**{**vars(CONFIG), "samples_per_question": 0})
  world.build(tmp_path, seed=1, config=bare)
  assert rows_of(tmp_path, "mini_gsm", "test") != rows_of(
    directory, "mini_gsm", "test"
  )
  assert not (tmp_path / "mini" / "records").exists()


def test_a_built_world_is_kept_and_another_is_refused(directory):
  before = (directory / "mini" / "student.model").stat().st_mtime_ns
  world.build(directory, seed=0, config=CONFIG)
  assert (directory / "mini" / "student.model").stat().st_mtime_ns == before
  with pytest.raises(errors.UserError, match=r"differs in seed.*delete"):
    world.build(directory, seed=1, config=CONFIG)
  with pytest.raises(errors.UserError, match=r"differs in config.*delete"):
    world.build(directory, seed=0, config=world.WorldConfig())


def test_a_worlds_style_is_written_down_unless_it_is_the_first_one(
  directory, tmp_path
):
  """So that worlds which were built before there were styles are kept."""
  manifest = json.loads((directory / "mini" / "world.json").read_text())
  assert "style" not in manifest["config"]
  small = {**vars(CONFIG), "samples_per_question": 1, "temperature": 0.5}
  calibrated = world.WorldConfig(**{**small, "style": "calibrated"})
  world.build(tmp_path, seed=0, config=calibrated)
  manifest = json.loads((tmp_path / "mini" / "world.json").read_text())
  assert manifest["config"]["style"] == "calibrated"
  with pytest.raises(errors.UserError, match="differs in config"):
    world.build(tmp_path, seed=0, config=world.WorldConfig(**small))
  # The two worlds ask the same questions, and answer them in other words.
  assert rows_of(tmp_path, "mini_gsm", "test") == rows_of(
    directory, "mini_gsm", "test"
  )
  models = {
    record.request["model"]
    for record in store.read_records(tmp_path / "mini" / "records")
  }
  assert models == {"mini-teacher-calibrated"}
  student = sentencepiece.SentencePieceProcessor(
    model_file=str(tmp_path / "mini" / "student.model")
  )
  assert student.get_piece_size() <= 368  # of the demo's student, 16 reserved


def test_a_style_that_does_not_exist_is_refused():
  with pytest.raises(errors.UserError, match="style='sure' is not one of"):
    world.WorldConfig(style="sure")


def test_a_failed_build_leaves_nothing(tmp_path):
  greedy = world.WorldConfig(**{**vars(CONFIG), "general_test_size": 20_000})
  with pytest.raises(errors.UserError, match=r"20000 test problems of mini_"):
    world.build(tmp_path, seed=0, config=greedy)
  assert list(tmp_path.iterdir()) == []
