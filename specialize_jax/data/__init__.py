"""Builds packed, resumable training batches from questions and teacher data.

Files are read through seqio sources, rendered and tokenized in tf.data, and
packed into batches. Everything is deterministic given a seed: global batch n is
a pure function of (seed, mixture, n), whatever the number of hosts.

Example (`examples/packed_batch.py` is complete):

  >>> from specialize_jax import data
  >>> batches = data.TrainIterator(  # doctest: +SKIP
  ...   "gsm8k_specialize_v1",
  ...   task_feature_lengths={"inputs": 2048, "targets": 384},
  ...   batch_size=128,
  ...   seed=0,
  ... )
  >>> next(batches)["decoder_teacher_top_probs"].shape  # doctest: +SKIP
  (128, 384, 5)

The public names are loaded on first use, because most of them need TensorFlow
and seqio (the extra `train`), and packing alone does not.
"""

import importlib

_MODULES = {
  "Counters": "pipeline",
  "LocatedSentencePieceVocabulary": "vocabularies",
  "Packer": "packing",
  "TableSource": "sources",
  "TeacherSource": "teacher_source",
  "TrainIterator": "pipeline",
  "add_once": "task_parts",
  "distillation": "task_parts",
  "evaluation": "task_parts",
  "pretraining": "task_parts",
  "set_data_dir": "sources",
  "tokenize": "preprocessors",
}

__all__ = [
  "Counters",
  "LocatedSentencePieceVocabulary",
  "Packer",
  "TableSource",
  "TeacherSource",
  "TrainIterator",
  "add_once",
  "distillation",
  "evaluation",
  "pretraining",
  "set_data_dir",
  "tokenize",
]


def __getattr__(name: str) -> object:
  """Loads a public name from its module (PEP 562)."""
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_MODULES})
