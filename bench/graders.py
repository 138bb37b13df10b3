"""Compares the `fixed` grader with the verdicts of others.

  git clone https://github.com/openai/grade-school-math
  git clone https://github.com/suzgunmirac/BIG-Bench-Hard
  python bench/graders.py --grade_school_math=grade-school-math \
    --big_bench_hard=BIG-Bench-Hard --output=graders.json

The first has the solutions of four models to GSM8K's 1,319 test questions,
each with its authors' verdict; the second what code-davinci-002 said to the 27
tasks of BIG-Bench-Hard, with and without a chain of thought, and the accuracy
that its authors found for each. Prints every verdict that differs, the
accuracies beside the known ones, and JSON; the status is 1 if a verdict
differs or an accuracy is more than half a point away.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

from specialize_jax.cot import answers
from specialize_jax.evaluation import benchmarks

_SOLUTIONS = "grade_school_math/data/example_model_solutions.jsonl"
_OUTPUTS = "code-davinci-002-outputs"
_MARGIN = 0.5  # points


def main(argv: Sequence[str] | None = None) -> int:
  """Grades whichever is given, and prints what differs."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--grade_school_math", type=pathlib.Path)
  parser.add_argument("--big_bench_hard", type=pathlib.Path)
  parser.add_argument("--output", type=pathlib.Path)
  flags = parser.parse_args(argv)
  if not flags.grade_school_math and not flags.big_bench_hard:
    parser.error("give --grade_school_math, --big_bench_hard, or both")
  results = {}
  if flags.grade_school_math:
    results["gsm8k"] = grade_gsm8k(flags.grade_school_math / _SOLUTIONS)
  if flags.big_bench_hard:
    results["bbh"] = grade_bbh(flags.big_bench_hard / _OUTPUTS)
  text = json.dumps(results, indent=2)
  print(text)
  if flags.output:
    flags.output.write_text(text + "\n", encoding="utf-8")
  return int(
    results.get("gsm8k", {}).get("differing", 0) > 0
    or results.get("bbh", {}).get("largest_difference", 0.0) > _MARGIN
  )


def grade_gsm8k(path: pathlib.Path) -> Mapping[str, int]:
  """Counts verdicts, and those that differ, which it prints."""
  graded = differing = 0
  for line in path.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    for model, solved in row.items():
      if not isinstance(solved, dict):
        continue
      graded += 1
      verdict = answers.grade(solved["solution"], row["ground_truth"])
      if verdict.correct != solved["is_correct"]:
        differing += 1
        print(
          f"{model} {row['question'][:60]!r}: {verdict.extracted!r} of"
          f" {solved['solution'][-80:]!r}; theirs {solved['is_correct']}",
          file=sys.stderr,
        )
  return {"graded": graded, "differing": differing}


def grade_bbh(outputs: pathlib.Path) -> Mapping[str, object]:
  """Returns each task's accuracies beside the published ones."""
  tasks = {
    f"{task}/{prompt}": {"n": n, "accuracy": accuracy, "known": known}
    for task, prompt, n, accuracy, known in _bbh_accuracies(outputs)
  }
  differences = [abs(row["accuracy"] - row["known"]) for row in tasks.values()]
  return {
    "tasks": tasks,
    "accuracies": len(tasks),
    "largest_difference": max(differences),
  }


def _bbh_accuracies(
  outputs: pathlib.Path,
) -> Iterator[tuple[str, str, int, float, float]]:
  for prompt in ("cot", "direct"):
    folder = outputs / f"code-davinci-002-{prompt}"
    for task, kind in benchmarks.BIG_BENCH_HARD.items():
      (said_path,) = folder.glob(f"{task}_few_shot_template_*000.json")
      metrics_path = said_path.with_name(f"{said_path.stem}_eval_metrics.jsonl")
      known = json.loads(metrics_path.read_text(encoding="utf-8"))["accuracy"]
      said = json.loads(said_path.read_text(encoding="utf-8"))["outputs"]
      correct = sum(
        answers.grade(one["prediction"], one["target"], kind=kind).correct
        for one in said
      )
      yield task, prompt, len(said), 100 * correct / len(said), known


if __name__ == "__main__":
  sys.exit(main())
