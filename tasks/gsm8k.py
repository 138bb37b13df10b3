"""GSM8K: grade-school word problems with worked solutions. In distribution.

Example problem:

  Natalia sold clips to 48 of her friends in April, and then she sold half as
  many clips in May. How many clips did Natalia sell altogether in April and
  May?                                                                  -> 72

500 of the 7,473 training questions are validation; the 1,319 test questions
are test. Tasks, with FORMAT one of the four formats:

  gsm8k_teacher_FORMAT_v1  distillation; reads the TFDS dataset
                           `gsm8k_teacher` that `specialize prepare` wrote
  gsm8k_FORMAT_v1          evaluation

Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021).
"""

from specialize_jax.cot import formats
from specialize_jax.data import (
  benchmarks,
  task_parts,
  teacher_source,
  vocabularies,
)
from specialize_jax.evaluation import metrics

for _format in formats.FORMATS:
  task_parts.add_once(
    f"gsm8k_{_format.name}_v1",
    **task_parts.evaluation(
      benchmarks.evaluation_source("gsm8k"),
      vocabularies.t5(),
      data_format=_format,
      read_demonstrations=benchmarks.demonstrations,
    ),
    postprocess_fn=metrics.keep_answer,
    metric_fns=[metrics.number_accuracy],
  )
  task_parts.add_once(
    f"gsm8k_teacher_{_format.name}_v1",
    **task_parts.distillation(
      teacher_source.TeacherSource(
        "gsm8k_teacher",
        vocabularies.t5(),
        one_per_question=not _format.chain_of_thought,
        salt=_format.name,
      ),
      vocabularies.t5(),
      data_format=_format,
      read_demonstrations=benchmarks.demonstrations,
    ),
  )
