"""A prompt has one place for the question, and nothing else is special."""

import re

import pytest

from specialize_jax import errors
from specialize_jax.cot import answers, calculator
from specialize_jax.teacher import prompts


def test_a_question_is_put_in_its_place_as_it_is():
  prompt = prompts.Prompt(template="{a} \\ {question} %s {0}")
  assert prompt.render("{question} \\1") == "{a} \\ {question} \\1 %s {0}"


def test_the_few_shot_prompts_solutions_are_right():
  text = prompts.load("few_shot_chain_of_thought").template
  *solved, asked = text.split("\n\n")
  assert asked == "Question: {question}\nLet's think step by step\n"
  assert len(solved) == 4
  for one in solved:
    sums = re.findall(r"([\d +*/-]+\d) = (\d+)", one)
    assert len(sums) >= 2
    for left, right in sums:
      assert calculator.evaluate(left).amount == int(right), left
    said = answers.extract_number(one.partition("step by step")[2])
    assert sums[-1][1] == said


@pytest.mark.parametrize("count", [0, 2])
def test_a_file_without_exactly_one_place_is_refused(tmp_path, count):
  path = tmp_path / "prompt.txt"
  path.write_text("Solve." + "{question}" * count)
  with pytest.raises(errors.UserError, match=f"has {count} places"):
    prompts.load(str(path))


def test_a_file_is_read_and_told_from_others(tmp_path):
  path = tmp_path / "prompt.txt"
  path.write_text("Solve {question}\n")
  prompt = prompts.load(str(path))
  assert prompt.render("1 + 1?") == "Solve 1 + 1?\n"
  packaged = {prompts.load(name).fingerprint for name in prompts.PACKAGED}
  assert len(packaged | {prompt.fingerprint}) == 3
  with pytest.raises(errors.UserError, match="neither a file nor one of few"):
    prompts.load("few_shot")
