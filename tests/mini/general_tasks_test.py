"""The general tasks' answers are right, worked out another way."""

import collections
import random
import re

import pytest

from specialize_jax.mini import general_tasks, lexicon


def draw_many(name, count=500):
  rng = random.Random(name)
  return [general_tasks.TASKS[name](rng) for _ in range(count)]


@pytest.mark.parametrize("name", general_tasks.TASKS)
def test_a_rationale_ends_in_its_answer(name):
  for exercise in draw_many(name):
    assert exercise.rationale.endswith(f"The answer is {exercise.answer}.")
    assert exercise.rationale.count("The answer is") == 1


def test_boolean_expressions_equal_pythons_value():
  answers = collections.Counter()
  for exercise in draw_many("mini_boolean_expressions"):
    expression = exercise.question.removesuffix(" is")
    assert exercise.answer == str(eval(expression))
    for sentence in exercise.rationale.split(". ")[:-1]:
      left, right = sentence.split(" = ")
      assert str(eval(left)) == right
    answers[exercise.answer] += 1
  assert min(answers.values()) > 150


def test_words_are_sorted_and_a_list_is_one_exercise_in_any_order():
  for exercise in draw_many("mini_word_sorting"):
    words = exercise.question.split("List: ")[1].split()
    assert len(words) in (3, 4)
    assert exercise.answer == exercise.key == " ".join(sorted(words))


def test_only_the_kind_in_question_is_counted():
  kinds = {"fruits": lexicon.FRUITS, "animals": lexicon.ANIMALS}
  for exercise in draw_many("mini_object_counting"):
    members = kinds[re.search(r"How many (\w+)", exercise.question)[1]]
    amounts = re.findall(r"(\d+) (\w+)", exercise.question)
    counted = sum(int(n) for n, word in amounts if word in members)
    assert exercise.answer == str(counted)
    assert any(word not in members for _, word in amounts)


def test_moves_lead_back_half_of_the_time():
  answers = collections.Counter()
  for exercise in draw_many("mini_navigate"):
    position = collections.Counter()
    for steps, side in re.findall(r"Take (\d+) steps (\w+)", exercise.question):
      position[side] += int(steps)
    back = (
      position["left"] == position["right"]
      and position["forward"] == position["back"]
    )
    assert exercise.answer == ("Yes" if back else "No")
    answers[exercise.answer] += 1
    for left, sign, right, result in re.findall(
      r"(\d+) ([+-]) (\d+) = (\d+)", exercise.rationale
    ):
      assert eval(f"{left} {sign} {right}") == int(result)
  assert 200 < answers["Yes"] < 300
