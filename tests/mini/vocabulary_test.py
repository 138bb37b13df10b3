"""Both tokenizers spell every text, alike in any run, each its own way."""

import random

import pytest
import sentencepiece

from specialize_jax.mini import general_tasks, grammar, splits, vocabulary


@pytest.fixture(scope="module")
def texts():
  rng = random.Random(0)
  told = ["Q: How many? A: The answer is 7", "Let's think step by step"]
  for draw in splits.families((0.2, 0.4, 0.3, 0.1)).values():
    drawn = []
    while len(drawn) < 150:
      drawn.extend(draw(rng))
    for problem in drawn:
      solutions = grammar.Grammar(problem, mistake_rate=0.5)
      told += [problem.question, grammar.random_solution(solutions, rng)]
  for draw in general_tasks.TASKS.values():
    exercises = [draw(rng) for _ in range(150)]
    told += [e.question for e in exercises] + [e.rationale for e in exercises]
  return told


@pytest.fixture(scope="module")
def student(texts):
  model = vocabulary.train_student(texts, vocab_size=512)
  return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def teacher(texts):
  return vocabulary.TeacherTokenizer.from_json(
    vocabulary.train_teacher(texts, vocab_size=450)
  )


def test_the_student_is_laid_out_as_t5(student):
  assert (student.pad_id(), student.eos_id(), student.unk_id()) == (0, 1, 2)
  assert student.bos_id() == -1
  assert student.get_piece_size() <= 512


def test_the_student_spells_every_text_without_unknowns(student, texts):
  for text in texts:
    ids = student.encode(text)
    assert 2 not in ids
    assert student.decode(ids) == text
  assert student.encode("a\nb\n\nc") == student.encode("a b c")


def test_every_number_and_every_word_is_one_piece_of_the_student(
  student, texts
):
  for number in range(101):
    assert student.encode(f"{number}", out_type=str) == [f"▁{number}"]
  pieces = student.encode("Tom has 12 + 3 = 15 apples.", out_type=str)
  assert " ".join(pieces) == "▁Tom ▁has ▁12 ▁+ ▁3 ▁= ▁15 ▁apples ."


def test_tokenizers_are_a_function_of_the_texts(texts):
  assert vocabulary.train_student(
    texts, vocab_size=512
  ) == vocabulary.train_student(texts, vocab_size=512)
  assert vocabulary.train_teacher(
    texts, vocab_size=450
  ) == vocabulary.train_teacher(texts, vocab_size=450)


def test_the_teacher_spells_every_text(teacher, texts):
  assert teacher.vocab_size == 450
  for text in [*texts, "Anything else: é, \n 12345?"]:
    tokens = teacher.encode(text)
    assert teacher.end_id not in tokens
    if text.isascii():
      assert "".join(map(teacher.spell, tokens)) == text


def test_teacher_and_student_split_words_differently(teacher, student):
  text = "Rosa has 20 + 7 = 27 cookies."
  tokens = [teacher.spell(t).strip() for t in teacher.encode(text)]
  pieces = [p.strip("▁") for p in student.encode(text, out_type=str)]
  assert tokens != pieces
