"""SVAMP: 1,000 problems that vary one another. Out of distribution.

Example problem:

  Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on
  each pack, how much do you have to pay to buy each pack?              -> 51

500 are validation and 500 test; nothing is trained on. Source: Patel,
Bhattamishra, Goyal, "Are NLP Models really able to Solve Simple Math Word
Problems?" (2021).
"""

from specialize_jax.cot import formats
from specialize_jax.data import benchmarks, task_parts, vocabularies
from specialize_jax.evaluation import metrics

for _format in formats.FORMATS:
  task_parts.add_once(
    f"svamp_{_format.name}_v1",
    **task_parts.evaluation(
      benchmarks.evaluation_source("svamp"),
      vocabularies.t5(),
      data_format=_format,
      read_demonstrations=benchmarks.demonstrations,
    ),
    postprocess_fn=metrics.keep_answer,
    metric_fns=[metrics.number_accuracy],
  )
