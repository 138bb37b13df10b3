"""A SentencePiece vocabulary of a few dozen pieces, trained on the spot."""

import functools
import io

import sentencepiece

from specialize_jax.decoding import vocabulary

_TEXTS = ("ab cd 12 + 3 = 15", "ba dc 4 / 2 = 2, 1.5 x 8 = 12", "0 6 7 9 (a)")


@functools.cache
def model():
  """Returns what a `.model` file holds, laid out as T5's."""
  return train(_TEXTS * 9, vocab_size=48)


def train(texts, vocab_size=200, **options):
  """Trains a vocabulary of one's own text."""
  model = io.BytesIO()
  special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=model,
    vocab_size=vocab_size,
    hard_vocab_limit=False,
    character_coverage=1.0,
    minloglevel=2,
    num_threads=1,
    **{**special, **options},
  )
  return model.getvalue()


@functools.cache
def load():
  """Returns the vocabulary."""
  return vocabulary.SentencePiece(model())
