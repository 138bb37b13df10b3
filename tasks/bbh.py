"""BIG-Bench-Hard: 27 tasks of general reasoning; the price of specialization.

Example problem, of `boolean_expressions`:

  not ( True ) and ( True ) is                                       -> False

Each task comes with its authors' instruction and three demonstrations, as

  bbh_TASK_in_context_chain_of_thought_v1
  bbh_TASK_in_context_answer_only_v1
  bbh_TASK_in_context_answer_only_paper_code_v1  cut and graded as the
                                                 paper's code does
  bbh_TASK_zero_shot_chain_of_thought_v1         the instruction alone
  bbh_TASK_zero_shot_answer_only_v1

The split `test` has all questions, as published accuracies do; `validation`
is a fixed quarter of them, to follow the price over the steps of a run, and
nothing to choose by. Nothing is trained on. Source: Suzgun et al.,
"Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them"
(2022).
"""

from specialize_jax.data import big_bench_hard, task_parts, vocabularies
from specialize_jax.evaluation import benchmarks, metrics

# Each prompt's name, its rule, and whether it shows demonstrations.
PROMPTS = (
  ("in_context_chain_of_thought", "chain_of_thought", True),
  ("in_context_answer_only", "answer_only", True),
  ("in_context_answer_only_paper_code", "answer_only_paper_code", True),
  ("zero_shot_chain_of_thought", "chain_of_thought", False),
  ("zero_shot_answer_only", "answer_only", False),
)

for _task, _kind in benchmarks.BIG_BENCH_HARD.items():
  for _prompt, _rule, _in_context in PROMPTS:
    task_parts.add_once(
      f"bbh_{_task}_{_prompt}_v1",
      **task_parts.written_prompt(
        big_bench_hard.source(_task, _rule, in_context=_in_context),
        vocabularies.t5(),
      ),
      postprocess_fn=metrics.keep_answer,
      metric_fns=[
        metrics.Accuracy(
          kind=_kind,
          grader="paper_code" if _rule.endswith("paper_code") else "fixed",
          chain_of_thought=_rule == "chain_of_thought",
        )
      ],
    )
