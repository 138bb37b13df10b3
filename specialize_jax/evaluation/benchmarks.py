"""The benchmarks that are graded, and what an answer is in each."""

import difflib
from collections.abc import Mapping

from specialize_jax import errors
from specialize_jax.cot import answers

# What a number's datasets ask for is a number; BIG-Bench-Hard's tasks differ.
MATHS = ("gsm8k", "multiarith", "asdiv", "svamp")

BIG_BENCH_HARD: Mapping[str, answers.Kind] = {
  "boolean_expressions": "exact",
  "causal_judgement": "exact",
  "date_understanding": "exact",
  "disambiguation_qa": "exact",
  "dyck_languages": "exact",
  "formal_fallacies": "exact",
  "geometric_shapes": "exact",
  "hyperbaton": "exact",
  "logical_deduction_five_objects": "exact",
  "logical_deduction_seven_objects": "exact",
  "logical_deduction_three_objects": "exact",
  "movie_recommendation": "exact",
  "multistep_arithmetic_two": "number",
  "navigate": "exact",
  "object_counting": "number",
  "penguins_in_a_table": "exact",
  "reasoning_about_colored_objects": "exact",
  "ruin_names": "exact",
  "salient_translation_error_detection": "exact",
  "snarks": "exact",
  "sports_understanding": "exact",
  "temporal_sequences": "exact",
  "tracking_shuffled_objects_five_objects": "exact",
  "tracking_shuffled_objects_seven_objects": "exact",
  "tracking_shuffled_objects_three_objects": "exact",
  "web_of_lies": "exact",
  "word_sorting": "exact",
}


def names() -> list[str]:
  """Gives every benchmark's name, as `specialize score --task` takes it."""
  return [*MATHS, *(f"bbh/{task}" for task in BIG_BENCH_HARD)]


def kind(benchmark: str) -> answers.Kind:
  """Gives what an answer is in a benchmark.

  Args:
    benchmark: "gsm8k", "multiarith", "asdiv", "svamp" or "bbh/TASK".

  Raises:
    UserError: there is no such benchmark; near names are given.
  """
  if benchmark in MATHS:
    return "number"
  task = benchmark.removeprefix("bbh/")
  if benchmark.startswith("bbh/") and task in BIG_BENCH_HARD:
    return BIG_BENCH_HARD[task]
  near = difflib.get_close_matches(benchmark, names(), n=3, cutoff=0.5)
  hint = f"did you mean {' or '.join(near)}?" if near else "see --help."
  raise errors.UserError(
    f"task {benchmark!r} is unknown: expected {', '.join(MATHS)} or bbh/TASK "
    f"with a task of BIG-Bench-Hard; {hint}"
  )
