"""What only general pre-training reads: sums, bare answers, reading.

The stand-in for FlanT5 knows words, sums and how to read; it has seen maths
problems with their answers, and has yet to learn to reason in steps.
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
  """Gives an item's row as it is written."""
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
  """Gives every arithmetic fact, for its bare answer and told in full."""
  rows = []
  for operation, left, right in arithmetic.facts():
    result = arithmetic.apply(operation, left, right)
    told = f"{left} {operation} {right} ="
    for data_format in (
      formats.ZERO_SHOT_ANSWER_ONLY,
      formats.ZERO_SHOT_CHAIN_OF_THOUGHT,
    ):
      rows.append(
        {
          "question": told,
          "answer": str(result),
          "rationale": f"{told} {result}. The answer is {result}.",
          "format": data_format.name,
        }
      )
  return _numbered("facts", rows)


def weak_maths_rows(one_step: Sequence[problems.Problem]) -> list[Row]:
  """Gives one-step problems, for their bare answers alone.

  A pre-trained student has seen what maths is asked like, and has yet to
  learn to reason.
  """
  data_format = formats.ZERO_SHOT_ANSWER_ONLY.name
  return _numbered(
    "weak_maths", [{**row_of(p), "format": data_format} for p in one_step]
  )


def sums_rows(one_step: Sequence[problems.Problem]) -> list[Row]:
  """Gives one-step problems whose sum, and not its result, is asked for.

  To know what words mean is a general ability too: that who spends has less,
  and that three boxes of four are a product. Which sums to do one after
  another, and to say so, is what the student has yet to learn.

  Example: "Tom has 9 hats. He loses 4 hats. How many hats does Tom have now?
  Which sum is it?" is answered by "9 - 4".
  """
  rows = []
  for problem in one_step:
    (step,) = problem.steps
    told = f"{step.left} {step.operation} {step.right}"
    rows.append(_bare_row(f"{problem.question} Which sum is it?", told))
  return _numbered("sums", rows)


def reading_rows(told: Sequence[problems.Problem]) -> list[Row]:
  """Gives stories whose names and numbers are to be listed, in order.

  Reading is a general ability, which FlanT5 brings along: without it a
  student of minutes spends them on finding its numbers, not on reasoning.

  Example: "Tom has 3 hats. He buys 4 hats. List the names and numbers." is
  answered by "Tom 3 4".
  """
  rows = []
  for problem in told:
    listed = " ".join(_LISTED.findall(problem.body))
    rows.append(
      _bare_row(f"{problem.body} List the names and numbers.", listed)
    )
  return _numbered("reading", rows)


def _bare_row(question: str, answer: str) -> Row:
  """A row for its bare answer, whose rationale says no more than that."""
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
