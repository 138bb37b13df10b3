"""BIG-Bench-Hard: 27 tasks of general reasoning; the price of specialization.

Example problem, of `boolean_expressions`:

  not ( True ) and ( True ) is                                       -> False

Each task comes with its authors' prompt of three demonstrations, as

  bbh_TASK_in_context_chain_of_thought_v1
  bbh_TASK_in_context_answer_only_v1

with the one split `test`; nothing is trained on. Source: Suzgun et al.,
"Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them"
(2022).
"""

from specialize_jax.cot import formats
from specialize_jax.data import big_bench_hard, task_parts, vocabularies
from specialize_jax.evaluation import benchmarks, metrics

FORMATS = (formats.IN_CONTEXT_CHAIN_OF_THOUGHT, formats.IN_CONTEXT_ANSWER_ONLY)

for _task, _kind in benchmarks.BIG_BENCH_HARD.items():
  for _format in FORMATS:
    task_parts.add_once(
      f"bbh_{_task}_{_format.name}_v1",
      **task_parts.written_prompt(
        big_bench_hard.source(_task, chain_of_thought=_format.chain_of_thought),
        vocabularies.t5(),
      ),
      postprocess_fn=metrics.keep_answer,
      metric_fns=[metrics.Accuracy(kind=_kind)],
    )
