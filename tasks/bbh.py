"""BIG-Bench-Hard: 27 tasks of general reasoning; the price of specialization.

Example problem, of `boolean_expressions`:

  not ( True ) and ( True ) is                                       -> False

Each task comes with its authors' prompt of three demonstrations, as

  bbh_TASK_in_context_chain_of_thought_v1
  bbh_TASK_in_context_answer_only_v1
  bbh_TASK_in_context_answer_only_paper_code_v1  cut and graded as the
                                                 paper's code does

with the one split `test`; nothing is trained on. Source: Suzgun et al.,
"Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them"
(2022).
"""

from typing import get_args

from specialize_jax.data import big_bench_hard, task_parts, vocabularies
from specialize_jax.evaluation import benchmarks, metrics

RULES = get_args(big_bench_hard.Rule)

for _task, _kind in benchmarks.BIG_BENCH_HARD.items():
  for _rule in RULES:
    _grader = "paper_code" if _rule.endswith("paper_code") else "fixed"
    task_parts.add_once(
      f"bbh_{_task}_in_context_{_rule}_v1",
      **task_parts.written_prompt(
        big_bench_hard.source(_task, _rule), vocabularies.t5()
      ),
      postprocess_fn=metrics.keep_answer,
      metric_fns=[metrics.Accuracy(kind=_kind, grader=_grader)],
    )
