"""The four formats spell the paper's wording."""

import doctest

import pytest

from specialize_jax import errors
from specialize_jax.cot import formats

ONE = formats.Demonstration(
  question="1 + 1?", rationale="1 + 1 = 2\nThe answer is 2", answer="2"
)
TWO = formats.Demonstration(
  question="2 + 2?", rationale="2 + 2 = 4\nThe answer is 4", answer="4"
)


def test_the_docstrings_numbers_are_true():
  outcome = doctest.testmod(formats)
  assert outcome.attempted > 0
  assert outcome.failed == 0


def test_the_four_formats_are_the_four_combinations():
  pairs = {(f.in_context, f.chain_of_thought) for f in formats.FORMATS}
  assert len(pairs) == len(formats.FORMATS) == 4
  for data_format in formats.FORMATS:
    context = "in_context" if data_format.in_context else "zero_shot"
    kind = "chain_of_thought" if data_format.chain_of_thought else "answer_only"
    assert data_format.name == f"{context}_{kind}"
    assert formats.by_name(data_format.name) is data_format


def test_an_in_context_prompt_is_demonstrations_then_the_question():
  assert formats.render_prompt(
    "3 + 3?", formats.IN_CONTEXT_CHAIN_OF_THOUGHT, (ONE, TWO)
  ) == (
    "Q: 1 + 1?\nLet's think step by step\n1 + 1 = 2\nThe answer is 2\n\n"
    "Q: 2 + 2?\nLet's think step by step\n2 + 2 = 4\nThe answer is 4\n\n"
    "Q: 3 + 3?\nLet's think step by step"
  )
  assert formats.render_prompt(
    "3 + 3?", formats.IN_CONTEXT_ANSWER_ONLY, (ONE,)
  ) == ("Q: 1 + 1?\nA: The answer is 2\n\nQ: 3 + 3?\nA:")


def test_a_zero_shot_prompt_is_the_question_alone():
  for data_format in (
    formats.ZERO_SHOT_ANSWER_ONLY,
    formats.ZERO_SHOT_CHAIN_OF_THOUGHT,
  ):
    prompt = formats.render_prompt("3 + 3?", data_format)
    assert prompt == formats.render_question("3 + 3?", data_format)


def test_demonstrations_and_format_must_agree():
  with pytest.raises(errors.UserError, match="needs demonstrations"):
    formats.render_prompt("q", formats.IN_CONTEXT_ANSWER_ONLY)
  with pytest.raises(errors.UserError, match="takes no demonstrations"):
    formats.render_prompt("q", formats.ZERO_SHOT_ANSWER_ONLY, (ONE,))


def test_an_unknown_format_names_the_known_ones():
  with pytest.raises(errors.UserError, match="zero_shot_answer_only"):
    formats.by_name("few_shot")
