"""The benchmarks, and the kind of answer that each expects."""

from collections.abc import Mapping

from specialize_jax import errors
from specialize_jax.cot import answers

# The answer of these is a number; BIG-Bench-Hard's tasks differ.
MATHS = ("gsm8k", "multiarith", "asdiv", "svamp")

BIG_BENCH_HARD: Mapping[str, answers.Kind] = {
  "boolean_expressions": "choice",
  "causal_judgement": "choice",
  "date_understanding": "option",
  "disambiguation_qa": "option",
  "dyck_languages": "brackets",
  "formal_fallacies": "choice",
  "geometric_shapes": "option",
  "hyperbaton": "option",
  "logical_deduction_five_objects": "option",
  "logical_deduction_seven_objects": "option",
  "logical_deduction_three_objects": "option",
  "movie_recommendation": "option",
  "multistep_arithmetic_two": "numeral",
  "navigate": "choice",
  "object_counting": "numeral",
  "penguins_in_a_table": "option",
  "reasoning_about_colored_objects": "option",
  "ruin_names": "option",
  "salient_translation_error_detection": "option",
  "snarks": "option",
  "sports_understanding": "choice",
  "temporal_sequences": "option",
  "tracking_shuffled_objects_five_objects": "option",
  "tracking_shuffled_objects_seven_objects": "option",
  "tracking_shuffled_objects_three_objects": "option",
  "web_of_lies": "choice",
  "word_sorting": "words",
}


def names() -> list[str]:
  """Returns the name of every benchmark, a value of `score --task`."""
  return [*MATHS, *(f"bbh/{task}" for task in BIG_BENCH_HARD)]


def kind(benchmark: str) -> answers.Kind:
  """Returns the kind of answer that a benchmark expects.

  Args:
    benchmark: "gsm8k", "multiarith", "asdiv", "svamp" or "bbh/TASK".

  Raises:
    UserError: the benchmark is unknown; the message suggests similar names.
  """
  if benchmark in MATHS:
    return "number"
  task = benchmark.removeprefix("bbh/")
  if benchmark.startswith("bbh/") and task in BIG_BENCH_HARD:
    return BIG_BENCH_HARD[task]
  hint = errors.did_you_mean(benchmark, names()) or "see --help."
  raise errors.UserError(
    f"task {benchmark!r} is unknown: expected {', '.join(MATHS)} or bbh/TASK "
    f"with a task of BIG-Bench-Hard; {hint}"
  )
