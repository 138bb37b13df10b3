"""BIG-Bench-Hard: 27 tasks of general reasoning; the price of specialization.

Example problem, of `boolean_expressions`:

  not ( True ) and ( True ) is                                       -> False

Each task comes with its authors' instruction and three demonstrations, as

  bbh_TASK_in_context_chain_of_thought_v1
  bbh_TASK_in_context_answer_only_v1
  bbh_TASK_in_context_answer_only_paper_code_v1  with the prompts and grading
                                                 of the paper's code
  bbh_TASK_zero_shot_chain_of_thought_v1         the instruction alone
  bbh_TASK_zero_shot_answer_only_v1

The split `test` has all questions, as in published results; `validation` is a
fixed quarter of them, for monitoring a run but not for choosing checkpoints.
None is used for training. Source: Suzgun et al.,
"Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them"
(2022).
"""

import functools

from specialize_jax.cot import answer_rules
from specialize_jax.data import big_bench_hard
from specialize_jax.datasets import description
from specialize_jax.evaluation import benchmarks

# Each prompt's name, its rule, and whether it has demonstrations.
PROMPTS = (
  ("in_context_chain_of_thought", "chain_of_thought", True),
  ("in_context_answer_only", "answer_only", True),
  ("in_context_answer_only_paper_code", "answer_only_paper_code", True),
  ("zero_shot_chain_of_thought", "chain_of_thought", False),
  ("zero_shot_answer_only", "answer_only", False),
)


def _prompts(task: str) -> tuple[description.WrittenPrompt, ...]:
  return tuple(
    description.WrittenPrompt(
      name=name,
      source=big_bench_hard.source(task, rule, in_context=in_context),
      chain_of_thought=rule == "chain_of_thought",
      grader="paper_code" if rule.endswith("paper_code") else "fixed",
    )
    for name, rule, in_context in PROMPTS
  )


BENCHMARKS = tuple(
  description.Benchmark(
    name=f"bbh_{task}",
    read=functools.partial(big_bench_hard.read, task),
    answer=answer_rules.AnswerRule(kind=kind),
    prompts=_prompts(task),
  )
  for task, kind in benchmarks.BIG_BENCH_HARD.items()
)
