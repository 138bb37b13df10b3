"""Data for general pre-training only: arithmetic, bare answers and reading.

The general student, which takes the place of FlanT5, knows words, arithmetic
and reading. It was trained on math problems with their answers, but not on
step-by-step solutions.
"""

import re
from collections.abc import Sequence

from specialize_jax.cot import formats
from specialize_jax.mini import (
  arithmetic,
  general_tasks,
  grammar,
  lexicon,
  problems,
)

Row = dict[str, str]

_LISTED = re.compile(r"[0-9]+|" + "|".join(lexicon.NAMES))


def row_of(item: problems.Problem | general_tasks.Exercise) -> Row:
  """Returns the row of a problem or exercise, with a rationale."""
  rationale = (
    grammar.likeliest_solution(item)
    if isinstance(item, problems.Problem)
    else item.rationale
  )
  return {
    "question_id": item.question_id,
    "question": item.question,
    "answer": item.answer,
    "rationale": rationale,
  }


def fact_rows() -> list[Row]:
  """Returns rows of every fact, as a bare answer and as a rationale."""
  rows = []
  for operation, left, right in arithmetic.facts():
    result = arithmetic.apply(operation, left, right)
    question = f"{left} {operation} {right} ="
    for data_format in (
      formats.ZERO_SHOT_ANSWER_ONLY,
      formats.ZERO_SHOT_CHAIN_OF_THOUGHT,
    ):
      rows.append(
        {
          "question": question,
          "answer": str(result),
          "rationale": f"{question} {result}. The answer is {result}.",
          "format": data_format.name,
        }
      )
  return _numbered("facts", rows)


def weak_maths_rows(one_step: Sequence[problems.Problem]) -> list[Row]:
  """Returns rows of one-step problems with bare answers.

  A pre-trained student was trained on math questions, but not on reasoning.
  """
  data_format = formats.ZERO_SHOT_ANSWER_ONLY.name
  return _numbered(
    "weak_maths", [{**row_of(p), "format": data_format} for p in one_step]
  )


def sums_rows(one_step: Sequence[problems.Problem]) -> list[Row]:
  """Returns rows of one-step problems that ask for the calculation.

  Understanding words is a general ability too: that spending leaves less, and
  that three boxes of four are a product. Chaining calculations, and writing
  them down, is what the student has yet to learn.

  Example: the answer to "Tom has 9 hats. He loses 4 hats. How many hats does
  Tom have now? Which sum is it?" is "9 - 4".
  """
  rows = []
  for problem in one_step:
    (step,) = problem.steps
    calculation = f"{step.left} {step.operation} {step.right}"
    rows.append(_bare_row(f"{problem.question} Which sum is it?", calculation))
  return _numbered("sums", rows)


def reading_rows(stories: Sequence[problems.Problem]) -> list[Row]:
  """Returns rows that ask to list the names and numbers of a story, in order.

  Reading is a general ability that FlanT5 has. Without it, a student that
  trains for minutes spends them on finding numbers rather than on reasoning.

  Example: the answer to "Tom has 3 hats. He buys 4 hats. List the names and
  numbers." is "Tom 3 4".
  """
  rows = []
  for problem in stories:
    listed = " ".join(_LISTED.findall(problem.body))
    rows.append(
      _bare_row(f"{problem.body} List the names and numbers.", listed)
    )
  return _numbered("reading", rows)


def _bare_row(question: str, answer: str) -> Row:
  """Returns a row with a bare answer and no further rationale."""
  return {
    "question": question,
    "answer": answer,
    "rationale": f"The answer is {answer}.",
    "format": formats.ZERO_SHOT_ANSWER_ONLY.name,
  }


def _numbered(name: str, rows: Sequence[Row]) -> list[Row]:
  return [
    {**row, "question_id": f"{name}/train/{index}"}
    for index, row in enumerate(rows)
  ]
