"""Renders prompts and targets as text, and extracts and grades answers.

Plain Python on plain strings. A data format is rendered by the same functions
in training, in evaluation and in a teacher's prompt.

Example:
  >>> from specialize_jax.cot import answers, formats
  >>> formats.render_prompt("1 + 1?", formats.ZERO_SHOT_ANSWER_ONLY)
  'Q: 1 + 1? A:'
  >>> answers.grade("So the answer is 2.0.", "2").correct
  True
"""
