"""Determines which of the requested samples a store contains."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.records import schema
from specialize_jax.teacher import limits

USAGE = "usage"
"""The field of a record's request with the usage of the sample."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A question for the teacher.

  Attributes:
    question_id: Its unique name within the store.
    question: Its text.
    answer: The bare gold answer.
  """

  question_id: str | int
  question: str
  answer: str


@dataclasses.dataclass(kw_only=True)
class Standing:
  """The state of a store.

  Attributes:
    total: The number of requested samples.
    done: The number of these in the store.
    right: The number of stored samples that are correct by the `fixed` grader.
    unfinished: The number of stored samples that are truncated, according to
      `schema.why_unfinished`.
    spent: The usage of the whole store.
    missing: The numbers of the missing samples of each incomplete problem.
  """

  total: int
  done: int
  right: int
  unfinished: int
  spent: limits.Usage
  missing: Sequence[tuple[Problem, list[int]]]


def read(
  heads: Iterable[schema.RecordHead],
  problems: Sequence[Problem],
  *,
  num_samples: int,
  settings: Mapping[str, object],
) -> Standing:
  """Compares a store with the requested samples.

  Args:
    heads: The store's records.
    problems: The questions, with distinct ids.
    num_samples: The number of requested samples of each question.
    settings: The parameters that the `request` of each record must have.

  Raises:
    UserError: the store was sampled with other parameters, has another question
      or answer with the same id, or contains a sample twice.
  """
  by_id = {problem.question_id: problem for problem in problems}
  seen: dict[str | int, set[int]] = {key: set() for key in by_id}
  spent, done, right, unfinished = limits.Usage(), 0, 0, 0
  for head in heads:
    problem = by_id.get(head.question_id)
    _check(head, problem, settings)
    spent += usage_of(head)
    if problem is None or head.sample >= num_samples:
      continue
    if head.sample in seen[head.question_id]:
      raise errors.UserError(
        f"the store holds sample {head.sample} of question"
        f" {head.question_id!r} twice; delete one of the two lines"
      )
    seen[head.question_id].add(head.sample)
    done += 1
    right += bool(head.verdicts.get("fixed"))
    unfinished += schema.why_unfinished(head, num_steps=0) is not None
  wanted = range(num_samples)
  missing = [
    (problem, [n for n in wanted if n not in seen[problem.question_id]])
    for problem in problems
    if len(seen[problem.question_id]) < num_samples
  ]
  return Standing(
    total=num_samples * len(problems),
    done=done,
    right=right,
    unfinished=unfinished,
    spent=spent,
    missing=missing,
  )


def usage_of(head: schema.RecordHead) -> limits.Usage:
  """Returns the usage of a stored sample, zero if it is not recorded."""
  usage = head.request.get(USAGE)
  usage = usage if isinstance(usage, dict) else {}
  return limits.Usage(
    samples=1,
    prompt_tokens=int(usage.get("prompt_tokens", 0)),
    completion_tokens=int(usage.get("completion_tokens", 0)),
  )


def _check(
  head: schema.RecordHead,
  problem: Problem | None,
  settings: Mapping[str, object],
) -> None:
  stored = {k: v for k, v in head.request.items() if k != USAGE}
  for name in sorted({*stored, *settings}):
    if stored.get(name) != settings.get(name):
      raise errors.UserError(
        f"the store was sampled with {name}={stored.get(name)!r}, and now"
        f" {name}={settings.get(name)!r} is asked for; give the same again, or"
        " another --output"
      )
  if problem is not None and head.question != problem.question:
    raise errors.UserError(
      f"question {head.question_id!r} is {head.question[:60]!r} in the store"
      f" and {problem.question[:60]!r} in the questions; give the file that"
      " the store was sampled for, or another --output"
    )
  if problem is not None and head.gold_answer != problem.answer:
    raise errors.UserError(
      f"the answer to question {head.question_id!r} is"
      f" {head.gold_answer[:60]!r} in the store and {problem.answer[:60]!r} in"
      " the questions; give the file that the store was sampled for, or another"
      " --output"
    )


def grade(
  text: str,
  gold_answer: str,
  rule: answer_rules.AnswerRule = answer_rules.NUMBER,
) -> dict[str, bool]:
  """Returns the verdict of each grader that supports a rule.

  The verdicts of a record are informational: `specialize prepare` grades the
  text again.

  Args:
    text: The model's text.
    gold_answer: The bare gold answer.
    rule: The rule by which answers are extracted and compared.
  """
  return {
    grader: rule.grade(text, gold_answer, grader=grader).correct
    for grader in rule.graders
  }
