"""ASDiv: 2,305 problems of primary school, of 24 kinds. Out of distribution.

Example problem:

  Ellen has six more balls than Marin. Marin has nine balls. How many balls
  does Ellen have?                                                      -> 15

Of the problems 2,093 have one number as their answer and are kept (see
`benchmarks.read_asdiv`): 500 for validation, the rest for test; nothing is
trained on. Source: Miao, Liang, Su, "A Diverse Corpus for Evaluating and
Developing English Math Word Problem Solvers" (2020).
"""

import functools

from specialize_jax.data import benchmarks
from specialize_jax.datasets import description

BENCHMARK = description.Benchmark(
  name="asdiv",
  read=functools.partial(benchmarks.read, "asdiv"),
  read_demonstrations=benchmarks.demonstrations,
)
