"""ASDiv: 2,305 problems of primary school, of 24 kinds. Out of distribution.

Example problem:

  Ellen has six more balls than Marin. Marin has nine balls. How many balls
  does Ellen have?                                                      -> 15

Of the problems 2,093 have one number as their answer and are kept (see
`benchmarks.read_asdiv`): 500 for validation, the rest for test; nothing is
trained on. Source: Miao, Liang, Su, "A Diverse Corpus for Evaluating and
Developing English Math Word Problem Solvers" (2020).
"""

from specialize_jax.cot import formats
from specialize_jax.data import benchmarks, task_parts, vocabularies
from specialize_jax.evaluation import metrics

for _format in formats.FORMATS:
  task_parts.add_once(
    f"asdiv_{_format.name}_v1",
    **task_parts.evaluation(
      benchmarks.evaluation_source("asdiv"),
      vocabularies.t5(),
      data_format=_format,
      read_demonstrations=benchmarks.demonstrations,
    ),
    postprocess_fn=metrics.keep_answer,
    metric_fns=[metrics.number_accuracy],
  )
