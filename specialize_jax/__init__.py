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

__version__ = "0.1.0"
