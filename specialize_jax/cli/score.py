"""`specialize score`: grades the predictions of any system."""

from __future__ import annotations

import argparse
import json
import sys
import typing
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cli import parsers, registered_tasks
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from specialize_jax.cot import answer_rules

_EXAMPLE = """example:
  echo '{"prediction": "So the answer is 1,200.", "target": "1200"}' \\
    > predictions.jsonl
  specialize score --task=gsm8k --inputs=predictions.jsonl \\
    --output=graded.jsonl
"""


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize score",
    description='Grades a JSONL file of {"prediction", "target"} rows, or what '
    "`specialize generate`, `specialize eval` or `lm_eval --log_samples` "
    "wrote. "
    'Output rows add "extracted", "correct" and "verdicts", those of both '
    'graders; the last line printed is JSON with "accuracy", "n", its 95 % '
    'Wilson interval "low", "high", and the accuracy by each grader.',
    epilog=_EXAMPLE,
  )
  parser.add_argument(
    "--task",
    metavar="TASK",
    help="gsm8k, multiarith, asdiv, svamp, or bbh/TASK with the name of one "
    "of the 27 BIG-Bench-Hard tasks: selects the rule for answers; with "
    "--dataset, the name of one of its sets that has its own rule (default: "
    "the dataset's rule)",
  )
  registered_tasks.add_dataset_flag(parser)
  parser.add_argument(
    "--grader",
    default="fixed",
    choices=("fixed", "paper_code"),
    help="our grader, or that of the paper's released code with its faults "
    "(default: fixed)",
  )
  parser.add_argument(
    "--prompt",
    default="unknown",
    choices=("chain_of_thought", "answer_only", "unknown"),
    help="what the prompts asked for; only --grader=paper_code for bbh/TASK "
    "depends on it (default: unknown, inferred from each text)",
  )
  parser.add_argument(
    "--inputs",
    required=True,
    metavar="FILE.jsonl",
    help='rows with "prediction", "output" or "resps", and "target" or '
    '"answer"; other fields are kept',
  )
  parser.add_argument(
    "--output",
    required=True,
    metavar="FILE.jsonl",
    help="the graded rows, written atomically",
  )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Grades a file."""
  flags = build_parser().parse_args(argv)
  paths.check_flags(
    flags,
    {
      "dataset": registered_tasks.DATASET_FILE,
      "inputs": paths.INPUT_FILE,
      "output": paths.OUTPUT_FILE,
    },
  )

  from specialize_jax.files import locks

  with locks.file(flags.output, "--output"):
    return _score(flags)


def _score(flags: argparse.Namespace) -> int:
  from specialize_jax.evaluation import metrics, row_fields
  from specialize_jax.files import reading, writing

  metric = metrics.Accuracy(
    rule=_rule(flags),
    grader=flags.grader,
    chain_of_thought={"chain_of_thought": True, "answer_only": False}.get(
      flags.prompt
    ),
  )
  rows = reading.read_rows(flags.inputs)
  if not rows:
    raise errors.UserError(
      f"--inputs={flags.inputs} has no rows: expected at least one object "
      'with "prediction" and "target".'
    )
  graded, unreadable = [], []
  kept, num_repeated = _each_output_once(rows)
  if num_repeated:
    print(
      f"specialize score: left out {num_repeated:,} rows that repeat an output "
      "under another filter of lm-evaluation-harness",
      file=sys.stderr,
    )
  for number, row in kept:
    where = f"--inputs={flags.inputs}, row {number}"
    prediction = row_fields.prediction_of(row, where)
    target = row_fields.target_of(row, where, metric.rule.written)
    verdict = metric.grade(prediction, target)
    graded.append(
      {
        **row,
        "extracted": verdict.extracted,
        "correct": verdict.correct,
        "verdicts": metric.verdicts(prediction, target),
      }
    )
    if not verdict.correct and not _has_answer(target, metric.rule):
      unreadable.append(f"row {number} has {target[:40]!r}")
  if len(unreadable) == len(graded):
    raise errors.UserError(
      f"--inputs={flags.inputs}: no target is a number ({unreadable[0]}), so"
      " that no prediction could be right: give the --task that they are of, or"
      ' call the gold answer "target"'
    )
  if unreadable:
    print(
      f"specialize score: {len(unreadable):,} of {len(graded):,} targets are no"
      f" numbers ({unreadable[0]}): their predictions count as wrong",
      file=sys.stderr,
    )
  writing.write_rows(flags.output, graded)
  summary = {
    **metrics.summarize([row["correct"] for row in graded]),
    **metrics.by_grader([row["verdicts"] for row in graded]),
  }
  print(json.dumps(summary), file=paths.beside(flags.output))
  return 0


def _has_answer(target: str, rule: answer_rules.AnswerRule) -> bool:
  """Returns whether a target has a number, if that is what answers are."""
  from specialize_jax.cot import answer_rules

  is_number = rule.kind in ("number", "numeral", answer_rules.COMMA)
  return not is_number or rule.finds(target, target)


def _rule(flags: argparse.Namespace) -> answer_rules.AnswerRule:
  """Returns the rule for answers.

  Raises:
    UserError: neither a task nor a dataset has one, or there is no such task.
  """
  from specialize_jax.cot import answer_rules
  from specialize_jax.evaluation import benchmarks

  own = registered_tasks.load_dataset(flags.dataset, flags.imports)
  if own is None:
    if flags.task is None:
      raise errors.UserError(
        "--task=TASK or --dataset=FILE.yaml is missing: it selects the rule for"
        " answers"
      )
    return answer_rules.AnswerRule(kind=benchmarks.kind(flags.task))
  dataset = own.dataset
  rules = {dataset.name: dataset.in_distribution.answer}
  for one in dataset.benchmarks[1:]:
    rules[one.name] = one.answer
    rules[one.name.removeprefix(f"{dataset.name}_")] = one.answer
  name = dataset.name if flags.task is None else flags.task
  if name not in rules:
    raise errors.UserError(
      f"--task={name}: --dataset={flags.dataset} has no such set: expected one"
      f" of {', '.join(rules)}, or no --task for the dataset's own rule"
    )
  return rules[name]


def _each_output_once(
  rows: Sequence[Mapping[str, object]],
) -> tuple[list[tuple[int, Mapping[str, object]]], int]:
  """Numbers rows, leaving out what lm-evaluation-harness writes again.

  It writes a row for each of a task's filters, which differ in
  "filtered_resps" alone; counted twice, n and the interval would be wrong.

  Raises:
    UserError: a row has several responses, of which each filter makes another
      prediction.
  """
  from specialize_jax.evaluation import row_fields

  kept, seen = [], {}
  for number, row in enumerate(rows, start=1):
    if {"doc_id", "filter", "resps"} <= row.keys():
      # Files of several tasks, joined, have the same numbers of documents.
      which = ("doc_id", "resps", "target", "doc", "doc_hash", "prompt_hash")
      output = json.dumps([row.get(name) for name in which])
      first = seen.setdefault(output, row)
      if first["filter"] != row["filter"]:
        row_fields.check_same_prediction(first, row, f"row {number}")
        continue
    kept.append((number, row))
  return kept, len(rows) - len(kept)
