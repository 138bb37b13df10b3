"""MultiArith: 600 problems of two or more steps. Out of distribution.

Example problem:

  For Halloween Debby and her sister combined the candy they received. Debby
  had 32 pieces of candy while her sister had 42. If they ate 35 pieces the
  first night, how many pieces do they have left?                       -> 39

A quarter of its different questions is validation, the rest test; nothing is
trained on. Source: Roy and Roth, "Solving General Arithmetic Word Problems"
(2015).
"""

from specialize_jax.cot import formats
from specialize_jax.data import benchmarks, task_parts, vocabularies
from specialize_jax.evaluation import metrics

for _format in formats.FORMATS:
  task_parts.add_once(
    f"multiarith_{_format.name}_v1",
    **task_parts.evaluation(
      benchmarks.evaluation_source("multiarith"),
      vocabularies.t5(),
      data_format=_format,
      read_demonstrations=benchmarks.demonstrations,
    ),
    postprocess_fn=metrics.keep_answer,
    metric_fns=[metrics.number_accuracy],
  )
