"""MultiArith: 600 problems of two or more steps. Out of distribution.

Example problem:

  For Halloween Debby and her sister combined the candy they received. Debby
  had 32 pieces of candy while her sister had 42. If they ate 35 pieces the
  first night, how many pieces do they have left?                       -> 39

A quarter of its distinct questions are for validation and the rest for test,
none for training. Source: Roy and Roth, "Solving General Arithmetic Word
Problems" (2015).
"""

import functools

from specialize_jax.data import benchmarks
from specialize_jax.datasets import description

BENCHMARK = description.Benchmark(
  name="multiarith",
  read=functools.partial(benchmarks.read, "multiarith"),
  read_demonstrations=benchmarks.demonstrations,
)
