"""Decoding: greedy, sampling and beam search, and scoring of given targets.

Three layers, each usable alone: rules for the next token (`strategies`), pure
loops over arrays (`loop`, `beam`, `scoring`), and `generator.Generator`, which
takes requests of token ids and returns results with texts.

Example:
  >>> from specialize_jax.decoding import requests
  >>> settings = requests.Settings(strategy="sample", temperature=0.5)
  >>> settings.rule()
  Sampling(temperature=0.5, top_k=None, top_p=1.0)

A checkpoint of any kind decodes in five lines
(`examples/generate_from_huggingface.py`):

  checkpoint = checkpoints.open_checkpoint("flan-t5-small")
  vocabulary = decoding.open_vocabulary(checkpoint.vocabulary_path)
  model = t5.EncoderDecoder(checkpoint.config)
  texts = ["Q: What is 3 + 4?"]
  decoding.generate(model, checkpoint.params(), texts, vocabulary=vocabulary)
"""

from specialize_jax.decoding.generator import Generator as Generator
from specialize_jax.decoding.generator import generate as generate
from specialize_jax.decoding.requests import Output as Output
from specialize_jax.decoding.requests import Request as Request
from specialize_jax.decoding.requests import Result as Result
from specialize_jax.decoding.requests import Settings as Settings
from specialize_jax.decoding.vocabulary import Vocabulary as Vocabulary
from specialize_jax.decoding.vocabulary import from_file as open_vocabulary

__all__ = [
  "Generator",
  "Output",
  "Request",
  "Result",
  "Settings",
  "Vocabulary",
  "generate",
  "open_vocabulary",
]
