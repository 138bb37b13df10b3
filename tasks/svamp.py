"""SVAMP: 1,000 variations of simple problems. Out of distribution.

Example problem:

  Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on
  each pack, how much do you have to pay to buy each pack?              -> 51

500 are for validation and 500 for test, none for training. Source: Patel,
Bhattamishra, Goyal, "Are NLP Models really able to Solve Simple Math Word
Problems?" (2021).
"""

import functools

from specialize_jax.data import benchmarks
from specialize_jax.datasets import description

BENCHMARK = description.Benchmark(
  name="svamp",
  read=functools.partial(benchmarks.read, "svamp"),
  read_demonstrations=benchmarks.demonstrations,
)
