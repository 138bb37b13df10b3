"""ASDiv: 2,305 problems of primary school, of 24 kinds. Out of distribution.

Example problem:

  Ellen has six more balls than Marin. Marin has nine balls. How many balls
  does Ellen have?                                                      -> 15

The 2,093 problems whose answer is a single number are used (see
`benchmarks.read_asdiv`): 500 for validation and the rest for test, none for
training. Source: Miao, Liang, Su, "A Diverse Corpus for Evaluating and
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
