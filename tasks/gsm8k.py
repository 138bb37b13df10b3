"""GSM8K: grade-school word problems with worked solutions. In distribution.

Example problem:

  Natalia sold clips to 48 of her friends in April, and then she sold half as
  many clips in May. How many clips did Natalia sell altogether in April and
  May?                                                                  -> 72

500 of the 7,473 training questions are used for validation; the 1,319 test
questions are used for test. Tasks, with FORMAT one of the four formats:

  gsm8k_teacher_FORMAT_v1  distillation; reads the TFDS dataset
                           `gsm8k_teacher` that `specialize prepare` wrote
  gsm8k_FORMAT_v1          evaluation

Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021).
"""

import functools

from specialize_jax.data import benchmarks
from specialize_jax.datasets import description, registration
from specialize_jax.tasks import asdiv, bbh, multiarith, svamp

DATASET = description.Dataset(
  name="gsm8k",
  vocabulary=description.Vocabulary(path="tokenizers/t5_spiece.model"),
  in_distribution=description.Benchmark(
    name="gsm8k",
    read=functools.partial(benchmarks.read, "gsm8k"),
    read_demonstrations=benchmarks.demonstrations,
  ),
  out_of_distribution=(
    multiarith.BENCHMARK,
    asdiv.BENCHMARK,
    svamp.BENCHMARK,
  ),
  general=bbh.BENCHMARKS,
  read_training=benchmarks.gsm8k_training,
)
registration.add(DATASET)
