"""Decoding: greedy, sampling and beam search, and scoring of given targets.

Three layers, each usable alone: rules for the next token (`strategies`), pure
loops over arrays (`loop`, `beam`, `scoring`), and `generator.Generator`, which
takes requests of token ids and returns results with texts.

Example:
  >>> from specialize_jax.decoding import requests
  >>> settings = requests.Settings(strategy="sample", temperature=0.5)
  >>> settings.rule()
  Sampling(temperature=0.5, top_k=None, top_p=1.0)
"""
