"""Specializes T5 and FlanT5 to multi-step reasoning, on TPU pods, in JAX.

Model specialization (Fu, Peng, Ou, Sabharwal, Khot: *Specializing Smaller
Language Models towards Multi-Step Reasoning*, ICML 2023, arXiv 2301.12726)
distills a large teacher's chains of thought into a small encoder-decoder
model, which gives up general ability for multi-step mathematical reasoning.

Shape suffixes. In `t5/`, `losses/`, `decoding/` and `align/` the name of an
array ends with one letter for each dimension, as in `logits_BTV`:

  B batch            D embed           C teacher candidates
  S source length    F mlp             N samples
  T target length    H heads           W beam width
  V vocabulary       K kv (head size)  L layers
"""

import os
import sys

# `python -m specialize_jax...` looks for every module in the working directory
# first, and so does an empty entry of PYTHONPATH: a stranger's folder with a
# `jax.py` would run it. While Python looks for the module of `-m`,
# `sys.argv[0]` is "-m". A user's own modules are found by `cli.own_modules`.
if sys.argv[:1] == ["-m"] and sys.path[:1] == [os.getcwd()]:
  del sys.path[0]
if sys.argv and os.path.basename(sys.argv[0]) in ("-m", "specialize"):
  sys.path.sort(key=lambda place: place in ("", os.getcwd()))

__version__ = "0.1.0"
